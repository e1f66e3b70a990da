"""A histogram for each channel that grows with the data and does not depend on the order of the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from snn_lowlat.errors import CalibrationError

__all__ = ["Histogram"]

# float64 represents every multiple of 2**-50 of the largest magnitude, so bin numbers stay exact integers.
_FINEST_BITS = 50
_SMALLEST_EXPONENT = -1000
_CPU_CHUNK = 1 << 17
_GPU_CHUNK = 1 << 24


class Histogram:
    r"""The distribution of one site's pre-activations, channel by channel.

    Channel :math:`c` has equal bins of width :math:`w_c = 2^{e_c}`; bin :math:`k` holds the values in
    :math:`((k-1)\,w_c,\ k\,w_c]`, so that zero is always an edge. The exponent :math:`e_c` is the smallest for which
    the range seen so far, from :math:`\lceil \min / w_c \rceil` to :math:`\lceil \max / w_c \rceil`, fits in ``bins``
    bins. When the range grows, neighbouring bins are added in pairs, which is exact because the edges of the wider bins
    are edges of the narrower ones. The counts are therefore a function of the data alone: batch order, batch size and
    the way in which partial histograms are merged change no bit of them, nor of the quantiles. (The mean and the
    variance are sums of floating-point numbers, and depend on the order within the rounding of float64.)

    The width is at most 1/1023 of the range for 2048 bins, and so is the error of a quantile.

    Memory: 8 bytes for each bin of each channel (16 KiB a channel at 2048 bins), whatever the amount of data; an update
    also takes working buffers of about 2 MiB on a CPU.

    Parameters
    ----------
    channels : int
        Number of channels.
    bins : int
        Number of bins of each channel, a power of two and at least 16.

    Raises
    ------
    ValueError
        If there is no channel, or ``bins`` is no power of two of at least 16.
    """

    def __init__(self, channels: int, bins: int = 2048) -> None:
        if channels < 1:
            raise ValueError(f"a histogram needs at least one channel, not {channels}.")
        if bins < 16 or bins & (bins - 1):
            raise ValueError(f"bins must be a power of two and at least 16, not {bins}.")
        self.channels = channels
        self.bins = bins
        self.count = 0
        self.minimum = torch.full((channels,), torch.inf, dtype=torch.float64)
        self.maximum = torch.full((channels,), -torch.inf, dtype=torch.float64)
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)
        self._exponent = torch.full((channels,), _SMALLEST_EXPONENT, dtype=torch.int64)
        # Storage starts below the lowest bin in use, so that a slightly wider range seldom has to move the counts.
        self._origin = torch.zeros(channels, dtype=torch.int64)
        self._storage = torch.zeros(channels, bins, dtype=torch.int64)

    def __repr__(self) -> str:
        return f"Histogram(channels={self.channels}, bins={self.bins}, count={self.count})"

    # ------------------------------------------------------------------ what was seen

    @property
    def device(self) -> torch.device:
        """Where the counts are kept: the device of the first values seen."""
        return self._storage.device

    @property
    def width(self) -> Tensor:
        """The width of the bins, of shape ``[C]``, float64: powers of two."""
        return _power_of_two(self._exponent)

    @property
    def counts(self) -> Tensor:
        """How many values each bin holds, of shape ``[C, bins]``, int64; the first bin is that of the minimum."""
        positions = self._lowest_bin()[:, None] - self._origin[:, None] + self._steps()
        counts = self._storage.gather(1, positions.clamp(max=self.bins - 1))
        return counts.masked_fill_(positions >= self.bins, 0)

    @property
    def mean(self) -> Tensor:
        """The mean of each channel, of shape ``[C]``, float64; zero before any data."""
        return self._mean.clone() if self.count == 0 else self._mean.clamp(self.minimum, self.maximum)

    @property
    def variance(self) -> Tensor:
        """The (population) variance of each channel, of shape ``[C]``, float64; zero before any data."""
        constant = self.minimum == self.maximum
        return (self._squares / max(self.count, 1)).masked_fill(constant, 0.0)

    def upper_edges(self) -> Tensor:
        """Return the upper edge of each bin, which belongs to the bin: shape ``[C, bins]``, float64."""
        return (self._lowest_bin()[:, None] + self._steps()).double() * self.width[:, None]

    def centers(self) -> Tensor:
        """Return the middle of each bin: shape ``[C, bins]``, float64."""
        return ((self._lowest_bin()[:, None] + self._steps()).double() - 0.5) * self.width[:, None]

    def positives(self) -> Tensor:
        """Return how many values above zero each channel saw, exactly: shape ``[C]``, int64."""
        return (self._storage * (self._origin[:, None] + self._steps() > 0)).sum(1)

    def quantile(self, q: float, *, positive: bool = False) -> Tensor:
        """Estimate a quantile of each channel, to within one bin's width.

        Order statistics are placed evenly in their bin, and interpolated linearly as :func:`torch.quantile` does.

        Parameters
        ----------
        q : float
            The fraction of values below the quantile, from 0 to 1.
        positive : bool
            Consider only the values above zero. A channel without any has the quantile 0.

        Returns
        -------
        Tensor
            The quantiles, of shape ``[C]``, float64, between the minimum and the maximum seen.

        Raises
        ------
        ValueError
            If ``q`` is outside [0, 1].
        CalibrationError
            If nothing has been seen.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile lies between 0 and 1, not at {q}.")
        self._require_data()
        counts = self.counts
        if positive:
            counts = counts * (self._lowest_bin()[:, None] + self._steps() > 0)
        cumulated = counts.cumsum(1)
        total = cumulated[:, -1]
        rank = q * (total - 1).clamp(min=0).double()
        low = self._order_statistic(counts, cumulated, rank.floor().long(), positive)
        high = self._order_statistic(counts, cumulated, rank.ceil().long(), positive)
        return torch.where(total > 0, low + (high - low) * (rank - rank.floor()), 0.0)

    def _order_statistic(self, counts: Tensor, cumulated: Tensor, rank: Tensor, positive: bool) -> Tensor:
        index = torch.searchsorted(cumulated, rank[:, None], right=True).clamp(max=self.bins - 1)
        inside = counts.gather(1, index)
        before = cumulated.gather(1, index) - inside
        fraction = ((rank[:, None] - before).double() + 0.5) / inside.clamp(min=1)
        lower_edge = (self._lowest_bin()[:, None] + index - 1).double()
        value = ((lower_edge + fraction) * self.width[:, None])[:, 0].clamp(self.minimum, self.maximum)
        if not positive:
            value = torch.where(rank == 0, self.minimum, value)
        return torch.where(rank == cumulated[:, -1] - 1, self.maximum, value)

    # ------------------------------------------------------------------ seeing more

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Count more values.

        Parameters
        ----------
        values : Tensor
            Of shape ``[N, C, ...]`` and a floating-point type, on any device. An empty tensor changes nothing.

        Raises
        ------
        CalibrationError
            If a value is NaN or infinite; the histogram is then unchanged.
        ValueError
            If the shape or the type does not fit.
        """
        if values.dim() < 2 or values.shape[1] != self.channels:
            raise ValueError(f"expected values of shape [N, {self.channels}, ...], not {list(values.shape)}.")
        if not values.is_floating_point():
            raise ValueError(f"expected floating-point values, not {values.dtype}.")
        if values.numel() == 0:
            return
        if self.count == 0 and values.device.type in ("cpu", "cuda"):
            self.to(values.device)
        rows = _as_rows(values.detach().to(self.device))
        lowest, highest = rows.amin((0, 2)).double(), rows.amax((0, 2)).double()
        finite = lowest.isfinite() & highest.isfinite()
        if not bool(finite.all()):
            channel = int((~finite).nonzero()[0])
            raise CalibrationError(
                f"NaN or infinite values in {int((~finite).sum())} of {self.channels} channels, "
                f"the first being channel {channel}."
            )
        self._extend(lowest, highest)
        # Sums about the middle of the range lose no digits where the mean is far from zero.
        middle = lowest / 2 + highest / 2
        with _few_threads():
            total, squares = self._count(rows, middle)
        size = rows.shape[0] * rows.shape[2]
        mean = total / size
        self._add_moments(size, middle + mean, (squares - size * mean.square()).clamp_(min=0.0))

    def merge(self, other: Histogram) -> None:
        """Count all that another histogram has seen.

        The counts become those of a histogram that saw both data itself, bit for bit.

        Parameters
        ----------
        other : Histogram
            With as many channels and bins; it is left as it is.

        Raises
        ------
        ValueError
            If the numbers of channels or bins differ.
        """
        if (self.channels, self.bins) != (other.channels, other.bins):
            raise ValueError(
                f"can't merge a histogram of {other.channels} channels x {other.bins} bins "
                f"into one of {self.channels} x {self.bins}."
            )
        if other.count == 0:
            return
        if self.count == 0:
            self.to(other.device)
        self._extend(other.minimum.to(self.device), other.maximum.to(self.device))
        exponent, origin = other._exponent.to(self.device), other._origin.to(self.device)
        storage = other._storage.to(self.device)
        positions = self._positions(exponent, origin, self._exponent, self._origin)
        # `storage` may be this very histogram's, which must not change while it is read.
        self._storage = self._storage.scatter_add(1, positions, storage)
        self._add_moments(other.count, other._mean.to(self.device), other._squares.to(self.device))

    def pooled(self) -> Histogram:
        """Return the histogram of one channel that has seen the values of all channels."""
        result = Histogram(1, self.bins).to(self.device)
        if self.count == 0:
            return result
        result._extend(self.minimum.amin().reshape(1), self.maximum.amax().reshape(1))
        positions = self._positions(self._exponent, self._origin, result._exponent, result._origin)
        result._storage[0].scatter_add_(0, positions.reshape(-1), self._storage.reshape(-1))
        result.count = self.count * self.channels
        result._mean = self._mean.mean().reshape(1)
        spread = (self._mean - result._mean).square().sum() * self.count
        result._squares = (self._squares.sum() + spread).reshape(1)
        return result

    def to(self, device: torch.device | str) -> Histogram:
        """Move the counts to a device, in place, and return this histogram."""
        for name in ("minimum", "maximum", "_mean", "_squares", "_exponent", "_origin", "_storage"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    # ------------------------------------------------------------------ how it works

    def _require_data(self) -> None:
        if self.count == 0:
            raise CalibrationError("the histogram has seen no values yet.")

    def _steps(self) -> Tensor:
        return torch.arange(self.bins, device=self.device)

    def _lowest_bin(self) -> Tensor:
        # An infinite minimum says that there are no values yet.
        minimum = self.minimum.masked_fill(self.minimum.isinf(), 0.0)
        return (minimum * _power_of_two(-self._exponent)).ceil().long()

    def _extend(self, lowest: Tensor, highest: Tensor) -> None:
        """Widen the range to hold new extremes, and move the counts where their bins change."""
        minimum, maximum = torch.minimum(self.minimum, lowest), torch.maximum(self.maximum, highest)
        if torch.equal(minimum, self.minimum) and torch.equal(maximum, self.maximum):
            return
        self.minimum, self.maximum = minimum, maximum
        exponent = _fitting_exponent(minimum, maximum, self.bins)
        scale = _power_of_two(-exponent)
        first, last = (minimum * scale).ceil().long(), (maximum * scale).ceil().long()
        fits = (exponent == self._exponent) & (first >= self._origin) & (last < self._origin + self.bins)
        moved = (~fits).nonzero()[:, 0]
        if moved.numel() == 0:
            return
        origin = first[moved] - (self.bins - (last - first + 1)[moved]) // 2
        if self.count:
            positions = self._positions(self._exponent[moved], self._origin[moved], exponent[moved], origin)
            counts = self._storage[moved]
            self._storage[moved] = torch.zeros_like(counts).scatter_add_(1, positions, counts)
        self._exponent = exponent
        self._origin = self._origin.index_copy(0, moved, origin)

    def _positions(self, exponent: Tensor, origin: Tensor, new_exponent: Tensor, new_origin: Tensor) -> Tensor:
        """Return where each stored bin goes in a coarser storage: shape ``[C, bins]``."""
        shift = (new_exponent - exponent).clamp(0, 62)
        # ceil(k / 2**shift) for integers; bins that hold nothing may fall outside and are clamped.
        coarse = -((-(origin[:, None] + self._steps())) >> shift[:, None])
        return (coarse - new_origin[:, None]).clamp_(0, self.bins - 1)

    def _count(self, rows: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Count values ``[N, C, L]`` that lie within the range; return the sums of deviations and of their squares."""
        samples, channels, length = rows.shape
        chunk = _GPU_CHUNK if rows.is_cuda else _CPU_CHUNK
        # Several passes over a part that stays in the cache are faster than over the whole tensor.
        if length == 1:
            channel_step, sample_step = channels, max(1, chunk // channels)
        else:
            channel_step, sample_step = max(1, chunk // (samples * length)), max(1, chunk // length)
        channel_step, sample_step = min(channel_step, channels), min(sample_step, samples)
        constant = self.minimum == self.maximum
        scale = _power_of_two(-self._exponent).masked_fill(constant, 0.0)
        first = torch.where(constant, self._lowest_bin() - self._origin, -self._origin)
        working, index_type = self._number_types(rows.dtype, first, channel_step, constant)
        capacity = channel_step * sample_step * length
        wide = torch.empty(capacity, dtype=torch.float64, device=rows.device)
        scaled = torch.empty(capacity, dtype=working, device=rows.device)
        index = torch.empty(capacity, dtype=index_type, device=rows.device)
        one = torch.ones((), dtype=torch.int64, device=rows.device)
        total = torch.zeros(channels, dtype=torch.float64, device=rows.device)
        squares = torch.zeros_like(total)
        scale, middle = scale.to(working)[:, None], middle[:, None]
        local = torch.arange(channels, device=rows.device) % channel_step
        offset = (local * self.bins + first).to(working)[:, None]
        for channel in range(0, channels, channel_step):
            span = slice(channel, min(channel + channel_step, channels))
            table = self._storage[span]
            for sample in range(0, samples, sample_step):
                part = rows[sample : sample + sample_step, span]
                size = part.numel()
                # Copying first is faster than a subtraction of mixed types.
                exact = wide[:size].view(part.shape).copy_(part).sub_(middle[span])
                total[span] += exact.sum((0, 2))
                squares[span] += torch.linalg.vector_norm(exact, dim=(0, 2)).square_()
                target = scaled[:size].view(part.shape)
                torch.mul(part, scale[span], out=target)
                target.ceil_().add_(offset[span])
                bins = index[:size].copy_(scaled[:size])
                # Clearing and adding a table of counts is only worth it where there are about as many values.
                if 2 * size >= table.numel():
                    table += torch.bincount(bins, minlength=table.numel()).view(table.shape)
                else:
                    table.view(-1).index_add_(0, bins, one.expand(size))
        return total, squares

    def _number_types(
        self, dtype: torch.dtype, first: Tensor, channel_step: int, constant: Tensor
    ) -> tuple[torch.dtype, torch.dtype]:
        """Choose the smallest types in which all bin numbers are exact integers."""
        size = channel_step * self.bins
        index_type = torch.int32 if size < 2**31 else torch.int64
        # In float32, dividing by a width above one could make a tiny positive number zero, and the inverse of a tiny
        # width overflows.
        unsafe = bool((((self._exponent > 0) | (self._exponent < -120)) & ~constant).any())
        largest = int(first.abs().max()) + size
        if dtype == torch.float32 and largest < 2**23 and not unsafe:
            return torch.float32, index_type
        return torch.float64, index_type

    def _add_moments(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Combine means and sums of squared deviations (Chan, Golub & LeVeque, 1979)."""
        both = self.count + count
        difference = mean - self._mean
        self._squares = self._squares + squares + difference.square() * (self.count * count / both)
        self._mean = self._mean + difference * (count / both)
        self.count = both


@contextmanager
def _few_threads() -> Iterator[None]:
    """Count in one thread where there are only a few.

    Each pass over a part is so short that threads wait for one another as long as they work, and much longer on a busy
    machine.
    """
    threads = torch.get_num_threads()
    if not 1 < threads <= 4:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _power_of_two(exponent: Tensor) -> Tensor:
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)


def _fitting_exponent(minimum: Tensor, maximum: Tensor, bins: int) -> Tensor:
    """Return the smallest exponents for which the ranges fit in the bins; never smaller for a wider range."""
    half_range = maximum / 2 - minimum / 2
    magnitude = torch.maximum(minimum.abs(), maximum.abs())
    finest = (torch.frexp(magnitude).exponent.long() - _FINEST_BITS).clamp(min=_SMALLEST_EXPONENT)
    finest = torch.where(magnitude > 0, finest, _SMALLEST_EXPONENT)
    guess = torch.frexp(half_range).exponent.long() + 1 - (bins.bit_length() - 1)
    exponent = guess + 1
    for candidate in (guess, guess - 1):
        scale = _power_of_two(-candidate.clamp(min=_SMALLEST_EXPONENT))
        fits = (maximum * scale).ceil() - (minimum * scale).ceil() < bins
        exponent = torch.where(fits, candidate, exponent)
    return torch.where(half_range > 0, torch.maximum(exponent, finest), finest)


def _as_rows(values: Tensor) -> Tensor:
    """View values as ``[N, C, L]`` without a copy where the memory layout allows it."""
    if values.dim() in (4, 5) and not values.is_contiguous():
        channels_last = values.movedim(1, -1)
        if channels_last.is_contiguous():
            return channels_last.reshape(-1, values.shape[1], 1)
    return values.reshape(values.shape[0], values.shape[1], -1)
