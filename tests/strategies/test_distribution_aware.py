from __future__ import annotations

import math
import time
from io import BytesIO
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snn_lowlat.calibration import Histogram, SiteStatistics
from snn_lowlat.errors import CalibrationError
from snn_lowlat.simulation import fire
from snn_lowlat.strategies import DistributionAware, find_threshold, make_strategy
from snn_lowlat.strategies.distribution_aware import OBJECTIVES, percentiles, search_staircase

HEIGHTS = torch.arange(1, 201, dtype=torch.float64) / 100


def statistics(values: Tensor, ceiling: Tensor | None = None) -> SiteStatistics:
    histogram = Histogram(values.shape[1])
    for part in values.split(977):
        histogram.update(part)
    return SiteStatistics("site", histogram, ceiling)


def samples(size: int = 20000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(size, 4, generator=generator)
    values[:, 1] = values[:, 1].abs() * 3
    values[:, 2] = values[:, 2].exp() - 1
    values[:, 3] = torch.rand(size, generator=generator) * 0.01
    return values


def some_values(seed: int, count: int = 99) -> Tensor:
    """Pre-activations in units of the ceiling, sorted, some of them negative and some above it."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator, dtype=torch.float64) * 0.6).sort().values


def plain_search(values: list[float], ceiling: float, timesteps: int) -> tuple[float, float]:
    """Search as the nested loop of the reconstruction, for neurons that start at zero."""
    best, found = math.inf, (1.0, 1.0)
    for candidate in values:
        if candidate <= 0:
            continue
        threshold = min(candidate, ceiling)
        for number in range(1, 201):
            height = number / 100 * threshold
            loss = 0.0
            for value in values:
                if value <= 0:
                    continue
                if value < threshold:
                    loss += value - height * math.floor(value * timesteps / threshold + 1e-9) / timesteps
                elif value <= ceiling:
                    loss += value - height
                else:
                    loss += ceiling - height
            if abs(loss) < best - 1e-12:
                best, found = abs(loss), (threshold / ceiling, number / 100)
    return found


def differences(values: Tensor, share: Tensor, height: Tensor, timesteps: int, fraction: float = 0.0) -> Tensor:
    """Activation less staircase for each positive value ``[P]``, for pairs ``[Q]``: ``[Q, P]``."""
    values = values[values > 0]
    steps = (values * timesteps / share[:, None] + fraction + 1e-9).floor().clamp(0, timesteps)
    return values.clamp(max=1.0) - height[:, None] * share[:, None] * steps / timesteps


def all_pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    shares = values[values > 0].clamp(max=1.0)
    share, height = torch.meshgrid(shares, HEIGHTS, indexing="ij")
    return share.reshape(-1), height.reshape(-1)


def found(values: Tensor, timesteps: int, objective: str, fraction: float = 0.0) -> tuple[Tensor, Tensor]:
    return search_staircase(values[None], timesteps, torch.tensor(fraction), objective)


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-1.0, 3.0), min_size=2, max_size=10, unique=True),
    ceiling=st.floats(0.5, 3.0),
    timesteps=st.integers(1, 5),
)
def test_signed_is_the_plain_loop(values: list[float], ceiling: float, timesteps: int) -> None:
    # Tiny values would make whole rows of the loop equal to within rounding.
    values = [value for value in values if value <= 0 or value > 1e-2] + [0.7]
    given_values = torch.tensor(values, dtype=torch.float64) / ceiling
    share, height = found(given_values, timesteps, "signed")
    expected = torch.tensor([plain_search(values, ceiling, timesteps)], dtype=torch.float64)
    ours = differences(given_values, share, height, timesteps).sum().abs()
    plain = differences(given_values, expected[:, 0], expected[:, 1], timesteps).sum().abs()
    assert float(ours) == pytest.approx(float(plain), abs=1e-9)


@pytest.mark.parametrize("timesteps", [1, 2, 3, 4])
def test_signed_finds_the_pair_of_the_plain_loop(timesteps: int) -> None:
    for seed in range(3):
        values = some_values(seed, 21)
        share, height = found(values, timesteps, "signed")
        expected = plain_search((values * 1.7).tolist(), 1.7, timesteps)
        assert (float(share), float(height)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("timesteps", "fraction"), product([1, 2, 3, 8], [0.0, 0.3, 0.5, -0.5]))
def test_objectives_are_smallest_over_all_pairs(timesteps: int, fraction: float) -> None:
    for seed in range(4):
        values = some_values(seed)
        of_all = differences(values, *all_pairs(values), timesteps, fraction)
        signed, squared = of_all.sum(1).abs(), of_all.square().sum(1)
        results = {}
        for objective in OBJECTIVES:
            ours = differences(values, *found(values, timesteps, objective, fraction), timesteps, fraction)
            results[objective] = (float(ours.sum().abs()), float(ours.square().sum()))
        assert results["signed"][0] == pytest.approx(float(signed.min()), abs=1e-9)
        assert results["mse"][1] == pytest.approx(float(squared.min()), abs=1e-9)
        near = signed <= signed.min() + 1e-4 * len(values)
        assert results["signed_then_mse"][0] <= float(signed.min()) + 1e-4 * len(values) + 1e-9
        assert results["signed_then_mse"][1] == pytest.approx(float(squared[near].min()), abs=1e-9)
        assert results["mse"][1] - 1e-9 <= results["signed_then_mse"][1] <= results["signed"][1] + 1e-9


def test_the_signed_objective_alone_can_be_worse_than_no_correction() -> None:
    values = torch.erfinv(torch.arange(1, 100, dtype=torch.float64) / 100) * math.sqrt(2) / 2.5
    none = differences(values, torch.ones(1).double(), torch.ones(1).double(), 8).square().mean()
    errors = {name: differences(values, *found(values, 8, name), 8).square().mean() for name in OBJECTIVES}
    assert errors["signed"] > 2 * none
    assert errors["signed_then_mse"] < none


@pytest.mark.parametrize("timesteps", [1, 2, 3, 5, 7])
def test_values_on_a_staircase_are_fitted_without_error(timesteps: int) -> None:
    values = 0.6 * torch.arange(-timesteps, timesteps + 1, dtype=torch.float64) / timesteps
    for objective in ("mse", "signed_then_mse"):
        share, height = found(values, timesteps, objective)
        assert (float(share), float(height)) == (0.6, 1.0)
        assert differences(values, share, height, timesteps).abs().sum() < 1e-9


@pytest.mark.parametrize("options", [{}, {"objective": "signed"}, {"objective": "mse", "granularity": "channel"}])
def test_a_layer_of_two_values_becomes_exact(options: dict[str, str]) -> None:
    values = torch.tensor([-1.0, 2.0]).repeat(500)[:, None]
    for timesteps in (1, 2, 4):
        plan = DistributionAware(**options).plan(statistics(values), timesteps)
        assert plan.threshold.reshape(()) == pytest.approx(2.0, rel=1e-3)
        output = plan.amplitude * fire(torch.tensor([[-1.0], [2.0]]).expand(timesteps, 2, 1), plan).mean(0)
        assert output[:, 0].tolist() == pytest.approx([0.0, 2.0], rel=1e-3)


@pytest.mark.parametrize("fraction", [0.0, 0.25, "half"])
def test_neurons_answer_with_the_staircase_of_the_search(fraction: str | float) -> None:
    site, timesteps = statistics(samples()[:, :1]), 4
    plan = DistributionAware(initial_potential=fraction).plan(site, timesteps)
    currents = torch.linspace(-1, 4, 997)[:, None]
    output = plan.amplitude * fire(currents.expand(timesteps, -1, -1), plan).mean(0)
    start = 0.5 if fraction == "half" else fraction
    steps = (currents * timesteps / plan.threshold + start).floor().clamp(0, timesteps)
    torch.testing.assert_close(output, plan.amplitude * steps / timesteps)


def test_percentiles_are_those_of_the_data() -> None:
    values, unit = samples(), torch.tensor(2.0)
    ranks = torch.arange(1, 100, dtype=torch.float64) / 100
    for granularity, data in (("channel", values.double()), ("layer", values.double().reshape(-1, 1))):
        width = (data.amax(0) - data.amin(0)) / 1023 / 2
        ours = percentiles(statistics(values), unit, granularity, positive=False)
        exact = torch.quantile(data / 2, ranks, dim=0).T
        # The definitions of a quantile differ by less than the distance of two values, which is widest at the ends.
        assert ((ours - exact).abs() <= width[:, None] + 2e-3 * exact.abs()).all()
        positive = percentiles(statistics(values), unit, granularity, positive=True)
        for row, column, bins in zip(positive, data.T, width, strict=True):
            exact = torch.quantile(column[column > 0] / 2, ranks)
            assert ((row - exact).abs() <= bins + 2e-3 * exact).all()


def test_rare_activations_are_searched_by_their_own_percentiles() -> None:
    values = torch.full((10000, 1), -1.0)
    values[:50] = 2.0
    for source in ("all", "positive"):
        plan = DistributionAware(percentile_source=source).plan(statistics(values), 2)
        assert float(plan.threshold) == pytest.approx(2.0, rel=3e-3)
        assert float(plan.amplitude) == pytest.approx(2.0, rel=1e-2)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_trained_ceilings_are_kept(granularity: str, objective: str) -> None:
    strategy = DistributionAware(objective=objective, granularity=granularity, ceiling="max")
    for ceiling in (torch.tensor(0.7), torch.tensor([0.5, 1.0, 2.0, 0.005])):
        plan = strategy.plan(statistics(samples(), ceiling), 2)
        assert (plan.threshold <= ceiling).all()
        assert plan.threshold.shape == (() if granularity == "layer" and ceiling.dim() == 0 else (4,))
    low = strategy.plan(statistics(samples(), torch.tensor(0.1)), 1)
    assert (low.amplitude <= 0.11).all()


def test_one_search_for_a_layer_with_a_ceiling_for_each_channel() -> None:
    values, ceiling = samples()[:, :1].repeat(1, 4), torch.tensor([0.5, 1.0, 2.0, 4.0])
    plan = DistributionAware().plan(statistics(values * ceiling, 1.5 * ceiling), 2)
    alone = DistributionAware().plan(statistics(values[:, :1], torch.tensor(1.5)), 2)
    torch.testing.assert_close(plan.threshold, alone.threshold * ceiling)
    torch.testing.assert_close(plan.amplitude, alone.amplitude * ceiling)


@pytest.mark.parametrize("options", [{"ceiling": "max"}, {"ceiling": "percentile", "percentile": 80.0}])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_measured_ceilings_bound_thresholds(granularity: str, options: dict[str, object]) -> None:
    site = statistics(samples())
    rule = {"percentile": 99.9} | options
    bound = find_threshold(site, rule["ceiling"], 1, percentile=rule["percentile"], granularity=granularity)
    for objective in OBJECTIVES:
        plan = DistributionAware(objective=objective, granularity=granularity, **options).plan(site, 1)
        assert plan.threshold.shape == bound.shape
        assert (plan.threshold <= bound * (1 + 1e-6)).all()


@pytest.mark.parametrize("source", ["all", "positive"])
def test_dead_and_nearly_dead_channels_stay_silent(source: str) -> None:
    values = torch.randn(30000, 3, generator=torch.Generator().manual_seed(5))
    values[:, 1:] = -values[:, 1:].abs() - 0.1
    values[0, 2] = 1e-9
    strategy = DistributionAware(granularity="channel", percentile_source=source)
    plan = strategy.plan(statistics(values), 2)
    assert plan.threshold[1] >= values.max()
    assert plan.threshold[2] >= values[:, 2].std(unbiased=False) * 0.999
    assert torch.equal(plan.amplitude[1:], plan.threshold[1:])
    assert plan.threshold[0] == strategy.plan(statistics(values[:, :1]), 2).threshold[0]
    with pytest.raises(CalibrationError, match="'site' is dead"):
        strategy.plan(statistics(values[:, 1:2]), 2)
    with pytest.raises(CalibrationError, match="'site' is dead"):
        DistributionAware().plan(statistics(values[:, 1:2], torch.tensor(1.0)), 2)


def test_the_gain_raises_spikes_alone() -> None:
    site = statistics(samples())
    plain, raised = DistributionAware().plan(site, 2), DistributionAware(gain=1.5).plan(site, 2)
    assert torch.equal(raised.threshold, plain.threshold)
    torch.testing.assert_close(raised.amplitude, 1.5 * plain.amplitude)


def test_initial_potentials() -> None:
    site = statistics(samples())
    zero = DistributionAware(granularity="layer").plan(site, 2)
    half = DistributionAware(granularity="layer", initial_potential="half").plan(site, 2)
    assert not zero.initial_potential.any()
    assert torch.equal(half.initial_potential, half.threshold / 2)
    assert half.threshold != zero.threshold  # the search knows of it
    each = {"site": torch.tensor([0.0, 0.5, 0.5, 1.0])}
    plan = DistributionAware(granularity="layer", initial_potential=each).plan(site, 2)
    assert plan.threshold == half.threshold
    assert torch.equal(plan.initial_potential, each["site"] * plan.threshold)
    plan = DistributionAware(granularity="channel", initial_potential=each).plan(site, 2)
    for channel, fraction in enumerate(each["site"].tolist()):
        alone = DistributionAware(granularity="channel", initial_potential=fraction).plan(site, 2)
        assert plan.threshold[channel] == alone.threshold[channel]
        assert plan.initial_potential[channel] == fraction * alone.threshold[channel]


def test_plans_depend_on_the_data_alone() -> None:
    values = samples()
    for options in ({}, {"granularity": "channel"}, {"objective": "signed", "percentile_source": "positive"}):
        plan = DistributionAware(**options).plan(statistics(values), 3)
        assert plan == DistributionAware(**options).plan(statistics(values.flip(0)), 3)
    ceiling = torch.tensor([0.5, 1.0, 2.0, 0.005])
    plan = DistributionAware().plan(statistics(values, ceiling), 3)
    assert plan == DistributionAware().plan(statistics(values.flip(0), ceiling), 3)


def test_options_make_the_same_strategy_again() -> None:
    strategy = DistributionAware("mse", "positive", "channel", "percentile", 99.0, 1.3, {"site": torch.tensor([0.5])})
    file = BytesIO()
    torch.save(strategy.options(), file)
    file.seek(0)
    assert make_strategy(strategy.name, **torch.load(file, weights_only=True)) == strategy


def test_the_search_for_a_deep_network_is_fast() -> None:
    values = torch.stack([some_values(seed) for seed in range(15)])
    start = time.perf_counter()
    search_staircase(values, 2, torch.zeros(()), "signed_then_mse")
    assert time.perf_counter() - start < 1.0


def test_option_errors() -> None:
    with pytest.raises(ValueError, match=r"unknown objective 'mean'.*signed_then_mse"):
        DistributionAware(objective="mean")
    with pytest.raises(ValueError, match=r"unknown percentile source 'positives'. Did you mean 'positive'"):
        DistributionAware(percentile_source="positives")
    with pytest.raises(ValueError, match="unknown granularity"):
        DistributionAware(granularity="pixel")
    with pytest.raises(ValueError, match=r"unknown ceiling 'mmse'.*max, percentile"):
        DistributionAware(ceiling="mmse")
    with pytest.raises(ValueError, match="percentile must be"):
        DistributionAware(percentile=0)
    for bad in (0.0, -1.0, float("nan"), float("inf"), True, "1.3"):
        with pytest.raises(ValueError, match="gain must be"):
            DistributionAware(gain=bad)  # type: ignore[arg-type]
    for bad in ("calibrated", 2.0):
        with pytest.raises(ValueError, match=r"initial[ _]potential"):
            DistributionAware(initial_potential=bad)
    site = statistics(samples())
    with pytest.raises(ValueError, match="timesteps must be"):
        DistributionAware().plan(site, 0)
    with pytest.raises(ValueError, match=r"'site'. Did you mean 'sites'"):
        DistributionAware(initial_potential={"sites": torch.tensor(0.5)}).plan(site, 2)
