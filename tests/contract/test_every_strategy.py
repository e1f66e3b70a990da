"""What every strategy keeps, with all its options, on every network: in one host, for plans know none."""

import pytest
import torch
from matrix import COUNTED, HOSTS, ROWS, STRATEGIES, TIMESTEPS, convert
from networks import NETWORKS, make_images, make_network, recorded
from spikingjelly.activation_based.ann2snn import FXConverter

import snn_lowlat
from snn_lowlat import spikingjelly as recipes
from snn_lowlat.hosts import spikingjelly
from snn_lowlat.refinement import BiasCorrection


def test_every_registered_strategy_has_a_row():
    assert set(snn_lowlat.strategies()) == set(STRATEGIES)


@pytest.fixture(params=ROWS, scope="module")
def row(request):
    return request.param


@pytest.fixture(params=NETWORKS, ids=lambda kind: kind.__name__, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def snn(row, kind):
    return convert(row, kind)


@pytest.mark.parametrize("backend", [name for name in HOSTS if name != "spikingjelly"])
def test_converted_again_for_another_host_it_is_the_same_network(snn, row, kind, backend):
    """The plan is that of the first conversion, number by number, and so is what comes out."""
    images = make_images(5)
    assert snn.is_counted == (row in COUNTED)
    again = convert(row, kind, backend=backend)
    assert again.plan == snn.plan
    assert torch.equal(again(images), snn(images))


def test_time_loops_windows_and_the_fast_simulation_fire_the_same_spikes(snn):
    images, seen = make_images(5), {}
    snn.readout(images, observe=seen.__setitem__)
    _, windows = recorded(snn, images, steps=False)
    _, steps = recorded(snn, images, steps=True)
    for name, spikes in windows.items():
        assert torch.equal(steps[name], spikes), name
        assert torch.equal(seen[name].flatten(2), spikes), name


def test_neither_order_nor_size_of_calibration_batches_changes_anything(row, kind):
    def planned(batches):
        return convert(row, kind, batches, refinements=()).plan

    batches = list(make_images().split(4))
    plan = planned(batches)
    assert planned(batches[::-1]) == plan
    # The currents themselves differ in their last bits: torch convolves batches of different size in different ways.
    others = planned(list(make_images().split(10)))
    for name, site in plan.items():
        for value in ("threshold", "initial_potential", "amplitude"):
            torch.testing.assert_close(getattr(others[name], value), getattr(site, value), rtol=1e-4, atol=1e-6)


def test_the_recipe_gives_the_same_network(snn, row, kind):
    name, options = ROWS[row]
    recipe = getattr(recipes, "".join(word.capitalize() for word in name.split("_")) + "Recipe")
    recipe = recipe(calibration=[make_images()], timesteps=TIMESTEPS, refinements=["bias_correction"], **options)
    network = FXConverter(recipe).convert(make_network(kind))
    inputs = make_images(5).expand(TIMESTEPS, 5, 1, 8, 8)
    assert torch.equal(spikingjelly.run(network, inputs), spikingjelly.run(snn.network, inputs))


def test_a_saved_network_knows_its_plan_and_where_it_comes_from(snn, tmp_path):
    snn.save(tmp_path / "snn.pt")
    loaded = snn_lowlat.load(tmp_path / "snn.pt")
    assert loaded.plan == snn.plan
    assert loaded.provenance == snn.provenance
    _, spikes = recorded(snn, make_images(5), steps=False)
    for name, values in recorded(loaded, make_images(5), steps=False)[1].items():
        assert torch.equal(values, spikes[name]), name


def test_longer_windows_come_closer_to_the_network(row, kind):
    images, correction = make_images(12), BiasCorrection(images=12)
    with torch.no_grad():
        expected = make_network(kind)(images)
    longest = 32 if row.startswith("temporal_switch") else 64  # step by step, those take longest
    networks = [convert(row, kind, timesteps=t, refinements=[correction]) for t in (1, longest)]
    errors = [(snn(images) - expected).abs().mean().item() for snn in networks]
    assert errors[1] < 0.5 * errors[0]
