"""The rules by which strategies choose thresholds, and the error they make."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.calibration import Histogram, SiteStatistics
from snn_lowlat.errors import CalibrationError

__all__ = [
    "GRANULARITIES",
    "RULES",
    "StaircaseError",
    "best_fraction",
    "cautious",
    "check_rule",
    "check_timesteps",
    "find_threshold",
]

RULES = ("ceiling", "max", "mmse", "percentile")
"""The names of the threshold rules."""

GRANULARITIES = ("channel", "layer")
"""One threshold for each channel, or one for the layer."""

# A channel with fewer positive values than this fraction says nothing about its positive range.
_NEARLY_DEAD = 1e-4
_SMALLEST_RELATIVE = 1e-6
_LOOKUPS_AT_ONCE = 1 << 19


class StaircaseError:
    r"""The expected squared error of a spiking neuron's average output, under a histogram of its input.

    For a constant input :math:`z`, an integrate-and-fire neuron with threshold :math:`\theta` and initial potential
    :math:`v_0 = \varphi\theta` answers over :math:`T` steps with the staircase
    :math:`\frac{\theta}{T}\mathrm{clip}(\lfloor zT/\theta + \varphi \rfloor, 0, T)`, that is
    :math:`\frac{\theta}{T}\sum_{m=1}^{T} [z \ge e_m]` with :math:`e_m = (m - \varphi)\,\theta / T`. Its squared
    distance to :math:`y(z) = \mathrm{clip}(z, 0, c)` therefore has the expectation

    .. math::

        E[y^2] - \frac{2\theta}{T} \sum_m E\big[y\,[z \ge e_m]\big]
        + \frac{\theta^2}{T^2} \sum_m (2m - 1)\, P(z \ge e_m)

    which needs :math:`T` look-ups in cumulated sums instead of a sum over all bins. Inside a bin, values are taken as
    evenly spread.

    Parameters
    ----------
    histogram : Histogram
        Of ``C`` channels, with data.
    ceiling : Tensor or None
        The ceiling :math:`c`, of shape ``[]`` or ``[C]``; none means that the activation is a plain ReLU.
    timesteps : int
        :math:`T`.
    """

    def __init__(self, histogram: Histogram, ceiling: Tensor | None, timesteps: int) -> None:
        self.channels = histogram.channels
        self.timesteps = timesteps
        self._width = histogram.width[:, None]
        upper = histogram.upper_edges()
        self._start = upper[:, :1] / self._width - 1
        limit = torch.full((self.channels,), torch.inf, dtype=torch.float64)
        self._limit = (limit if ceiling is None else ceiling.double().expand(self.channels))[:, None]
        self._density = histogram.counts.double() / max(histogram.count, 1)
        mass = self._density * (upper - self._width / 2).clamp(min=0.0).minimum(self._limit)
        # Column j: the sum over the bins above bin j.
        self._above = self._density.flip(1).cumsum(1).flip(1) - self._density
        self._mass_above = mass.flip(1).cumsum(1).flip(1) - mass
        positive = (upper > 0) & (upper <= self._limit)
        squares = (mass * (upper - self._width / 2).clamp(min=0.0).minimum(self._limit)).sum(1)
        self._power = squares + (self._density * positive).sum(1) * self._width[:, 0].square() / 12

    def __call__(self, threshold: Tensor, fraction: Tensor) -> Tensor:
        """Return the expected squared error for several candidates in each channel.

        Parameters
        ----------
        threshold : Tensor
            Candidate thresholds, of shape ``[C, Q]`` (or broadcasting to it), positive.
        fraction : Tensor
            Candidate initial potentials as fractions of the threshold, of the same shape.

        Returns
        -------
        Tensor
            Of shape ``[C, Q]``, float64.
        """
        candidates = max(threshold.shape[1], fraction.shape[1])
        threshold = threshold.double().expand(self.channels, candidates)
        fraction = fraction.double().expand(self.channels, candidates)
        return torch.cat([self._part(threshold[part], fraction[part], part) for part in self._parts(candidates)])

    def _parts(self, candidates: int) -> Iterator[slice]:
        step = max(1, _LOOKUPS_AT_ONCE // (candidates * self.timesteps))
        return (slice(start, start + step) for start in range(0, self.channels, step))

    def _part(self, threshold: Tensor, fraction: Tensor, part: slice) -> Tensor:
        channels, candidates = threshold.shape
        width, limit = self._width[part], self._limit[part]
        step = threshold / self.timesteps
        number = torch.arange(1, self.timesteps + 1, dtype=torch.float64)
        edges = ((number - fraction[..., None]) * step[..., None]).reshape(channels, -1)
        place = (edges / width - self._start[part]).clamp_(0.0, self._density.shape[1])
        index = place.long().clamp_(max=self._density.shape[1] - 1)
        # The part of the bin above the edge, and the middle of that part.
        share = index + 1 - place
        middle = ((index + 1 + self._start[part] - share / 2) * width).clamp_(min=0.0).minimum(limit)
        inside = self._density[part].gather(1, index).mul_(share)
        probability = self._above[part].gather(1, index).add_(inside).view(channels, candidates, -1)
        mass = self._mass_above[part].gather(1, index).add_(inside.mul_(middle)).view(channels, candidates, -1)
        spikes_squared = probability @ (2 * number - 1)
        error = self._power[part, None] - 2 * step * mass.sum(2) + step.square() * spikes_squared
        return error.clamp_(min=0.0)


def find_threshold(
    statistics: SiteStatistics,
    rule: str,
    timesteps: int,
    *,
    percentile: float = 99.9,
    granularity: str = "channel",
    scale: float = 1.0,
    fraction: Tensor | None = None,
) -> Tensor:
    r"""Choose the thresholds of one site.

    The rules, where :math:`y = \mathrm{clip}(z, 0, c)` is the activation of the pre-activation :math:`z` with the
    ceiling :math:`c`, if there is one:

    ``max``
        The largest activation seen (Diehl et al., IJCNN 2015).
    ``percentile``
        The percentile of the activations, zeros included (Rueckauer et al., Frontiers in Neuroscience 2017); of the
        positive activations where that is zero.
    ``ceiling``
        The trained ceiling.
    ``mmse``
        The threshold, up to the largest activation, whose :math:`T`-step staircase has the smallest expected squared
        error (after Li et al., ICML 2021, here with the initial potential taken into account).

    Three cautions apply to every rule but ``ceiling``. A dead channel (none of its values positive) gets the largest
    threshold of the layer's channels, so that it stays silent. A nearly dead channel (fewer than one value in 10,000
    positive) gets no less than its largest value and its standard deviation, because the few values say nothing about
    its positive range but the spread of all of them does. And no threshold is below 1e-6 of the layer's largest
    pre-activation.

    Parameters
    ----------
    statistics : SiteStatistics
        The site's statistics.
    rule : str
        The rule's name.
    timesteps : int
        The number of steps :math:`T`; only ``mmse`` depends on it.
    percentile : float
        The percentile, in percent, for the rule of that name.
    granularity : str
        ``"channel"``: one threshold a channel; ``"layer"``: one for all channels, from their pooled values (and from
        the largest ceiling).
    scale : float
        A factor on whatever the rule chose.
    fraction : Tensor, optional
        The initial potential as a fraction of the threshold, of shape ``[]`` or ``[C]``, for ``mmse``; by default the
        best one is assumed for each threshold. For one threshold a layer, the mean over the channels is used.

    Returns
    -------
    Tensor
        float64, positive: of shape ``[C]``, or ``[]`` for a layer or a scalar ceiling.

    Raises
    ------
    ValueError
        If the rule or granularity does not exist, or the site has no ceiling for ``ceiling``.
    CalibrationError
        If no pre-activation of the site is positive, or a ceiling is not.
    """
    check_rule(rule, percentile, granularity, scale)
    check_timesteps(timesteps)
    return scale * _unscaled(statistics, rule, timesteps, percentile, granularity, fraction)


def _unscaled(
    statistics: SiteStatistics, rule: str, timesteps: int, percentile: float, granularity: str, fraction: Tensor | None
) -> Tensor:
    ceiling = _ceiling(statistics)
    if rule == "ceiling":
        if ceiling is None:
            raise ValueError(
                f"site {statistics.name!r} has no trained ceiling: choose another threshold rule than 'ceiling' "
                "('mmse' never goes above a ceiling where there is one)."
            )
        return ceiling.amax() if granularity == "layer" else ceiling
    histogram = statistics.histogram
    largest = float(histogram.maximum.max())
    if not 0 < largest < torch.inf:
        raise CalibrationError(
            f"site {statistics.name!r} is dead: no pre-activation in the calibration data is positive."
        )
    if granularity == "layer":
        histogram = histogram.pooled()
        ceiling = None if ceiling is None else ceiling.amax()
        fraction = None if fraction is None else fraction.double().mean()
    reach = histogram.maximum if ceiling is None else histogram.maximum.minimum(ceiling)
    if rule == "max":
        threshold = reach
    elif rule == "percentile":
        threshold = histogram.quantile(percentile / 100)
        if not bool((threshold > 0).all()):
            threshold = torch.where(threshold > 0, threshold, histogram.quantile(percentile / 100, positive=True))
        threshold = threshold.minimum(reach)
    else:
        threshold = _least_error(StaircaseError(histogram, ceiling, timesteps), reach, fraction)
    threshold = cautious(threshold, reach, histogram)
    return threshold[0] if granularity == "layer" else threshold


def best_fraction(statistics: SiteStatistics, threshold: Tensor, timesteps: int) -> Tensor:
    """Find the initial potential with the smallest expected squared error for given thresholds.

    Parameters
    ----------
    statistics : SiteStatistics
        The site's statistics.
    threshold : Tensor
        Of shape ``[C]``, or ``[]`` for one initial potential for the layer, from the pooled values.
    timesteps : int
        The number of steps.

    Returns
    -------
    Tensor
        Fractions of the threshold in [0, 1), float64, of the threshold's shape.
    """
    histogram, ceiling = statistics.histogram, _ceiling(statistics)
    if threshold.dim() == 0:
        histogram = histogram.pooled()
        ceiling = None if ceiling is None else ceiling.amax()
    error = StaircaseError(histogram, ceiling, timesteps)
    candidates = threshold.double().reshape(-1, 1)
    grid = (torch.arange(64, dtype=torch.float64) / 64).expand(histogram.channels, -1)
    best = _pick(grid, error(candidates, grid))
    span = 1 / 64
    for _ in range(3):
        grid = (best[:, None] + span * torch.linspace(-1, 1, 9, dtype=torch.float64)).clamp_(0.0, 1 - 1e-6)
        best = _pick(grid, error(candidates, grid))
        span /= 4
    return best.reshape(threshold.shape)


def cautious(threshold: Tensor, reach: Tensor, histogram: Histogram) -> Tensor:
    """Keep dead and nearly dead channels from getting thresholds that mean nothing; see :func:`find_threshold`.

    Parameters
    ----------
    threshold : Tensor
        Of shape ``[C]``; those of dead channels are not read.
    reach : Tensor
        The largest activation of each channel, ``[C]``; not positive for a dead one.
    histogram : Histogram
        Of ``C`` channels, at least one of them alive.

    Returns
    -------
    Tensor
        Of shape ``[C]``, positive.
    """
    live = reach > 0
    rare = live & (histogram.positives() < _NEARLY_DEAD * histogram.count)
    threshold = torch.where(rare, torch.maximum(reach, histogram.variance.sqrt()), threshold)
    smallest = float(histogram.maximum.max()) * _SMALLEST_RELATIVE
    return torch.where(live, threshold, threshold[live].max()).clamp(min=smallest)


def check_rule(rule: str, percentile: float, granularity: str, scale: float = 1.0) -> None:
    """Check the options that the threshold rules share.

    Raises
    ------
    ValueError
        If there is no such rule or granularity, or the percentile is not from 50 to 100 or the scale not from 0.01 to
        100: outside, thresholds have nothing to do with the activations.
    """
    checks.one_of("threshold rule", rule, RULES)
    checks.one_of("granularity", granularity, GRANULARITIES)
    try:
        checks.number("percentile", percentile, 50, 100)
    except ValueError as error:
        raise ValueError(f"{str(error)[:-1]}: it is given in percent, as 99.9.") from None
    checks.number("threshold_scale", scale, 0.01, 100)


def check_timesteps(timesteps: int) -> None:
    """Check the number of time steps.

    Raises
    ------
    ValueError
        If it is not an integer of at least 1.
    """
    checks.count("timesteps", timesteps)


def _ceiling(statistics: SiteStatistics) -> Tensor | None:
    if statistics.ceiling is None:
        return None
    ceiling = statistics.ceiling.detach().double().cpu()
    if not bool((torch.isfinite(ceiling) & (ceiling > 0)).all()):
        raise CalibrationError(f"the trained ceiling of site {statistics.name!r} must be finite and positive.")
    return ceiling


def _least_error(error: StaircaseError, reach: Tensor, fraction: Tensor | None) -> Tensor:
    """Search the thresholds up to the reach: first a dense grid, then finer ones around the best candidate."""
    reach = torch.where(reach > 0, reach, 1.0)[:, None]
    # Geometric as well as even: a channel with a heavy tail has its best threshold at a small part of its maximum.
    even = torch.arange(1, 65, dtype=torch.float64) / 64
    geometric = torch.logspace(-3, 0, 65, dtype=torch.float64)
    relative = torch.cat([even, geometric[:-1]]).sort().values
    if fraction is None:
        fractions = torch.arange(16, dtype=torch.float64) / 16
        relative = relative.flip(0)[::2].flip(0).contiguous()
        first, second = (grid.reshape(1, -1) for grid in torch.meshgrid(relative, fractions, indexing="ij"))
        steps = torch.linspace(-1, 1, 7, dtype=torch.float64)
        offsets = [grid.reshape(1, -1) for grid in torch.meshgrid(steps, steps, indexing="ij")]
        rounds, shrink = 4, 2.5
    else:
        first, second = relative[None], fraction.double().reshape(-1, 1)
        offsets = [torch.linspace(-1, 1, 17, dtype=torch.float64)[None], torch.zeros(1, 1, dtype=torch.float64)]
        rounds, shrink = 3, 8.0
    value = error(first * reach, second)
    place = value.argmin(1, keepdim=True)
    best = first.expand_as(value).gather(1, place)
    potential = second.expand_as(value).gather(1, place)
    # The span of a candidate is its distance to its neighbours on the grid.
    span = torch.diff(relative, prepend=relative[:1] / 2)
    span = torch.maximum(span, torch.cat([span[1:], span[-1:]]))[torch.searchsorted(relative, best.contiguous())]
    potential_span = 1 / 16
    for _ in range(rounds):
        tries = (best + span * offsets[0]).clamp(1e-4, 1.0)
        potentials = potential + potential_span * offsets[1]
        if fraction is None:
            potentials = potentials.clamp(0.0, 1 - 1e-6)
        value = error(tries * reach, potentials)
        place = value.argmin(1, keepdim=True)
        best, potential = tries.gather(1, place), potentials.expand_as(value).gather(1, place)
        span, potential_span = span / shrink, potential_span / shrink
    return (best * reach)[:, 0]


def _pick(candidates: Tensor, error: Tensor) -> Tensor:
    return candidates.gather(1, error.argmin(1, keepdim=True))[:, 0]
