from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from snn_lowlat import convert
from snn_lowlat.data import CIFAR10
from snn_lowlat.models import VGG16, InputNormalisation, ResNet, ResNet18, ResNet20, SmallCNN, load_weights
from snn_lowlat.training import CeilingReLU

NETWORKS: dict[str, tuple[Callable[..., nn.Module], int, int]] = {
    "small_cnn": (partial(SmallCNN, in_channels=3, image_size=32, width=4), 3, 32),
    "resnet20": (partial(ResNet20, width=4), 19, 32),
    "resnet18": (partial(ResNet18, width=4), 17, 32),
    "vgg16": (partial(VGG16, width=4), 13, 32),
    "vgg16 of the paper": (
        partial(VGG16, width=4, batch_norm=False, hidden=[16, 12], dropout=0.2, hidden_dropout=0.5),
        15,
        32,
    ),
    "vgg16 with average pooling": (partial(VGG16, width=4, pooling="avg", image_size=64), 13, 64),
    "small_cnn with neurons behind pools": (
        partial(SmallCNN, in_channels=3, image_size=32, width=4, pool_activation=True),
        5,
        32,
    ),
    "resnet20 with neurons behind its pool": (partial(ResNet20, width=4, pool_activation=True), 20, 32),
    "vgg16 with neurons behind pools": (partial(VGG16, width=4, pooling="avg", pool_activation=True), 18, 32),
}


def test_resnet20_has_the_published_size_and_names() -> None:
    network = ResNet20()
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722
    names = set(network.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.conv2.weight", "layer3.2.bn2.bias", "linear.bias"} <= names
    assert not any("shortcut" in name for name in names)


def test_resnet18_has_the_usual_size_and_names() -> None:
    network = ResNet18()
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962
    names = set(network.state_dict())
    assert {"conv1.weight", "layer2.0.shortcut.0.weight", "layer4.0.shortcut.1.running_var", "linear.bias"} <= names
    assert not any(name.startswith("layer1.0.shortcut") for name in names)


def test_vgg16_has_the_published_layers() -> None:
    network = VGG16(batch_norm=False, hidden=[4096, 4096], num_classes=10)
    shapes = [tuple(module.weight.shape[:2]) for module in network.modules() if hasattr(module, "weight")]
    convolutions = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    outputs = [*convolutions, 4096, 4096, 10]
    assert shapes == list(zip(outputs, [3, *outputs[:-1]], strict=True))
    assert sum(parameter.numel() for parameter in VGG16().parameters()) == 14_724_042


@pytest.mark.parametrize("activation", ["relu", "ceiling", "channel_ceiling", partial(CeilingReLU, 2.0)])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_and_converts_with_any_activation(name: str, activation: Any) -> None:
    torch.manual_seed(0)
    make, sites, size = NETWORKS[name]
    network = make(num_classes=7, activation=activation)
    images = torch.rand(4, 3, size, size)
    network(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    ceilings = [module.ceiling.dim() for module in network.modules() if isinstance(module, CeilingReLU)]
    assert ceilings == ([] if activation == "relu" else [int(activation == "channel_ceiling")] * sites)
    snn = convert(network.eval(), images, timesteps=2)
    assert len(snn.plan) == sites
    assert snn(images[:2]).shape == (2, 7)


def test_full_vgg16_converts() -> None:
    assert convert(VGG16().eval(), torch.rand(2, 3, 32, 32), timesteps=1)(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_dropout_acts_in_training_only() -> None:
    images = torch.rand(2, 3, 32, 32)
    for options in ({"dropout": 0.5}, {"hidden": [8], "hidden_dropout": 0.5}):
        network = VGG16(width=8, batch_norm=False, **options)
        assert not torch.equal(network(images), network(images))
        network.eval()
        assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("network", [ResNet20, ResNet18, VGG16])
def test_networks_take_other_channels_and_classes(network: Callable[..., nn.Module]) -> None:
    images = torch.rand(2, 1, 32, 32)
    assert network(num_classes=7, in_channels=1, width=4).eval()(images).shape == (2, 7)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (VGG16, {"image_size": 31}, "image_size"),
        (VGG16, {"pooling": "sum"}, "pooling"),
        (VGG16, {"dropout": 1.0}, "dropout"),
        (VGG16, {"activation": "celling"}, "Did you mean 'ceiling'"),
        (ResNet, {"blocks": 1, "shortcut": "none"}, "shortcut"),
    ],
)
def test_options_are_checked(network: Callable[..., nn.Module], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_shortcut_keeps_every_second_pixel_and_pads_channels_with_zeros() -> None:
    images = torch.rand(2, 16, 8, 8)
    short = ResNet20().layer2[0].get_submodule("shortcut")(images)
    assert short.shape == (2, 32, 4, 4)
    assert torch.equal(short[:, 8:24], images[:, :, ::2, ::2])
    assert short[:, :8].count_nonzero() == short[:, 24:].count_nonzero() == 0


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("size", [8, 28, 33])
def test_small_cnn_fits_any_picture(size: int, pooling: str) -> None:
    network = SmallCNN(in_channels=3, num_classes=4, image_size=size, width=4, pooling=pooling)
    assert network(torch.rand(2, 3, size, size)).shape == (2, 4)


def test_small_cnn_checks_its_options() -> None:
    with pytest.raises(ValueError, match="pooling"):
        SmallCNN(pooling="sum")
    with pytest.raises(ValueError, match="image_size"):
        SmallCNN(image_size=3)


def test_input_normalisation_is_the_data_modules_own() -> None:
    images = torch.rand(2, 3, 4, 4)
    normalised = InputNormalisation((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))(images)
    assert torch.allclose(normalised[:, 2], (images[:, 2] - 0.3) / 0.7)
    with pytest.raises(ValueError, match="std"):
        InputNormalisation((0.1,), (0.0,))


@pytest.mark.data
@pytest.mark.parametrize(
    ("images", "least", "most"), [(1000, 0.9, 0.94), pytest.param(None, 0.9171, 0.9175, marks=pytest.mark.slow)]
)
def test_published_resnet20_reaches_its_accuracy(
    images: int | None, least: float, most: float, real_data: Callable[[str], Path]
) -> None:
    weights = real_data("weights/akamaster_resnet20-12fca82f.th")
    folder = real_data("cifar10.npz").parent
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    data = CIFAR10(folder, **statistics, batch_size=250, limit_test=images)
    network = ResNet20().eval()
    load_weights(network, weights)
    with torch.inference_mode():
        right = torch.cat([network(batch).argmax(1) == labels for batch, labels in data.test_dataloader()])
    assert len(right) == (images or 10_000)
    assert least < right.float().mean() < most
