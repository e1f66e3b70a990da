from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from snn_lowlat.data import CIFAR10
from snn_lowlat.models import InputNormalisation, ResNet20, SmallCNN, load_weights


def test_resnet20_has_the_published_size_and_names() -> None:
    network = ResNet20()
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722
    names = set(network.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.conv2.weight", "layer3.2.bn2.bias", "linear.bias"} <= names
    assert not any("shortcut" in name for name in names)


def test_resnet20_takes_other_channels_and_classes() -> None:
    assert ResNet20(num_classes=7, in_channels=1)(torch.rand(2, 1, 32, 32)).shape == (2, 7)


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
def test_published_resnet20_reaches_its_accuracy(real_data: Callable[[str], Path]) -> None:
    weights = real_data("weights/akamaster_resnet20-12fca82f.th")
    folder = real_data("cifar10.npz").parent
    data = CIFAR10(folder, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), batch_size=250)
    network = ResNet20().eval()
    load_weights(network, weights)
    with torch.inference_mode():
        correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in data.test_dataloader())
    assert correct / 10_000 == pytest.approx(0.9173, abs=2e-4)
