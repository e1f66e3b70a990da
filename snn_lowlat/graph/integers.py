"""Rewriting a network in normal form, and the plan of its neurons, in whole numbers."""

from __future__ import annotations

import copy
import math
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from snn_lowlat.errors import ConversionError
from snn_lowlat.graph.names import free_name
from snn_lowlat.graph.passes import without_ceilings
from snn_lowlat.graph.sites import find_sites
from snn_lowlat.neurons.max_pool import MAX_POOLS
from snn_lowlat.plan import Plan, SitePlan

__all__ = ["LEVELS", "original_of", "to_integers", "with_rounded_weights"]

LEVELS = 127
"""The largest magnitude of a weight: eight bits, one of them the sign."""

# Below this all whole numbers are floating-point numbers of single precision, and so are their sums, in any order.
_EXACT = 2**24
# Twice as fine as pictures of eight bits, normalised, with either sign.
_FINEST_PIXELS = 2**9
# A layer whose weights are next to nothing beside its thresholds needs no more levels than this.
_FINEST_THRESHOLD = 2**12
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_AVERAGES = (nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_SHAPES = (operator.getitem, torch.cat, torch.flatten, torch.reshape)
_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
_ORIGINAL = "original"
_LEAKING = "leaky_integrate_and_fire"


@dataclass(frozen=True)
class _Value:
    """What a node's whole numbers mean.

    Attributes
    ----------
    unit : Tensor
        What 1 is worth, for each element of one image, ``[C, ...]``.
    largest : float
        The largest magnitude of a number.
    is_current : bool
        Whether they have passed a layer with weights, and lie on a grid much finer than what they say.
    """

    unit: Tensor
    largest: float
    is_current: bool


def to_integers(
    graph: fx.GraphModule, plan: Plan, images: Tensor, timesteps: int
) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
    r"""Write a network in whole numbers: weights of 8 bits, whole thresholds, whole currents.

    The weights of each output channel are rounded to multiples of a unit of their own, a 127th of the largest
    (symmetric quantisation). What spikes are worth is in the weights. Currents, thresholds and initial potentials are
    multiples of the same unit, pixels of a unit that resolves them as finely as can be. All are kept as floating-point
    numbers small enough for their sums to be exact, so that spikes depend neither on the order of sums nor on memory
    layout, batch size or number of threads, nor on the kind of arithmetic: any kernel that adds whole numbers exactly
    gives the same spikes.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form; it is not changed.
    plan : mapping of str to SitePlan
        What each site becomes.
    images : Tensor
        Calibration images ``[N, ...]``: their largest magnitude is the largest pixel, and larger ones are cut.
    timesteps : int
        The number of steps, whose sums have to be exact.

    Returns
    -------
    graph : GraphModule
        The network; its output is in the original's units.
    plan : dict of str to SitePlan
        Its neurons, whose spikes are worth 1.

    Raises
    ------
    ConversionError
        If a layer has no counterpart in whole numbers, or its sums could leave what single precision can count; the
        message names it.
    """
    return _Rewriting(graph, plan, images, timesteps).run()


def with_rounded_weights(graph: fx.GraphModule, plan: Plan, images: Tensor, timesteps: int) -> fx.GraphModule:
    """Round a network's weights to those that it will have in whole numbers, and leave all else as it is.

    What follows, as a correction of biases, then sees what the rounding does. The arguments are those of
    :func:`to_integers`.

    Returns
    -------
    GraphModule
        A copy, of which :func:`original_of` returns the network it was made from. Layers that are called more than once
        keep their weights.

    Raises
    ------
    ConversionError
        As by :func:`to_integers`.
    """
    rewriting = _Rewriting(graph, plan, images, timesteps)
    calls = Counter(str(node.target) for node in rewriting.graph.graph.nodes if node.op == "call_module")
    rewriting.run()
    rounded = copy.deepcopy(graph)
    with torch.no_grad():
        for name, weight in rewriting.rounded.items():
            if calls[name] == 1:
                rounded.get_submodule(name).weight.copy_(weight)  # type: ignore[union-attr, operator]
    rounded.meta[_ORIGINAL] = graph
    return rounded


def original_of(graph: fx.GraphModule) -> fx.GraphModule:
    """Return the network that one with rounded weights was made from; any other network as it is."""
    original: fx.GraphModule = graph.meta.get(_ORIGINAL, graph)
    return original


class _Rewriting:
    def __init__(self, graph: fx.GraphModule, plan: Plan, images: Tensor, timesteps: int) -> None:
        self.graph = without_ceilings(graph)
        self.plan = plan
        self.timesteps = timesteps
        self.whole: dict[str, SitePlan] = {}
        self.values: dict[fx.Node, _Value] = {}
        with torch.no_grad():
            ShapeProp(self.graph).propagate(images[:2])
        self.sites = {site.node: site for site in find_sites(self.graph).values()}
        self.brightest = float(images.abs().max())
        # By the layer's name, in the units of the original.
        self.rounded: dict[str, Tensor] = {}
        self.thresholds: dict[fx.Node, Tensor] = {}
        self.weights: dict[fx.Node, Tensor] = {}
        self.together = self._layers_that_meet()

    @torch.no_grad()
    def run(self) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        waiting = [node for node in self.graph.graph.nodes if node.op != "get_attr"]
        while waiting:
            # Layers whose currents are added share a unit, so that each of them waits for what the others read.
            node = next(node for node in waiting if all(read in self.values for read in self._reads(node)))
            waiting.remove(node)
            if node.op == "output":
                self._readout(node)
            else:
                self.values[node] = self._rewritten(node)
        self.graph.graph.lint()
        self.graph.delete_all_unused_submodules()
        self.graph.recompile()
        return self.graph, self.whole

    def _reads(self, node: fx.Node) -> list[fx.Node]:
        together = self.together[node] if isinstance(self._module(node), _WEIGHTED) else [node]
        return [read for member in together for read in member.all_input_nodes if read.op != "get_attr"]

    def _rewritten(self, node: fx.Node) -> _Value:
        if node.op == "placeholder":
            return self._pixels(node)
        if node in self.sites:
            return self._neurons(node)
        module = self._module(node)
        if isinstance(module, _WEIGHTED):
            return self._layer(node, module)
        if isinstance(module, (*_AVERAGES, *_ADAPTIVE)):
            return self._sum_pool(node, module)
        if isinstance(module, MAX_POOLS):
            return self._unchanged(node, module)
        if isinstance(module, _PADS) and module.value == 0:
            return self._unchanged(node, module, padded=True)
        if node.target in _SHAPES or node.target == "permute":
            return self._shape(node)
        if node.target is operator.add:
            return self._sum(node)
        raise self._obstacle(node, "it has no counterpart in whole numbers")

    def _pixels(self, node: fx.Node) -> _Value:
        # The finest pixels whose sums over a layer and all steps are exact.
        room = min((self._room(user) for user in node.users), default=float(_FINEST_PIXELS))
        levels = min(_FINEST_PIXELS, math.floor(room))
        if levels < 1:
            raise self._obstacle(next(iter(node.users)), "its sums are too large for exact arithmetic")
        unit = max(self.brightest, 1e-12) / levels
        following = list(node.users)
        with self.graph.graph.inserting_after(node):
            scaled = self.graph.graph.call_function(operator.mul, (node, 1 / unit))
        with self.graph.graph.inserting_after(scaled):
            rounded = self.graph.graph.call_function(torch.round, (scaled,))
        with self.graph.graph.inserting_after(rounded):
            cut = self.graph.graph.call_function(torch.clamp, (rounded, -levels, levels))
        for user in following:
            user.replace_input_with(node, cut)
        value = _Value(torch.full(self._shape_of(node), unit, dtype=torch.float64), levels, is_current=False)
        self.values[cut] = value
        return value

    def _room(self, node: fx.Node) -> float:
        """Return how large the inputs of a layer with weights may be."""
        module = self._module(node)
        if not isinstance(module, _WEIGHTED):
            raise self._obstacle(node, "pixels are whole numbers only before a convolution or linear layer")
        weight = module.weight.double().flatten(1)
        sums = (weight.abs().sum(1) / weight.abs().amax(1).clamp(min=1e-30)).max() * LEVELS
        return _EXACT / 4 / (self.timesteps * float(sums))

    def _neurons(self, node: fx.Node) -> _Value:
        site = self.sites[node]
        before = self.plan[site.name]
        if before.neuron == _LEAKING:
            raise ConversionError(f"layer {site.name!r} has leaky neurons, and a leak is no whole number.")
        current = self._as_current(site.current, node)
        unit = self._per_channel(current.unit, site.current)
        threshold = (before.threshold.double() / unit).round().clamp(min=1)
        self.whole[site.name] = replace(
            before,
            threshold=threshold.to(before.threshold.dtype),
            initial_potential=(before.initial_potential.double() / unit).round().to(before.threshold.dtype),
            amplitude=torch.ones_like(before.amplitude),
        )
        shape = self._shape_of(node)
        return _Value(_over(before.amplitude.double().reshape(-1), shape), 1.0, is_current=False)

    def _layer(self, node: fx.Node, module: Any) -> _Value:
        # Of all before any is replaced.
        for member in self.together[node]:
            if member not in self.weights:
                self.weights[member] = self._folded(member, self._module(member))
        weight = self.weights[node]
        largest_weight = weight.flatten(1).abs().amax(1)
        for other in self.together[node]:
            largest_weight = torch.maximum(largest_weight, self.weights[other].flatten(1).abs().amax(1))
        unit = torch.where(largest_weight > 0, largest_weight, 1.0) / LEVELS
        if node in self.thresholds:
            largest = max(self.values[read].largest for read in self._reads(node))
            unit = torch.maximum(unit, self.thresholds[node] / (_FINEST_THRESHOLD * largest))
        whole = (weight / unit.view(-1, *[1] * (weight.dim() - 1))).round()
        bias = (module.bias.double() / unit).round()
        (read,) = node.all_input_nodes
        worth = weight / module.weight.double()
        original = whole * unit.view(-1, *[1] * (weight.dim() - 1)) / worth
        self.rounded[str(node.target)] = torch.where(worth.isfinite() & (worth > 0), original, 0.0)
        largest = float((whole.flatten(1).abs().sum(1) * self.values[read].largest + bias.abs()).max())
        if largest * self.timesteps >= _EXACT:
            raise self._obstacle(node, f"its sums over {self.timesteps} steps are too large for exact arithmetic")
        layer = copy.deepcopy(module)
        layer.weight = nn.Parameter(whole.to(module.weight))
        layer.bias = nn.Parameter(bias.to(module.weight))
        self._replace(node, layer)
        shape = self._shape_of(node)
        unit = unit.expand(shape).clone() if isinstance(module, nn.Linear) else _over(unit, shape)
        return _Value(unit, largest, is_current=True)

    def _folded(self, node: fx.Node, module: Any) -> Tensor:
        """Return a layer's weights times what its inputs are worth, in float64."""
        (read,) = node.all_input_nodes
        value = self.values[read]
        if value.is_current:
            raise self._obstacle(node, "it reads what another layer with weights computes, without neurons between")
        weight: Tensor = module.weight.double()
        if isinstance(module, nn.Linear):
            return weight * self._per_channel(value.unit.movedim(-1, 0), read)
        unit = self._per_channel(value.unit, read)
        # Grouped convolutions read a part of the channels each.
        unit = unit.view(module.groups, -1).repeat_interleave(weight.shape[0] // module.groups, 0)
        return weight * unit.view(weight.shape[0], -1, *[1] * (weight.dim() - 2))

    def _sum_pool(self, node: fx.Node, module: Any) -> _Value:
        (read,) = node.all_input_nodes
        value, dimensions = self.values[read], len(self._shape_of(node)) - 1
        if isinstance(module, _ADAPTIVE):
            sizes = zip(self._shape_of(read)[1:], self._shape_of(node)[1:], strict=True)
            kernel = tuple(before // after if before % after == 0 else 0 for before, after in sizes)
            stride, padding, plain = kernel, 0, all(kernel)
        else:
            kernel, stride, padding = module.kernel_size, module.stride, module.padding
            kernel = kernel if isinstance(kernel, tuple) else (kernel,) * dimensions
            unpadded = not (any(padding) if isinstance(padding, tuple) else padding)
            plain = not module.ceil_mode and (unpadded or module.count_include_pad) and not module.divisor_override
        if not plain:
            raise self._obstacle(node, "its windows are of different sizes")
        area = math.prod(kernel)
        pool: Any = nn.AvgPool2d if dimensions == 2 else nn.AvgPool3d
        self._replace(node, pool(kernel, stride, padding, divisor_override=1))
        # What is pooled has one unit a channel.
        unit = self._per_channel(value.unit, read) / area
        return replace(value, unit=_over(unit, self._shape_of(node)), largest=value.largest * area)

    def _unchanged(self, node: fx.Node, module: nn.Module, padded: bool = False) -> _Value:
        (read,) = node.all_input_nodes
        value = self.values[read]
        if not padded:
            unit = self._per_channel(value.unit, read)
            return replace(value, unit=_over(unit, self._shape_of(node)))
        unit = module(value.unit[None])[0]
        # What is padded is zero, whatever that is worth: as much as the rest of its channel, or of any.
        whole = unit.flatten(1).amax(1)
        whole = torch.where(whole > 0, whole, unit[unit > 0].min())
        return replace(value, unit=torch.where(unit > 0, unit, whole.view(-1, *[1] * (unit.dim() - 1))))

    def _shape(self, node: fx.Node) -> _Value:
        reads = [self.values[before] for before in node.all_input_nodes]
        units = {before: value.unit[None] for before, value in zip(node.all_input_nodes, reads, strict=True)}
        args = fx.node.map_arg(node.args, lambda before: units[before])
        if node.op == "call_method":
            unit = getattr(args[0], str(node.target))(*args[1:], **node.kwargs)
        else:
            unit = node.target(*args, **node.kwargs)  # type: ignore[operator]
        return _Value(unit[0], max(value.largest for value in reads), any(value.is_current for value in reads))

    def _sum(self, node: fx.Node) -> _Value:
        terms = [term for term in node.all_input_nodes if term in self.values]
        if len(terms) != 2 or len(node.args) != 2:
            raise self._obstacle(node, "it adds a constant, or a term to itself")
        first, second = (self.values[term] for term in terms)
        if first.is_current and second.is_current:
            if not torch.equal(first.unit, second.unit):
                raise self._obstacle(node, "its terms come from layers of different kinds")
            return replace(first, largest=first.largest + second.largest)
        if not first.is_current and not second.is_current:
            if torch.equal(first.unit, second.unit):
                return replace(first, largest=first.largest + second.largest)
            value = _Value(torch.maximum(first.unit, second.unit) / LEVELS, 0.0, is_current=True)
            scaled = [self._scaled(term, value.unit, node) for term in terms]
            return replace(value, largest=sum(scaled))
        current, spikes = (terms[0], terms[1]) if first.is_current else (terms[1], terms[0])
        largest = self._scaled(spikes, self.values[current].unit, node)
        return replace(self.values[current], largest=self.values[current].largest + largest)

    def _as_current(self, node: fx.Node, user: fx.Node) -> _Value:
        """Give what neurons read a unit fine enough for thresholds, where no layer with weights has done so."""
        value = self.values[node]
        if value.is_current:
            return value
        unit = value.unit / LEVELS
        return _Value(unit, self._scaled(node, unit, user), is_current=True)

    def _scaled(self, node: fx.Node, unit: Tensor, user: fx.Node) -> float:
        """Let one user read a node in another unit; return the largest magnitude there."""
        value = self.values[node]
        factor = (value.unit / unit).round()
        name = free_name(self.graph, f"{user.name}_factor")
        self.graph.register_buffer(name, factor.to(next(self.graph.parameters())))
        with self.graph.graph.inserting_before(user):
            constant = self.graph.graph.get_attr(name)
            scaled = self.graph.graph.call_function(operator.mul, (node, constant))
        user.replace_input_with(node, scaled)
        self.values[scaled] = _Value(unit, value.largest * float(factor.max()), is_current=True)
        if self.values[scaled].largest * self.timesteps >= _EXACT:
            raise self._obstacle(user, "its sums are too large for exact arithmetic")
        return self.values[scaled].largest

    def _readout(self, node: fx.Node) -> None:
        (logits,) = node.all_input_nodes
        name = free_name(self.graph, "output_unit")
        self.graph.register_buffer(name, self.values[logits].unit.to(next(self.graph.parameters())))
        with self.graph.graph.inserting_before(node):
            constant = self.graph.graph.get_attr(name)
            worth = self.graph.graph.call_function(operator.mul, (logits, constant))
        node.replace_input_with(logits, worth)

    def _layers_that_meet(self) -> dict[fx.Node, list[fx.Node]]:
        """Return for each layer with weights those whose currents are added to its own; note their thresholds."""
        meeting: dict[fx.Node, list[fx.Node]] = {}
        for node in self.graph.graph.nodes:
            module = self._module(node)
            if isinstance(module, _WEIGHTED):
                meeting[node] = [node]
            elif node.target in (operator.add, "permute") or isinstance(module, (*MAX_POOLS, *_AVERAGES, *_ADAPTIVE)):
                group = [layer for before in node.all_input_nodes for layer in meeting.get(before, [])]
                meeting[node] = group
                for layer in group:
                    meeting[layer] = group
            elif node in self.sites:
                threshold = self.plan[self.sites[node].name].threshold.double()
                for layer in meeting.get(self.sites[node].current, []):
                    # Thresholds for other channels than the layer's, as for tokens, say nothing about its units.
                    if threshold.numel() in (1, len(self._module(layer).weight)):
                        self.thresholds[layer] = threshold
        return meeting

    def _per_channel(self, unit: Tensor, node: fx.Node) -> Tensor:
        """Reduce a unit for each element to one for each channel."""
        channels = unit.flatten(1) if unit.dim() > 1 else unit[:, None]
        if not bool((channels == channels[:, :1]).all()):
            raise self._obstacle(node, "its channels mix what is worth more with what is worth less")
        return channels[:, 0]

    def _replace(self, node: fx.Node, module: nn.Module) -> None:
        # A layer that is called twice may read what is worth different amounts.
        name = free_name(self.graph, str(node.target))
        self.graph.add_submodule(name, module.eval())
        node.target = name

    def _module(self, node: fx.Node) -> Any:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _shape_of(self, node: fx.Node) -> Sequence[int]:
        return tuple(node.meta["tensor_meta"].shape[1:])

    def _obstacle(self, node: fx.Node, reason: str) -> ConversionError:
        return ConversionError(f"layer {str(node.target)!r} ({node.name}) can't be written in whole numbers: {reason}.")


def _over(channels: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat one value, or one a channel, over the elements of one image, ``[C, ...]``."""
    return channels.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
