"""What another package brings, by entry points alone, keeps the contract: a neuron, its strategy, a host library."""

import copy
import io
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from networks import NETWORKS, AveragePoolNetwork, ResidualNetwork, make_images, make_network, step_by_step
from outside import ENTRY_POINTS

import snn_lowlat
from snn_lowlat.hosts import BACKENDS
from snn_lowlat.neurons import NEURONS
from snn_lowlat.simulation import simulate
from snn_lowlat.strategies.registry import REGISTRY

HOSTS = ("spikingjelly", "snntorch", "smallest")


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Let the package look as if it was installed."""
    found = {
        group: [
            SimpleNamespace(name=name, value=f"outside:{name}", dist=None, load=lambda entry=entry: entry)
            for name, entry in entries.items()
        ]
        for group, entries in ENTRY_POINTS.items()
    }
    for catalogue in (NEURONS, REGISTRY, BACKENDS):
        monkeypatch.setattr(catalogue, "_entries", dict(catalogue._entries))
        monkeypatch.setattr(catalogue, "_discovered", False)
    others = metadata.entry_points
    monkeypatch.setattr(metadata, "entry_points", lambda **wanted: found.get(wanted.get("group")) or others(**wanted))


def convert(kind, backend, strategy="with_pause", **options):
    options = {"timesteps": 5, "refinements": ["bias_correction"]} | options
    return snn_lowlat.convert(make_network(kind), [make_images()], strategy=strategy, backend=backend, **options)


def spikes_of(snn, images):
    seen = {}
    curve = snn.readout(images, observe=seen.__setitem__)
    return curve, seen


def test_all_that_is_brought_has_names():
    assert "with_pause" in snn_lowlat.strategies()
    assert "refractory" in NEURONS
    assert set(BACKENDS) == set(HOSTS)
    with pytest.raises(ValueError, match=r"unknown backend 'smalest'. Did you mean 'smallest'"):
        convert(AveragePoolNetwork, "smalest")


@pytest.mark.parametrize("backend", HOSTS)
@pytest.mark.parametrize("kind", NETWORKS[:2], ids=lambda kind: kind.__name__)
def test_the_neuron_runs_in_every_host_step_by_step_and_in_windows(kind, backend):
    snn, images = convert(kind, backend), make_images(5)
    curve, seen = spikes_of(snn, images)
    assert all(set(spikes.unique().tolist()) <= {0.0, 1.0} for spikes in seen.values())
    assert any(spikes.any() for spikes in seen.values())
    assert not any((spikes[1:] * spikes[:-1]).any() for spikes in seen.values())  # it rests after each spike
    outputs, reference = simulate(*snn.normal_form(), images.expand(5, *images.shape))
    assert all(torch.equal(seen[name], spikes) for name, spikes in reference.items())
    torch.testing.assert_close(step_by_step(snn, images), outputs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(curve[-1], outputs.mean(0), rtol=1e-5, atol=1e-6)
    snn.run_on_host = True
    torch.testing.assert_close(snn.readout(images), curve, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", HOSTS)
def test_the_neuron_is_saved_copied_and_pickled(backend, tmp_path):
    snn, images = convert(ResidualNetwork, backend), make_images(5)
    expected = snn.readout(images)
    snn.save(tmp_path / "snn.pt")
    stored = io.BytesIO()
    torch.save(snn, stored)
    stored.seek(0)
    others = [snn_lowlat.load(tmp_path / "snn.pt", backend=host) for host in HOSTS]
    for other in (*others, copy.deepcopy(snn), torch.load(stored, weights_only=False)):
        assert torch.equal(other.readout(images), expected)
    assert others[0].plan == snn.plan


@pytest.mark.parametrize("strategy", ["optimized_potential", "value_range"])
def test_the_host_runs_this_packages_own_neurons(strategy):
    snn, images = convert(AveragePoolNetwork, "smallest", strategy), make_images(5)
    expected = convert(AveragePoolNetwork, "spikingjelly", strategy)
    torch.testing.assert_close(snn(images), expected(images), rtol=1e-5, atol=1e-6)
    report = snn_lowlat.evaluate(snn, [(images, torch.arange(5))])
    assert report.backend == "smallest"


def test_what_is_not_known_of_the_neuron_is_refused_with_its_name():
    snn = convert(AveragePoolNetwork, "spikingjelly")
    with pytest.raises(snn_lowlat.SnnLowlatError, match="'refractory', which surrogate gradients can't train"):
        snn_lowlat.training.FineTuning(snn, num_classes=10)
    with pytest.raises(ValueError, match=r"pause of site .* must be a whole number from 1 to 100, not 0"):
        convert(AveragePoolNetwork, "spikingjelly", pause=0)


def test_integers_are_no_matter_of_names():
    """Nothing that the neuron computes leaves the whole numbers, so it converts to int8."""
    snn, images = convert(AveragePoolNetwork, "snntorch", precision="int8"), make_images(5)
    other = convert(AveragePoolNetwork, "spikingjelly", precision="int8")
    assert snn.precision == "int8"
    for name, spikes in spikes_of(snn, images)[1].items():
        assert torch.equal(spikes, spikes_of(other, images)[1][name])
