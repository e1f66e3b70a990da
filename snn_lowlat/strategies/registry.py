"""The strategies by name: this package's own and those that other packages bring."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib import metadata
from typing import Any, TypeVar

from snn_lowlat.errors import unknown_name
from snn_lowlat.strategies.base import Strategy

__all__ = ["make_strategy", "register_strategy", "strategies"]

_GROUP = "snn_lowlat.strategies"
_REGISTRY: dict[str, type[Strategy]] = {}
_entry_points_loaded = False

AnyStrategy = TypeVar("AnyStrategy", bound=type[Strategy])


def register_strategy(name: str) -> Callable[[AnyStrategy], AnyStrategy]:
    """Make a strategy known by a name; use as a class decorator above ``@dataclass(frozen=True)``.

    Packages can also bring strategies by an entry point of the group ``snn_lowlat.strategies`` that names the class, or
    a module that registers it.

    Parameters
    ----------
    name : str
        The name for :func:`make_strategy`, configuration files and saved networks.

    Raises
    ------
    ValueError
        If another strategy has that name.
    TypeError
        If the class is not a :class:`Strategy`, or not a dataclass of its own.
    """

    def register(cls: AnyStrategy) -> AnyStrategy:
        if not (isinstance(cls, type) and issubclass(cls, Strategy)):
            raise TypeError(f"strategy {name!r} must be a subclass of Strategy, not {cls!r}.")
        if "__dataclass_fields__" not in cls.__dict__:
            raise TypeError(f"strategy {name!r}: put @dataclass(frozen=True) between the registration and the class.")
        known = _REGISTRY.get(name)
        if known is not None and known is not cls:
            raise ValueError(f"a strategy {name!r} is already registered: {known.__module__}.{known.__qualname__}.")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return register


def strategies(pattern: str = "*") -> list[str]:
    """Return the names of the strategies, sorted.

    Parameters
    ----------
    pattern : str
        Only the names that match, with the wildcards ``*``, ``?`` and ``[...]``.
    """
    return sorted(name for name in _known() if fnmatchcase(name, pattern))


def make_strategy(strategy: str | Strategy, **options: Any) -> Strategy:
    """Return a strategy by its name, or the given one, with options.

    Parameters
    ----------
    strategy : str or Strategy
        A registered name, or a strategy object, of which the options replace those given here.
    **options
        The strategy's own options.

    Raises
    ------
    ValueError
        If there is no such strategy or option; the message names those there are.
    TypeError
        If ``strategy`` is neither a name nor a strategy.
    """
    if isinstance(strategy, Strategy):
        _check_options(type(strategy), strategy.name or type(strategy).__name__, options)
        return dataclasses.replace(strategy, **options) if options else strategy
    if not isinstance(strategy, str):
        raise TypeError(f"a strategy is given by its name or as a Strategy object, not as {strategy!r}.")
    known = _known()
    if strategy not in known:
        raise unknown_name("strategy", strategy, known)
    _check_options(known[strategy], strategy, options)
    return known[strategy](**options)


def _check_options(cls: type[Strategy], name: str, options: dict[str, Any]) -> None:
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    for option in options:
        if option not in fields:
            raise unknown_name(f"option of strategy {name!r}:", option, fields)


def _known() -> dict[str, type[Strategy]]:
    global _entry_points_loaded
    if not _entry_points_loaded:
        # Set first: a strategy's module may itself look strategies up while it is imported.
        _entry_points_loaded = True
        for entry_point in metadata.entry_points(group=_GROUP):
            _load(entry_point)
    return _REGISTRY


def _load(entry_point: metadata.EntryPoint) -> None:
    try:
        found = entry_point.load()
        if isinstance(found, type) and found not in _REGISTRY.values():
            register_strategy(entry_point.name)(found)
    except Exception as error:  # another package's fault must not stop the use of all others
        distribution = getattr(entry_point, "dist", None)
        owner = f"the distribution {distribution.name!r}" if distribution is not None else "an unknown distribution"
        warnings.warn(
            f"the strategy {entry_point.name!r} of {owner} can't be loaded from {entry_point.value!r}: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
