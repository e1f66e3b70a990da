"""Images that a network can't take, and numbers that it can't have, are refused by name at every way in."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat.errors import CalibrationError, SnnLowlatError
from snn_lowlat.evaluation import analyse, evaluate, measure_operations
from snn_lowlat.hosts import BACKENDS

WAYS = {
    "call": lambda snn, images: snn(images),
    "simulate": lambda snn, images: snn.simulate(images),
    "events": lambda snn, images: snn.simulate(images, record_events=True),
    "readout": lambda snn, images: snn.readout(images),
    "count": lambda snn, images: snn.count(images),
    "evaluate": lambda snn, images: evaluate(snn, [(images, torch.zeros(len(images), dtype=torch.long))]),
    "measure_operations": lambda snn, images: measure_operations(snn, [images]),
    "analyse": lambda snn, images: analyse(snn, [images]),
}


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def models():
    model, images = network(), torch.rand(8, 1, 8, 8)
    options = {"timesteps": 4, "strategy": "value_range"}
    made = {b: snn_lowlat.convert(model, images, backend=b, **options) for b in BACKENDS}
    return made | {"int8": snn_lowlat.convert(model, images, precision="int8", **options)}


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("kind", [*BACKENDS, "int8"])
@pytest.mark.parametrize("way", WAYS)
def test_images_that_are_no_numbers_are_counted_and_refused(models, way, kind, on_host):
    snn = copy.copy(models[kind])
    snn.run_on_host = on_host
    images = torch.rand(5, 1, 8, 8)
    images[1, 0, 2, 3], images[4, 0, 0, 0] = torch.nan, -torch.inf
    with pytest.raises(ValueError, match=r"2 of 5 images hold NaN or infinite numbers \(the first is image 1\)"):
        WAYS[way](snn, images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("way", WAYS)
def test_whole_pixels_are_refused_with_what_to_do(models, way, dtype):
    images = torch.randint(0, 256, (5, 1, 8, 8)).to(dtype)
    with pytest.raises(ValueError, match=f"{dtype}.*normalise them as in training"):
        WAYS[way](models["spikingjelly"], images)
    with pytest.raises(CalibrationError, match=f"{dtype}.*normalise them as in training"):
        snn_lowlat.convert(network(), images)
    with pytest.raises(CalibrationError, match=f"{dtype}.*normalise them as in training"):
        snn_lowlat.convert(network(), [torch.rand(5, 1, 8, 8), images])


@pytest.mark.parametrize("kind", [*BACKENDS, "int8"])
@pytest.mark.parametrize("way", ["call", "simulate", "readout", "count"])
def test_images_of_another_floating_type_are_cast_to_the_networks(models, way, kind):
    images = torch.rand(5, 1, 8, 8)
    expected = WAYS[way](models[kind], images)
    assert torch.equal(WAYS[way](models[kind], images.double()), expected)
    double = copy.deepcopy(models[kind]).double()
    assert WAYS[way](double, images).dtype == torch.float64
    with pytest.raises(ValueError, match=r"1 of 5 images hold numbers that torch\.float32 does not have"):
        WAYS[way](models[kind], images.double() * torch.tensor([1, 1, 1e300, 1, 1]).view(-1, 1, 1, 1).double())


def test_double_images_calibrate_and_are_evaluated_beside_the_original_network():
    images = torch.rand(8, 1, 8, 8)
    expected = snn_lowlat.convert(network(), images, precision="int8")(images)
    snn = snn_lowlat.convert(network(), images.double(), precision="int8")
    assert torch.equal(snn(images.double()), expected)
    labels = expected.argmax(1)
    assert evaluate(snn, [(images.double(), labels)], ann=network()).accuracies[8] == 1


def test_large_images_are_no_infinite_ones(models):
    images = torch.full((2, 1, 8, 8), 3e38)
    assert models["spikingjelly"](images).shape == (2, 3)


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("kind", [*BACKENDS, "int8"])
@pytest.mark.parametrize("way", ["call", "simulate", "readout", "count", "evaluate", "measure_operations"])
@pytest.mark.parametrize("what", ["weight", "bias", "threshold"])
def test_weights_and_thresholds_that_become_nan_are_named(models, way, kind, on_host, what):
    snn = copy.deepcopy(models[kind])
    snn.run_on_host = on_host
    images = torch.rand(2, 1, 8, 8)
    snn(images)
    layer = list(snn.spiking_layers())[1]
    if what == "threshold":
        name = layer
        buffers = snn.network.named_buffers()
        next(v for n, v in buffers if n.endswith("threshold") and n.startswith(layer))[0] = torch.nan
    else:
        name = next(n for n, m in reversed(list(snn.network.named_modules())) if isinstance(m, nn.Conv2d))
        getattr(snn.network.get_submodule(name), what).data.view(-1)[0] = torch.inf
    with pytest.raises(SnnLowlatError, match=f"layer '{name}': 1 of .* numbers in its .*{what} are NaN or infinite"):
        WAYS[way](snn, images)
    assert "precision=unknown" in repr(snn)


def test_shared_memory_that_changes_is_noticed(models):
    snn, images = copy.deepcopy(models["spikingjelly"]), torch.rand(2, 1, 8, 8)
    before = snn(images), snn.simulate(images)
    shared: np.ndarray = next(snn.network.parameters()).detach().numpy()
    shared[...] *= -1
    assert not torch.equal(snn(images), before[0])
    assert not torch.equal(snn.simulate(images), before[1])
    shared[...] *= -1
    assert torch.equal(snn.simulate(images), before[1])


def test_autocast_changes_no_spikes(models):
    images = torch.rand(4, 1, 8, 8)
    for kind in (*BACKENDS, "int8"):
        expected = models[kind].readout(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(models[kind].readout(images), expected)
            assert torch.equal(models[kind](images), models[kind].count(images))
