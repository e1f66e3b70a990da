import numpy as np
import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat.evaluation import plot_events
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.simulation import simulate


@pytest.fixture(scope="module")
def images():
    return torch.rand(7, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def convert(images, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    )
    return snn_lowlat.convert(model.eval(), images, timesteps=6, **{"strategy": "temporal_switch"} | options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_events_say_when_neurons_are_on(images, backend):
    snn = convert(images, backend=backend)
    snn.micro_batch = 3
    logits, events = snn.simulate(images, record_events=True)
    assert torch.equal(logits, snn.simulate(images))
    _, states = simulate(*snn.normal_form(), images.expand(6, *images.shape))
    assert events.layers == tuple(states)
    for layer, (name, state) in enumerate(states.items()):
        start = 6 * (layer + 1)
        assert events.starts[layer] == start
        for image in (0, 6):
            on = events.raster(name, image).cumsum(0)[start : start + 6]
            assert np.array_equal(on, state[:, image].flatten(1).numpy())
            assert events.raster(name, image)[:start].any() == False  # noqa: E712 - of numpy's own type


@pytest.mark.parametrize("options", [{}, {"output": "pipelined", "gap": 2}])
def test_two_events_a_neuron_at_most(images, options):
    _, events = convert(images, encoder="temporal_switch", **options).simulate(images, record_events=True)
    assert events.layers[0] == "input"
    for layer, size in zip(events.layers, events.sizes, strict=True):
        counts = events.counts(layer)
        assert counts.shape == (7, size)
        assert set(np.unique(counts)) == {0, 2}
    assert events.sign.sum() == 0
    assert len(events) == sum(events.counts(layer).sum() for layer in events.layers)


def test_spikes_of_other_neurons_are_events_too(images):
    snn = convert(images, strategy="optimized_potential")
    _, events = snn.simulate(images, record_events=True)
    _, spikes = simulate(*snn.normal_form(), images.expand(6, *images.shape))
    assert set(events.sign.tolist()) == {1}
    assert (events.time.min(), events.time.max()) == (1, 6)
    for name, values in spikes.items():
        assert np.array_equal(events.counts(name), values.sum(0).flatten(1).numpy())


def test_nothing_is_recorded_later(images):
    snn = convert(images)
    _, events = snn.simulate(images, record_events=True)
    number = len(events)
    snn.simulate(images)
    assert len(events) == number
    assert all(not layer._forward_hooks for layer in snn.spiking_layers().values())


def test_plots(images, tmp_path):
    _, events = convert(images, encoder="temporal_switch").simulate(images, record_events=True)
    plot_events(events, tmp_path / "events.png", image=6, neurons=20)
    assert (tmp_path / "events.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="image must be a whole number from 0 to 6"):
        plot_events(events, tmp_path / "none.png", image=7)
    with pytest.raises(ValueError, match="no layer 'conv'"):
        events.counts("conv")
