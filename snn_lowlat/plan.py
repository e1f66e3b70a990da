"""The contract between strategies and hosts: what one activation of the network becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from snn_lowlat import checks

__all__ = ["Plan", "SitePlan"]

_MOST_THRESHOLDS = 2**24


@dataclass(frozen=True, eq=False)
class SitePlan:
    r"""What one activation site becomes: a spiking neuron with its parameters.

    A spike is fired when the membrane potential reaches the threshold; it is worth ``amplitude`` to the layers
    after it. With input current :math:`z(t)` and spikes :math:`s(t)`, an integrate-and-fire site computes

    .. math:: v(0) = v_0, \quad v(t) = v(t-1) + z(t) - \theta\, s(t), \quad s(t) = [v(t-1) + z(t) \ge \theta]

    and sends :math:`a\, s(t)` on. All values are in units of the pre-activation, either one for the layer (shape
    ``[]``) or one for each channel (shape ``[C]``); channels are dimension 1 of the layer's output.

    Parameters
    ----------
    threshold : Tensor
        The firing threshold :math:`\theta`, finite and positive.
    initial_potential : Tensor
        The membrane potential :math:`v_0` before the first step, finite.
    amplitude : Tensor
        What one spike is worth downstream, :math:`a`; equal to the threshold in most strategies.
    neuron : str
        The neuron model's name, a key of :data:`snn_lowlat.neurons.NEURONS`.
    parameters : mapping of str to float
        What else that neuron model needs.

    Raises
    ------
    ValueError
        If a value is not finite, a threshold or amplitude not positive, a potential above 2**24 thresholds, or a
        shape neither ``[]`` nor ``[C]``.
    """

    threshold: Tensor
    initial_potential: Tensor
    amplitude: Tensor
    neuron: str = "integrate_and_fire"
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = set()
        for name in ("threshold", "initial_potential", "amplitude"):
            value = checks.values(name, getattr(self, name))
            if name != "initial_potential" and not bool((value > 0).all()):
                raise ValueError(f"{name} must be positive.")
            sizes |= {value.numel()} if value.dim() else set()
            object.__setattr__(self, name, value)
        if len(sizes) > 1:
            raise ValueError(f"threshold, initial_potential and amplitude have different numbers of channels: {sizes}.")
        # Beside a larger potential a float has no digits left for a threshold.
        if not bool((self.initial_potential.abs() <= _MOST_THRESHOLDS * self.threshold).all()):
            raise ValueError(f"initial_potential must be 2**24 thresholds at most, not {self.initial_potential}.")
        for name, given in self.parameters.items():
            checks.number(f"the parameter {name!r}", given)
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SitePlan):
            return NotImplemented
        return (
            torch.equal(self.threshold, other.threshold)
            and torch.equal(self.initial_potential, other.initial_potential)
            and torch.equal(self.amplitude, other.amplitude)
            and self.neuron == other.neuron
            and dict(self.parameters) == dict(other.parameters)
        )

    def __reduce__(self) -> tuple[object, ...]:
        values = (self.threshold, self.initial_potential, self.amplitude, self.neuron, dict(self.parameters))
        return (type(self), values)


Plan = Mapping[str, SitePlan]
"""A whole network's plan: a SitePlan for each site, by the site's name."""
