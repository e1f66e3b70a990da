"""From a network in normal form to NIR nodes."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn

from snn_lowlat.errors import ConversionError
from snn_lowlat.graph import Obstacle, current_shapes, find_sites
from snn_lowlat.graph.vocabulary import functions, module_of, modules
from snn_lowlat.neurons import NEURONS
from snn_lowlat.nir.network import Array, Network, diagonal, pair
from snn_lowlat.nir.picking import Unpickable, picking_kernel
from snn_lowlat.plan import Plan

__all__ = ["Writer"]


class _Inexpressible(Exception):  # noqa: N818 - control flow inside the writer, never seen by users
    """NIR has no way to say what an operation does; the message is the reason."""


@dataclass(frozen=True, eq=False)
class _Term:
    """A part of a value in the network: elements of one NIR node's output in some arrangement, and zeros.

    Attributes
    ----------
    source : str
        The NIR node.
    places : Tensor or None
        Of the value's shape ``[1, ...]``: where in the source's flattened output each element is, counted from 1, and 0
        for a zero. None stands for the output as it is.
    name : str
        What to call a node that picks these elements.
    """

    source: str
    places: Tensor | None = None
    name: str = ""


class Writer:
    """Writes a network in normal form as NIR nodes; spikes are still worth their amplitudes, as in the plan.

    Each value of the network is a sum of terms. Operations that only move elements rearrange the places of the terms,
    sums join their lists, and whatever computes reads its terms through edges.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form, on the CPU.
    plan : mapping of str to SitePlan
        What each site is.
    input_shape : sequence of int
        The shape of one input image.
    """

    def __init__(self, graph: fx.GraphModule, plan: Plan, input_shape: Sequence[int]) -> None:
        self._graph = graph
        self._plan = plan
        self._dtype = next((parameter.dtype for parameter in graph.parameters()), torch.float32)
        self._network = Network(reserved=find_sites(graph).keys())
        self._values: dict[fx.Node, Any] = {}
        self._picked: dict[str, list[tuple[Tensor, str]]] = {}
        # Leaves each node's shape in its meta.
        current_shapes(graph, input_shape)

    def write(self) -> Network:
        """Return the nodes.

        Raises
        ------
        ConversionError
            If NIR can't express the network; the message names every layer and the reason.
        """
        obstacles = []
        for node in self._graph.graph.nodes:
            try:
                self._values[node] = self._written(node)
            except _Inexpressible as reason:
                obstacles.append(Obstacle(node.name, self._operation(node), str(reason)))
                # Whatever follows is still looked at, so that one run names every obstacle.
                self._values[node] = [_Term(self._network.add(node.name, None, (), self._shape(node)))]
        if obstacles:
            lines = "".join(f"\n  - {obstacle}" for obstacle in obstacles)
            raise ConversionError(f"NIR can't express this network, obstacles ({len(obstacles)}):{lines}", obstacles)
        return self._network

    def _written(self, node: fx.Node) -> Any:
        shape = self._shape(node)
        if node.op == "placeholder":
            return [_Term(self._network.add("input", nir.Input({"input": np.array(shape)}), (), shape))]
        if node.op == "get_attr":
            return getattr(self._graph, str(node.target))
        if node.op == "output":
            return self._add("output", nir.Output({"output": np.array(shape)}), self._terms(node), shape)
        operation: Any = module_of(self._graph, node) if node.op == "call_module" else node.target
        kind = type(operation) if isinstance(operation, nn.Module) else operation
        if kind not in _RULES:
            raise _Inexpressible(_REASONS.get(kind, "NIR has no node for it"))
        return _RULES[kind](self, node, operation)

    # What rules ask, and how they add nodes.

    def _operation(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{type(module_of(self._graph, node)).__name__} ({node.target})"
        return node.op if node.op in ("placeholder", "output") else f"{getattr(node.target, '__name__', node.target)}()"

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        value = node.all_input_nodes[0] if node.op == "output" else node
        return tuple(value.meta["tensor_meta"].shape[1:])

    def _shape_before(self, node: fx.Node) -> tuple[int, ...]:
        return self._shape(node.all_input_nodes[0])

    def _terms(self, node: fx.Node) -> list[_Term]:
        return list(self._values[node.all_input_nodes[0]])

    def _add(self, name: str, node: Any, terms: Sequence[_Term], shape: Sequence[int]) -> list[_Term]:
        """Add a node that reads the sum of some terms; returns its output."""
        counts = Counter(self._resolved(term) for term in terms)
        # There is one edge at most between two nodes.
        sources = [source if n == 1 else self._multiplied(source, n) for source, n in counts.items()]
        return [_Term(self._network.add(name, node, sources, shape))]

    def _multiplied(self, source: str, number: int) -> str:
        shape = self._network.shapes[source]
        factor = _array(torch.full((shape[0],), number, dtype=self._dtype))
        return self._network.add(f"{source}_times_{number}", diagonal(shape, factor, 0 * factor), [source], shape)

    def _scaled(
        self, node: fx.Node, terms: Sequence[_Term], factor: Tensor, shift: Tensor | None = None
    ) -> list[_Term]:
        """Multiply each channel by a factor and add a constant, both ``[C]``."""
        shift = torch.zeros_like(factor) if shift is None else shift
        shape = self._shape(node)
        return self._add(node.name, diagonal(shape, _array(factor), _array(shift)), terms, shape)

    def _channels(self, node: fx.Node, constant: Tensor | float) -> Tensor:
        """Return a constant's value for each channel of a node's output."""
        shape = self._shape(node)
        whole = torch.as_tensor(constant, dtype=self._dtype).expand(1, *shape).reshape(shape[0], -1)
        if not bool((whole == whole[:, :1]).all()):
            raise _Inexpressible("its constant differs from pixel to pixel, NIR has one for each channel only")
        return whole[:, 0]

    # Elements that are moved.

    def _places(self, term: _Term) -> Tensor:
        if term.places is not None:
            return term.places
        shape = self._network.shapes[term.source]
        return torch.arange(1, 1 + int(np.prod(shape))).reshape(1, *shape)

    def _moved_by(self, move: Callable[[Tensor], Tensor], terms: Sequence[_Term], name: str) -> list[_Term]:
        return [_Term(term.source, move(self._places(term)), name) for term in terms]

    def _resolved(self, term: _Term) -> str:
        """Return the node whose output is this term; it is added if there is none yet."""
        if term.places is None:
            return term.source
        made = self._picked.setdefault(term.source, [(self._places(_Term(term.source)), term.source)])
        for places, name in made:
            if torch.equal(places, term.places):
                return name
        made.append((term.places, self._picking(term, term.places)))
        return made[-1][1]

    def _picking(self, term: _Term, places: Tensor) -> str:
        before, after = self._network.shapes[term.source], tuple(places.shape[1:])
        count = int(np.prod(before))
        if len(after) == 1 and torch.equal(places[0], torch.arange(1, count + 1)):
            node: Any = nir.Flatten({"input": np.array(before)}, start_dim=0, end_dim=-1)
            return self._network.add(term.name, node, [term.source], after)
        if len(after) == 1:
            weight = nn.functional.one_hot(places[0], count + 1)[:, 1:].to(self._dtype)
            return self._network.add(term.name, nir.Linear(_array(weight)), [self._flat(term.source)], after)
        if len(before) != 3 or len(after) != 3:
            raise _Inexpressible(
                f"it reads {term.name!r}: NIR can't turn a layer of shape {list(before)} into {list(after)}"
            )
        try:
            weight, stride, padding = picking_kernel(places[0], before)
        except Unpickable as reason:
            raise _Inexpressible(f"it reads {term.name!r}: {reason}") from reason
        bias = _array(torch.zeros(after[0], dtype=self._dtype))
        node = nir.Conv2d(before[1:], _array(weight.to(self._dtype)), stride, padding, (1, 1), 1, bias)
        return self._network.add(term.name, node, [term.source], after)

    def _flat(self, source: str) -> str:
        return self._resolved(*self._moved_by(lambda places: places.flatten(1), [_Term(source)], f"{source}_flat"))

    # One rule for each operation of the normal form.

    def _neurons(self, node: fx.Node, module: nn.ReLU) -> list[_Term]:
        plan, shape = self._plan[str(node.target)], self._shape(node)
        if not NEURONS[plan.neuron].nir:
            known = " and ".join(repr(name) for name, model in NEURONS.items() if model.nir)
            raise _Inexpressible(f"NIR has no node for neurons {plan.neuron!r}, of those here for {known} only")

        def for_each_neuron(values: Tensor) -> Array:
            channels = values.to(self._dtype).reshape(-1, *[1] * (len(shape) - 1))
            return _array(channels.expand(shape))

        threshold = for_each_neuron(plan.threshold)
        neurons = nir.IF(
            r=np.ones_like(threshold),
            v_threshold=threshold,
            v_reset=np.zeros_like(threshold),
            metadata={
                "reset": "subtract",
                "v_init": for_each_neuron(plan.initial_potential),
                "fires": "at the threshold or above it",
                "amplitude": for_each_neuron(plan.amplitude),
            },
        )
        return self._add(str(node.target), neurons, self._terms(node), shape)

    def _convolution(self, node: fx.Node, module: nn.Conv2d) -> list[_Term]:
        if module.padding_mode != "zeros":
            raise _Inexpressible(f"NIR pads with zeros only: padding_mode={module.padding_mode!r} has no node")
        weight, padding = _square(_ungrouped(module.weight.detach(), module.groups), _padding(module), module.dilation)
        written = nir.Conv2d(
            input_shape=self._shape_before(node)[1:],
            weight=_array(weight),
            stride=tuple(module.stride),
            padding=padding,
            dilation=tuple(module.dilation),
            groups=1,
            bias=_array(_bias(module)),
            metadata={"groups": module.groups} if module.groups > 1 else {},
        )
        return self._add(str(node.target), written, self._terms(node), self._shape(node))

    def _linear(self, node: fx.Node, module: nn.Linear) -> list[_Term]:
        if len(self._shape(node)) != 1:
            raise _Inexpressible("NIR's Affine reads one vector: flatten before it")
        weight, bias, name = module.weight.detach(), _bias(module), str(node.target)
        as_they_are: list[_Term] = []
        rearranged: list[_Term] = []
        for term in self._terms(node):
            same = torch.equal(self._places(term).flatten(), self._places(_Term(term.source)).flatten())
            (as_they_are if same else rearranged).append(term)
        written: list[_Term] = []
        if as_they_are:
            written += self._add(name, nir.Affine(_array(weight), _array(bias)), as_they_are, self._shape(node))
        for term in rearranged:
            # The picking of elements becomes a picking of the weights' columns; column 0 is for the zeros.
            columns = weight.new_zeros(len(weight), 1 + int(np.prod(self._network.shapes[term.source])))
            columns.index_add_(1, self._places(term)[0], weight)
            affine = nir.Affine(_array(columns[:, 1:]), _array(torch.zeros_like(bias) if written else bias))
            written += self._add(name, affine, [_Term(self._flat(term.source))], self._shape(node))
        return written

    def _batch_norm(self, node: fx.Node, module: Any) -> list[_Term]:
        factor = module.weight / torch.sqrt(module.running_var + module.eps)
        return self._scaled(node, self._terms(node), factor, module.bias - factor * module.running_mean)

    def _average_pool(self, node: fx.Node, module: nn.AvgPool2d) -> list[_Term]:
        kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
        sizes = zip(self._shape_before(node)[1:], kernel, stride, padding, strict=True)
        if self._shape(node)[1:] != tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sizes):
            raise _Inexpressible("NIR has no pool that reaches beyond the edge: use ceil_mode=False")
        if any(padding) and not module.count_include_pad:
            raise _Inexpressible("pools of NIR's readers count the padding: use count_include_pad=True")
        if module.divisor_override not in (None, 1):
            raise _Inexpressible("NIR's pools divide by their own size: leave divisor_override out")
        kind = nir.AvgPool2d if module.divisor_override is None else nir.SumPool2d
        pool = kind(np.array(kernel), np.array(stride), np.array(padding))
        return self._add(str(node.target), pool, self._terms(node), self._shape(node))

    def _adaptive_pool(self, node: fx.Node, module: nn.AdaptiveAvgPool2d) -> list[_Term]:
        before, after = self._shape_before(node)[1:], self._shape(node)[1:]
        if any(n % m for n, m in zip(before, after, strict=True)):
            raise _Inexpressible(
                f"its windows, from {list(before)} to {list(after)} pixels, are not all of one size as NIR's are: "
                "choose an output size that divides the input's"
            )
        return self._pooled(str(node.target), node, after)

    def _mean(self, node: fx.Node, function: object) -> list[_Term]:
        if len(self._shape_before(node)) != 3 or list(cast("list[int]", node.args[1])) != [2, 3]:
            raise _Inexpressible("NIR averages over the pixels of a channel only: use mean(dim=(2, 3))")
        pooled = self._pooled(node.name, node, (1, 1))
        return self._moved_by(lambda places: places.reshape(1, *self._shape(node)), pooled, f"{node.name}_flat")

    def _pooled(self, name: str, node: fx.Node, after: Sequence[int]) -> list[_Term]:
        channels, *before = self._shape_before(node)
        size = np.array([n // m for n, m in zip(before, after, strict=True)])
        # Readers that know of it round as the network does.
        pool = nir.AvgPool2d(size, size, np.zeros_like(size), metadata={"adaptive": True})
        return self._add(name, pool, self._terms(node), (channels, *after))

    def _pad(self, node: fx.Node, module: Any) -> list[_Term]:
        if module.value != 0:
            raise _Inexpressible(f"NIR pads with zeros only, not with {module.value:g}")
        return self._moved_by(module, self._terms(node), str(node.target))

    def _sum(self, node: fx.Node, function: object) -> list[_Term]:
        operands: list[Any] = [self._values[arg] if isinstance(arg, fx.Node) else arg for arg in node.args]
        first, second = operands
        minus = function is operator.sub
        if not isinstance(second, list):
            constant = self._channels(node, second)
            return self._scaled(node, first, torch.ones_like(constant), -constant if minus else constant)
        if len({self._shape(arg) for arg in node.all_input_nodes}) > 1:
            raise _Inexpressible("NIR adds layers of one shape only")
        if minus:
            second = self._scaled(node, second, self._channels(node, -1.0))
        # The longer sum comes first, so that a reader that adds in this order rounds as the network does.
        return [*second, *first] if len(second) > len(first) else [*first, *second]

    def _product(self, node: fx.Node, function: object) -> list[_Term]:
        factor = node.args[1]
        constant = self._values[factor] if isinstance(factor, fx.Node) else factor
        return self._scaled(node, self._terms(node), self._channels(node, cast("Tensor | float", constant)))

    def _negative(self, node: fx.Node, function: object) -> list[_Term]:
        return self._scaled(node, self._terms(node), self._channels(node, -1.0))

    def _moved(self, node: fx.Node, function: Any) -> list[_Term]:
        if isinstance(function, str):
            function = getattr(Tensor, function)
        return self._moved_by(lambda places: function(places, *node.args[1:]), self._terms(node), node.name)

    def _joined(self, node: fx.Node, function: object) -> list[_Term]:
        branches, dimension = cast("tuple[list[fx.Node], int]", node.args)
        terms = []
        for index, branch in enumerate(branches):
            parts = [torch.zeros(1, *self._shape(other), dtype=torch.long) for other in branches]

            def join(places: Tensor, index: int = index, parts: list[Tensor] = parts) -> Tensor:
                return torch.cat([*parts[:index], places, *parts[index + 1 :]], dimension)

            terms += self._moved_by(join, self._values[branch], node.name)
        return terms


_RULES: dict[Any, Callable[[Writer, fx.Node, Any], list[_Term]]] = {
    nn.ReLU: Writer._neurons,
    nn.Conv2d: Writer._convolution,
    nn.Linear: Writer._linear,
    nn.BatchNorm1d: Writer._batch_norm,
    nn.BatchNorm2d: Writer._batch_norm,
    nn.AvgPool2d: Writer._average_pool,
    nn.AdaptiveAvgPool2d: Writer._adaptive_pool,
    **dict.fromkeys(modules("pad"), Writer._pad),
    torch.mean: Writer._mean,
    operator.add: Writer._sum,
    operator.sub: Writer._sum,
    operator.mul: Writer._product,
    operator.neg: Writer._negative,
    **dict.fromkeys((*functions("rearrangement"), *modules("rearrangement")), Writer._moved),
    torch.cat: Writer._joined,
}

_MAXIMUM = (
    "NIR has no node for the maximum of currents or of their sums: use average pooling and train the network again"
)
_ONE_OR_THREE = "only layers of two dimensions are written"
_TRANSPOSED = "NIR has no node for a transposed convolution"
_REASONS: dict[Any, str] = {
    **dict.fromkeys(modules("max pool"), _MAXIMUM),
    **dict.fromkeys(modules("convolution", "average pool", "adaptive pool", "norm"), _ONE_OR_THREE),
    **dict.fromkeys(modules("transposed convolution"), _TRANSPOSED),
    **dict.fromkeys(modules("resize"), "NIR has no node that resizes a layer"),
}


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy())


def _bias(module: nn.Conv2d | nn.Linear) -> Tensor:
    return module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias.detach()


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    if not isinstance(module.padding, str):
        return pair(module.padding)
    if module.padding == "valid":
        return (0, 0)
    both = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    if any(size % 2 for size in both):
        raise _Inexpressible("padding='same' pads a kernel of even size on one side only: use an odd size")
    return (both[0] // 2, both[1] // 2)


def _square(weight: Tensor, padding: tuple[int, int], dilation: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
    """Make a kernel square by zeros around it, and the padding larger by as much."""
    height, width = weight.shape[2:]
    rows, columns = max(height, width) - height, max(height, width) - width
    if (rows + columns) % 2:
        raise _Inexpressible(
            f"nir reads square kernels only, and zeros can't be put evenly around one of {height} x {width}: use sizes "
            "that are both odd or both even"
        )
    weight = nn.functional.pad(weight, (columns // 2, columns // 2, rows // 2, rows // 2))
    return weight, (padding[0] + dilation[0] * (rows // 2), padding[1] + dilation[1] * (columns // 2))


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """Write a grouped convolution's weight as that of a convolution without groups."""
    outputs, inputs = len(weight) // groups, weight.shape[1]
    whole = weight.new_zeros(len(weight), inputs * groups, *weight.shape[2:])
    for group, block in enumerate(weight.chunk(groups)):
        whole[group * outputs :][:outputs, group * inputs :][:, :inputs] = block
    return whole
