from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snn_lowlat.calibration import Histogram, SiteStatistics
from snn_lowlat.errors import CalibrationError
from snn_lowlat.strategies import OptimizedPotential, find_threshold
from snn_lowlat.strategies.thresholds import StaircaseError, best_fraction


def statistics(values: Tensor, ceiling: Tensor | None = None) -> SiteStatistics:
    histogram = Histogram(values.shape[1])
    for part in values.split(977):
        histogram.update(part)
    return SiteStatistics("site", histogram, ceiling)


def samples(channels: int = 4, size: int = 20000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(size, channels, generator=generator)
    values[:, 1] = values[:, 1].abs() * 3
    values[:, 2] = values[:, 2].exp() - 1
    values[:, 3] = torch.rand(size, generator=generator) * 0.01
    return values


def squared_error(values: Tensor, threshold: Tensor, fraction: Tensor, timesteps: int, ceiling: float) -> Tensor:
    values = values.double()
    counts = (values * timesteps / threshold + fraction).floor().clamp(0, timesteps)
    return (threshold / timesteps * counts - values.clamp(0, ceiling)).square().mean(0)


@pytest.mark.parametrize("timesteps", range(1, 17))
def test_theorem_of_the_optimized_potential(timesteps: int) -> None:
    """Uniform input: no expected error and a squared error of threshold^2 / (12 T^2), a quarter of that for zero."""
    threshold, size = 2.0, 16 * 720720
    values = (torch.arange(0, size, 16, dtype=torch.float64) + 8) / size * threshold
    results = {}
    for name, fraction in (("half", 0.5), ("zero", 0.0)):
        counts = (values * timesteps / threshold + fraction).floor().clamp(0, timesteps)
        difference = threshold / timesteps * counts - values
        results[name] = (float(difference.mean()), float(difference.square().mean()))
    step = threshold / timesteps
    assert results["half"][0] == pytest.approx(0.0, abs=1e-5)
    assert results["zero"][0] == pytest.approx(-step / 2, abs=1e-5)
    assert results["half"][1] == pytest.approx(step**2 / 12, rel=1e-4)
    assert results["zero"][1] == pytest.approx(step**2 / 3, rel=1e-4)
    # The same from the histogram, and the calibrated potential finds the half by itself.
    site = statistics(values[::64, None].float())
    error = StaircaseError(site.histogram, None, timesteps)
    fractions = torch.tensor([[0.5, 0.0]])
    expected = torch.tensor([[step**2 / 12, step**2 / 3]], dtype=torch.float64)
    assert torch.allclose(error(torch.full((1, 2), threshold), fractions), expected, rtol=3e-3)
    assert float(best_fraction(site, torch.tensor([threshold]), timesteps)) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("timesteps", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("ceiling", [None, 0.8])
def test_error_under_the_histogram_is_that_of_the_data(timesteps: int, fraction: float, ceiling: float | None) -> None:
    values = samples()
    site = statistics(values, None if ceiling is None else torch.tensor(ceiling))
    thresholds = values.double().amax(0)[:, None] * torch.tensor([0.05, 0.2, 0.5, 1.0])
    error = StaircaseError(site.histogram, site.ceiling, timesteps)(thresholds, torch.tensor([[fraction]]))
    for column in range(4):
        true = squared_error(values, thresholds[:, column], torch.tensor(fraction), timesteps, ceiling or torch.inf)
        # Thresholds beyond nearly all of the data depend on where in their bin the last few values are.
        few = 2 * thresholds[:, column].square() / len(values)
        assert ((error[:, column] - true).abs() <= 5e-3 * true + few).all()


@pytest.mark.parametrize("timesteps", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("ceiling", [None, 0.8])
def test_mmse_is_minimal_on_the_data(timesteps: int, fraction: float, ceiling: float | None) -> None:
    values = samples(size=8000)
    site = statistics(values, None if ceiling is None else torch.tensor(ceiling))
    start = torch.tensor(fraction)
    found = find_threshold(site, "mmse", timesteps, fraction=start)
    limit = ceiling or torch.inf
    reach = values.double().amax(0).clamp(max=limit)
    ours = squared_error(values, found, start, timesteps, limit)
    brute = torch.stack([squared_error(values, reach * k / 600, start, timesteps, limit) for k in range(1, 601)]).amin(
        0
    )
    assert (ours <= brute * 1.01).all()
    assert (found <= reach).all()


@pytest.mark.parametrize("timesteps", [1, 2, 8])
def test_calibrated_potentials_are_minimal_on_the_data(timesteps: int) -> None:
    values = samples(size=8000)
    plan = OptimizedPotential(threshold="mmse", initial_potential="calibrated").plan(statistics(values), timesteps)
    threshold, start = plan.threshold.double(), plan.initial_potential.double()
    assert ((start >= 0) & (start < threshold)).all()
    ours = squared_error(values, threshold, start / threshold, timesteps, torch.inf)
    reach = values.double().amax(0)
    brute = torch.stack(
        [
            squared_error(values, reach * k / 60, torch.tensor(j / 20), timesteps, torch.inf)
            for k in range(1, 61)
            for j in range(20)
        ]
    ).amin(0)
    assert (ours <= brute * 1.01).all()


def test_max_percentile_and_layers() -> None:
    values = samples()
    site = statistics(values)
    exact = values.double().amax(0)
    assert torch.equal(find_threshold(site, "max", 4), exact)
    assert float(find_threshold(site, "max", 4, granularity="layer")) == float(exact.max())
    for granularity, data in (("channel", values.double()), ("layer", values.double().reshape(-1, 1))):
        found = find_threshold(site, "percentile", 4, percentile=99.0, granularity=granularity)
        reach = data.amax(0) - data.amin(0)
        true = torch.quantile(data.relu(), 0.99, dim=0)
        assert ((found.reshape(-1) - true).abs() <= 1e-3 * reach).all()
    assert find_threshold(site, "mmse", 4, granularity="layer", fraction=torch.rand(4)).shape == ()


def test_ceilings() -> None:
    values = samples()
    scalar, each = torch.tensor(0.7), torch.tensor([0.5, 1.0, 2.0, 0.005])
    assert find_threshold(statistics(values, scalar), "ceiling", 4) == scalar.double()
    assert torch.equal(find_threshold(statistics(values, each), "ceiling", 4), each.double())
    assert find_threshold(statistics(values, each), "ceiling", 4, granularity="layer") == 2.0
    assert torch.equal(find_threshold(statistics(values, each), "max", 4), each.double())
    assert (find_threshold(statistics(values, each), "percentile", 4) <= each.double()).all()
    assert (find_threshold(statistics(values, each), "mmse", 4) <= each.double()).all()
    with pytest.raises(ValueError, match=r"'site' has no trained ceiling"):
        find_threshold(statistics(values), "ceiling", 4)
    with pytest.raises(CalibrationError, match="positive"):
        find_threshold(statistics(values, torch.tensor(0.0)), "ceiling", 4)


@pytest.mark.parametrize("rule", ["max", "percentile", "mmse"])
def test_dead_and_nearly_dead_channels_get_no_small_threshold(rule: str) -> None:
    values = torch.randn(30000, 4, generator=torch.Generator().manual_seed(5))
    values[:, 1] = -values[:, 1].abs() - 0.1
    values[:, 2] = -values[:, 2].abs() - 0.1
    values[0, 2] = 1e-9
    values[:, 3] *= 1e-12
    found = find_threshold(statistics(values), rule, 8, fraction=torch.tensor(0.5))
    assert found[1] == found[[0, 2, 3]].max()
    assert found[2] >= values[:, 2].double().std(unbiased=False) * 0.999
    assert found[3] == pytest.approx(1e-6 * float(values.max()))
    plan = OptimizedPotential(threshold=rule, initial_potential="calibrated").plan(statistics(values), 8)
    assert plan.initial_potential[1] == 0


def test_sparse_channels_take_the_percentile_of_their_positive_values() -> None:
    values = torch.full((10000, 1), -1.0)
    values[:5] = 2.0
    assert float(find_threshold(statistics(values), "percentile", 8, percentile=99.0)) == pytest.approx(2.0, abs=3e-3)


def test_thresholds_do_not_depend_on_the_order_of_the_data() -> None:
    values = samples()
    strategy = OptimizedPotential(threshold="mmse", initial_potential="calibrated")
    assert strategy.plan(statistics(values), 4) == strategy.plan(statistics(values.flip(0)), 4)


def test_errors() -> None:
    site = statistics(samples())
    with pytest.raises(ValueError, match=r"unknown threshold rule 'mse'.*'mmse'"):
        find_threshold(site, "mse", 4)
    with pytest.raises(ValueError, match="unknown granularity"):
        find_threshold(site, "max", 4, granularity="chanel")
    for timesteps in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="timesteps must be a whole number"):
            find_threshold(site, "max", timesteps)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="'site' is dead"):
        find_threshold(statistics(-samples().abs()), "max", 4)
