"""Threshold balancing: the classic baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.plan import SitePlan
from snn_lowlat.strategies.base import Strategy
from snn_lowlat.strategies.registry import register_strategy
from snn_lowlat.strategies.thresholds import check_rule, find_threshold

__all__ = ["ThresholdBalancing"]


@register_strategy("threshold_balancing")
@dataclass(frozen=True, eq=False)
class ThresholdBalancing(Strategy):
    r"""Thresholds that match the activations, with neurons that start at rest: :math:`v_0 = 0`.

    Diehl et al., "Fast-classifying, high-accuracy spiking deep networks through weight and threshold balancing" (IJCNN
    2015), with the reset by subtraction of Han et al., "RMP-SNN: residual membrane potential neuron" (CVPR 2020). A
    spike is worth the threshold. The average output never exceeds the activation, and lies half a step of :math:`\theta
    / T` below it on average, which is why this baseline needs many time steps.

    Parameters
    ----------
    threshold : str
        The rule: ``"max"``, ``"percentile"``, ``"ceiling"`` or ``"mmse"``; see
        :func:`snn_lowlat.strategies.find_threshold`.
    percentile : float
        The percentile, in percent, for the rule of that name.
    granularity : str
        ``"layer"`` or ``"channel"``.
    threshold_scale : float
        A factor on the thresholds; Han et al. use 0.7 to 0.9.

    Raises
    ------
    ValueError
        If an option has no meaning.
    """

    threshold: str = "max"
    percentile: float = 99.9
    granularity: str = "layer"
    threshold_scale: float = 1.0

    def __post_init__(self) -> None:
        check_rule(self.threshold, self.percentile, self.granularity, self.threshold_scale)

    def plan(self, statistics: SiteStatistics, timesteps: int) -> SitePlan:
        """Plan one site's neurons.

        Parameters
        ----------
        statistics : SiteStatistics
            What calibration saw at the site.
        timesteps : int
            The length of the simulation in steps, at least 1.
        """
        threshold = find_threshold(
            statistics,
            self.threshold,
            timesteps,
            percentile=self.percentile,
            granularity=self.granularity,
            scale=self.threshold_scale,
            fraction=torch.zeros(()),
        ).float()
        return SitePlan(threshold=threshold, initial_potential=torch.zeros(()), amplitude=threshold)
