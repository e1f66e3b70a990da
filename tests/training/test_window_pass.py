"""What layers keep for the way back, and how it lies in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import snn_lowlat
from snn_lowlat.kernels.surrogate import SpikeOptions
from snn_lowlat.training import window_pass
from snn_lowlat.training.spiking_network import TrainableNetwork
from tests.contract.networks import ResidualNetwork, make_images, make_network


@pytest.fixture
def network() -> TrainableNetwork:
    snn = snn_lowlat.convert(make_network(ResidualNetwork), [make_images()], timesteps=3)
    return TrainableNetwork(*snn.normal_form(), snn.provenance.input_shape, 3, SpikeOptions())


def gradients(network: TrainableNetwork, images: Tensor, constant: bool) -> list[Tensor]:
    outputs = network(images, constant)
    return [outputs, *torch.autograd.grad((outputs**2).sum(), list(network.parameters()))]


@pytest.mark.parametrize("constant", [True, False])
def test_saving_memory_changes_nothing(
    network: TrainableNetwork, constant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(7)
    images = images if constant else images * torch.rand(3, 7, 1, 1, 1)
    lean = gradients(network, images, constant)
    init = window_pass.WindowPass.__init__
    monkeypatch.setattr(
        window_pass.WindowPass,
        "__init__",
        lambda self, graph, timesteps, constant, whole: init(self, graph, timesteps, constant, False),
    )
    for found, expected in zip(lean, gradients(network, images, constant), strict=True):
        assert torch.equal(found, expected)


def test_images_and_gradients_have_their_channels_last_on_a_cpu(network: TrainableNetwork) -> None:
    layouts = []

    def hook(module: nn.Module, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> None:
        layouts.extend(x.is_contiguous(memory_format=torch.channels_last) for x in (*before, *after))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_full_backward_hook(hook)
    network(make_images(7).requires_grad_()).sum().backward()
    assert layouts == [True] * 6


@pytest.mark.parametrize("index", [slice(1, 3), (slice(None), slice(None), slice(None, None, 2), slice(1, None, 3))])
def test_gradients_of_slices_lie_as_what_was_sliced(index: object) -> None:
    values = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn_like(values[index])
    (expected,) = torch.autograd.grad((values[index] * weight).sum(), values)
    sliced = window_pass._Slice.apply(values, index)
    assert torch.equal(sliced, values[index])
    (found,) = torch.autograd.grad((sliced * weight).sum(), values)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
