"""Convolutions with weights 0 and 1 that pick pixels and channels: what slices, pads and joins are in NIR."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Unpickable", "picking_kernel"]


class Unpickable(Exception):  # noqa: N818 - control flow inside the writer, never seen by users
    """No convolution picks these elements; the message is the reason."""


def picking_kernel(places: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    """Find the convolution with the smallest square kernel that picks elements.

    Parameters
    ----------
    places : Tensor
        Where in the flattened input each element of the output ``[C', H', W']`` is, counted from 1; 0 for a zero.
    shape : tuple of int
        The input's shape ``[C, H, W]``.

    Returns
    -------
    weight : Tensor
        0 and 1, of shape ``[C', C, k, k]``.
    stride, padding : tuple of int
        For rows and columns.

    Raises
    ------
    Unpickable
        If there is no such convolution.
    """
    channels, height, width = shape
    found = places - 1
    zero = found < 0
    parts = (found // (height * width), found // width % height, found % width)
    # Which channel, row and column is picked for each channel, row and column of the output; -1 where it is zero.
    picked = [
        part.masked_fill(zero, -1).amax([axis for axis in range(3) if axis != kept]) for kept, part in enumerate(parts)
    ]
    channel, row, column = picked[0][:, None, None], picked[1][:, None], picked[2]
    nothing = (channel < 0) | (row < 0) | (column < 0)
    if not torch.equal(((channel * height + row) * width + column).masked_fill(nothing, -1), found):
        raise Unpickable("no convolution picks pixels that are not the same rows and columns of every channel")
    axes = [(index, size, _steps(index, size)) for index, size in zip(picked[1:], (height, width), strict=True)]
    for kernel in range(1, 2 * max(*shape[1:], *places.shape[1:]) + 2):
        by_row, by_column = (_fit(kernel, size, len(index), steps) for index, size, steps in axes)
        if by_row is not None and by_column is not None:
            (row_stride, row_padding, row_tap), (column_stride, column_padding, column_tap) = by_row, by_column
            weight = torch.zeros(len(places), channels, kernel, kernel)
            used = (picked[0] >= 0).nonzero().flatten()
            weight[used, picked[0][used], row_tap, column_tap] = 1
            return weight, (row_stride, column_stride), (row_padding, column_padding)
    raise Unpickable("no square kernel cuts and pads rows and columns in this way")


def _steps(index: Tensor, size: int) -> list[tuple[int, int]]:
    """Return what the distance of the rows that are picked may be, with the first; -1 is a zero beyond the edges."""
    used = (index >= 0).nonzero().flatten()
    first = int(used[0]) if len(used) else 0
    strides = [int(index[first + 1] - index[first])] if len(used) > 1 else range(1, size + 1)
    steps = []
    for stride in strides:
        offset = int(index[first]) - stride * first
        rows = torch.arange(len(index)) * stride + offset
        if stride >= 1 and torch.equal(rows.masked_fill((rows < 0) | (rows >= size), -1), index):
            steps.append((stride, offset))
    if not steps:
        raise Unpickable("no convolution picks rows or columns at different distances or in another order")
    return steps


def _fit(kernel: int, size: int, count: int, steps: list[tuple[int, int]]) -> tuple[int, int, int] | None:
    """Return stride, padding and place in a kernel with which it reads the right rows; None if there is no such."""
    for stride, offset in steps:
        for padding in range(max(0, -offset), kernel - offset):
            if (size + 2 * padding - kernel) // stride + 1 == count:
                return stride, padding, offset + padding
    return None
