"""Names for strategies and refinements: registered by decorator, found by name, open to other packages."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from importlib import metadata
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from snn_lowlat.errors import unknown_name

__all__ = ["Option", "Registered", "Registry"]

Option: TypeAlias = str | float | int | bool | Tensor | dict[str, Tensor] | None
"""An option as it is saved: only types that ``torch.load(weights_only=True)`` reads."""


@dataclasses.dataclass(frozen=True, eq=False)
class Registered(ABC):  # noqa: B024 - kinds of registered classes add the abstract methods
    """What can be made by name: a frozen dataclass whose fields are its options, checked in ``__post_init__``."""

    name: ClassVar[str] = ""
    """The registered name, set by the registry's decorator."""

    def options(self) -> dict[str, Option]:
        """Return the options as plain values, from which an equal object can be made by name."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self) if field.init}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _same(self.options(), other.options())

    def __hash__(self) -> int:
        return hash(type(self))


AnyRegistered = TypeVar("AnyRegistered", bound=Registered)
AnyClass = TypeVar("AnyClass", bound=type[Registered])


class Registry(Generic[AnyRegistered]):
    """The classes of one kind, by name.

    Parameters
    ----------
    kind : str
        What they are, for messages: ``"strategy"``.
    base : type
        The class they all derive from.
    group : str
        The entry-point group in which other packages name theirs, each a class or a module that registers it; it is
        read on the first look-up.
    """

    def __init__(self, kind: str, base: type[AnyRegistered], group: str) -> None:
        self.kind = kind
        self.base = base
        self.group = group
        self._classes: dict[str, type[AnyRegistered]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[AnyClass], AnyClass]:
        """Return a class decorator that makes a class known by a name; it goes above ``@dataclass``.

        Raises
        ------
        ValueError
            If another class has that name.
        TypeError
            If the class does not derive from the base, or is no dataclass of its own.
        """

        def decorate(cls: AnyClass) -> AnyClass:
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise TypeError(f"{self.kind} {name!r} must be a subclass of {self.base.__name__}, not {cls!r}.")
            if "__dataclass_fields__" not in cls.__dict__:
                raise TypeError(
                    f"{self.kind} {name!r}: put @dataclass(frozen=True, eq=False) between the registration and class."
                )
            known = self._classes.get(name)
            if known is not None and known is not cls:
                raise ValueError(
                    f"a {self.kind} {name!r} is already registered: {known.__module__}.{known.__qualname__}."
                )
            cls.name = name
            self._classes[name] = cls  # type: ignore[assignment]
            return cls  # type: ignore[return-value]

        return decorate

    def names(self, pattern: str = "*") -> list[str]:
        """Return the registered names that match a pattern with the wildcards ``*``, ``?`` and ``[...]``, sorted."""
        return sorted(name for name in self._known() if fnmatchcase(name, pattern))

    def make(self, given: str | AnyRegistered, **options: Any) -> AnyRegistered:
        """Return a configured object: made by name from options, or the given one with options replaced.

        Raises
        ------
        ValueError
            If there is no such name or option; the message names those there are.
        TypeError
            If ``given`` is neither a name nor such an object.
        """
        if isinstance(given, self.base):
            self._check_options(type(given), given.name or type(given).__name__, options)
            return dataclasses.replace(given, **options) if options else given
        if not isinstance(given, str):
            kind: object = given
            advice = f": make one, {kind.__name__}()" if isinstance(kind, type) else ""
            raise TypeError(
                f"a {self.kind} is given by its name or as a {self.base.__name__} object, not as {given!r}{advice}."
            )
        known = self._known()
        if given not in known:
            raise unknown_name(self.kind, given, known)
        self._check_options(known[given], given, options)
        return known[given](**options)

    def _check_options(self, cls: type[AnyRegistered], name: str, options: dict[str, Any]) -> None:
        fields = [field.name for field in dataclasses.fields(cls) if field.init]
        for option in options:
            if option not in fields:
                raise unknown_name(f"option of {self.kind} {name!r}:", option, fields)

    def _known(self) -> dict[str, type[AnyRegistered]]:
        if not self._discovered:
            # Set first: a module that is imported here may itself look names up.
            self._discovered = True
            for entry_point in metadata.entry_points(group=self.group):
                self._load(entry_point)
        return self._classes

    def _load(self, entry_point: metadata.EntryPoint) -> None:
        try:
            found = entry_point.load()
            if isinstance(found, type) and found not in self._classes.values():
                self.register(entry_point.name)(found)
        except Exception as error:  # another package's fault must not stop the use of all others
            distribution = getattr(entry_point, "dist", None)
            owner = f"the distribution {distribution.name!r}" if distribution is not None else "an unknown distribution"
            warnings.warn(
                f"the {self.kind} {entry_point.name!r} of {owner} can't be loaded from {entry_point.value!r}: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=5,
            )


def _plain(value: object) -> Option:
    if isinstance(value, Mapping):
        return {str(key): torch.as_tensor(item).detach().cpu().clone() for key, item in value.items()}
    # Numbers of NumPy's could not be read from a file without running code.
    return value.item() if isinstance(value, np.generic) else value  # type: ignore[return-value]


def _same(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    return type(first) is type(second) and first == second
