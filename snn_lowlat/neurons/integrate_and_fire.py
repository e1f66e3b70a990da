"""The integrate-and-fire neuron with reset by subtraction."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["integrate_and_fire", "integrate_and_fire_step"]


def integrate_and_fire_step(
    current: Tensor, potential: Tensor, threshold: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""One time step of integrate-and-fire neurons.

    .. math::

        u(t) = v(t-1) + z(t), \qquad s(t) = [\,u(t) + o \ge \theta\,], \qquad v(t) = u(t) - \theta\, s(t)

    where :math:`z` is the current, :math:`v` the membrane potential, :math:`\theta` the threshold, :math:`s` the spike
    and :math:`o` an offset, zero by default, all in units of the pre-activation. A neuron that starts at
    :math:`v(0) = v_0` is the same as one that starts at 0 with the offset :math:`o = v_0`; the second form is
    SpikingJelly's ``ActivationAwareIFNode``, with which these spikes agree bit for bit.

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

    Returns
    -------
    spikes : Tensor
        0 or 1 in the current's type, of shape ``[N, C, ...]``.
    potential : Tensor
        The membrane potential after the step.
    """
    threshold = _per_channel(threshold, current)
    charged = potential + current
    compared = charged if offset is None else charged + _per_channel(offset, current)
    spikes = (compared >= threshold).to(current.dtype)
    return spikes, charged - spikes * threshold


def integrate_and_fire(currents: Tensor, threshold: Tensor, initial_potential: Tensor) -> Tensor:
    r"""The spikes of integrate-and-fire neurons for a sequence of currents.

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

    Returns
    -------
    Tensor
        The spikes, 0 or 1 in the currents' type, of shape ``[T, N, C, ...]``.
    """
    spikes = torch.empty_like(currents)
    potential = torch.zeros_like(currents[:1]).sum(0)
    for step, current in enumerate(currents):
        # The initial potential stays apart from the state so that rounding is the same as in SpikingJelly's neuron.
        spikes[step], potential = integrate_and_fire_step(current, potential, threshold, initial_potential)
    return spikes


def _per_channel(parameter: Tensor, current: Tensor) -> Tensor:
    parameter = parameter.to(device=current.device, dtype=current.dtype)
    if parameter.dim() == 0:
        return parameter
    return parameter.reshape(-1, *[1] * (current.dim() - 2))
