r"""Max-pooling over time: what a max-pool in front of neurons does with currents that vary from step to step.

The maximum of uneven currents is larger on average than the maximum of their averages, so a pool of each step's
currents keeps a bias however many steps there are. The pool of what has been summed up so far does not. With the
currents' running sums :math:`Z_i(t)` in a pool's window, neurons get

.. math:: z(t) = \max_i Z_i(t) - \max_i Z_i(t-1)

which adds up to the maximum of the sums, needs no waiting, and may be negative in single steps. Rueckauer et al.
(Front. Neurosci. 2017, section 2.2.6) let the neuron through that has fired most so far; here currents are summed up.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_lowlat.neurons.loops import in_threads, usable

__all__ = [
    "MAX_POOLINGS",
    "MAX_POOLS",
    "PER_STEP_MAX_POOLS",
    "PerStepMaxPool1d",
    "PerStepMaxPool2d",
    "PerStepMaxPool3d",
    "PoolState",
    "cumulative_max_pool",
    "cumulative_max_pool_step",
    "is_cumulative",
    "max_pool_window",
    "per_step",
]

MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
"""Torch's max-pools. In a network in normal form they pool what has been summed up so far."""

MAX_POOLINGS = ("cumulative", "per_step")
"""What max-pools can do over time: pool the currents' running sums, or each step's currents."""

PoolState: TypeAlias = tuple[Tensor, Tensor]
"""The running sums ``[N, C, ...]`` of what a pool has read, and their maxima."""


class _PerStep:
    """A max-pool of each step's currents, which overestimates; for comparison."""


class PerStepMaxPool1d(_PerStep, nn.MaxPool1d):
    """Torch's max-pool, of each step's currents."""


class PerStepMaxPool2d(_PerStep, nn.MaxPool2d):
    """Torch's max-pool, of each step's currents."""


class PerStepMaxPool3d(_PerStep, nn.MaxPool3d):
    """Torch's max-pool, of each step's currents."""


PER_STEP_MAX_POOLS = (PerStepMaxPool1d, PerStepMaxPool2d, PerStepMaxPool3d)
"""The same pools, of each step's currents."""

_PER_STEP: dict[type[nn.Module], Any] = dict(zip(MAX_POOLS, PER_STEP_MAX_POOLS, strict=True))
_FUNCTIONS: dict[type[nn.Module], Any] = {
    nn.MaxPool1d: functional.max_pool1d,
    nn.MaxPool2d: functional.max_pool2d,
    nn.MaxPool3d: functional.max_pool3d,
}


def is_cumulative(module: object) -> bool:
    """Say whether a module is a max-pool that pools running sums."""
    return isinstance(module, MAX_POOLS) and not isinstance(module, _PerStep)


def per_step(pool: Any) -> nn.Module:
    """Return a max-pool like this one that pools each step's currents."""
    options = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode
    return _PER_STEP[_kind(pool)](*options)  # type: ignore[no-any-return]


def cumulative_max_pool_step(pool: nn.Module, current: Tensor, state: PoolState | None) -> tuple[Tensor, PoolState]:
    """Pool one step.

    Parameters
    ----------
    pool : Module
        One of torch's max-pools.
    current : Tensor
        What it reads in this step, ``[N, C, ...]``.
    state : tuple of Tensor or None
        What the step before has left; None before the first.

    Returns
    -------
    pooled : Tensor
        By how much the maxima of the running sums have changed, ``[N, C, ...]``.
    state : tuple of Tensor
        For the next step.
    """
    if state is None:
        pooled = _FUNCTIONS[_kind(pool)](current, *_window(pool))
        return pooled, (current, pooled)
    before, maxima = state
    sums = before + current
    largest, indices = _FUNCTIONS[_kind(pool)](sums, *_window(pool), return_indices=True)
    # The difference of the maxima; but where the same input stays the largest it is that input's current, unrounded.
    pooled = _picked(current, indices) + (_picked(before, indices) - maxima)
    return pooled, (sums, largest)


def cumulative_max_pool(
    pool: nn.Module, currents: Tensor, state: PoolState | None = None
) -> tuple[Tensor, PoolState | None]:
    """Pool several steps, as so many calls of :func:`cumulative_max_pool_step` do.

    Parameters
    ----------
    pool : Module
        One of torch's max-pools.
    currents : Tensor
        ``[T, N, C, ...]``.
    state : tuple of Tensor, optional
        What the step before has left; by default there was none.

    Returns
    -------
    pooled : Tensor
        ``[T, N, C, ...]``.
    state : tuple of Tensor
        For the next step.
    """
    steps = []
    for current in currents:
        pooled, state = cumulative_max_pool_step(pool, current, state)
        steps.append(pooled)
    # Joined along the batch they keep their memory layout.
    return torch.cat(steps).view(len(currents), -1, *steps[0].shape[1:]), state


def max_pool_window(pool: nn.Module, currents: Tensor, timesteps: int) -> Tensor:
    """Pool a whole window, from rest, as this pool does it: running sums, or each step by itself.

    Parameters
    ----------
    pool : Module
        A max-pool of a network in normal form.
    currents : Tensor
        ``[T * N, C, ...]``.
    timesteps : int
        The window's length, T.

    Returns
    -------
    Tensor
        ``[T * N, C, ...]``.
    """
    if not is_cumulative(pool):
        return pool(currents)  # type: ignore[no-any-return]
    if isinstance(pool, nn.MaxPool2d) and not currents.requires_grad and usable(currents) and _channels_last(currents):
        return _compiled_window(pool, currents, timesteps)
    return cumulative_max_pool(pool, currents.view(timesteps, -1, *currents.shape[1:]))[0].flatten(0, 1)


def _channels_last(values: Tensor) -> bool:
    return values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)


def _compiled_window(pool: nn.MaxPool2d, currents: Tensor, timesteps: int) -> Tensor:
    """Do the same in one pass of the memory, for images ``[T * N, C, H, W]`` with their channels last."""
    from snn_lowlat.neurons import compiled

    shape = pool(torch.empty_like(currents[:1], device="meta")).shape[1:]
    pooled = currents.new_empty((len(currents), *shape)).to(memory_format=torch.channels_last)
    rows = [values.detach().permute(0, 2, 3, 1).numpy() for values in (currents, pooled)]
    rows = [values.reshape(timesteps, -1, *values.shape[1:]) for values in rows]
    pairs = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    window = tuple(int(size) for pair in pairs for size in (pair if isinstance(pair, tuple) else (pair, pair)))
    loop: Any = compiled.cumulative_max_pool
    _, images, height = rows[1].shape[:3]
    work = timesteps * currents[0].numel() // max(1, height)
    in_threads(lambda start, stop: loop(*rows, window, start, stop), images * height, work, 1)
    return pooled


def _picked(values: Tensor, indices: Tensor) -> Tensor:
    """Take the values at these indices, as torch's max-pools number them: over all dimensions behind the channels."""
    picked = values.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
    return picked.contiguous(memory_format=torch.channels_last) if _channels_last(indices) else picked


def _kind(pool: object) -> type[nn.Module]:
    return next(kind for kind in MAX_POOLS if isinstance(pool, kind))


def _window(pool: Any) -> tuple[Any, ...]:
    return pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
