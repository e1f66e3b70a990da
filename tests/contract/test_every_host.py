"""What every neuron keeps, in every host, on every network."""

import copy
import io

import pytest
import torch
from matrix import HOSTS, NEURONS, TIMESTEPS, convert_to
from networks import NETWORKS, make_images, recorded, step_by_step

import snn_lowlat
from snn_lowlat import neurons
from snn_lowlat.hosts import get_backend
from snn_lowlat.simulation import is_online, simulate


def test_every_registered_neuron_has_a_row():
    assert set(neurons.NEURONS) == set(NEURONS)


@pytest.fixture(params=[(n, row) for n, rows in NEURONS.items() for row in rows], ids="-of-".join, scope="module")
def neuron(request):
    return request.param


@pytest.fixture(params=NETWORKS, ids=lambda kind: kind.__name__, scope="module")
def kind(request):
    return request.param


@pytest.fixture(params=HOSTS, scope="module")
def snn(request, neuron, kind):
    snn = convert_to(*neuron, kind, request.param)
    assert {site.neuron for site in snn.plan.values()} == {neuron[0]}
    return snn


def test_it_spikes_and_classifies(snn):
    images = make_images(5)
    assert snn(images).shape == (5, 10)
    _, spikes = recorded(snn, images, steps=False)
    assert spikes.keys() == snn.plan.keys()
    for name, values in spikes.items():
        assert set(values.unique().tolist()) <= {0.0, 1.0}, name
    assert any(values.any() for values in spikes.values())


def test_the_curve_ends_in_the_readout(snn):
    images = make_images(5)
    curve = snn.readout(images)
    assert curve.shape == (TIMESTEPS, 5, 10)
    assert torch.equal(curve[-1], snn.simulate(images))
    if snn.is_counted:
        torch.testing.assert_close(curve[-1], snn(images), rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(curve[-1], snn(images))
    if is_online(snn.plan):  # else a shorter window is another one, not the start of this
        assert torch.equal(curve[:2], snn.readout(images, timesteps=2))


def test_a_time_loop_and_whole_windows_give_equal_spikes(snn):
    images = make_images(5)
    outputs, spikes = recorded(snn, images, steps=False)
    steps, stepped = recorded(snn, images, steps=True)
    torch.testing.assert_close(steps, outputs, rtol=1e-5, atol=1e-6)
    for name in spikes:
        assert torch.equal(stepped[name], spikes[name]), name


def test_the_reference_and_the_fast_simulation_give_equal_spikes(snn):
    images, seen = make_images(5), {}
    outputs, spikes = recorded(snn, images, steps=False)
    expected, reference = simulate(*snn.normal_form(), images.expand(TIMESTEPS, *images.shape))
    logits = snn.readout(images, observe=seen.__setitem__)
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs.mean(0), logits[-1], rtol=1e-5, atol=1e-6)
    assert seen.keys() == reference.keys() == spikes.keys()
    for name in reference:
        assert torch.equal(spikes[name], reference[name].flatten(2)), name
        assert torch.equal(spikes[name], seen[name].flatten(2)), name


def test_the_normal_form_builds_the_same_network_in_every_host(snn):
    images = make_images(5)
    outputs, _ = recorded(snn, images, steps=False)
    graph, plan = snn.normal_form()
    assert plan == snn.plan
    for name in HOSTS:
        host = get_backend(name)
        network = host.build(graph, plan, images.shape[1:])
        assert torch.equal(host.run(network, images.expand(TIMESTEPS, *images.shape)), outputs)


def test_batch_size_changes_nothing(snn):
    images = make_images(6)
    whole = snn.readout(images)
    for size in (1, 4):
        snn.micro_batch = size
        torch.testing.assert_close(snn.readout(images), whole, rtol=1e-5, atol=1e-6)
    snn.micro_batch = None
    torch.testing.assert_close(snn.readout(images[:2]), whole[:, :2], rtol=1e-5, atol=1e-6)


def test_time_loops_start_anew_after_a_reset_and_with_another_batch_size(snn):
    first, second = make_images(6).split(3)
    expected = step_by_step(snn, second)
    with torch.no_grad():
        snn.network(first)
    assert torch.equal(step_by_step(snn, second), expected)
    with torch.no_grad():
        snn.network(make_images(7))
    assert torch.equal(step_by_step(snn, second, reset=False), expected)


def test_deep_copies_and_pickles_are_equal(snn):
    images = make_images(5)
    expected = snn.readout(images)
    stored = io.BytesIO()
    torch.save(snn, stored)
    stored.seek(0)
    for other in (copy.deepcopy(snn), torch.load(stored, weights_only=False)):
        assert torch.equal(other.readout(images), expected)


def test_saved_networks_are_equal_in_every_host(snn, kind, tmp_path):
    snn.ann_accuracy = 0.5
    snn.save(tmp_path / "snn.pt")
    images = make_images(5)
    expected = snn.readout(images)
    torch.manual_seed(7)
    for backend in HOSTS:
        for model in (None, kind()):
            loaded = snn_lowlat.load(tmp_path / "snn.pt", model=model, backend=backend)
            assert loaded.backend == backend
            assert torch.equal(loaded.readout(images), expected)
            assert loaded.plan == snn.plan
            assert loaded.provenance == snn.provenance
            assert (loaded.ann_accuracy, loaded.latency_steps) == (0.5, snn.latency_steps)
