"""The neuron that sees its whole window before it fires."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snn_lowlat.neurons.base import NeuronModel, NeuronValues, register_neuron, whole
from snn_lowlat.neurons.parameters import per_channel

__all__ = [
    "ACCUMULATE_THEN_FIRE",
    "MARGIN",
    "accumulate",
    "accumulate_then_fire",
    "count_in_window",
    "spike_counts",
    "spread_spikes",
]

MARGIN = 2.0**-12
"""By how many spikes a sum may fall short of a threshold and still reach it.

Sums of equal spikes lie on the grid of the thresholds by construction; rounding puts them a little above or below. The
margin moves the decision away from the grid, further than rounding goes and less than anything that matters.
"""


def spike_counts(
    charge: Tensor, timesteps: int, threshold: Tensor, initial_potential: Tensor, *, times: int = 1
) -> Tensor:
    r"""Count the spikes that a window's charge is worth.

    .. math:: k = \mathrm{clip}\left(\left\lfloor \frac{q + v_0}{\theta} + \epsilon \right\rfloor, 0, T\right)

    with the charge :math:`q = \sum_t z(t)`, the initial potential :math:`v_0`, the threshold :math:`\theta` and the
    :data:`MARGIN` :math:`\epsilon`.

    Parameters
    ----------
    charge : Tensor
        The sum of a window's currents, ``[N, C, ...]``.
    timesteps : int
        The window's length :math:`T` in steps, which is also the largest count.
    threshold, initial_potential : Tensor
        Of shape ``[]`` or ``[C]``, in units of the pre-activation.
    times : int
        The charge is so many times what is given: ``timesteps``, if that is the mean of the currents.

    Returns
    -------
    Tensor
        Whole numbers from 0 to ``timesteps`` in the charge's type, ``[N, C, ...]``.
    """
    threshold, initial_potential = per_channel(threshold, charge), per_channel(initial_potential, charge)
    # One pass over the charge, and no more memory than the counts.
    counts = torch.addcmul(initial_potential / threshold + MARGIN, charge, times / threshold)
    return counts.floor_().clamp_(0, timesteps)


def spread_spikes(counts: Tensor, step: int, timesteps: int) -> Tensor:
    r"""Return the spikes of one step of a window in which neurons fire so many times, evenly spread.

    .. math:: s(t) = \lfloor t k / T + 1/2 \rfloor - \lfloor (t - 1) k / T + 1/2 \rfloor

    Parameters
    ----------
    counts : Tensor
        Whole numbers from 0 to ``timesteps``.
    step : int
        The step :math:`t`, from 1 to ``timesteps``.
    timesteps : int
        The window's length :math:`T`.

    Returns
    -------
    Tensor
        0 or 1 in the counts' type and shape; over the steps they sum up to the counts.
    """
    # In integers, so that no rounding loses a spike: floor(t k / T + 1/2) = (2 t k + T) // (2 T).
    doubled = 2 * counts
    sent = torch.div(doubled * step + timesteps, 2 * timesteps, rounding_mode="floor")
    before = torch.div(doubled * (step - 1) + timesteps, 2 * timesteps, rounding_mode="floor")
    return sent - before


def accumulate(currents: Tensor) -> Tensor:
    """Add up the currents of a window, ``[T, N, C, ...]`` to ``[N, C, ...]``, step by step as a neuron would."""
    charge = currents[0].clone()
    for current in currents[1:]:
        charge += current
    return charge


@torch.no_grad()
def accumulate_then_fire(currents: Tensor, threshold: Tensor, initial_potential: Tensor) -> Tensor:
    r"""The spikes of neurons that add up a window's currents and fire in the window after it; no gradients pass.

    With a current whose mean over the window is :math:`\bar z`, the mean of :math:`\theta\, s(t)` is the quantised
    activation

    .. math:: \frac{\theta}{T} \mathrm{clip}\left(\left\lfloor \frac{T \bar z + v_0}{\theta} \right\rfloor, 0, T\right)

    whatever the order in which the currents arrive: a network of such neurons equals the network with these
    activations. Yan, Zhou & Wong, "Low latency conversion of artificial neural network models to rate-encoded spiking
    neural networks" (arXiv 2211.08410), with :math:`\theta = M`, :math:`v_0 = 0` and :math:`M / T` the step of the
    trained activation.

    Parameters
    ----------
    currents : Tensor
        A window's currents ``[T, N, C, ...]``.
    threshold, initial_potential : Tensor
        Of shape ``[]`` or ``[C]``, in units of the pre-activation.

    Returns
    -------
    Tensor
        The spikes of the window that follows, 0 or 1, ``[T, N, C, ...]``.
    """
    timesteps = currents.shape[0]
    counts = spike_counts(accumulate(currents), timesteps, threshold, initial_potential)
    return torch.stack([spread_spikes(counts, step, timesteps) for step in range(1, timesteps + 1)])


def count_in_window(mean: Tensor, timesteps: int, values: NeuronValues) -> Tensor:
    """Count the spikes that a window of currents with this mean is worth; see :func:`spike_counts`."""
    return spike_counts(mean, timesteps, values.threshold, values.initial_potential, times=timesteps)


class _State(NamedTuple):
    """The step in the window, from 1; what its currents add up to so far; how often neurons fire in this window."""

    step: int
    charge: Tensor
    counts: Tensor


def _window(currents: Tensor, values: NeuronValues) -> Tensor:
    return accumulate_then_fire(currents, values.threshold, values.initial_potential)


def _rest(current: Tensor, values: NeuronValues, start: int) -> _State:
    # Windows follow one another from the first step on, whatever has not arrived yet.
    return _State(0, torch.zeros_like(current), torch.zeros_like(current))


@torch.no_grad()
def _step(current: Tensor, state: _State, values: NeuronValues) -> tuple[Tensor, _State]:
    timesteps = int(values.parameters["timesteps"])
    step = state.step + 1 if state.step < timesteps else 1
    charge, counts = current if step == 1 else state.charge + current, state.counts
    spikes = spread_spikes(counts, step, timesteps)
    if step == timesteps:
        counts = spike_counts(charge, timesteps, values.threshold, values.initial_potential)
    return spikes, _State(step, charge, counts)


ACCUMULATE_THEN_FIRE = register_neuron(
    NeuronModel(
        *("accumulate_then_fire", _window, _rest, _step, _State, "charge"),
        counts=count_in_window,
        delay=lambda timesteps, values: timesteps,
        parameters={"timesteps": whole},
    )
)
"""Sees its whole window, and fires evenly in the next."""
