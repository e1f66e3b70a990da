"""SpikingJelly's own idiom: its converter, its step modes, its monitors."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, monitor, neuron
from spikingjelly.activation_based.ann2snn import FXConverter
from torch import nn

import snn_lowlat
from snn_lowlat import spikingjelly as recipes
from snn_lowlat.hosts import get_backend, spikingjelly
from snn_lowlat.spikingjelly import LowLatencyRecipe, OptimizedPotentialRecipe, ThresholdBalancingRecipe
from snn_lowlat.strategies import OptimizedPotential


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    ).eval()


@pytest.fixture
def images():
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_neurons_and_layers_are_the_hosts_own(model, images):
    for way, pool in (("per_step", layer.MaxPool2d), ("cumulative", spikingjelly.ChargeMaxPool)):
        recipe = LowLatencyRecipe("optimized_potential", calibration=[images], timesteps=4, max_pool=way)
        network = FXConverter(recipe).convert(model)
        kinds = [type(module) for module in network.children()]
        assert any(issubclass(kind, neuron.ActivationAwareIFNode) for kind in kinds)
        assert layer.Conv2d in kinds
        assert pool in kinds
        assert not network.training


def test_named_recipes_and_objects(model, images):
    by_class = FXConverter(OptimizedPotentialRecipe(calibration=[images], timesteps=4, initial_potential=0.25))
    by_object = FXConverter(
        LowLatencyRecipe(OptimizedPotential(initial_potential=0.25), calibration=[images], timesteps=4)
    )
    assert torch.equal(by_class.convert(model)(images), by_object.convert(model)(images))
    assert isinstance(ThresholdBalancingRecipe(calibration=[images], timesteps=4), LowLatencyRecipe)
    with pytest.raises(AttributeError, match="OptimizedPotentialRecipe"):
        recipes.OptimisedPotentialRecipe  # noqa: B018
    with pytest.raises(ValueError, match="unknown strategy"):
        LowLatencyRecipe("optimised_potential", calibration=[images], timesteps=4)


def test_the_converter_restores_the_networks_mode(model, images):
    model.train()
    FXConverter(OptimizedPotentialRecipe(calibration=[images], timesteps=2)).convert(model)
    assert model.training


def test_set_step_mode_and_monitors(model, images):
    network = FXConverter(OptimizedPotentialRecipe(calibration=[images], timesteps=4)).convert(model)
    functional.set_step_mode(network, "m")
    with monitor.OutputMonitor(network, neuron.ActivationAwareIFNode) as spikes:
        output = network(images.expand(4, *images.shape))
    assert output.shape == (4, 16, 3)
    assert spikes.monitored_layers == ["1"]
    assert spikes["1"][0].shape == (4, 16, 4, 4, 4)
    functional.reset_net(network)


def test_running_leaves_the_step_mode_alone(model, images):
    snn = snn_lowlat.convert(model, images, timesteps=2)
    for mode in ("s", "m"):
        functional.set_step_mode(snn.network, mode)
        snn(images)
        assert {module.step_mode for module in snn.network.modules() if hasattr(module, "step_mode")} == {mode}


def test_reset(model, images):
    snn = snn_lowlat.convert(model, images, timesteps=2)
    first = snn.network(images)
    assert not torch.equal(snn.network(images), first)
    snn.reset()
    assert torch.equal(snn.network(images), first)


def test_a_neuron_without_counterpart_is_named(model, images):
    snn = snn_lowlat.convert(model, images, timesteps=2)
    plan = {
        name: snn_lowlat.SitePlan(site.threshold, site.initial_potential, site.amplitude, neuron="unheard_of")
        for name, site in snn.plan.items()
    }
    with pytest.raises(ValueError, match=r"neuron of site '1': 'unheard_of'.*integrate_and_fire"):
        get_backend("spikingjelly").build(snn_lowlat.graph.normalise(model, images), plan, images.shape[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_faster_multi_step_mode_is_the_hosts_own_to_the_last_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    currents = torch.randn(6, 3, 4, 5, 5, generator=generator, dtype=dtype)
    threshold, potential = torch.rand(4, generator=generator) + 0.2, torch.rand(4, generator=generator)
    ours = spikingjelly.IntegrateAndFireNode(threshold, potential, channel_dim=1, step_mode="m")
    hosts = neuron.ActivationAwareIFNode(threshold, potential, channel_dim=1, step_mode="m")
    for _ in range(2):  # the second time from the potential that the first one left
        assert torch.equal(ours(currents), hosts(currents))
        assert torch.equal(ours.v, hosts.v)


def test_gradients_pass_through_the_hosts_surrogate(model, images):
    network = FXConverter(OptimizedPotentialRecipe(calibration=[images], timesteps=4)).convert(model)
    functional.set_step_mode(network, "m")
    network(images.expand(4, *images.shape)).mean(0).square().sum().backward()
    assert network.get_parameter("0.weight").grad.abs().sum() > 0
