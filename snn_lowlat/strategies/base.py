"""What every conversion strategy is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields

from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.plan import SitePlan
from snn_lowlat.registry import Registered

__all__ = ["Strategy", "check_effect"]


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


def check_effect(strategy: Strategy, option: str, other: str, needed: str) -> None:
    """Refuse an option that has no effect: it differs from its default while another option is not what it needs.

    Parameters
    ----------
    strategy : Strategy
        With both options.
    option, other : str
        Their names.
    needed : str
        The value of the other one with which the first has an effect.

    Raises
    ------
    ValueError
        If it has none; the message names both options.
    """
    (default,) = (field.default for field in fields(strategy) if field.name == option)
    given, found = getattr(strategy, option), getattr(strategy, other)
    if found != needed and given != default:
        raise ValueError(f"{option}={given} has a meaning with {other}={needed} only, not with {other}={found}.")
