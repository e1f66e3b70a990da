"""Checks of what users give: each kind is checked in one place, and says the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_lowlat.errors import unknown_name

__all__ = ["count", "fraction", "images", "number", "one_of", "positive"]


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
    given = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
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
    given = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
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


def images(name: str, value: Any, shape: Sequence[int] | None = None) -> Tensor:
    """Return a batch of images ``[N, ...]`` of at least one image: an ordinary tensor, with values.

    Parameters
    ----------
    name : str
        What they are, as the user knows them: the argument's name.
    value : object
        What was given.
    shape : sequence of int, optional
        The shape of one image, where it is known.

    Raises
    ------
    ValueError
        If it is anything else; the message says what was given and what to give.
    """
    if isinstance(value, np.ndarray):
        raise ValueError(f"{name} must be a tensor, not a NumPy array: give torch.from_numpy({name}).")
    if not isinstance(value, Tensor):
        advice = f": give torch.stack({name})" if isinstance(value, list | tuple) and value else ""
        raise ValueError(f"{name} must be a tensor of shape [N, ...], not {_described(value)}{advice}.")
    if value.is_meta:
        raise ValueError(f"{name} lie on the device 'meta', where tensors have no values: put real images there.")
    if value.is_nested or value.layout != torch.strided:
        advice = "images of one size, stacked" if value.is_nested else f"{name}.to_dense()"
        raise ValueError(f"{name} must be an ordinary tensor, not one of the layout {value.layout}: give {advice}.")
    if value.is_quantized:
        raise ValueError(f"{name} must be an ordinary tensor, not a quantised one: give {name}.dequantize().")
    given = list(value.shape)
    if value.dim() < 2 or (shape is not None and given == list(shape)):
        raise ValueError(
            f"{name} must be a batch of shape [N, ...], not {given}: one image needs a batch dimension, "
            f"{name}.unsqueeze(0)."
        )
    if shape is not None and given[1:] != list(shape):
        raise ValueError(
            f"this network was converted for inputs [N, {', '.join(map(str, shape))}], not {given}: convert it again "
            "with calibration images of that size."
        )
    if value.numel() == 0:
        raise ValueError(f"{name} of shape {given} hold no image: leave out empty batches.")
    return value


def _described(value: Any) -> str:
    """Name what was given, without printing all that it holds."""
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) < 80 else "a text"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__name__}"
