"""Names for strategies and refinements: registered by decorator, found by name, open to other packages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from snn_lowlat.errors import unknown_name

__all__ = ["Registry"]

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


class Registry(Generic[T]):
    """The classes of one kind, by name.

    Parameters
    ----------
    kind : str
        What they are, for messages: ``"strategy"``.
    base : type
        The class they all derive from: a frozen dataclass with the options as fields and a class attribute ``name``.
    group : str
        The entry-point group in which other packages name theirs; it is read on the first look-up.
    """

    def __init__(self, kind: str, base: type[T], group: str) -> None:
        self.kind = kind
        self.base = base
        self.group = group
        self._classes: dict[str, type[T]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that registers under ``name``; a taken name is refused with ``ValueError``."""

        def decorate(cls: type[T]) -> type[T]:
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise TypeError(f"{self.kind} {name!r}: {cls!r} must be a class derived from {self.base.__name__}.")
            known = self._classes.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"the {self.kind} {name!r} is registered already, by {known.__module__}.{known.__qualname__}: "
                    "choose another name."
                )
            cls.name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            return cls

        return decorate

    def names(self, pattern: str = "*") -> list[str]:
        """Return the registered names that match a shell-style pattern, sorted."""
        self._discover()
        return sorted(name for name in self._classes if fnmatchcase(name, pattern))

    def make(self, name: str | T, **options: Any) -> T:
        """Return a configured object: made by name from options, or passed through when it is one already.

        Raises
        ------
        ValueError
            If the name or an option does not exist, or options come with a configured object.
        TypeError
            If ``name`` is neither a name nor such an object.
        """
        if isinstance(name, self.base):
            if options:
                raise ValueError(
                    f"options ({', '.join(options)}) go with the name of a {self.kind}; this {type(name).__name__} is "
                    "configured already."
                )
            return name
        if not isinstance(name, str):
            raise TypeError(f"a {self.kind} is given by name or as a {self.base.__name__} object, not {name!r}.")
        self._discover()
        if name not in self._classes:
            raise unknown_name(self.kind, name, self._classes)
        cls = self._classes[name]
        known = {field.name for field in fields(cls) if field.init}  # type: ignore[arg-type]
        for option in options:
            if option not in known:
                raise unknown_name(f"option of the {self.kind} {name!r}", option, known)
        return cls(**options)

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        for entry in entry_points(group=self.group):
            try:
                loaded = entry.load()
                if isinstance(loaded, type) and issubclass(loaded, self.base):
                    self.register(entry.name)(loaded)
            except Exception as error:
                # Another package's fault must not take this one down.
                package = entry.dist.name if entry.dist else "an unknown package"
                _LOGGER.warning("%s %r of %s can't be loaded: %s", self.kind, entry.name, package, error)
