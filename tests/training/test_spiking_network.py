from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_lowlat
from snn_lowlat import SitePlan, SpikingModel
from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.graph import find_sites
from snn_lowlat.kernels.surrogate import SpikeOptions
from snn_lowlat.training.spiking_network import TrainableNetwork
from snn_lowlat.training.trainable_neurons import TrainableNeurons
from tests.contract.networks import NETWORKS, ResidualNetwork, make_images, make_network

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def converted(kind: type[nn.Module], timesteps: int = 3, **options: Any) -> SpikingModel:
    return snn_lowlat.convert(make_network(kind), [make_images()], timesteps=timesteps, **options)


def trainable(snn: SpikingModel, double: bool = False, **options: Any) -> TrainableNetwork:
    graph, plan = snn.normal_form()
    shape = snn.provenance.input_shape
    network = TrainableNetwork(graph, plan, shape, snn.timesteps, SpikeOptions(), **options)
    return (network.double() if double else network).eval()


@pytest.fixture(params=NETWORKS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[nn.Module]:
    return request.param


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("timesteps", [1, 2, 5])
def test_it_starts_as_the_converted_network(kind: type[nn.Module], timesteps: int, batch_norm: bool) -> None:
    snn, images = converted(kind, timesteps), make_images(7)
    network = trainable(snn, batch_norm=batch_norm)
    torch.testing.assert_close(network(images), snn(images), rtol=1e-5, atol=1e-6)


def test_currents_that_vary_are_taken_step_by_step(kind: type[nn.Module]) -> None:
    snn, images = converted(kind), make_images(7)
    network = trainable(snn)
    constant = images.expand(3, *images.shape)
    torch.testing.assert_close(network(constant, False), network(images), rtol=1e-5, atol=1e-6)
    assert not torch.equal(network(constant * torch.tensor([0.0, 1.0, 2.0]).view(-1, 1, 1, 1, 1), False), snn(images))


def test_every_layer_that_feeds_neurons_gets_a_batch_norm(kind: type[nn.Module]) -> None:
    network = trainable(converted(kind), batch_norm=True)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS)]
    assert len(norms) == len(layers) - 1
    assert [layer.bias is None for layer in layers] == [True] * len(norms) + [False]


def test_measuring_changes_nothing_but_the_statistics(kind: type[nn.Module]) -> None:
    network, images = trainable(converted(kind), double=True, batch_norm=True), make_images().double()
    expected = network(images)
    assert not network.measured
    network.measure([images[:10], images[10:]])
    assert network.measured
    torch.testing.assert_close(network(images), expected)
    # With the statistics of the very batch, training computes what evaluation does.
    torch.testing.assert_close(network.train()(images), expected)
    network.measure([images[:5]])
    torch.testing.assert_close(network.eval()(images), expected)


def test_folding_gives_the_same_network(kind: type[nn.Module]) -> None:
    snn, images = converted(kind), make_images(7)
    network = trainable(snn, batch_norm=True)
    network.measure([make_images()])
    for norm in (module for module in network.modules() if isinstance(module, BATCH_NORMS)):
        norm.bias.data += 0.1 * torch.rand_like(norm.bias)
        norm.running_mean += 0.1 * torch.rand_like(norm.running_mean)
    for neurons in network.neurons().values():
        neurons.threshold.data *= 1.3
        neurons.leak.data.fill_(0.9)
    tuned = snn.rebuilt(*network.folded())
    torch.testing.assert_close(tuned(images), network(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(tuned(images), snn(images))
    assert {site.neuron for site in tuned.plan.values()} == {"leaky_integrate_and_fire"}
    assert [n.name for n in tuned.normal_form()[0].graph.nodes] == [n.name for n in snn.normal_form()[0].graph.nodes]


def test_amplitude_and_potential_keep_their_ratio_to_the_threshold() -> None:
    plan = SitePlan(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.2]), torch.tensor([3.0, 2.0]))
    neurons = TrainableNeurons(plan, 2, SpikeOptions())
    assert neurons.site_plan() == plan
    neurons.threshold.data *= 2
    tuned = neurons.site_plan()
    assert torch.equal(tuned.initial_potential, 2 * plan.initial_potential)
    assert torch.equal(tuned.amplitude, 2 * plan.amplitude)


def test_thresholds_stay_positive_and_leaks_in_their_range() -> None:
    neurons = TrainableNeurons(SitePlan(torch.tensor(2.0), torch.tensor(0.0), torch.tensor(2.0)), 2, SpikeOptions())
    for threshold, leak in ((-1.0, 1.2), (3.0, -0.1)):
        neurons.threshold.data.fill_(threshold)
        neurons.leak.data.fill_(leak)
        neurons.keep_valid()
        assert neurons.threshold.item() == pytest.approx(max(threshold, 2e-3))
        assert neurons.leak.item() == min(max(leak, 0), 1)


def test_dropout_silences_a_neuron_in_all_steps() -> None:
    plan = SitePlan(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(1.0))
    neurons = TrainableNeurons(plan, 4, SpikeOptions(), dropout=0.5)
    currents = torch.full((1, 2, 3, 100), 2.0)
    torch.manual_seed(0)
    outputs, repeat = neurons(currents)
    assert repeat is None
    assert outputs.unique().tolist() == [0.0, 2.0]
    assert torch.equal(outputs, outputs[:1].expand_as(outputs))
    assert 0.4 < outputs[0].bool().float().mean() < 0.6
    assert not torch.equal(outputs[0, 0], outputs[0, 1])
    outputs, repeat = neurons.eval()(currents)
    assert outputs.unique().tolist() == [1.0]
    assert torch.equal(repeat(), outputs)


def gradients(network: TrainableNetwork, images: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    torch.manual_seed(0)
    (network.train()(images) ** 2).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("segments", [2, 5])
def test_segments_change_memory_only(kind: type[nn.Module], segments: int) -> None:
    snn, images = converted(kind), make_images(7).double()
    whole, parts = (trainable(snn, True, batch_norm=True, dropout=0.2, segments=n) for n in (1, segments))
    expected, found = gradients(whole, images), gradients(parts, images)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, msg=name)


def kept_by(network: TrainableNetwork, images: Tensor) -> int:
    """The bytes that are kept for the way back."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        outputs = network(images)
    outputs.sum().backward()
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


@pytest.mark.parametrize("loops", [True, False])
def test_one_number_is_kept_for_each_neuron_and_step(loops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, images = converted(ResidualNetwork), make_images(64)
    sizes: dict[str, int] = {}
    snn.readout(images[:1], observe=lambda name, spikes: sizes.update({name: spikes.numel()}))
    if not loops:
        monkeypatch.setattr("snn_lowlat.kernels.surrogate.usable", lambda values: False)
    assert len(sizes) == 3
    assert kept_by(trainable(snn).train(), images) == pytest.approx(4 * 64 * sum(sizes.values()), rel=0.2)


def test_segments_keep_less() -> None:
    snn, images = converted(ResidualNetwork), make_images(64)
    whole, parts = (kept_by(trainable(snn, segments=segments).train(), images) for segments in (1, 4))
    assert parts < 0.85 * whole


def test_all_that_is_trained_gets_a_gradient(kind: type[nn.Module]) -> None:
    network = trainable(converted(kind), batch_norm=True)
    network.measure([make_images()])
    found = gradients(network, make_images())
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    for name in network.neurons():
        assert found[f"graph.{name}.threshold"].any()
    still = trainable(converted(kind), train_thresholds=False, train_leaks=False)
    trained = {name for name, parameter in still.named_parameters() if parameter.requires_grad}
    assert not any(name.endswith(("threshold", "leak")) for name in trained)


def test_batch_norms_of_the_network_itself_stay_as_they_are() -> None:
    class LateNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm, self.linear = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.norm(self.convolution(x).relu()).flatten(1))

    network = trainable(converted(LateNorm), batch_norm=True).train()
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    assert sorted(norm.training for norm in norms) == [False, True]


def test_other_neurons_are_refused() -> None:
    graph, plan = converted(ResidualNetwork).normal_form()
    name = next(iter(find_sites(graph)))
    one = torch.tensor(1.0)
    plan[name] = SitePlan(one, one, one, "accumulate_then_fire")
    with pytest.raises(SnnLowlatError, match=f"'{name}'.*accumulate_then_fire"):
        TrainableNetwork(graph, plan, (1, 8, 8), 2, SpikeOptions())
