"""The fast simulation fires the spikes of the slow ones, and knows when it may not stand in for the host."""

import copy

import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.int8 import IntegerConvolution, has_integer_kernels
from snn_lowlat.models import ResNet, ResNet20
from snn_lowlat.simulation import SCANS, Simulator, simulate

STRATEGIES = ["optimized_potential", "value_range", "temporal_switch"]


class Mixed(nn.Module):
    """A grouped, strided and dilated convolution, a shortcut from the image itself, sums of spikes, both pools."""

    def __init__(self):
        super().__init__()
        self.stem, self.skip = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 6, 1)
        self.grouped = nn.Conv2d(6, 12, 3, stride=2, padding=2, dilation=2, groups=3)
        self.deep, self.wide = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 1)
        self.pool, self.largest, self.linear = nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Linear(12 * 4, 5)

    def forward(self, x):
        first = torch.relu(self.stem(x))
        second = torch.relu(self.stem(x) + self.skip(x))  # still on both sides
        third = torch.relu(self.grouped(first) + self.grouped(second))
        fourth = torch.relu(self.deep(third) + third)
        fifth = torch.relu(self.largest(self.wide(fourth + third)))
        return self.linear((self.pool(fourth) + fifth).flatten(1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Mixed().eval(), torch.rand(9, 2, 8, 8)


def convert(network, strategy="optimized_potential", **options):
    model, images = network
    return snn_lowlat.convert(model, [images], strategy=strategy, timesteps=4, **options), images


def watched(run, *arguments):
    seen = {}
    return run(*arguments, lambda name, spikes: seen.__setitem__(name, spikes.float())), seen


def assert_equal_spikes(snn, images, simulator):
    inputs = snn._encoded(images, snn.timesteps)
    outputs, spikes = simulate(*snn.normal_form(), inputs)
    found, seen = watched(simulator, inputs)
    assert seen.keys() == spikes.keys()
    for name in spikes:
        assert torch.equal(seen[name], spikes[name]), name
    assert any(values.any() for values in spikes.values())
    torch.testing.assert_close(found, outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(simulator(inputs), found, rtol=0, atol=0)  # unwatched too
    # And if nobody knows that the images stay the same.
    torch.testing.assert_close(simulator(inputs.contiguous()), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("encoder", ["direct", "poisson"])
def test_every_spike_is_that_of_the_reference(network, strategy, encoder, scan):
    snn, images = convert(network, strategy, encoder=encoder)
    assert_equal_spikes(snn, images, Simulator(*snn.normal_form(), images, scan=scan))


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_spike_is_that_of_the_reference_in_whole_numbers(strategy, scan):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    snn, images = convert((ResNet20().eval(), images), strategy, precision="int8")
    simulator = Simulator(*snn.normal_form(), images, scan=scan)
    assert_equal_spikes(snn, images, simulator)
    inputs = snn._encoded(images, 4)
    assert torch.equal(simulator(inputs), simulate(*snn.normal_form(), inputs)[0])


@pytest.mark.parametrize("shortcut", ["subsample", "convolution"])
def test_the_sums_of_residual_blocks_are_left_to_the_neurons(shortcut):
    torch.manual_seed(0)
    snn, images = convert((ResNet(3, shortcut=shortcut).eval(), torch.rand(2, 3, 32, 32)), precision="int8")
    simulator = Simulator(*snn.normal_form(), images)
    assert len(simulator._sums) == 9
    if has_integer_kernels():
        modules = simulator._schedule.graph.modules()
        kernels = sum(isinstance(module, IntegerConvolution) for module in modules)
        assert kernels == (18 if shortcut == "subsample" else 20)  # all but the one that reads the image


def test_without_integer_kernels_the_spikes_are_the_same(monkeypatch):
    torch.manual_seed(0)
    snn, images = convert((ResNet20().eval(), torch.rand(2, 3, 32, 32)), precision="int8")
    monkeypatch.setattr("snn_lowlat.simulation.simulator.has_integer_kernels", lambda: False)
    with pytest.warns(UserWarning, match="no convolutions of eight bits"):
        simulator = Simulator(*snn.normal_form(), images)
    assert_equal_spikes(snn, images, simulator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_stands_in_for_the_host(network, strategy, backend):
    snn, images = convert(network, strategy, backend=backend)
    found, seen = watched(lambda observe: snn.readout(images, observe=observe))
    assert snn._known.simulator is not None
    snn.run_on_host = True
    outputs, spikes = watched(lambda observe: snn.readout(images, observe=observe))
    torch.testing.assert_close(found, outputs, rtol=1e-5, atol=1e-5)
    for name in snn.plan:
        assert torch.equal(seen[name], spikes[name]), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_and_neurons_are_those_the_host_has_now(network, backend):
    snn, images = convert(network, backend=backend)
    before = snn(images)
    with torch.no_grad():
        next(snn.network.parameters()).mul_(0.5)
    changed = snn(images)
    assert not torch.equal(changed, before)
    snn.run_on_host = True
    torch.testing.assert_close(snn(images), changed, rtol=1e-5, atol=1e-5)
    snn.run_on_host = False
    state = {name: values / 2 if "threshold" in name else values for name, values in snn.network.state_dict().items()}
    snn.network.load_state_dict(state)
    assert not torch.equal(snn(images), changed)


def test_it_is_made_once(network):
    snn, images = convert(network)
    snn(images)
    first = snn._known.simulator
    with torch.inference_mode():
        snn(images[:3])
    snn.readout(images, timesteps=2)
    assert snn._known.simulator is first
    assert copy.copy(snn)._known is None
    assert torch.equal(copy.deepcopy(snn)(images), snn(images))


@pytest.mark.parametrize("inside", [False, True])
def test_networks_may_be_made_in_inference_mode(network, inside):
    expected, images = convert(network)
    with torch.inference_mode():
        snn, _ = convert(network)
    with torch.inference_mode(inside):
        assert torch.equal(snn(images), expected(images))
        assert torch.equal(snn(images), expected(images))


def test_the_host_runs_while_somebody_watches_its_modules(network):
    snn, images = convert(network)
    calls = []
    name, layer = next(iter(snn.spiking_layers().items()))
    with_hook = layer.register_forward_hook(lambda *_: calls.append(name))
    snn(images)
    assert calls
    with_hook.remove()
    calls.clear()
    snn(images)
    assert not calls


def test_the_host_runs_with_modules_that_somebody_put_in(network):
    snn, images = convert(network)
    before = snn(images)

    class Silent(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    name = next(reversed(snn.spiking_layers()))
    setattr(snn.network, name, Silent())
    changed = snn(images)
    snn.run_on_host = True
    assert torch.equal(changed, snn(images))
    assert not torch.equal(changed, before)
