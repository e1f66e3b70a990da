import pytest
import torch

import snn_lowlat
from snn_lowlat.calibration import Histogram, SiteStatistics
from snn_lowlat.strategies import OptimizedPotential, ValueRange


@pytest.fixture
def statistics():
    histogram = Histogram(channels=3)
    histogram.update(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 0.5]))
    return SiteStatistics("site", histogram)


def test_neurons_that_see_their_whole_window(statistics):
    plan = ValueRange().plan(statistics, 8)
    assert plan.neuron == "accumulate_then_fire"
    assert dict(plan.parameters) == {"timesteps": 8}
    assert torch.equal(plan.initial_potential, plan.threshold / 2)
    assert torch.equal(plan.amplitude, plan.threshold)


def test_thresholds_by_any_rule(statistics):
    assert torch.equal(
        ValueRange(threshold="percentile", percentile=90.0).plan(statistics, 4).threshold,
        OptimizedPotential(threshold="percentile", percentile=90.0).plan(statistics, 4).threshold,
    )
    assert ValueRange(granularity="layer").plan(statistics, 4).threshold.dim() == 0
    assert ValueRange(initial_potential="zero").plan(statistics, 4).initial_potential.abs().max() == 0


@pytest.mark.parametrize("options", [{"initial_potential": "calibrated"}, {"threshold": "median"}])
def test_options_without_meaning(options):
    with pytest.raises(ValueError, match="unknown"):
        ValueRange(**options)


def test_counts_need_neurons_that_see_their_window():
    images = torch.rand(4, 16)
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    snn = snn_lowlat.convert(model, images, timesteps=2)
    with pytest.raises(ValueError, match=r"use simulate\(\)"):
        snn.count(images)
    assert snn_lowlat.convert(model, images, strategy="value_range", timesteps=2).is_counted
