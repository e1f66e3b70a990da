from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_lowlat.calibration import Histogram
from snn_lowlat.errors import CalibrationError


def seen(values: torch.Tensor, bins: int = 2048) -> Histogram:
    histogram = Histogram(values.shape[1], bins)
    histogram.update(values)
    return histogram


def same(first: Histogram, second: Histogram) -> bool:
    return (
        torch.equal(first.counts, second.counts)
        and torch.equal(first.width, second.width)
        and torch.equal(first.centers(), second.centers())
        and torch.equal(first.quantile(0.999), second.quantile(0.999))
        and torch.equal(first.maximum, second.maximum)
        and torch.equal(first.minimum, second.minimum)
    )


def distributions(channels: int = 3, size: int = 4000) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(size, channels, generator=generator)
    uniform = torch.rand(size, channels, generator=generator)
    return {
        "normal": normal,
        "uniform": uniform,
        "negative": -uniform - 1,
        "half_normal": normal.abs(),
        "relu": normal.relu(),
        "shifted": 1000 + uniform * 1e-2,
        "far_shifted": -(2.0**20) + uniform,
        "heavy_tail": normal / (uniform + 1e-4),
        "exponential": -uniform.clamp(min=1e-6).log(),
        "tiny": normal * 1e-30,
        "subnormal": normal * 1e-42,
        "huge": normal * 1e30,
        "two_clusters": torch.where(uniform > 0.5, normal * 1e-3 + 5, normal * 1e-3 - 5),
        "few_values": (normal * 2).round(),
        "large_range": normal * 1e4,
    }


@pytest.mark.parametrize("name", distributions())
@pytest.mark.parametrize("q", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_quantiles_are_within_a_thousandth_of_the_range(name: str, q: float) -> None:
    values = distributions()[name].double()
    quantile = seen(distributions()[name]).quantile(q)
    reach = values.amax(0) - values.amin(0)
    assert ((quantile - torch.quantile(values, q, dim=0)).abs() <= 1e-3 * reach).all()


@pytest.mark.parametrize("name", distributions())
def test_extremes_and_moments_are_exact(name: str) -> None:
    values = distributions()[name]
    histogram = Histogram(3)
    for part in values.split(333):
        histogram.update(part)
    exact = values.double()
    assert torch.equal(histogram.maximum, exact.amax(0))
    assert torch.equal(histogram.minimum, exact.amin(0))
    assert torch.allclose(histogram.mean, exact.mean(0), rtol=1e-9, atol=1e-12 * float(exact.abs().max()))
    assert torch.allclose(histogram.variance, exact.var(0, unbiased=False), rtol=1e-9, atol=0)
    assert histogram.count == len(values)
    assert (histogram.counts.sum(1) == len(values)).all()


@pytest.mark.parametrize("name", distributions())
def test_counts_are_those_of_the_definition(name: str) -> None:
    values = distributions()[name].double()
    histogram = seen(distributions()[name])
    upper = histogram.upper_edges()
    for channel in range(3):
        ours = histogram.counts[channel].nonzero()[:, 0]
        bins, counts = (values[:, channel] / histogram.width[channel]).ceil().unique(return_counts=True)
        assert torch.equal(upper[channel, ours] / histogram.width[channel], bins)
        assert torch.equal(histogram.counts[channel, ours], counts)


@pytest.mark.parametrize("name", distributions())
def test_batch_order_and_size_change_no_bit(name: str) -> None:
    values = distributions()[name]
    whole = seen(values)
    for order, size in ((values, 7), (values.flip(0), 512), (values[torch.randperm(len(values))], 1001)):
        parts = Histogram(3)
        for part in order.split(size):
            parts.update(part)
        assert same(parts, whole)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 39),
    st.randoms(use_true_random=False),
)
def test_any_floats_in_any_order_and_any_split(numbers: list[float], cut: int, random: object) -> None:
    shuffled = list(numbers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    whole = seen(torch.tensor(numbers)[:, None], bins=16)
    one, two, both = Histogram(1, 16), Histogram(1, 16), Histogram(1, 16)
    one.update(torch.tensor(shuffled[:cut])[:, None])
    two.update(torch.tensor(shuffled[cut:])[:, None])
    both.merge(two)
    both.merge(one)
    assert same(both, whole)
    assert int(whole.counts.sum()) == len(numbers)
    assert int(whole.positives()) == sum(number > 0 for number in numbers)


def test_merging_is_exact_and_leaves_the_other_alone() -> None:
    values = distributions()["heavy_tail"]
    first, second, empty = seen(values[:1000]), seen(values[1000:] * 3), Histogram(3)
    whole = seen(torch.cat([values[:1000], values[1000:] * 3]))
    before = second.counts
    first.merge(second)
    first.merge(empty)
    empty.merge(first)
    assert torch.equal(second.counts, before)
    for merged in (first, empty):
        assert same(merged, whole)
        assert torch.allclose(merged.mean, whole.mean)
        assert torch.allclose(merged.variance, whole.variance)
    first.merge(first)
    assert torch.equal(first.counts, 2 * whole.counts)


def test_pooled_is_the_histogram_of_all_values() -> None:
    values = distributions()["normal"] * torch.tensor([0.01, 1.0, 30.0]) + torch.tensor([5.0, 0.0, 0.0])
    pooled = seen(values).pooled()
    whole = seen(values.reshape(-1, 1))
    assert pooled.count == values.numel()
    assert same(pooled, whole)
    assert torch.allclose(pooled.mean, whole.mean)
    assert torch.allclose(pooled.variance, whole.variance)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 7), (6, 5, 4, 3), (2, 5, 2, 3, 4), (300, 5, 40, 40), (50000, 5)])
def test_shapes_and_memory_layouts(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    flat = seen(values.movedim(1, -1).reshape(-1, 5))
    assert same(seen(values), flat)
    assert same(seen(values.movedim(1, -1).contiguous().movedim(-1, 1)), flat)
    assert flat.count == values.numel() // 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    values = torch.randn(500, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    histogram = seen(values)
    assert same(histogram, seen(values.double()))
    assert torch.equal(histogram.maximum, values.double().amax(0))


def test_constant_and_zero_channels() -> None:
    values = torch.tensor([0.0, 3.7, -2.5e-20, 1e30]).repeat(100, 1)
    histogram = seen(values)
    histogram.update(values)
    assert torch.equal(histogram.mean, values[0].double())
    assert torch.equal(histogram.variance, torch.zeros(4, dtype=torch.float64))
    for q in (0.0, 0.5, 0.999, 1.0):
        assert torch.equal(histogram.quantile(q), values[0].double())
    assert (histogram.counts[:, 0] == 200).all()
    assert histogram.positives().tolist() == [0, 200, 0, 200]
    histogram.update(torch.tensor([[1.0, 3.0, 1.0, -1.0]]))
    assert (histogram.counts.sum(1) == 201).all()
    assert histogram.positives().tolist() == [1, 201, 1, 200]


def test_float64_extremes() -> None:
    values = torch.tensor([[1e308], [-1e308], [1e-10], [0.0]], dtype=torch.float64)
    histogram = seen(values)
    assert int(histogram.counts.sum()) == 4
    assert int(histogram.positives()) == 2
    assert float(histogram.quantile(1.0)) == 1e308


def test_positive_quantile_ignores_zeros_and_negatives() -> None:
    values = torch.randn(5000, 2, generator=torch.Generator().manual_seed(3))
    values[:, 1] = -values[:, 1].abs()
    values[::3, 0] = 0.0
    quantile = seen(values).quantile(0.5, positive=True)
    kept = values[:, 0][values[:, 0] > 0].double()
    assert abs(float(quantile[0] - kept.median())) <= 1e-3 * float(values[:, 0].max() - values[:, 0].min())
    assert float(quantile[1]) == 0.0


def test_errors() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Histogram(1, 1000)
    with pytest.raises(ValueError, match="at least one channel"):
        Histogram(0)
    histogram = Histogram(2)
    with pytest.raises(CalibrationError, match="no values"):
        histogram.quantile(0.5)
    with pytest.raises(ValueError, match=r"shape \[N, 2"):
        histogram.update(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="floating-point"):
        histogram.update(torch.zeros(3, 2, dtype=torch.int64))
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(CalibrationError, match=r"channel 1"):
            histogram.update(torch.tensor([[0.0, bad]]))
    histogram.update(torch.zeros(0, 2))
    assert histogram.count == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        seen(torch.ones(1, 1)).quantile(99.9)
    with pytest.raises(ValueError, match="can't merge"):
        histogram.merge(Histogram(3))
