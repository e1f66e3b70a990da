"""Optimized initial potentials (Bu et al., AAAI 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.plan import SitePlan
from snn_lowlat.strategies.initial_potential import check_initial_potential, potential_fraction
from snn_lowlat.strategies.registry import register_strategy
from snn_lowlat.strategies.threshold_strategy import ThresholdStrategy
from snn_lowlat.strategies.thresholds import best_fraction

__all__ = ["OptimizedPotential"]


@register_strategy("optimized_potential")
@dataclass(frozen=True, eq=False)
class OptimizedPotential(ThresholdStrategy):
    r"""Neurons that start with a membrane potential, by default of half the threshold.

    Bu, Ding, Yu & Huang, "Optimized potential initialization for low-latency spiking neural networks" (AAAI 2022, arXiv
    2202.01440): for inputs spread evenly between 0 and the threshold :math:`\theta`, the expected error of the average
    output over :math:`T` steps is :math:`v_0 / T - \theta / (2T)`. It vanishes for :math:`v_0 = \theta / 2`, which also
    makes the expected squared error smallest: :math:`\theta^2 / (12 T^2)`, a quarter of that for :math:`v_0 = 0`. A
    spike is worth the threshold.

    The paper takes the trained ceilings for thresholds: ``threshold="ceiling"``. The other options are those of
    :class:`~snn_lowlat.strategies.ThresholdStrategy`.

    Parameters
    ----------
    initial_potential : str, float or mapping of str to Tensor
        ``"half"`` or ``"zero"`` of the threshold; a fraction of it, from -1 to 1; fractions for each site by its name,
        of shape ``[]`` or ``[C]``; or ``"calibrated"``: the one in :math:`[0, \theta)` with the smallest expected
        squared error on the calibration data, found together with the threshold where that is chosen by ``"mmse"``.

    Raises
    ------
    ValueError
        If an option has no meaning.
    """

    initial_potential: str | float | Mapping[str, Tensor] = field(default="half")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = check_initial_potential(self.initial_potential, "calibrated")
        object.__setattr__(self, "initial_potential", given)

    def plan(self, statistics: SiteStatistics, timesteps: int) -> SitePlan:
        """Plan one site's neurons; see :meth:`Strategy.plan <snn_lowlat.Strategy.plan>`."""
        fraction = potential_fraction(self.initial_potential, statistics)
        threshold = self.thresholds(statistics, timesteps, fraction)
        if fraction is None:
            if self.granularity == "channel":
                threshold = threshold.expand(statistics.histogram.channels)
            fraction = best_fraction(statistics, threshold, timesteps)
        threshold = threshold.float()
        return SitePlan(threshold=threshold, initial_potential=fraction.float() * threshold, amplitude=threshold)
