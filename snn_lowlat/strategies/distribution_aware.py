"""Thresholds and spike heights fitted to the measured distribution (Datta & Beerel, DATE 2022)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.plan import SitePlan
from snn_lowlat.strategies.base import Strategy, check_effect
from snn_lowlat.strategies.initial_potential import check_initial_potential, potential_fraction
from snn_lowlat.strategies.registry import register_strategy
from snn_lowlat.strategies.thresholds import cautious, check_rule, find_threshold

__all__ = ["OBJECTIVES", "SOURCES", "DistributionAware", "percentiles", "search_staircase"]

_LOGGER = logging.getLogger(__name__)

OBJECTIVES = ("mse", "signed", "signed_then_mse")
"""What the search can make small."""

SOURCES = ("all", "positive")
"""Of which pre-activations the percentiles are taken."""

_CEILINGS = ("max", "percentile")
_PERCENTS = torch.arange(1, 100, dtype=torch.float64)
_HEIGHTS = torch.arange(1, 201, dtype=torch.float64) / 100
# Of the expected signed difference, in units of the ceiling.
_TOLERANCE = 1e-4
# Far more than rounding, far less than the distance of two percentiles.
_MARGIN = 1e-9
_ROWS_AT_ONCE = 32


@register_strategy("distribution_aware")
@dataclass(frozen=True, eq=False)
class DistributionAware(Strategy):
    r"""Thresholds and spike heights that fit each layer's staircase to the distribution of its pre-activations.

    Datta & Beerel, "Can deep neural networks be converted to ultra low-latency spiking neural networks?" (DATE 2022,
    arXiv 2112.12133). Pre-activations crowd near zero, so corrections that hold for evenly spread ones, such as an
    initial potential of half the threshold, are wrong for the first few steps. With the layer's ceiling :math:`\mu`,
    the original network answers a constant input :math:`d` with :math:`y(d) = \mathrm{clip}(d, 0, \mu)`; neurons with
    the threshold :math:`\theta = \alpha\mu`, whose spikes are worth :math:`\beta\theta`, answer with

    .. math:: x(d) = \frac{\beta\theta}{T}\, \mathrm{clip}\big(\lfloor (d\,T + v_0) / \theta \rfloor,\ 0,\ T\big)

    For :math:`v_0 = 0` their difference has three segments: :math:`d - \frac{\beta\theta}{T} \lfloor d\,T / \theta
    \rfloor` up to the threshold, :math:`d - \beta\theta` from there to the ceiling, and :math:`\mu - \beta\theta` above
    it. It is summed over the percentiles 1 to 99 of the layer's pre-activations, of which those up to zero add nothing.
    Each positive percentile (cut at the ceiling) is a candidate for the threshold, each of 0.01, 0.02, ... 2.00 for
    :math:`\beta`; all pairs are tried.

    The model, one :math:`\alpha` and :math:`\beta` for each layer, percentiles of all pre-activations and neurons that
    start at zero are those of the paper and its released code; ``gain`` is in the code alone. The program that searched
    was never released: its candidates, the step of 0.01 and the objective ``"signed"`` are a reconstruction, not
    checked against the paper. That reconstruction is ``objective="signed", percentile_source="all",
    granularity="layer"``; the defaults were chosen on training images that calibration does not see. In the paper the
    spiking network is then fine-tuned; this is the conversion alone, and well below the original network's accuracy
    where that is deep.

    The objective ``"signed"`` alone is degenerate: differences of either sign cancel in many pairs, and the pair whose
    sum is nearest to zero may fit the activations worse than no correction at all. And since no objective sees what
    lies above the 99th percentile, the error does not vanish in long windows: this is a strategy for the first few
    steps.

    A channel that is dead or nearly so gets the threshold that the rule ``"max"`` of
    :func:`~snn_lowlat.strategies.find_threshold` gives it, and spikes of that height. Where fewer than one in a hundred
    pre-activations are positive, the percentiles are those of the positive ones.

    Parameters
    ----------
    objective : str
        ``"signed"``: the smallest absolute value of the summed difference; ``"mse"``: the smallest summed squared
        difference; ``"signed_then_mse"``: among the pairs whose mean difference over the percentiles is within
        1e-4 of the ceiling from the smallest one, the pair with the smallest summed squared difference.
    percentile_source : str
        ``"all"``: percentiles of all pre-activations, as the released code takes them; ``"positive"``: of the positive
        ones, which spends all 99 of them on what the neurons can express.
    granularity : str
        ``"layer"``: one :math:`\alpha` and :math:`\beta` for the layer, from its pooled values; ``"channel"``: one pair
        for each channel.
    ceiling : str
        How :math:`\mu` is measured where the activation has no trained ceiling, which is always preferred: ``"max"``,
        the largest activation, or ``"percentile"``, a percentile of the activations, zeros included. The search treats
        activations above it as clipped to it. One value a layer or channel, as the granularity says. With trained
        ceilings for each channel and the granularity ``"layer"``, values are pooled in units of their own channel's
        ceiling, and each channel's threshold is :math:`\alpha` times its ceiling.
    percentile : float
        The percentile, in percent, for the ceiling of that name.
    gain : float
        A further factor on the height of the spikes, not seen by the search: 1.3 for VGG and 1.5 for ResNet in the
        released code, which does not explain it.
    initial_potential : str, float or mapping of str to Tensor
        ``"zero"`` or ``"half"`` of the threshold; a fraction of it, from -1 to 1; or fractions for each site by its
        name, of shape ``[]`` or ``[C]``. The search takes it into account, by its mean for one search a layer.

    Raises
    ------
    ValueError
        If an option has no meaning.
    """

    objective: str = "signed_then_mse"
    percentile_source: str = "positive"
    granularity: str = "channel"
    ceiling: str = "percentile"
    percentile: float = 99.9
    gain: float = 1.0
    initial_potential: str | float | Mapping[str, Tensor] = field(default="zero")

    def __post_init__(self) -> None:
        for option, given, known in (
            ("objective", self.objective, OBJECTIVES),
            ("percentile source", self.percentile_source, SOURCES),
            ("ceiling", self.ceiling, _CEILINGS),
        ):
            checks.one_of(option, given, known)
        check_rule(self.ceiling, self.percentile, self.granularity)
        check_effect(self, "percentile", "ceiling", "percentile")
        checks.number("gain", self.gain, 0.01, 100)
        object.__setattr__(self, "initial_potential", check_initial_potential(self.initial_potential))

    def plan(self, statistics: SiteStatistics, timesteps: int) -> SitePlan:
        """Plan one site's neurons; see :meth:`Strategy.plan <snn_lowlat.Strategy.plan>`."""
        fraction = potential_fraction(self.initial_potential, statistics)
        assert fraction is not None  # the check lets no other name pass
        whole, trained = self.granularity == "layer", statistics.ceiling
        pooled = whole and (trained is None or trained.dim() == 0)
        if pooled:
            statistics = SiteStatistics(statistics.name, statistics.histogram.pooled(), trained)
        largest = find_threshold(statistics, "max", timesteps)
        ceiling = self._ceiling(statistics, timesteps)
        values = percentiles(statistics, ceiling, self.granularity, positive=self.percentile_source == "positive")
        share, height = search_staircase(values, timesteps, fraction.mean() if whole else fraction, self.objective)
        searched = share * ceiling
        threshold = cautious(searched, largest, statistics.histogram)
        height = torch.where(threshold == searched, height, 1.0)
        if pooled:
            threshold, height = threshold[0], height[0]
        threshold, height = threshold.float(), height.float()
        return SitePlan(
            threshold=threshold,
            initial_potential=fraction.float() * threshold,
            amplitude=self.gain * height * threshold,
        )

    def _ceiling(self, statistics: SiteStatistics, timesteps: int) -> Tensor:
        if statistics.ceiling is not None:
            if (self.ceiling, self.percentile) != (DistributionAware.ceiling, DistributionAware.percentile):
                _LOGGER.warning(
                    "%s: layer %s has a trained ceiling: ceiling=%s and percentile=%g have no effect there.",
                    *(self.name, statistics.name, self.ceiling, self.percentile),
                )
            return find_threshold(statistics, "ceiling", timesteps)
        return find_threshold(statistics, self.ceiling, timesteps, percentile=self.percentile)


def percentiles(statistics: SiteStatistics, ceiling: Tensor, granularity: str, *, positive: bool) -> Tensor:
    """Return the percentiles 1 to 99 of a site's pre-activations in units of the ceiling.

    A value counts as the lower edge of its bin in the histogram, which lies at most 1/1023 of the range below it: a
    threshold that is one of the percentiles is then reached by all values of its bin.

    Parameters
    ----------
    statistics : SiteStatistics
        The site's statistics.
    ceiling : Tensor
        Of shape ``[]`` or ``[C]``, positive.
    granularity : str
        ``"channel"``: those of each channel; ``"layer"``: those of the values of all channels, each in units of its
        own channel's ceiling.
    positive : bool
        Consider only the values above zero; always done where the 99th percentile is not positive.

    Returns
    -------
    Tensor
        Of shape ``[1, 99]`` or ``[C, 99]``, float64.
    """
    pooled = granularity == "layer"
    histogram = statistics.histogram.pooled() if pooled and ceiling.dim() == 0 else statistics.histogram
    counts, unit = histogram.counts, ceiling.double().reshape(-1, 1)
    values = (histogram.upper_edges() - histogram.width[:, None]) / unit
    if pooled and ceiling.dim():
        filled = counts > 0
        values, order = values[filled].sort()
        counts, values = counts[filled][order][None], values[None]
    above = _percentiles(counts * (values >= 0), values)
    result = above if positive else _percentiles(counts, values)
    return torch.where(result[:, -1:] > 0, result, above)


def _percentiles(counts: Tensor, values: Tensor) -> Tensor:
    cumulated = counts.cumsum(1).double()
    index = torch.searchsorted(cumulated, cumulated[:, -1:] * (_PERCENTS / 100))
    return values.gather(1, index)


def search_staircase(values: Tensor, timesteps: int, fraction: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    r"""Find the staircase nearest to the clipped activation on some values, by trying all candidates.

    The search of :class:`DistributionAware`, for many rows at once. The staircase is proportional to :math:`\beta`, so
    three sums for each candidate threshold say which of its candidates are best: none has to be tried.

    Parameters
    ----------
    values : Tensor
        Pre-activations in units of the ceiling, of shape ``[G, P]``. Those above zero, cut at 1, are the candidates for
        the threshold.
    timesteps : int
        The number of steps.
    fraction : Tensor
        The initial potential as a fraction of the threshold, of shape ``[]`` or ``[G]``.
    objective : str
        One of :data:`OBJECTIVES`.

    Returns
    -------
    share : Tensor
        :math:`\alpha`, the threshold in units of the ceiling, of shape ``[G]``, float64; 1 where no value is positive.
    height : Tensor
        :math:`\beta`, what a spike is worth in units of the threshold, of shape ``[G]``, float64; 1 where no value is
        positive.
    """
    values, fraction = values.double(), fraction.double().expand(len(values))
    parts = [
        _search_rows(*rows, timesteps, objective)
        for rows in zip(torch.split(values, _ROWS_AT_ONCE), torch.split(fraction, _ROWS_AT_ONCE), strict=True)
    ]
    share, height = zip(*parts, strict=True)
    return torch.cat(share), torch.cat(height)


def _search_rows(values: Tensor, fraction: Tensor, timesteps: int, objective: str) -> tuple[Tensor, Tensor]:
    positive = values > 0
    target = values.clamp(0.0, 1.0)
    shares = torch.where(positive, target, 1.0)
    # Axes: the rows, the candidate thresholds, the values; those up to zero never fire.
    levels = torch.where(positive, values * timesteps, -torch.inf)[:, None] / shares[..., None]
    # Each candidate is itself one of the values: rounding must not put it one step too low.
    steps = levels.add_(fraction[:, None, None] + _MARGIN).floor_().clamp_(0, timesteps)
    # Of the heights, that nearest to the real number at which a parabola in them is least is the best.
    unit = shares / timesteps
    # A candidate that is none has no output; its quotients mean nothing, but are numbers.
    total, output = target.sum(1, keepdim=True), (steps.sum(2) * unit).clamp_(min=_MARGIN)
    everything = torch.zeros_like(output), torch.full_like(output, len(_HEIGHTS) - 1)
    signed, height = _best_heights(total, output, everything, lambda height: (total - height * output).abs_())
    if objective != "signed":
        cross, power = (
            (steps @ target[..., None])[..., 0] * unit,
            (steps.square_().sum(2) * unit.square()).clamp_(min=_MARGIN),
        )
        allowed = everything
        if objective == "signed_then_mse":
            slack = signed.masked_fill(~positive, torch.inf).amin(1, keepdim=True) + _TOLERANCE * values.shape[1]
            low, high = _places((total - slack) / output).ceil_(), _places((total + slack) / output).floor_()
            allowed = low, high
            positive = positive & (signed <= slack)
        square = target.square().sum(1, keepdim=True)
        signed, height = _best_heights(
            cross, power, allowed, lambda height: square - 2 * height * cross + height.square() * power
        )
    best = signed.masked_fill(~positive, torch.inf).argmin(1, keepdim=True)
    found = positive.any(1)
    return torch.where(found, shares.gather(1, best)[:, 0], 1.0), torch.where(found, height.gather(1, best)[:, 0], 1.0)


def _best_heights(
    numerator: Tensor,
    denominator: Tensor,
    allowed: tuple[Tensor, Tensor],
    error: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the least error and the height that makes it, among those next to a quotient within allowed places."""
    place = _places(numerator / denominator)
    heights = [_HEIGHTS[near.clamp(*allowed).long()] for near in (place.floor(), place.ceil())]
    errors = [error(height) for height in heights]
    lower = errors[1] < errors[0]
    return torch.where(lower, errors[1], errors[0]), torch.where(lower, heights[1], heights[0])


def _places(heights: Tensor) -> Tensor:
    """Return where heights would stand among the candidates, between two of them as a fraction."""
    return (heights * 100 - 1).clamp_(0, len(_HEIGHTS) - 1)
