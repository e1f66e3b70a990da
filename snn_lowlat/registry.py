"""Names for strategies, refinements, neurons and hosts: found by name, and open to other packages."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import import_module, metadata
from types import ModuleType
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from snn_lowlat.errors import unknown_name

__all__ = ["Catalogue", "Option", "Registered", "Registry"]

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


Entry = TypeVar("Entry")
AnyRegistered = TypeVar("AnyRegistered", bound=Registered)
AnyClass = TypeVar("AnyClass", bound=type[Registered])


class Catalogue(Mapping[str, Entry]):
    """Things of one kind by their names, this package's own and those that other packages bring.

    Parameters
    ----------
    kind : str
        What they are, for messages: ``"neuron"``.
    group : str
        The entry-point group in which other packages name theirs; it is read on the first look-up.
    own : mapping of str to str, optional
        This package's own, each as ``"module"`` or ``"module:attribute"``, imported when it is first looked up.
    modules : bool
        Whether modules are entries; otherwise a module that an entry point names has added what it brings.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, str] | None = None, *, modules: bool = False) -> None:
        self.kind = kind
        self.group = group
        self.modules = modules
        self._entries: dict[str, Entry] = {}
        self._own = dict(own or {})
        self._discovered = False

    def add(self, name: str, entry: Entry) -> Entry:
        """Make something known by a name, and return it.

        Raises
        ------
        ValueError
            If something else has that name.
        """
        known = self._entries.get(name)
        if (known is not None and known is not entry) or name in self._own:
            raise ValueError(f"a {self.kind} {name!r} is already registered: {self._own.get(name) or _place(known)}.")
        self._entries[name] = entry
        return entry

    def names(self, pattern: str = "*") -> list[str]:
        """Return the registered names that match a pattern with the wildcards ``*``, ``?`` and ``[...]``, sorted."""
        return sorted(name for name in self if fnmatchcase(name, pattern))

    def find(self, name: object) -> Entry:
        """Return what has this name; a ``ValueError`` names those there are."""
        if not isinstance(name, str) or name not in self:
            raise unknown_name(self.kind, name, self)
        return self[name]

    def __getitem__(self, name: str) -> Entry:
        if name in self._own:
            module, _, attribute = self._own[name].partition(":")
            found: Any = import_module(module)
            return getattr(found, attribute) if attribute else found  # type: ignore[no-any-return]
        return self._known()[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._own, *self._known()])

    def __len__(self) -> int:
        return len(self._own) + len(self._known())

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._known()

    def _known(self) -> dict[str, Entry]:
        if not self._discovered:
            # Set first: a module that is imported here may itself look names up.
            self._discovered = True
            for entry_point in metadata.entry_points(group=self.group):
                self._load(entry_point)
        return self._entries

    def _load(self, entry_point: metadata.EntryPoint) -> None:
        try:
            self._accept(entry_point.name, entry_point.load())
        except Exception as error:  # another package's fault must not stop the use of all others
            distribution = getattr(entry_point, "dist", None)
            owner = f"the distribution {distribution.name!r}" if distribution is not None else "an unknown distribution"
            warnings.warn(
                f"the {self.kind} {entry_point.name!r} of {owner} can't be loaded from {entry_point.value!r}: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=6,
            )

    def _accept(self, name: str, found: Any) -> None:
        """Take what an entry point names: the thing itself, or a module that has added it."""
        if (self.modules or not isinstance(found, ModuleType)) and found not in self._entries.values():
            self.add(name, found)


class Registry(Catalogue[type[AnyRegistered]]):
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
        super().__init__(kind, group)
        self.base = base

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
            self.add(name, cls)  # type: ignore[arg-type]
            cls.name = name
            return cls  # type: ignore[return-value]

        return decorate

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
        found = self.find(given)
        self._check_options(found, given, options)
        return found(**options)

    def _check_options(self, cls: type[AnyRegistered], name: str, options: dict[str, Any]) -> None:
        fields = [field.name for field in dataclasses.fields(cls) if field.init]
        for option in options:
            if option not in fields:
                raise unknown_name(f"option of {self.kind} {name!r}:", option, fields)

    def _accept(self, name: str, found: Any) -> None:
        if isinstance(found, type) and found not in self._entries.values():
            self.register(name)(found)


def _place(entry: object) -> str:
    return f"{entry.__module__}.{entry.__qualname__}" if isinstance(entry, type) else repr(entry)


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
