import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat.refinement import ChannelThresholds
from snn_lowlat.simulation import count, simulate

TIMESTEPS = 8


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()


@pytest.fixture
def images():
    return torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def convert(model, images, *refinements):
    return snn_lowlat.convert(
        model, [images], strategy="value_range", timesteps=TIMESTEPS, refinements=list(refinements)
    )


def rates(snn, images):
    """Return the mean spikes per step of every channel."""
    _, spikes = simulate(*snn.normal_form(), images.expand(TIMESTEPS, *images.shape))
    return {name: values.transpose(0, 2).flatten(1).mean(1) for name, values in spikes.items()}


def test_online_neurons_fire_as_often_as_those_that_wait(model, images):
    given = convert(model, images)
    trained = convert(model, images, ChannelThresholds(images=64))
    untrained = snn_lowlat.convert(model, [images], timesteps=TIMESTEPS)  # the same thresholds and potentials
    wanted, before, after = rates(given, images), rates(untrained, images), rates(trained, images)
    for name in list(wanted)[1:]:  # the first layer's current is constant: nothing to learn
        assert (after[name] - wanted[name]).abs().mean() < 0.5 * (before[name] - wanted[name]).abs().mean(), name


def test_the_network_answers_at_once_and_spikes_keep_their_worth(model, images):
    given, trained = convert(model, images), convert(model, images, "channel_thresholds")
    assert given.latency_steps == TIMESTEPS * 4
    assert trained.latency_steps == TIMESTEPS
    assert not trained.is_counted
    for name, site in trained.plan.items():
        assert site.neuron == "integrate_and_fire"
        assert torch.equal(site.amplitude, given.plan[name].amplitude)


def test_other_refinements_go_before_and_after(model, images):
    chain = convert(model, images, "bias_correction", "channel_thresholds", "bias_correction")
    assert [entry["name"] for entry in chain.provenance.refinements] == [
        "bias_correction",
        "channel_thresholds",
        "bias_correction",
    ]
    _, counts = count(*convert(model, images).normal_form(), images, TIMESTEPS)
    assert counts.keys() == chain.plan.keys()


def test_a_layer_that_fires_right_keeps_its_thresholds(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    given, trained = convert(model, images), convert(model, images, "channel_thresholds")
    assert torch.equal(trained.plan["2"].threshold, given.plan["2"].threshold)


def test_it_follows_neurons_that_see_their_whole_window(model, images):
    with pytest.raises(ValueError, match="such as value_range"):
        snn_lowlat.convert(model, [images], refinements=["channel_thresholds"])


@pytest.mark.parametrize("options", [{"images": 0}, {"iterations": 0}, {"rate": 0.0}, {"rate": True}])
def test_options_without_meaning(options):
    with pytest.raises(ValueError, match=f"channel_thresholds: {next(iter(options))}"):
        ChannelThresholds(**options)
