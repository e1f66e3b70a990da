"""Convolutions of whole numbers by PyTorch's own kernels for eight bits."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from snn_lowlat.graph.vocabulary import module_of

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


def use_integer_kernels(graph: fx.GraphModule, image: Tensor, layers: Collection[str]) -> None:
    """Let convolutions run on kernels for eight bits.

    Those that read the image, or sums too large for a byte, stay as they are: in single precision, and as exact.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form, changed in place.
    image : Tensor
        One input image or more, ``[N, ...]``: its shape counts.
    layers : collection of str
        The layers that read nothing but small whole numbers and add them up exactly, as
        :attr:`snn_lowlat.int8.WholeNumbers.on_bytes` names them.
    """
    with torch.no_grad():
        ShapeProp(graph).propagate(image[:1])
    for node in graph.graph.nodes:
        layer = module_of(graph, node) if node.target in layers else None
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            (read,) = node.all_input_nodes
            graph.set_submodule(node.target, IntegerConvolution(layer, tuple(read.meta["tensor_meta"].shape)))
