"""What calibration learns about one activation site."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from snn_lowlat.calibration.histogram import Histogram

__all__ = ["SiteStatistics"]


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """The pre-activations seen at one activation site: all that a strategy knows about it.

    Parameters
    ----------
    name : str
        The site's name.
    histogram : Histogram
        The distribution of the pre-activations, channel by channel.
    ceiling : Tensor or None
        The value at which the trained activation clips, of shape ``[]`` or ``[C]``; ``None`` for a plain ReLU.
    levels : int or None
        The number of levels above zero that the trained activation is rounded down to; ``None`` if it is not rounded.
    shift : float
        What it adds before it rounds down, in levels.
    """

    name: str
    histogram: Histogram
    ceiling: Tensor | None = None
    levels: int | None = None
    shift: float = 0.0
