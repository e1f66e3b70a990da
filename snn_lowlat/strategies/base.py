"""What every conversion strategy is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.plan import SitePlan
from snn_lowlat.registry import Registered

__all__ = ["Strategy"]


@dataclass(frozen=True, eq=False)
class Strategy(Registered):
    """A rule that plans the neurons of one site from its statistics.

    Subclasses are frozen dataclasses whose fields are the options, check them in ``__post_init__``, and are made known
    by :func:`register_strategy`. A strategy knows neither the network nor the library that will run it.
    """

    @abstractmethod
    def plan(self, statistics: SiteStatistics, timesteps: int) -> SitePlan:
        """Plan one site's neurons.

        Parameters
        ----------
        statistics : SiteStatistics
            What calibration saw at the site.
        timesteps : int
            The length of the simulation in steps, at least 1.

        Raises
        ------
        ValueError
            If the site lacks what the options ask for, such as a trained ceiling or an initial potential of its own.
        CalibrationError
            If the site is dead, or a trained ceiling is not positive.
        """
