"""Networks whose neurons see their whole window before they fire: counts in one pass, and spikes, are the same."""

import pytest
import torch
from matrix import COUNTED, ROWS
from networks import NETWORKS, make_images, make_network, recorded

import snn_lowlat
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.neurons import NEURONS, per_channel
from snn_lowlat.neurons.accumulate_then_fire import MARGIN
from snn_lowlat.simulation import count, simulate


@pytest.fixture(params=COUNTED, scope="module")
def row(request):
    return request.param


@pytest.fixture(params=NETWORKS, ids=lambda kind: kind.__name__, scope="module")
def kind(request):
    return request.param


def convert(row, model, images, timesteps, **options):
    name, strategy_options = ROWS[row]
    return snn_lowlat.convert(model, [images], strategy=name, timesteps=timesteps, **strategy_options, **options)


@pytest.mark.parametrize("timesteps", [1, 4, 16])
def test_every_count_is_the_same_in_float64(row, kind, timesteps):
    model, images = make_network(kind).double(), make_images(24).double()
    graph, plan = convert(row, model, images, timesteps).normal_form()
    outputs, spikes = simulate(graph, plan, images.expand(timesteps, *images.shape))
    means, counts = count(graph, plan, images, timesteps)
    for name in counts:
        assert torch.equal(spikes[name].sum(0), counts[name]), name
    torch.testing.assert_close(outputs.mean(0), means)


@pytest.mark.parametrize("timesteps", [1, 4, 16])
def test_every_count_is_the_same_on_integer_weights(row, kind, timesteps):
    """Sums of integers hit the thresholds exactly, again and again: ties are the rule here, and none may differ."""
    model, images = make_network(kind), make_images(24)
    graph, plan = convert(row, model, images, timesteps).normal_form()
    generator = torch.Generator().manual_seed(0)
    for parameter in graph.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).float()
    whole = {
        name: snn_lowlat.SitePlan(torch.tensor(3.0), torch.tensor(0.0), torch.tensor(1.0), site.neuron, site.parameters)
        for name, site in plan.items()
    }
    images = (4 * images).round()
    _, spikes = simulate(graph, whole, images.expand(timesteps, *images.shape))
    _, counts = count(graph, whole, images, timesteps)
    assert any((values > 0).any() for values in counts.values())
    for name in counts:
        assert torch.equal(spikes[name].sum(0), counts[name]), name


@pytest.mark.parametrize("timesteps", [4, 16])
def test_counts_that_differ_in_float32_are_ties(row, kind, timesteps):
    model, images = make_network(kind), make_images(24)
    graph, plan = convert(row, model, images, timesteps).normal_form()
    _, spikes = simulate(graph, plan, images.expand(timesteps, *images.shape))
    _, counts = count(graph, plan, images, timesteps)
    for name in counts:
        differing = spikes[name].sum(0) != counts[name]
        if differing.any():  # the first layer in which any differ: what is after it has other inputs
            exact = count(graph.double(), plan, images.double(), timesteps)
            assert differing.float().mean() < 1e-3
            assert (exact[1][name][differing] - counts[name][differing]).abs().max() <= 1
            return


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("timesteps", [1, 4])
def test_both_hosts_count_what_they_fire(row, kind, backend, timesteps):
    model, images = make_network(kind).double(), make_images(12).double()
    snn = convert(row, model, images, timesteps, backend=backend)
    _, spikes = recorded(snn, images, steps=True)
    graph, plan = snn.normal_form()
    _, counts = count(graph, plan, images, timesteps)
    for name in counts:
        assert torch.equal(spikes[name].sum(0), counts[name].flatten(1)), name
    torch.testing.assert_close(snn(images), snn.simulate(images))
    torch.testing.assert_close(
        snn.count(images, timesteps=2), snn.simulate(images) if timesteps == 2 else snn.readout(images, 2)[-1]
    )


def test_the_network_equals_the_quantised_one(row, kind):
    model, images = make_network(kind).double(), make_images(12).double()
    snn = convert(row, model, images, 4)
    graph, plan = snn.normal_form()
    for name, site in plan.items():
        threshold, offset = site.threshold.double(), site.initial_potential.double()

        class Quantised(torch.nn.Module):
            def __init__(self, threshold=threshold, offset=offset, amplitude=site.amplitude):
                super().__init__()
                self.values = threshold, offset, amplitude

            def forward(self, z):
                threshold, offset, amplitude = (per_channel(value, z) for value in self.values)
                return amplitude * ((4 * z + offset) / threshold + MARGIN).floor().clamp(0, 4) / 4

        setattr(graph, name, Quantised())
    torch.testing.assert_close(snn(images), graph(images))


def test_latency_counts_every_layers_window(row, kind):
    snn = convert(row, make_network(kind), make_images(8), 4)
    assert all(not NEURONS[site.neuron].online for site in snn.plan.values())
    assert snn.latency_steps == 4 * (snn.depth + 1)
