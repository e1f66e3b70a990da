"""Threshold balancing: the classic baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.plan import SitePlan
from snn_lowlat.strategies.registry import register_strategy
from snn_lowlat.strategies.threshold_strategy import ThresholdStrategy

__all__ = ["ThresholdBalancing"]


@register_strategy("threshold_balancing")
@dataclass(frozen=True, eq=False)
class ThresholdBalancing(ThresholdStrategy):
    r"""Thresholds that match the activations, with neurons that start at rest: :math:`v_0 = 0`.

    Diehl et al., "Fast-classifying, high-accuracy spiking deep networks through weight and threshold balancing" (IJCNN
    2015), with the reset by subtraction of Han et al., "RMP-SNN: residual membrane potential neuron" (CVPR 2020). A
    spike is worth the threshold. The average output never exceeds the activation, and lies half a step of :math:`\theta
    / T` below it on average, which is why this baseline needs many time steps.

    The options are those of :class:`~snn_lowlat.strategies.ThresholdStrategy`, with the largest activation of the layer
    for the threshold unless they say otherwise.
    """

    threshold: str = "max"
    granularity: str = "layer"

    def plan(self, statistics: SiteStatistics, timesteps: int) -> SitePlan:
        """Plan one site's neurons; see :meth:`Strategy.plan <snn_lowlat.Strategy.plan>`."""
        threshold = self.thresholds(statistics, timesteps, fraction=torch.zeros(())).float()
        return SitePlan(threshold=threshold, initial_potential=torch.zeros(()), amplitude=threshold)
