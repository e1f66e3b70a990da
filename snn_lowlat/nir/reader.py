"""From NIR nodes to a network in normal form and the plan of its neurons."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn

from snn_lowlat.checks import count
from snn_lowlat.errors import ConversionError
from snn_lowlat.files import MOST_VALUES
from snn_lowlat.graph.names import free_name
from snn_lowlat.nir.network import WEIGHTED, Array, Network, pair
from snn_lowlat.plan import SitePlan

__all__ = ["Reader"]

_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


class Reader:
    """Builds a network in normal form from NIR nodes.

    Parameters
    ----------
    network : Network
        The nodes.
    reset : str or None
        How neurons reset that do not say so themselves.
    dt : float or None
        The length of a step; None if it is not known.
    amplitudes : bool
        Whether spikes are worth the amplitude in their neurons' metadata, not 1.
    dtype : torch.dtype, optional
        The precision of the network; by default that of the first weights.

    Attributes
    ----------
    plan : dict of str to SitePlan
        What each site is.
    input_shape : tuple of int
        The shape of one input image.
    """

    def __init__(
        self,
        network: Network,
        *,
        reset: str | None,
        dt: float | None,
        amplitudes: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.plan: dict[str, SitePlan] = {}
        self.input_shape: tuple[int, ...] = ()
        self._network = network
        self._reset = reset
        self._dt = dt
        self._amplitudes = amplitudes
        weights = (node.weight for node in network.nodes.values() if isinstance(node, WEIGHTED))
        self._dtype = dtype or _DTYPES.get(str(np.asarray(next(weights, 0)).dtype), torch.float32)
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._nodes: dict[str, fx.Node] = {}
        # What each node puts out, without memory: its shape, and the proof that its parameters fit.
        self._outputs: dict[str, Tensor] = {}

    @torch.no_grad()
    def read(self) -> fx.GraphModule:
        """Return the network.

        Raises
        ------
        ConversionError
            If a node can't be run; the message names it and the reason.
        """
        for name, node in self._network.nodes.items():
            kind = type(node)
            if kind not in _RULES:
                known = ", ".join(known.__name__ for known in _RULES)
                raise ConversionError(f"NIR node {name!r} ({kind.__name__}) can't be run, only nodes of {known}.")
            try:
                _RULES[kind](self, name, node)
            # A graph comes from anywhere: what no check has found fails in numpy or torch.
            except Exception as error:
                raise ConversionError(f"NIR node {name!r} ({kind.__name__}) can't be run: {error}") from error
            if name in self._outputs and self._outputs[name].numel() > MOST_VALUES:
                shape = list(self._outputs[name].shape[1:])
                raise ConversionError(f"NIR node {name!r} ({kind.__name__}) can't be run: it would put out {shape}.")
        self._graph.lint()
        return fx.GraphModule(self._root, self._graph).eval()

    # What rules ask and build.

    def _shape(self, name: str) -> torch.Size:
        """Return the shape of what a node reads, without a batch."""
        return self._outputs[self._network.sources[name][0]].shape[1:]

    def _sum(self, name: str) -> tuple[fx.Node, Tensor]:
        """Return the sum of what a node reads."""
        first, *others = self._network.sources[name]
        total, output = self._nodes[first], self._outputs[first]
        for source in others:
            if self._outputs[source].shape != output.shape:
                shapes = [list(self._outputs[other].shape[1:]) for other in (first, source)]
                raise ValueError(f"it adds {first!r} and {source!r}, of shapes {shapes[0]} and {shapes[1]}")
            total = self._graph.call_function(operator.add, (total, self._nodes[source]))
        return total, output

    def _layer(self, name: str, module: nn.Module, **weights: Array) -> str:
        """Add a layer, on the meta device, with weights of its."""
        total, read = self._sum(name)
        self._outputs[name] = module.to(self._dtype)(read)
        state = {key: _tensor(values).to(self._dtype) for key, values in weights.items()}
        module.load_state_dict(state, assign=True)
        unique = free_name(self._root, name)
        self._root.add_module(unique, module)
        self._nodes[name] = self._graph.call_module(unique, (total,))
        return unique

    # One rule for each kind of node.

    def _input(self, name: str, node: Any) -> None:
        if node.input_type["input"] is None:
            raise ValueError("it has no shape")
        self.input_shape = tuple(count("its shape", int(length)) for length in node.input_type["input"])
        self._nodes[name] = self._graph.placeholder("input")
        self._outputs[name] = torch.empty(1, *self.input_shape, dtype=self._dtype, device="meta")

    def _output(self, name: str, node: Any) -> None:
        self._graph.output(self._sum(name)[0])

    def _convolution(self, name: str, node: Any) -> None:
        weight, groups = _ungrouped(node)
        padding = node.padding if isinstance(node.padding, str) else pair(node.padding)
        channels = (weight.shape[1] * groups, len(weight))
        module = nn.Conv2d(
            *channels, weight.shape[2:], pair(node.stride), padding, pair(node.dilation), groups, device="meta"
        )
        if _is_identity(module, weight, node.bias) and len(weight) == self._shape(name)[0]:
            # Factors for channels of which nothing is left.
            self._nodes[name], self._outputs[name] = self._sum(name)
        else:
            self._layer(name, module, weight=weight, bias=node.bias)

    def _linear(self, name: str, node: Any) -> None:
        if node.weight.ndim != 2:
            raise ValueError(f"its weight has {node.weight.ndim} dimensions, not 2")
        outputs, inputs = node.weight.shape
        bias = node.bias if isinstance(node, nir.Affine) else np.zeros(outputs)
        self._layer(name, nn.Linear(inputs, outputs, device="meta"), weight=node.weight, bias=bias)

    def _average_pool(self, name: str, node: Any) -> None:
        kernel, stride, padding = pair(node.kernel_size), pair(node.stride), pair(node.padding)
        module: nn.Module = nn.AvgPool2d(kernel, stride, padding)
        size = self._shape(name)[1:]
        parts = (size[0] // kernel[0], size[1] // kernel[1])
        whole = stride == kernel and not any(padding) and (parts[0] * kernel[0], parts[1] * kernel[1]) == tuple(size)
        if "adaptive" in node.metadata and whole:
            module = nn.AdaptiveAvgPool2d(parts)
        self._layer(name, module)

    def _sum_pool(self, name: str, node: Any) -> None:
        sizes = (pair(node.kernel_size), pair(node.stride), pair(node.padding))
        self._layer(name, nn.AvgPool2d(*sizes, divisor_override=1))

    def _flatten(self, name: str, node: Any) -> None:
        total, read = self._sum(name)
        # NIR counts dimensions without the batch.
        shape = read[0].flatten(int(node.start_dim), int(node.end_dim)).shape
        if len(shape) == 1:
            self._nodes[name] = self._graph.call_function(torch.flatten, (total, 1))
        else:
            self._nodes[name] = self._graph.call_function(torch.reshape, (total, (-1, *shape)))
        self._outputs[name] = read.reshape(1, *shape)

    def _scale(self, name: str, node: Any) -> None:
        total, read = self._sum(name)
        scale = _tensor(node.scale).to(self._dtype).unsqueeze(0)
        if np.broadcast_shapes(tuple(read.shape), tuple(scale.shape)) != tuple(read.shape):
            raise ValueError(f"its factors of shape {list(scale.shape[1:])} do not fit {list(read.shape[1:])}")
        unique = free_name(self._root, name)
        self._root.register_buffer(unique, scale)
        self._nodes[name] = self._graph.call_function(operator.mul, (total, self._graph.get_attr(unique)))
        self._outputs[name] = read

    def _neurons(self, name: str, node: Any) -> None:
        reset = node.metadata.get("reset", self._reset)
        if reset is None:
            raise ValueError(
                "it does not say that it resets by subtraction; nir.IF by itself resets to v_reset, which is not run "
                "here. from_nir(..., reset='subtract') runs it with a reset by subtraction"
            )
        if str(reset) != "subtract":
            raise ValueError(f"it says that its reset is {str(reset)!r}, only 'subtract' is run")
        if np.any(node.v_reset):
            raise ValueError("it resets to a v_reset that is not 0, only resets by subtraction are run")
        shape = self._shape(name)
        # How much of a current arrives in one step.
        scale = self._for_each_channel("r", node.r, shape)
        if self._dt is not None:
            scale = scale * self._dt
        elif bool((scale != 1).any()):
            raise ValueError("its resistance r is not 1: give the length of a step, from_nir(..., dt=...)")
        amplitude = node.metadata.get("amplitude") if self._amplitudes else None
        plan = SitePlan(
            threshold=self._for_each_channel("v_threshold", node.v_threshold, shape) / scale,
            initial_potential=self._for_each_channel("v_init", node.metadata.get("v_init", 0.0), shape) / scale,
            amplitude=self._for_each_channel("amplitude", 1.0 if amplitude is None else amplitude, shape),
        )
        self.plan[self._layer(name, nn.ReLU())] = plan

    def _for_each_channel(self, what: str, values: Array | float, shape: torch.Size) -> Tensor:
        """Return one value, or one a channel, of what is given for each neuron."""
        channels = _tensor(np.broadcast_to(values, tuple(shape))).to(self._dtype).reshape(shape[0], -1)
        if not bool((channels == channels[:, :1]).all()):
            raise ValueError(f"its {what} differs within a channel; there can be one for each channel")
        channels = channels[:, 0]
        return channels[0] if bool((channels == channels[0]).all()) else channels


_RULES: dict[Any, Callable[[Reader, str, Any], None]] = {
    nir.Input: Reader._input,
    nir.Output: Reader._output,
    nir.Conv2d: Reader._convolution,
    nir.Affine: Reader._linear,
    nir.Linear: Reader._linear,
    nir.AvgPool2d: Reader._average_pool,
    nir.SumPool2d: Reader._sum_pool,
    nir.Flatten: Reader._flatten,
    nir.Scale: Reader._scale,
    nir.IF: Reader._neurons,
}


def _tensor(values: Array) -> Tensor:
    array = np.array(values)
    if array.dtype.kind not in "biuf" or not bool(np.isfinite(array).all()):
        raise ValueError("it holds values that are not finite real numbers")
    return torch.from_numpy(array)


def _ungrouped(node: Any) -> tuple[Array, int]:
    """Return a convolution's weight and groups; groups that were written as zeros between them are found again."""
    groups = int(node.metadata.get("groups", 1))
    weight = node.weight
    if int(node.groups) != 1 or groups == 1 or len(weight) % groups or weight.shape[1] % groups:
        return weight, int(node.groups)
    blocks = weight.reshape(groups, len(weight) // groups, groups, -1, *weight.shape[2:])
    own = np.stack([blocks[group, :, group] for group in range(groups)])
    if np.count_nonzero(own) != np.count_nonzero(weight):
        return weight, 1
    return own.reshape(len(weight), -1, *weight.shape[2:]), groups


def _is_identity(module: nn.Conv2d, weight: Array, bias: Array) -> bool:
    plain = (module.stride, module.padding, module.groups) == ((1, 1), (0, 0), 1) and weight.shape[2:] == (1, 1)
    plain = plain and len(weight) == weight.shape[1]
    return plain and not np.any(bias) and np.array_equal(weight[:, :, 0, 0], np.eye(len(weight)))
