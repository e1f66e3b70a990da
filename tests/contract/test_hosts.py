"""Both hosts fire the same spikes: every spike of every layer, step by step and in whole windows."""

import pytest
import torch
from matrix import HOSTS, NEURONS, ROWS, TIMESTEPS
from networks import MaxPoolNetwork, make_images, make_network, recorded

import snn_lowlat
from snn_lowlat.models import ResNet20, SmallCNN
from snn_lowlat.plan import SitePlan


def digits_cnn():
    return SmallCNN(in_channels=1, num_classes=10, image_size=8)


def make(kind):
    """Return a network with fixed weights and batch-norm statistics, and images for it."""
    if kind is not ResNet20:
        return make_network(kind), make_images(24)
    torch.manual_seed(0)
    network, images = ResNet20(width=4), torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        network(images)
    return network.eval(), images


def assert_equal_spikes(first, second, images):
    for steps in (True, False):
        outputs, spikes = recorded(first, images, steps)
        others, other_spikes = recorded(second, images, steps)
        assert spikes.keys() == other_spikes.keys()
        for name in spikes:
            assert torch.equal(spikes[name], other_spikes[name]), name
        assert torch.equal(outputs, others)


SMALL = [(kind, row) for kind in (digits_cnn, MaxPoolNetwork) for row in ROWS]
LARGE = [(ResNet20, rows[0]) for neuron, rows in NEURONS.items() if neuron != "leaky_integrate_and_fire"]


@pytest.mark.parametrize(("kind", "row"), SMALL + LARGE, ids=lambda value: getattr(value, "__name__", value))
def test_every_spike_is_the_same(kind, row):
    name, options = ROWS[row]
    model, images = make(kind)
    networks = [
        snn_lowlat.convert(model, [images], strategy=name, timesteps=TIMESTEPS, backend=backend, **options)
        for backend in HOSTS
    ]
    assert_equal_spikes(*networks, images[: 2 if kind is ResNet20 else 5])


@pytest.mark.parametrize("leak", [0.99, 0.5])
def test_every_spike_of_leaky_neurons_is_the_same(leak):
    model, images = make(MaxPoolNetwork)
    first = snn_lowlat.convert(model, [images], timesteps=TIMESTEPS)
    graph, plan = first.normal_form()
    plan = {
        name: SitePlan(
            site.threshold, site.initial_potential, site.amplitude, "leaky_integrate_and_fire", {"leak": leak}
        )
        for name, site in plan.items()
    }
    second = snn_lowlat.convert(model, [images], timesteps=TIMESTEPS, backend="snntorch")
    assert_equal_spikes(first.rebuilt(graph, plan), second.rebuilt(graph, plan), images[:5])
    assert not torch.equal(first.rebuilt(graph, plan)(images), first(images))
