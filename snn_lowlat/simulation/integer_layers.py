"""Convolutions of whole numbers by PyTorch's own kernels for eight bits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from snn_lowlat.graph import find_sites

__all__ = ["IntegerConvolution", "has_integer_kernels", "use_integer_kernels"]

# Processors without an instruction for four products of bytes add up pairs of them in 16 bits: 2 * 127 * 127 fits.
_LARGEST_INPUT = 127


class IntegerConvolution(nn.Module):
    """A convolution of small whole numbers with weights of eight bits; its sums are exact.

    Runs oneDNN's kernel behind PyTorch's quantised inference (``torch.ops.onednn.qconv2d_pointwise``), with all
    scales 1.

    Parameters
    ----------
    layer : Conv2d
        With whole weights from -127 to 127 and whole biases, whose sums single precision can count.
    input_shape : tuple of int
        The shape of its input, for which weights are arranged; others work too.
    """

    def __init__(self, layer: nn.Conv2d, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.geometry = list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups
        self.register_buffer("scales", torch.ones(len(weight)))
        self.register_buffer("zeros", torch.zeros(len(weight), dtype=torch.int64))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        self.weight = torch.ops.onednn.qconv_prepack(
            weight.to(torch.int8), self.scales, 1.0, 0, *self.geometry, list(input_shape)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map whole numbers from 0 to 127, ``[N, C, H, W]`` of any type, to sums in single precision."""
        x = x.to(torch.uint8).contiguous(memory_format=torch.channels_last)
        return torch.ops.onednn.qconv2d_pointwise(  # type: ignore[no-any-return]
            *(x, 1.0, 0),
            *(self.weight, self.scales, self.zeros, self.bias),
            *self.geometry,
            *(1.0, 0, torch.float32),
            *("none", [], ""),
        )


@lru_cache
def has_integer_kernels() -> bool:
    """Say whether this build of PyTorch and this processor convolve whole numbers exactly: tried once."""
    generator = torch.Generator().manual_seed(0)
    layer: Any = nn.Conv2d(32, 32, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape, generator=generator))
        layer.bias.copy_(torch.randint(-999, 999, layer.bias.shape, generator=generator))
        images = torch.randint(0, _LARGEST_INPUT + 1, (2, 32, 8, 8), generator=generator).float()
        try:
            found = IntegerConvolution(layer, images.shape)(images)
        except (RuntimeError, NotImplementedError, AttributeError):
            return False
        expected = functional.conv2d(images.double(), layer.weight.double(), layer.bias.double(), padding=1)
    return torch.equal(found.double(), expected)


def use_integer_kernels(graph: fx.GraphModule, image: Tensor, largest: int = 1) -> None:
    """Let the convolutions of a network in whole numbers that read nothing but spikes run on kernels for eight bits.

    Those that read the image, or sums too large for a byte, stay as they are: in single precision, and as exact.

    Parameters
    ----------
    graph : GraphModule
        A network from :func:`snn_lowlat.graph.to_integers`, changed in place.
    image : Tensor
        One input image or more, ``[N, ...]``: its shape counts.
    largest : int
        The largest number that neurons send.
    """
    for name, shape in _readers_of_spikes(graph, image, largest).items():
        layer: Any = graph.get_submodule(name)
        graph.set_submodule(name, IntegerConvolution(layer, shape))


class _Bounds(fx.Interpreter):
    """Follows the largest numbers that reach each layer; what is no sum of spikes is not a number."""

    def __init__(self, graph: fx.GraphModule, largest: int) -> None:
        super().__init__(graph)
        self.largest = largest
        self.sites = {site.node for site in find_sites(graph).values()}
        self.found: dict[str, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "placeholder":
            return torch.full_like(value, torch.nan)
        return torch.full_like(value, self.largest) if n in self.sites else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(target)
        if isinstance(layer, nn.Conv2d):
            self.found.setdefault(target, []).append(args[0])
        value = layer(*args, **kwargs)
        return value if not list(layer.parameters(recurse=False)) else torch.full_like(value, torch.nan)


@torch.no_grad()
def _readers_of_spikes(graph: fx.GraphModule, image: Tensor, largest: int) -> dict[str, tuple[int, ...]]:
    bounds = _Bounds(graph, largest)
    bounds.run(image[:1])
    readers = {}
    for name, inputs in bounds.found.items():
        layer: Any = graph.get_submodule(name)
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if plain and all(float(x.min()) >= 0 and float(x.max()) <= _LARGEST_INPUT for x in inputs):
            readers[name] = tuple(inputs[0].shape)
    return readers
