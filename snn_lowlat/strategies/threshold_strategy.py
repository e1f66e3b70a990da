"""What strategies have in common that choose thresholds by a rule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.strategies.base import Strategy, check_effect
from snn_lowlat.strategies.thresholds import check_rule, find_threshold

__all__ = ["ThresholdStrategy"]


@dataclass(frozen=True, eq=False)
class ThresholdStrategy(Strategy):
    """A strategy whose thresholds follow one of the rules of :func:`snn_lowlat.strategies.find_threshold`.

    Parameters
    ----------
    threshold : str
        The rule: ``"mmse"``, ``"max"``, ``"percentile"`` or ``"ceiling"``.
    percentile : float
        The percentile, in percent, for the rule of that name.
    granularity : str
        ``"channel"`` or ``"layer"``: one threshold for each channel, or one for all.
    threshold_scale : float
        A factor on whatever the rule chose. In deep networks currents arrive unevenly, and thresholds somewhat below
        those that suit constant currents (0.7 to 0.9; Han et al., CVPR 2020) cost a little clipping and save more.

    Raises
    ------
    ValueError
        If an option has no meaning.
    """

    threshold: str = "mmse"
    percentile: float = 99.9
    granularity: str = "channel"
    threshold_scale: float = 1.0

    def __post_init__(self) -> None:
        check_rule(self.threshold, self.percentile, self.granularity, self.threshold_scale)
        check_effect(self, "percentile", "threshold", "percentile")

    def thresholds(self, statistics: SiteStatistics, timesteps: int, fraction: Tensor | None) -> Tensor:
        """Choose one site's thresholds, of shape ``[]`` or ``[C]``, float64.

        Parameters
        ----------
        statistics : SiteStatistics
            What calibration saw at the site.
        timesteps : int
            The number of steps.
        fraction : Tensor or None
            The initial potential as a fraction of the threshold, for ``"mmse"``; None if it is still to be chosen.
        """
        return find_threshold(
            statistics,
            self.threshold,
            timesteps,
            percentile=self.percentile,
            granularity=self.granularity,
            scale=self.threshold_scale,
            fraction=fraction,
        )
