"""What every strategy keeps, in every host, on every network: a new strategy is one more row of ``STRATEGIES``."""

import copy
import io

import pytest
import torch
from networks import NETWORKS, make_images, make_network, recorded, step_by_step
from spikingjelly.activation_based.ann2snn import FXConverter

import snn_lowlat
from snn_lowlat import spikingjelly as recipes
from snn_lowlat.hosts import BACKENDS, get_backend, spikingjelly
from snn_lowlat.simulation import is_online, simulate

STRATEGIES = {
    "distribution_aware": [
        {},
        {"objective": "mse", "percentile_source": "all", "granularity": "layer"},
        {"ceiling": "max", "initial_potential": "half"},
    ],
    "optimized_potential": [
        {},
        {"threshold": "mmse", "initial_potential": "calibrated"},
        {"threshold": "percentile", "percentile": 99.0, "granularity": "layer"},
        {"threshold": "max", "initial_potential": "zero"},
        {"initial_potential": 0.3},
    ],
    "value_range": [{}, {"threshold": "percentile", "granularity": "layer", "initial_potential": "zero"}],
    "temporal_switch": [
        {},
        {"output": "pipelined", "threshold": "percentile"},
        {"output": "online", "hysteresis": 2.0},
    ],
    "threshold_balancing": [{}, {"threshold": "percentile", "granularity": "channel"}],
}
ROWS = [(name, options) for name, variants in STRATEGIES.items() for options in variants]
TIMESTEPS = 4


def test_every_registered_strategy_has_a_row():
    assert set(snn_lowlat.strategies()) == set(STRATEGIES)


def label(row):
    name, options = row
    return "-".join([name, *(str(value) for value in options.values())])


@pytest.fixture(params=ROWS, ids=label, scope="module")
def row(request):
    return request.param


@pytest.fixture(params=NETWORKS, ids=lambda kind: kind.__name__, scope="module")
def kind(request):
    return request.param


@pytest.fixture(params=BACKENDS, scope="module")
def snn(request, row, kind):
    return convert(row, kind, backend=request.param)


def convert(row, kind, batches=None, **options):
    name, strategy_options = row
    options = {"timesteps": TIMESTEPS, "refinements": ["bias_correction"]} | strategy_options | options
    return snn_lowlat.convert(make_network(kind), batches or [make_images()], strategy=name, **options)


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
    for backend in BACKENDS:
        host = get_backend(backend)
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


def test_the_initial_potential_survives_a_change_of_batch_size(snn):
    expected = step_by_step(snn, make_images(3))
    snn.network(make_images(7))
    assert torch.equal(step_by_step(snn, make_images(3), reset=False), expected)
    assert torch.equal(step_by_step(snn, make_images(3)), expected)


def test_deep_copies_and_pickles_are_equal(snn):
    images = make_images(5)
    expected = snn.readout(images)
    stored = io.BytesIO()
    torch.save(snn, stored)
    stored.seek(0)
    for other in (copy.deepcopy(snn), torch.load(stored, weights_only=False)):
        assert torch.equal(other.readout(images), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_model", [False, True])
def test_saved_networks_are_equal(snn, kind, backend, with_model, tmp_path):
    snn.ann_accuracy = 0.5
    snn.save(tmp_path / "snn.pt")
    torch.manual_seed(7)
    loaded = snn_lowlat.load(tmp_path / "snn.pt", model=kind() if with_model else None, backend=backend)
    images = make_images(5)
    assert loaded.backend == backend
    assert torch.equal(loaded.readout(images), snn.readout(images))
    assert loaded.plan == snn.plan
    assert loaded.provenance == snn.provenance
    assert (loaded.ann_accuracy, loaded.latency_steps) == (0.5, snn.latency_steps)


def test_conversion_is_deterministic(snn, row, kind):
    again = convert(row, kind, backend=snn.backend)
    assert again.plan == snn.plan
    assert torch.equal(again(make_images(5)), snn(make_images(5)))


def test_the_order_of_calibration_batches_changes_nothing(row, kind):
    batches = list(make_images().split(4))
    assert convert(row, kind, batches, refinements=()).plan == convert(row, kind, batches[::-1], refinements=()).plan


def test_the_size_of_calibration_batches_changes_nothing(row, kind):
    # The currents themselves differ in their last bits: torch convolves batches of different size in different ways.
    plans = [convert(row, kind, list(make_images().split(size)), refinements=()).plan for size in (4, 10)]
    for name, site in plans[0].items():
        for value in ("threshold", "initial_potential", "amplitude"):
            torch.testing.assert_close(getattr(plans[1][name], value), getattr(site, value), rtol=1e-4, atol=1e-6)


def test_the_recipe_gives_the_same_network(snn, row, kind):
    if snn.backend != "spikingjelly":
        pytest.skip("SpikingJelly's own idiom")
    name, options = row
    recipe = getattr(recipes, "".join(word.capitalize() for word in name.split("_")) + "Recipe")
    recipe = recipe(calibration=[make_images()], timesteps=TIMESTEPS, refinements=["bias_correction"], **options)
    network = FXConverter(recipe).convert(make_network(kind))
    images = make_images(5)
    by_recipe = spikingjelly.run(network, images.expand(TIMESTEPS, *images.shape))
    assert torch.equal(by_recipe, spikingjelly.run(snn.network, images.expand(TIMESTEPS, *images.shape)))


def test_longer_windows_come_closer_to_the_network(row, kind):
    model, images = make_network(kind), make_images(12)
    with torch.no_grad():
        expected = model(images)
    errors = [(convert(row, kind, timesteps=t)(images) - expected).abs().mean().item() for t in (1, 64)]
    assert errors[1] < 0.5 * errors[0]
