"""A layer of spiking neurons whose thresholds and leak can be trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snn_lowlat.kernels.surrogate import Recompute, SpikeOptions, fire_with_recompute
from snn_lowlat.plan import SitePlan

__all__ = ["TrainableNeurons"]


class TrainableNeurons(nn.Module):
    """A layer of integrate-and-fire neurons whose thresholds and leak can be trained.

    What a spike is worth and where the potential starts keep their ratio to the threshold.

    Parameters
    ----------
    plan : SitePlan
        What the neurons are now.
    timesteps : int
        The number of steps.
    options : SpikeOptions
        How gradients pass spikes.
    dropout : float
        The probability with which a neuron is silent for an image in training, in all steps.

    Attributes
    ----------
    threshold : Parameter
        ``[]`` or ``[C]``, in units of the pre-activation.
    leak : Parameter
        ``[]``: what stays of the potential from one step to the next.
    initial_fraction, height : Tensor
        The initial potential and what a spike is worth, in units of the threshold.
    """

    smallest: float = 1e-3
    """No threshold falls below this fraction of what it was at the start."""

    def __init__(self, plan: SitePlan, timesteps: int, options: SpikeOptions, dropout: float = 0.0) -> None:
        super().__init__()
        self.threshold = nn.Parameter(plan.threshold.clone())
        self.leak = nn.Parameter(torch.tensor(float(plan.parameters.get("leak", 1.0))).to(plan.threshold))
        self.register_buffer("initial_fraction", plan.initial_potential / plan.threshold)
        self.register_buffer("height", plan.amplitude / plan.threshold)
        self.register_buffer("least", self.smallest * plan.threshold)
        self.timesteps = timesteps
        self.options = options
        self.dropout = dropout

    initial_fraction: Tensor
    height: Tensor
    least: Tensor

    def forward(
        self, currents: Tensor, other: Tensor | None = None, overwrite: bool = False
    ) -> tuple[Tensor, Recompute | None]:
        """Fire, and say how to do so again from what is kept for the way back anyhow.

        Parameters
        ----------
        currents : Tensor
            ``[T, N, C, ...]``, or ``[1, N, C, ...]`` for all steps.
        other : Tensor, optional
            What is added to them, of the same shape.
        overwrite : bool
            Nobody else reads the currents, so that potentials may take their place in memory.

        Returns
        -------
        Tensor
            Outputs, ``[T, N, C, ...]``.
        callable or None
            Returns the outputs once more, without gradients; None if that is not possible.
        """
        parameters = self.threshold, self.initial_fraction, self.height, self.leak
        options = self.timesteps, self.options, other, overwrite
        outputs, repeat = fire_with_recompute(currents, *parameters, *options)
        if self.training and self.dropout:
            return outputs * nn.functional.dropout(torch.ones_like(outputs[0]), self.dropout), None
        return outputs, repeat

    @torch.no_grad()
    def keep_valid(self) -> None:
        """Bring thresholds and leak back into their ranges, which a step of an optimizer may leave."""
        self.threshold.clamp_(min=self.least)
        self.leak.clamp_(0, 1)

    def site_plan(self) -> SitePlan:
        """Return what the neurons are now."""
        leak = float(self.leak.detach())
        return SitePlan(
            threshold=self.threshold,
            initial_potential=self.initial_fraction * self.threshold,
            amplitude=self.height * self.threshold,
            neuron="integrate_and_fire" if leak == 1 else "leaky_integrate_and_fire",
            parameters={} if leak == 1 else {"leak": leak},
        )

    def extra_repr(self) -> str:
        """Show how many thresholds there are and the leak."""
        return f"thresholds={self.threshold.numel()}, leak={float(self.leak.detach()):.4g}, dropout={self.dropout}"
