"""What the compiled loops over neurons need: tensors as rows of memory, parameters that repeat along them, threads."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["checksum", "in_threads", "memory_order", "of_channels", "original_order", "pattern", "usable"]

Array = NDArray[Any]

# So much of a row is worth a block of the loop.
_BLOCK = 256
# Fewer element-steps than this are not worth another thread.
_SHARE = 2**17


@lru_cache
def _have_loops() -> bool:
    if find_spec("numba") is None:
        return False
    try:
        import_module("snn_lowlat.kernels.compiled")
    except Exception as error:  # such as a version of NumPy that Numba does not know, or no place for compiled code
        warnings.warn(f"Numba does not work here, so neurons run slower: {error}", stacklevel=3)
        return False
    return True


def usable(values: Tensor) -> bool:
    """Say whether :mod:`snn_lowlat.kernels.compiled` can be imported and takes tensors of this type and device."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and _have_loops()


def checksum(values: NDArray[np.uint8]) -> Callable[[], object]:
    """Return what reads bytes ``[M]``, as fast as memory can be read, and gives a number that differs where they do."""
    if not _have_loops():
        return lambda: (zlib.crc32(values.data), zlib.adler32(values.data))
    from snn_lowlat.kernels import compiled

    read: Any = compiled.checksum
    whole = len(values) // 8 * 8
    words, rest = values[:whole].view(np.uint64), values[whole:]
    return (lambda: (read(words), rest.tobytes())) if len(rest) else (lambda: read(words))


def memory_order(values: Tensor) -> tuple[int, ...]:
    """Return the order of dimensions in which ``[N, C, ...]`` lies in memory: as they are, or with channels last."""
    dims = tuple(range(values.dim()))
    last = (0, *dims[2:], 1)
    return last if not values.is_contiguous() and values.permute(last).is_contiguous() else dims


def original_order(order: Sequence[int]) -> tuple[int, ...]:
    """Return the order of dimensions that undoes another one."""
    return tuple(order.index(dim) for dim in range(len(order)))


def pattern(values: Array, like: Tensor, order: Sequence[int]) -> Array:
    """Repeat one value, or one a channel, as channels repeat in memory, until that is worth a block of the loop.

    Parameters
    ----------
    values : ndarray
        ``[..., 1]`` or ``[..., C]``.
    like : Tensor
        ``[N, C, ...]``.
    order : sequence of int
        The order of its dimensions in memory.

    Returns
    -------
    ndarray
        ``[..., P]``: what belongs to element ``m`` of a row is at ``m % P``.
    """
    channels, places = like.shape[1], _places(like, order)
    times = max(1, _BLOCK // max(1, channels * places))
    repeated = np.empty((*values.shape[:-1], times, channels, places), values.dtype)
    repeated[:] = values[..., np.newaxis, :, np.newaxis]
    return repeated.reshape(*values.shape[:-1], -1)


def of_channels(sums: Array, like: Tensor, order: Sequence[int]) -> Array:
    """Add up what belongs to one channel in sums over a pattern, ``[..., P]``, to ``[..., C]``."""
    total: Array = sums.reshape(*sums.shape[:-1], -1, like.shape[1], _places(like, order)).sum((-3, -1))
    return total


def _places(like: Tensor, order: Sequence[int]) -> int:
    """Return how many neighbours in memory belong to the same channel."""
    return 1 if order[-1] == 1 else like[0, 0].numel()


def in_threads(loop: Callable[[int, int], Any], neurons: int, steps: int, period: int) -> list[Any]:
    """Run a loop over all neurons of a row, with as many threads as torch has where that is worth it.

    Parameters
    ----------
    loop : callable
        ``loop(start, stop)`` does some of the neurons; it lets go of the interpreter's lock.
    neurons, steps : int
        How many there are.
    period : int
        The parts start at multiples of this.

    Returns
    -------
    list
        What each part returned.
    """
    threads = min(torch.get_num_threads(), max(1, neurons * steps // _SHARE))
    share = max(1, -(-neurons // (threads * period))) * period
    parts = [(start, min(start + share, neurons)) for start in range(0, neurons, share)]
    if len(parts) < 2:
        return [loop(*part) for part in parts]
    return list(_threads(len(parts)).map(lambda part: loop(*part), parts))


@lru_cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, "neurons")
