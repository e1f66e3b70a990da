"""What of a network is computed in whole numbers: read from its weights and neurons, whoever made them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from snn_lowlat.graph.sites import Site, find_sites
from snn_lowlat.graph.vocabulary import functions, module_of, modules
from snn_lowlat.neurons import NEURONS
from snn_lowlat.plan import Plan, SitePlan

__all__ = ["LEVELS", "WholeNumbers", "whole_numbers"]

LEVELS = 127
"""The largest magnitude of a weight: eight bits, one of them the sign."""

_WEIGHTED = modules(has_weights=True, integers=True)
_PADS = modules("pad")
_UNCHANGED = modules("max pool", "rearrangement")
_SHAPES = functions("rearrangement")
_SUMS = functions("sum")
# Below 2 to these powers all whole numbers are floating-point numbers of the type, and so are their sums, in any order.
_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


@dataclass(frozen=True)
class WholeNumbers:
    """What of a network is computed in whole numbers.

    Attributes
    ----------
    everything : bool
        Weights are whole and from -127 to 127, biases, thresholds and initial potentials whole, spikes worth 1, there
        are no leaks, and all sums over a window are counted exactly in the network's type.
    on_bytes : frozenset of str
        Layers of such weights that read nothing but whole numbers from 0 to 127, and whose sums are exact.
    """

    everything: bool
    on_bytes: frozenset[str]


class _Range(NamedTuple):
    """Whole numbers between two bounds; what may be any number has none."""

    low: float
    high: float

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high))


def whole_numbers(graph: fx.GraphModule, plan: Plan, timesteps: int = 1) -> WholeNumbers:
    """Say what of a network is computed in whole numbers.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    plan : mapping of str to SitePlan
        What each site is.
    timesteps : int
        The window's length, over which sums have to be exact.
    """
    return _Reading(graph, plan, timesteps).run()


class _Reading:
    def __init__(self, graph: fx.GraphModule, plan: Plan, timesteps: int) -> None:
        self.graph, self.plan, self.timesteps = graph, plan, timesteps
        self.sites = {site.node: site for site in find_sites(graph).values()}
        self.rest = {node for site in self.sites.values() for node in site.rest}
        self.ranges: dict[fx.Node, _Range | None] = {}
        self.everything = bool(self.sites)
        self.bytes: dict[str, bool] = {}
        dtype = next((p.dtype for p in graph.parameters()), torch.get_default_dtype())
        self.exact = 2.0 ** _BITS.get(dtype, 0)

    @torch.no_grad()
    def run(self) -> WholeNumbers:
        for node in self.graph.graph.nodes:
            if node.op == "output":
                self._output(node)
            elif node.op != "get_attr":
                self.ranges[node] = self._range(node)
        return WholeNumbers(self.everything, frozenset(name for name, fits in self.bytes.items() if fits))

    def _range(self, node: fx.Node) -> _Range | None:
        if node in self.sites:
            return self._spikes(self.sites[node], self.plan[self.sites[node].name])
        reads = [self.ranges[before] for before in node.all_input_nodes if before.op != "get_attr"]
        if node.target is torch.round:
            return _Range(-math.inf, math.inf)
        ranges = [read for read in reads if read is not None]
        if node.op == "call_module":
            return self._module(node, ranges[0] if ranges else None)
        if not ranges or len(ranges) < len(reads):
            return None
        return self._function(node, ranges)

    def _spikes(self, site: Site, plan: SitePlan) -> _Range | None:
        current = self.ranges[site.current]
        numbers = _is_whole(plan.threshold) and _is_whole(plan.initial_potential)
        exact = current is not None and current.largest * self.timesteps < self.exact
        worth_one = bool((plan.amplitude == 1).all())
        self.everything &= numbers and exact and worth_one and NEURONS[plan.neuron].integers
        return _Range(0, 1) if worth_one else None

    def _module(self, node: fx.Node, read: _Range | None) -> _Range | None:
        module = module_of(self.graph, node)
        if isinstance(module, _WEIGHTED):
            return self._layer(str(node.target), module, read)
        if read is None:
            return None
        if isinstance(module, _UNCHANGED):
            return read
        if isinstance(module, nn.Upsample) and module.mode == "nearest":
            return read
        if isinstance(module, _PADS) and float(module.value).is_integer():
            return _Range(min(read.low, module.value), max(read.high, module.value))
        if getattr(module, "divisor_override", None) == 1:
            kernel, dimensions = module.kernel_size, 3 if isinstance(module, nn.AvgPool3d) else 2
            area = math.prod(kernel) if isinstance(kernel, tuple) else kernel**dimensions
            return _Range(min(read.low * area, 0), max(read.high * area, 0))
        return None

    def _layer(self, name: str, module: Any, read: _Range | None) -> _Range | None:
        weight, bias = module.weight.double().flatten(1), 0.0 if module.bias is None else module.bias.double()
        whole = _is_whole(weight) and float(weight.abs().max()) <= LEVELS and _is_whole(torch.as_tensor(bias))
        largest = math.inf
        if read is not None and whole:
            largest = float((weight.abs().sum(1) * read.largest + abs(bias)).max())
        exact = largest < self.exact
        self.everything &= exact
        fits = exact and read is not None and read.low >= 0 and read.high <= LEVELS
        self.bytes[name] = self.bytes.get(name, True) and fits
        return _Range(-largest, largest) if exact else None

    def _function(self, node: fx.Node, reads: Sequence[_Range]) -> _Range | None:
        first, other, constant = reads[0], reads[-1], self._constant(node)
        if node.target in _SHAPES:
            return first
        if node.target is torch.cat:
            return _Range(min(read.low for read in reads), max(read.high for read in reads))
        if node.target is operator.neg:
            return _Range(-first.high, -first.low)
        if node.target is torch.clamp and len(node.args) == 3:
            low, high = (float(bound) for bound in node.args[1:])  # type: ignore[arg-type]
            return _Range(max(first.low, low), min(first.high, high)) if low % 1 == high % 1 == 0 else None
        if constant is not None and not _is_whole(constant):
            return None
        if node.target is operator.mul and constant is not None:
            largest = first.largest * float(constant.abs().max())
            return _Range(0 if first.low >= 0 and bool((constant >= 0).all()) else -largest, largest)
        if node.target in _SUMS:
            if constant is not None:
                other = _Range(float(constant.min()), float(constant.max()))
            elif node.args[0] is node.args[1]:
                other = first
            if node.target is operator.sub:
                other = _Range(-other.high, -other.low)
            return _Range(first.low + other.low, first.high + other.high)
        return None

    def _output(self, node: fx.Node) -> None:
        # What a spike is worth in the end may be any number.
        (logits,) = node.all_input_nodes
        if logits.target is operator.mul and self._constant(logits) is not None:
            logits = logits.all_input_nodes[0]
        self.everything &= self.ranges.get(logits) is not None

    def _constant(self, node: fx.Node) -> Tensor | None:
        """Return the number or constant that a sum or product has as its second term."""
        if node.target not in (*_SUMS, operator.mul):
            return None
        term = node.args[1]
        if isinstance(term, fx.Node):
            return operator.attrgetter(str(term.target))(self.graph) if term.op == "get_attr" else None
        return torch.as_tensor(term, dtype=torch.float64)


def _is_whole(values: Tensor) -> bool:
    return bool((values == values.round()).all()) and bool(torch.isfinite(values).all())
