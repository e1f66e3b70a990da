"""PyTorch's kernels for eight bits add up whole numbers exactly, or are left alone."""

import pytest
import torch
from torch import nn

import snn_lowlat
from snn_lowlat.int8 import kernels, whole_numbers
from snn_lowlat.int8.kernels import IntegerConvolution, has_integer_kernels, use_integer_kernels

needs_kernels = pytest.mark.skipif(not has_integer_kernels(), reason="this platform has no kernels for eight bits")


def whole_convolution(**options):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(12, 24, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-127, 128, parameter.shape, generator=generator))
    return layer


@needs_kernels
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "bias": False},
        {"kernel_size": 1},
        {"kernel_size": 3, "stride": 2, "padding": (1, 0)},
        {"kernel_size": 3, "dilation": 2, "padding": 2},
        {"kernel_size": 3, "groups": 3},
        {"kernel_size": 3, "groups": 12},
        {"kernel_size": (1, 5)},
    ],
    ids=str,
)
@pytest.mark.parametrize("images", [1, 5])
def test_sums_are_exact(options, images):
    layer = whole_convolution(**options)
    inputs = torch.randint(0, 128, (images, 12, 9, 8), generator=torch.Generator().manual_seed(1))
    expected = layer.double()(inputs.double())
    fast = IntegerConvolution(layer, (5, 12, 9, 8))
    for kind in (torch.uint8, torch.float32):
        found = fast(inputs.to(kind))
        assert found.dtype == torch.float32
        assert torch.equal(found.double(), expected)


def converted(model, images):
    snn = snn_lowlat.convert(model.eval(), [images], timesteps=2, precision="int8")
    return snn.normal_form()


@needs_kernels
def test_layers_that_read_more_than_bytes_keep_theirs():
    """The first layer reads pixels, and after pooling of 12 x 12 there may be 144 spikes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.AvgPool2d(12)),
        *(nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(5, 6, 1), nn.Flatten()),
    )
    images = torch.rand(2, 3, 24, 24)
    graph, plan = converted(model, images)
    names = [name for name, module in graph.named_modules() if isinstance(module, nn.Conv2d)]
    use_integer_kernels(graph, images, whole_numbers(graph, plan).on_bytes)
    fast = [name for name in names if isinstance(graph.get_submodule(name), IntegerConvolution)]
    assert fast == [names[1], names[3]]


def test_platforms_without_kernels_say_so(monkeypatch):
    def fail(*_):
        raise NotImplementedError

    monkeypatch.setattr(kernels, "IntegerConvolution", fail)
    has_integer_kernels.cache_clear()
    assert not has_integer_kernels()
    monkeypatch.undo()
    has_integer_kernels.cache_clear()
