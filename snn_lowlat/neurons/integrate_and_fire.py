"""The integrate-and-fire neuron with reset by subtraction, with or without a leak."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.neurons.base import NeuronModel, NeuronValues, register_neuron
from snn_lowlat.neurons.parameters import per_channel

__all__ = [
    "INTEGRATE_AND_FIRE",
    "LEAKY_INTEGRATE_AND_FIRE",
    "integrate_and_fire",
    "integrate_and_fire_sequence",
    "integrate_and_fire_step",
]


def integrate_and_fire_step(
    current: Tensor, potential: Tensor, threshold: Tensor, offset: Tensor | None = None, leak: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""One time step of integrate-and-fire neurons.

    .. math::

        u(t) = \lambda\, v(t-1) + z(t), \qquad s(t) = [\,u(t) + o \ge \theta\,], \qquad v(t) = u(t) - \theta\, s(t)

    where :math:`z` is the current, :math:`v` the membrane potential, :math:`\theta` the threshold, :math:`s` the spike
    and :math:`o` an offset, zero by default, all in units of the pre-activation; :math:`\lambda` is the leak, 1 for
    integrate-and-fire. Without a leak a neuron that starts at :math:`v(0) = v_0` is the same as one that starts at 0
    with the offset :math:`o = v_0`; the second form is SpikingJelly's ``ActivationAwareIFNode``, with which these
    spikes agree bit for bit. With a leak the offset, unlike a potential, stays.

    Parameters
    ----------
    current : Tensor
        The current of one step, of shape ``[N, C, ...]``.
    potential : Tensor
        The membrane potential before the step, of the same shape (or one that broadcasts to it).
    threshold : Tensor
        Of shape ``[]`` or ``[C]``.
    offset : Tensor, optional
        Of shape ``[]`` or ``[C]``.
    leak : float
        What stays of the membrane potential from one step to the next.

    Returns
    -------
    spikes : Tensor
        0 or 1 in the current's type, of shape ``[N, C, ...]``.
    potential : Tensor
        The membrane potential after the step.
    """
    threshold = per_channel(threshold, current)
    charged = (potential if leak == 1 else leak * potential) + current
    compared = charged if offset is None else charged + per_channel(offset, current)
    spikes = (compared >= threshold).to(current.dtype)
    return spikes, charged - spikes * threshold


@torch.no_grad()
def integrate_and_fire_sequence(
    currents: Tensor, potential: Tensor, threshold: Tensor, offset: Tensor, leak: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Several time steps of integrate-and-fire neurons; no gradients pass.

    The steps of :func:`integrate_and_fire_step` with the same rounding, without a new tensor for each.

    Parameters
    ----------
    currents : Tensor
        Of shape ``[T, N, C, ...]``.
    potential : Tensor
        The membrane potential before the first step, of shape ``[N, C, ...]``; it is not changed.
    threshold, offset : Tensor
        Of shape ``[]`` or ``[C]``.
    leak : float
        What stays of the membrane potential from one step to the next.

    Returns
    -------
    spikes : Tensor
        0 or 1 in the currents' type, of shape ``[T, N, C, ...]``.
    potential : Tensor
        The membrane potential after the last step.
    """
    spikes, potential = torch.empty_like(currents), potential.clone()
    compared = torch.empty_like(potential)
    threshold, offset = per_channel(threshold, potential), per_channel(offset, potential)
    for current, fired in zip(currents, spikes, strict=True):
        if leak != 1:
            potential *= leak
        potential += current
        torch.add(potential, offset, out=compared)
        torch.ge(compared, threshold, out=fired)
        potential.addcmul_(fired, threshold, value=-1)
    return spikes, potential


def integrate_and_fire(currents: Tensor, threshold: Tensor, initial_potential: Tensor, leak: float = 1.0) -> Tensor:
    r"""The spikes of integrate-and-fire neurons for a sequence of currents; no gradients pass.

    .. math::

        v(0) = v_0, \qquad s(t) = [\,v(t-1) + z(t) \ge \theta\,], \qquad v(t) = v(t-1) + z(t) - \theta\, s(t)

    Hence :math:`\theta\,\bar s = \bar z - (v(T) - v(0)) / T` for the averages over :math:`T` steps, and for a constant
    current :math:`\theta\,\bar s = \frac{\theta}{T} \mathrm{clip}(\lfloor (z T + v_0) / \theta \rfloor, 0, T)` (Bu et
    al., "Optimized potential initialization for low-latency spiking neural networks", AAAI 2022, arXiv 2202.01440).

    Parameters
    ----------
    currents : Tensor
        Of shape ``[T, N, C, ...]``.
    threshold : Tensor
        Of shape ``[]`` or ``[C]``, positive.
    initial_potential : Tensor
        Of shape ``[]`` or ``[C]``.
    leak : float
        What stays of the membrane potential from one step to the next, 1 for integrate-and-fire; the initial potential
        does not leak.

    Returns
    -------
    Tensor
        The spikes, 0 or 1 in the currents' type, of shape ``[T, N, C, ...]``.
    """
    rest = torch.zeros(currents.shape[1:], dtype=currents.dtype, device=currents.device)
    # The initial potential stays apart from the state so that rounding is the same as in SpikingJelly's neuron.
    return integrate_and_fire_sequence(currents, rest, threshold, initial_potential, leak)[0]


class _State(NamedTuple):
    potential: Tensor


def _leak(values: NeuronValues) -> float:
    return float(values.parameters.get("leak", 1.0))


def _window(currents: Tensor, values: NeuronValues) -> Tensor:
    return integrate_and_fire(currents, values.threshold, values.initial_potential, _leak(values))


def _rest(current: Tensor, values: NeuronValues, start: int) -> _State:
    return _State(torch.zeros_like(current))


def _step(current: Tensor, state: _State, values: NeuronValues) -> tuple[Tensor, _State]:
    spikes, potential = integrate_and_fire_step(
        current, state.potential, values.threshold, values.initial_potential, _leak(values)
    )
    return spikes, _State(potential)


INTEGRATE_AND_FIRE = register_neuron(
    NeuronModel("integrate_and_fire", _window, _rest, _step, _State, "potential", soft_reset=True, nir=True)
)
"""Reset by subtraction, no leak."""

LEAKY_INTEGRATE_AND_FIRE = register_neuron(
    NeuronModel(
        *("leaky_integrate_and_fire", _window, _rest, _step, _State, "potential"),
        parameters={"leak": checks.fraction},
        soft_reset=True,
        integers=False,
    )
)
"""Reset by subtraction, and a leak."""
