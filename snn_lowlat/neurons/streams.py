"""What remembers something from one step to the next, in one form that every host wraps: neurons, delays, pools."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snn_lowlat.neurons.base import NeuronModel, NeuronValues, State
from snn_lowlat.neurons.max_pool import cumulative_max_pool_step, max_pool_window

__all__ = ["Delay", "MaxPoolStream", "NeuronStream", "Stream", "map_state"]


class Stream(ABC):
    """A map from a sequence of currents to another, step by step or a window at a time; both give the same."""

    continues: bool = False
    """Whether what is given next goes on from what was given before, or begins a window of its own."""

    @abstractmethod
    def rest(self, current: Tensor) -> State:
        """Return the state before the first step, for currents like this one, ``[N, ...]``."""

    @abstractmethod
    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        """Map one step's currents, ``[N, ...]``, and the state before it to the output and the state after it."""

    @abstractmethod
    def window(self, currents: Tensor) -> Tensor:
        """Map a whole window's currents, ``[T, N, ...]``, from rest, to the outputs of the window that follows."""

    @abstractmethod
    def mean(self, mean: Tensor, timesteps: int) -> Tensor:
        """Map the mean currents of a window of so many steps to the mean output, ``[N, ...]``."""


@dataclass(frozen=True)
class NeuronStream(Stream):
    """A layer of neurons, which gives spikes.

    Parameters
    ----------
    model : NeuronModel
        What they are.
    values : NeuronValues
        Their thresholds and initial potentials, and what else the model needs.
    start : int
        In single steps, how many pass before the first window arrives.
    """

    model: NeuronModel
    values: NeuronValues
    start: int = 0

    @property
    def continues(self) -> bool:  # type: ignore[override]
        """Neurons that answer within the step go on, others begin a new window."""
        return self.model.online

    def rest(self, current: Tensor) -> State:  # noqa: D102
        return self.model.rest(current, self.values, self.start)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:  # noqa: D102
        return self.model.step(current, state, self.values)

    def window(self, currents: Tensor) -> Tensor:  # noqa: D102
        return self.model.window(currents, self.values)

    def mean(self, mean: Tensor, timesteps: int) -> Tensor:  # noqa: D102
        if self.model.counts is None:
            raise ValueError(f"neurons of kind {self.model.name!r} fire as their input arrives: they have no counts.")
        return self.model.counts(mean, timesteps, self.values).div_(timesteps)


@dataclass(frozen=True)
class Delay(Stream):
    """What makes a shortcut wait, in single steps, for the layers that it leaves out; a window it leaves as it is.

    Each layer's steps are counted from the start of its own window.

    Parameters
    ----------
    steps : int
        For how many steps it holds what it is given, at least 1; zeros come out at first.
    """

    steps: int

    def rest(self, current: Tensor) -> State:  # noqa: D102
        return (torch.zeros_like(current),) * self.steps

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:  # noqa: D102
        oldest, *rest = state
        return oldest, (*rest, current)

    def window(self, currents: Tensor) -> Tensor:  # noqa: D102
        return currents

    def mean(self, mean: Tensor, timesteps: int) -> Tensor:  # noqa: D102
        return mean


@dataclass(frozen=True)
class MaxPoolStream(Stream):
    """A max-pool in front of neurons: it pools what currents add up to; see :mod:`snn_lowlat.neurons.max_pool`.

    Parameters
    ----------
    pool : Module
        One of torch's max-pools.
    timesteps : int, optional
        The length of the windows after which it starts anew, in front of neurons that see a window before they fire. By
        default it goes on.
    start : int
        In single steps, how many pass before the first window arrives.
    """

    pool: nn.Module
    timesteps: int | None = None
    start: int = 0

    @property
    def continues(self) -> bool:  # type: ignore[override]
        """Whether there are no windows."""
        return self.timesteps is None

    def rest(self, current: Tensor) -> State:  # noqa: D102
        return -self.start, None

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:  # noqa: D102
        step, sums = state
        step = 1 if step == self.timesteps else step + 1
        pooled, sums = cumulative_max_pool_step(self.pool, current, sums if step > 1 else None)
        return pooled, (step, sums)

    def window(self, currents: Tensor) -> Tensor:  # noqa: D102
        pooled = max_pool_window(self.pool, currents.flatten(0, 1), len(currents))
        return pooled.view(*currents.shape[:2], *pooled.shape[1:])

    def mean(self, mean: Tensor, timesteps: int) -> Tensor:  # noqa: D102
        return self.pool(mean)  # type: ignore[no-any-return]


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply a function to all tensors of a state, such as one that moves them to another device."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, tuple):
        parts = [map_state(function, part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state
