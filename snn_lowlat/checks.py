"""Checks of numbers and names that users give: each kind is checked in one place, and says the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch

from snn_lowlat.errors import unknown_name

__all__ = ["count", "fraction", "number", "one_of", "positive"]


def count(name: str, value: Any, minimum: int = 1, maximum: int | None = None) -> int:
    """Return a whole number as an ``int``; Python's, NumPy's and torch's are taken, a bool is none.

    Parameters
    ----------
    name : str
        What the number is, as the user knows it: the argument, option or config key.
    value : object
        What was given.
    minimum, maximum : int
        The smallest and the largest that make sense; without a maximum there is none.

    Raises
    ------
    ValueError
        If it is anything else; the message says what was given.
    """
    given = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if not whole or given < minimum or (maximum is not None and given > maximum):
        bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ValueError(f"{name} must be a whole number {bounds}, not {value!r}.")
    return int(given)


def number(
    name: str,
    value: Any,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return a finite number as a ``float``; a bool is none.

    Parameters
    ----------
    name : str
        What the number is, as the user knows it: the argument, option or config key.
    value : object
        What was given.
    minimum, maximum : float
        The smallest and the largest that are allowed.
    above, below : float, optional
        What it must be greater than, and less than.

    Raises
    ------
    ValueError
        If it is anything else; the message says what was given.
    """
    given = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    real = isinstance(given, Real) and not isinstance(given, bool) and math.isfinite(given)
    inside = real and minimum <= given <= maximum
    if not inside or (above is not None and not given > above) or (below is not None and not given < below):
        low = f"above {above:g}" if above is not None else f"of at least {minimum:g}" if minimum > -math.inf else ""
        high = f"below {below:g}" if below is not None else f"of at most {maximum:g}" if maximum < math.inf else ""
        bounds = " and ".join(bound for bound in (low, high) if bound)
        raise ValueError(f"{name} must be a finite number{' ' if bounds else ''}{bounds}, not {value!r}.")
    return float(given)


def positive(name: str, value: Any) -> float:
    """Return a finite number above 0; see :func:`number`."""
    return number(name, value, above=0)


def fraction(name: str, value: Any) -> float:
    """Return a number from 0 to 1; see :func:`number`."""
    return number(name, value, 0, 1)


def one_of(kind: str, value: Any, known: Iterable[str]) -> str:
    """Return a name that exists; ``ValueError`` lists those that do, the nearest first."""
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise unknown_name(kind, value, names)
    return value
