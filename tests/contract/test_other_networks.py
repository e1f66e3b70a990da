"""Trained networks of several kinds, with data of their own; ``networks.py`` in the data folder loads them."""

import importlib.util
import sys

import pytest
import torch

import snn_lowlat
from snn_lowlat.refinement import make_refinement


@pytest.fixture
def load(real_data, monkeypatch):
    """Return what loads a trained network, images as it wants them, and labels, by name."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("trained_networks", real_data("networks.py").resolve())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load


@torch.no_grad()
def agreement(network, expected, images):
    """Return the share of images on which a network's class is the expected one."""
    found = torch.cat([network(part).argmax(1) for part in images.split(50)])
    return float((found == expected).float().mean())


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("images", [1000])
def test_a_network_with_max_pools_comes_close_to_the_original(load, images):
    model, samples, labels = load("cifar10_maxpools")
    test, calibration = samples[:images], samples[5000:5500].split(100)
    with torch.no_grad():
        classes = torch.cat([model(part).argmax(1) for part in test.split(100)])
    right = {}
    print(f"\ncifar10_maxpools, {images} images: the network {float((classes == labels[:images]).float().mean()):.3f}")
    for way in ("cumulative", "per_step"):
        for timesteps in (4, 8, 16, 64):
            snn = snn_lowlat.convert(model, calibration, timesteps=timesteps, max_pool=way)
            right[way, timesteps] = agreement(snn, labels[:images], test)
            print(f"{way}, T = {timesteps}: {right[way, timesteps]:.3f}")
    ann = float((classes == labels[:images]).float().mean())
    assert right["cumulative", 4] < right["cumulative", 16] < right["cumulative", 64]
    assert right["cumulative", 64] > ann - 0.02
    assert right["per_step", 64] < right["per_step", 4]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("images", [50])
def test_photographs_through_max_pools_come_closer_with_more_steps(load, images):
    model, samples, labels = load("imagenet_squeezenet")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    calibration, test = samples[order[:100]].split(20), samples[order[100 : 100 + images]]
    with torch.no_grad():
        classes = torch.cat([model(part).argmax(1) for part in test.split(50)])
    right = {}
    expected = labels[order[100 : 100 + images]]
    print(f"\nimagenet_squeezenet, {images} images: the network {float((classes == expected).float().mean()):.3f}")
    for way, steps in (("cumulative", (4, 8, 16, 64)), ("per_step", (16, 64))):
        for timesteps in steps:
            # All steps of these few photographs take gigabytes in the first layer.
            correction = make_refinement("bias_correction", images=640 // max(timesteps, 16))
            snn = snn_lowlat.convert(model, calibration, timesteps=timesteps, max_pool=way, refinements=[correction])
            right[way, timesteps] = agreement(snn, expected, test)
            print(f"{way}, T = {timesteps}: {right[way, timesteps]:.3f}")
    assert right["cumulative", 64] > max(right["cumulative", 16], right["per_step", 64])
