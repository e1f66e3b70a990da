import pytest
import torch

from snn_lowlat.calibration import Histogram, SiteStatistics
from snn_lowlat.strategies import TemporalSwitch, ValueRange


@pytest.fixture
def statistics():
    histogram = Histogram(channels=3)
    histogram.update(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 0.5]))
    return SiteStatistics("site", histogram)


@pytest.mark.parametrize("options", [{}, {"threshold": "percentile", "granularity": "layer"}, {"threshold_scale": 0.9}])
def test_thresholds_are_those_of_neurons_that_count(statistics, options):
    plan, other = (kind(**options).plan(statistics, 8) for kind in (TemporalSwitch, ValueRange))
    assert plan.neuron == "temporal_switch"
    assert torch.equal(plan.threshold, other.threshold)
    assert torch.equal(plan.initial_potential, plan.threshold / 2)
    assert dict(plan.parameters) == {"timesteps": 8}


@pytest.mark.parametrize(
    ("options", "neuron", "parameters"),
    [
        ({"output": "pipelined"}, "temporal_switch_pipelined", {"timesteps": 8, "gap": 4}),
        ({"output": "pipelined", "gap": 0}, "temporal_switch_pipelined", {"timesteps": 8, "gap": 0}),
        ({"output": "pipelined", "gap": 8}, "temporal_switch", {"timesteps": 8}),
        ({"output": "online", "hysteresis": 2}, "temporal_switch_online", {"hysteresis": 2.0}),
    ],
)
def test_output_rules(statistics, options, neuron, parameters):
    plan = TemporalSwitch(**options).plan(statistics, 8)
    assert (plan.neuron, dict(plan.parameters)) == (neuron, parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "windoed"}, "windowed"),
        ({"output": "pipelined", "gap": -1}, "gap"),
        ({"output": "pipelined", "gap": 1.5}, "gap"),
        ({"output": "online", "hysteresis": 0.5}, "hysteresis"),
        ({"output": "online", "hysteresis": "two"}, "hysteresis"),
        ({"gap": 2}, "output='pipelined'"),
        ({"hysteresis": 2.0}, "output='online'"),
    ],
)
def test_options_without_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        TemporalSwitch(**options)
