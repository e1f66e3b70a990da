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
from snn_lowlat.graph.sites import BATCH_NORMS
from snn_lowlat.graph.vocabulary import by_dimensions, functions, module_of, modules
from snn_lowlat.graph.walk import Schedule
from snn_lowlat.int8.reading import LEVELS
from snn_lowlat.neurons import MAX_POOLS, NEURONS
from snn_lowlat.plan import Plan, SitePlan

__all__ = ["LEVELS", "to_integers", "with_rounded_weights"]

# Below this all whole numbers are floating-point numbers of single precision, and so are their sums, in any order.
_EXACT = 2**24
# Twice as fine as pictures of eight bits, normalised, with either sign.
_FINEST_PIXELS = 2**9
# A layer whose weights are next to nothing beside its thresholds needs no more levels than this.
_FINEST_THRESHOLD = 2**12
_WEIGHTED = modules(has_weights=True, integers=True)
_AVERAGES_1D = modules("average pool", "adaptive pool", dimensions=1)
_ADAPTIVE = modules("adaptive pool")
_AVERAGES = modules("average pool", "adaptive pool")
_SUM_POOLS = tuple(pool for pool in _AVERAGES if pool not in _AVERAGES_1D)
_PADS = modules("pad")
_MOVED = modules("rearrangement")
_SHAPES = functions("rearrangement", "concatenation")
_SUMS = functions("sum")
_FACTORS = functions("factor")
_AVERAGE_POOL = by_dimensions("average pool")
_NOTHING_BETWEEN = "it reads what another layer with weights computes, without neurons between"
# A layer's rounding may be off by no more than this part of the currents that it is added to.
_LEAST_RESOLUTION = 16


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
    multiples of the same unit, pixels of a unit that resolves them as finely as can be. What a network does to each
    pixel by itself, as to normalise it, stays in floating point before that. All else is kept as floating-point
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
        A copy. Layers that are called more than once keep their weights.

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
    return rounded


class _Rewriting:
    def __init__(self, graph: fx.GraphModule, plan: Plan, images: Tensor, timesteps: int) -> None:
        self.graph = without_ceilings(graph)
        self.plan = plan
        self.timesteps = timesteps
        self.whole: dict[str, SitePlan] = {}
        self.values: dict[fx.Node, _Value] = {}
        with torch.no_grad():
            ShapeProp(self.graph).propagate(images[:2])
        schedule = Schedule(self.graph)
        self.sites, self.before_neurons = schedule.sites, schedule.before_neurons
        self.reference = next(self.graph.parameters(), images)
        self.of_pixels = self._what_pixels_become()
        self.brightest = _largest_values(self.graph, self.of_pixels, images)
        # By the layer's name, in the units of the original.
        self.rounded: dict[str, Tensor] = {}
        self.thresholds: dict[fx.Node, Tensor] = {}
        self.weights: dict[fx.Node, Tensor] = {}
        self.together = self._layers_that_meet()
        # What neurons send is known before what drives them.
        for node, site in self.sites.items():
            amplitude = plan[site.name].amplitude.double().reshape(-1)
            self.values[node] = _Value(_over(amplitude, self._shape_of(node)), 1.0, is_current=False)

    @torch.no_grad()
    def run(self) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        waiting = [n for n in self.graph.graph.nodes if n.op != "get_attr" and n not in self.of_pixels]
        for node in list(self.of_pixels):
            self._round_pixels(node)
        while waiting:
            # Layers whose currents are added share a unit, so that each of them waits for what the others read.
            ready = (node for node in waiting if all(read in self.values for read in self._reads(node)))
            node = next(ready, waiting[0])
            if any(read not in self.values for read in self._reads(node)):
                reading = [n for n in waiting if any(read not in self.values for read in n.all_input_nodes)]
                layers = [n for n in reading if isinstance(self._module(n), _WEIGHTED)]
                raise self._obstacle((layers or reading or waiting)[0], _NOTHING_BETWEEN)
            waiting.remove(node)
            if node.op == "output":
                self._readout(node)
            else:
                self.values[node] = self._rewritten(node)
        constants = [node for node in self.graph.graph.nodes if node.op == "get_attr"]
        for node in constants:
            if not node.users:
                self.graph.graph.erase_node(node)
        used = {str(node.target) for node in constants if node.users}
        for name in [name for name, _ in self.graph.named_buffers(recurse=False) if name not in used]:
            delattr(self.graph, name)
        self.graph.graph.lint()
        self.graph.delete_all_unused_submodules()
        self.graph.recompile()
        return self.graph, self.whole

    def _reads(self, node: fx.Node) -> list[fx.Node]:
        together = self.together[node] if isinstance(self._module(node), _WEIGHTED) else [node]
        return [read for member in together for read in member.all_input_nodes if read.op != "get_attr"]

    def _rewritten(self, node: fx.Node) -> _Value:
        if node in self.sites:
            return self._neurons(node)
        module = self._module(node)
        if isinstance(module, _WEIGHTED):
            return self._layer(node, module)
        if isinstance(module, _AVERAGES_1D):
            return self._sum_pool_1d(node, module)
        if isinstance(module, _AVERAGES):
            return self._sum_pool(node, module)
        if node.target is torch.mean:
            return self._mean(node)
        if isinstance(module, MAX_POOLS):
            return self._unchanged(node, module)
        if isinstance(module, _MOVED) or (isinstance(module, nn.Upsample) and module.mode == "nearest"):
            value = self.values[node.all_input_nodes[0]]
            return replace(value, unit=module(value.unit[None])[0])
        if isinstance(module, _PADS) and module.value == 0:
            return self._unchanged(node, module, padded=True)
        if node.target in _SHAPES:
            return self._shape(node)
        if node.target is operator.neg:
            return self.values[node.all_input_nodes[0]]
        if node.target is operator.mul:
            return self._multiple(node)
        if node.target in _SUMS:
            return self._sum(node)
        raise self._obstacle(node, "it has no counterpart in whole numbers")

    def _what_pixels_become(self) -> list[fx.Node]:
        """Return the nodes that hold the image, or what is done to each of its pixels by itself, in order."""
        found: list[fx.Node] = []
        for node in self.graph.graph.nodes:
            reads = [before for before in node.all_input_nodes if before.op != "get_attr"]
            if node.op == "placeholder" or (reads and all(read in found for read in reads) and self._is_by_pixel(node)):
                found.append(node)
        return found

    def _is_by_pixel(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self._module(node)
            return isinstance(module, (*BATCH_NORMS, *_PADS, *_MOVED)) or getattr(module, "mode", None) == "nearest"
        return node.target in (*_SHAPES, *_SUMS, *_FACTORS)

    def _round_pixels(self, node: fx.Node) -> None:
        """Give those who compute in whole numbers whole pixels to read, the finest whose sums are exact."""
        if isinstance(self._module(node), BATCH_NORMS):
            node = self._affine(node, self._module(node))
        following = [user for user in node.users if user not in self.of_pixels]
        if not following:
            return
        room = min(self._room(user) for user in following)
        levels = min(_FINEST_PIXELS, math.floor(room))
        if levels < 1:
            raise self._obstacle(following[0], "its sums are too large for exact arithmetic")
        unit = max(self.brightest[node], 1e-12) / levels
        with self.graph.graph.inserting_after(node):
            scaled = self.graph.graph.call_function(operator.mul, (node, 1 / unit))
        with self.graph.graph.inserting_after(scaled):
            rounded = self.graph.graph.call_function(torch.round, (scaled,))
        with self.graph.graph.inserting_after(rounded):
            cut = self.graph.graph.call_function(torch.clamp, (rounded, -levels, levels))
        for user in following:
            user.replace_input_with(node, cut)
        whole = torch.full(self._shape_of(node), unit, dtype=torch.float64)
        self.values[cut] = _Value(whole, levels, is_current=False)

    def _affine(self, node: fx.Node, norm: Any) -> fx.Node:
        """Write a batch norm as a product and a sum, which are rounded alike in any layout; return the sum."""
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        (read,) = node.all_input_nodes
        for target, numbers in ((operator.mul, scale), (operator.add, shift)):
            constant = self._constant(f"{node.name}_constant", _over(numbers, self._shape_of(node)), node)
            with self.graph.graph.inserting_before(node):
                read = self.graph.graph.call_function(target, (read, constant))
            read.meta = dict(node.meta)
        node.replace_all_uses_with(read)
        self.of_pixels[self.of_pixels.index(node)] = read
        self.brightest[read] = self.brightest[node]
        self.graph.graph.erase_node(node)
        return read

    def _room(self, node: fx.Node) -> float:
        """Return how large the pixels may be that a node reads, for sums over a layer and all steps to be exact."""
        module = self._module(node)
        if isinstance(module, _WEIGHTED):
            weight = module.weight.double().flatten(1)
            sums = (weight.abs().sum(1) / weight.abs().amax(1).clamp(min=1e-30)).max() * LEVELS
            return _EXACT / 4 / (self.timesteps * float(sums))
        if node in self.sites:
            return float(_FINEST_PIXELS)
        area = 1.0
        if isinstance(module, _AVERAGES):
            area = max(1.0, self._shape_of(node.all_input_nodes[0]).numel() / self._shape_of(node).numel())
        elif not isinstance(module, MAX_POOLS):
            raise self._obstacle(
                node, "it joins the image with what layers and neurons compute: let a convolution read the image first"
            )
        return min((self._room(user) for user in node.users), default=float(_FINEST_PIXELS)) / area

    def _neurons(self, node: fx.Node) -> _Value:
        site = self.sites[node]
        before = self.plan[site.name]
        if not NEURONS[before.neuron].integers:
            raise ConversionError(
                f"layer {site.name!r} has neurons of the model {before.neuron!r}, whose values are no whole numbers."
            )
        current = self._as_current(site.current, node)
        unit = self._per_channel(current.unit, site.current)
        threshold = (before.threshold.double() / unit).round().clamp(min=1)
        self.whole[site.name] = replace(
            before,
            threshold=threshold.to(before.threshold.dtype),
            initial_potential=(before.initial_potential.double() / unit).round().to(before.threshold.dtype),
            amplitude=torch.ones_like(before.amplitude),
        )
        return self.values[node]

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
        self._check_resolution(node, unit)
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

    def _check_resolution(self, node: fx.Node, unit: Tensor) -> None:
        """See that rounding a layer's weights loses little of what it and those that it is added to say."""
        said = self.thresholds.get(node, torch.zeros(()))
        for other in self.together[node]:
            largest = self.values[other.all_input_nodes[0]].largest
            said = torch.maximum(said, self.weights[other].flatten(1).abs().amax(1) * largest)
        lost = unit / 2 * self.values[node.all_input_nodes[0]].largest
        # Rounding loses nothing of channels without weights, as pruned ones are.
        has_weights = self.weights[node].flatten(1).any(1)
        if bool((lost > said / _LEAST_RESOLUTION).logical_and(has_weights).any()):
            names = [str(other.target) for other in self.together[node] if other is not node]
            raise self._obstacle(
                node, f"its inputs are worth far less than those of {', '.join(map(repr, names))}, which it is added to"
            )

    def _folded(self, node: fx.Node, module: Any) -> Tensor:
        """Return a layer's weights times what its inputs are worth, in float64."""
        (read,) = node.all_input_nodes
        value = self.values[read]
        if value.is_current:
            raise self._obstacle(node, _NOTHING_BETWEEN)
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
        self._replace(node, _AVERAGE_POOL[dimensions](kernel, stride, padding, divisor_override=1))
        # What is pooled has one unit a channel.
        unit = self._per_channel(value.unit, read) / area
        return replace(value, unit=_over(unit, self._shape_of(node)), largest=value.largest * area)

    def _sum_pool_1d(self, node: fx.Node, module: Any) -> _Value:
        """Write an average as a convolution with ones: torch's pool in one dimension has no other divisor."""
        (read,) = node.all_input_nodes
        channels, length = self._shape_of(read)
        if isinstance(module, nn.AdaptiveAvgPool1d):
            kernel, left = divmod(length, self._shape_of(node)[1])
            stride, padding, plain = kernel, 0, left == 0
        else:
            sizes = module.kernel_size, module.stride, module.padding
            kernel, stride, padding = (int(torch.as_tensor(size)) for size in sizes)
            plain = not module.ceil_mode and (padding == 0 or module.count_include_pad)
        if not plain:
            raise self._obstacle(node, "its windows are of different sizes")
        ones = nn.Conv1d(channels, channels, kernel, stride, padding, groups=channels).to(self.reference)
        ones.weight.data.fill_(1)
        ones.bias.data.fill_(0)  # type: ignore[union-attr]
        value = self.values[read]
        unit = _over(self._per_channel(value.unit, read) / kernel, self._shape_of(node))
        self._replace(node, ones)
        return replace(value, unit=unit, largest=value.largest * kernel)

    def _mean(self, node: fx.Node) -> _Value:
        """Write the average over a whole image as a pool."""
        (read,) = node.all_input_nodes
        shape = self._shape_of(read)
        if len(shape) not in (3, 4) or list(node.args[1]) != list(range(2, len(shape) + 1)):  # type: ignore[arg-type]
            raise self._obstacle(node, "it averages over other dimensions than a whole image")
        pool = _AVERAGE_POOL[len(shape) - 1]
        name = free_name(self.graph, str(node.name))
        self.graph.add_submodule(name, pool(tuple(shape[1:]), divisor_override=1).eval())
        with self.graph.graph.inserting_before(node):
            pooled = self.graph.graph.call_module(name, (read,))
        node.target, node.args = torch.reshape, (pooled, (-1, *self._shape_of(node)))
        value, area = self.values[read], math.prod(shape[1:])
        unit = self._per_channel(value.unit, read) / area
        return replace(value, unit=_over(unit, self._shape_of(node)), largest=value.largest * area)

    def _multiple(self, node: fx.Node) -> _Value:
        """Leave a constant factor to what 1 is worth, but for its sign."""
        (read,) = (before for before in node.all_input_nodes if before.op != "get_attr")
        value, factor = self.values[read], self._number(node)
        sign, factor = factor.sign().expand(value.unit.shape), factor.expand(value.unit.shape).abs()
        same = sign.flatten()[0] if sign.numel() else torch.ones(())
        whole = float(same) if bool((sign == same).all()) else self._constant(f"{node.name}_sign", sign, node)
        node.args = (read, whole)
        return replace(value, unit=value.unit * torch.where(factor > 0, factor, 1.0))

    def _number(self, node: fx.Node) -> Tensor:
        """Return the constant that a sum or product has as its second term, ``[]`` or for an image, in float64."""
        term = node.args[1]
        if not isinstance(term, fx.Node):
            return torch.as_tensor(term, dtype=torch.float64)
        constant: Tensor = operator.attrgetter(str(term.target))(self.graph).detach().double()
        return constant.reshape(constant.shape[1:]) if constant.dim() > len(self._shape_of(node)) else constant

    def _constant(self, name: str, numbers: Tensor, user: fx.Node) -> fx.Node:
        name = free_name(self.graph, name)
        self.graph.register_buffer(name, numbers.to(self.reference))
        with self.graph.graph.inserting_before(user):
            return self.graph.graph.get_attr(name)

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
        terms = [term for term in node.all_input_nodes if term.op != "get_attr"]
        if len(terms) == 1 and node.args[0] is not node.args[1]:
            return self._sum_with_constant(node)
        if len(terms) != 2:
            raise self._obstacle(node, "it adds a term to itself")
        first, second = (self.values[term] for term in terms)
        if first.is_current and second.is_current:
            if not torch.equal(first.unit, second.unit):
                return self._sum_of_different(node, terms)
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

    def _sum_of_different(self, node: fx.Node, terms: Sequence[fx.Node]) -> _Value:
        """Round what the image alone decides to the unit of the other term, or to the coarser if that is both."""
        moving = [self.values[term] for term in terms if term not in self.before_neurons]
        if len(moving) == 2:
            raise self._obstacle(node, "its terms come from layers of different kinds")
        unit = moving[0].unit if moving else torch.maximum(*(self.values[term].unit for term in terms))
        largest = sum(self._rounded_to(term, unit, node) for term in terms if term in self.before_neurons)
        return _Value(unit, largest + sum(value.largest for value in moving), is_current=True)

    def _sum_with_constant(self, node: fx.Node) -> _Value:
        number = self._number(node)
        value = self._as_current(node.all_input_nodes[0], node)
        whole = (number.expand(value.unit.shape) / value.unit).round()
        node.args = (node.args[0], self._constant(f"{node.name}_whole", whole, node))
        largest = value.largest + float(whole.abs().max())
        if largest * self.timesteps >= _EXACT:
            raise self._obstacle(node, "its sums are too large for exact arithmetic")
        return replace(value, largest=largest)

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
        constant = self._constant(f"{user.name}_factor", factor, user)
        with self.graph.graph.inserting_before(user):
            scaled = self.graph.graph.call_function(operator.mul, (node, constant))
        user.replace_input_with(node, scaled)
        self.values[scaled] = _Value(unit, value.largest * float(factor.max()), is_current=True)
        if self.values[scaled].largest * self.timesteps >= _EXACT:
            raise self._obstacle(user, "its sums are too large for exact arithmetic")
        return self.values[scaled].largest

    def _rounded_to(self, node: fx.Node, unit: Tensor, user: fx.Node) -> float:
        """Let one user read what the image alone decides in another unit, rounded; return the largest magnitude."""
        value = self.values[node]
        factor = value.unit / unit
        largest = float(math.ceil(value.largest * float(factor.max())))
        constant = self._constant(f"{user.name}_factor", factor, user)
        with self.graph.graph.inserting_before(user):
            scaled = self.graph.graph.call_function(operator.mul, (node, constant))
            rounded = self.graph.graph.call_function(torch.round, (scaled,))
            cut = self.graph.graph.call_function(torch.clamp, (rounded, -largest, largest))
        user.replace_input_with(node, cut)
        if largest * self.timesteps >= _EXACT:
            raise self._obstacle(user, "its sums are too large for exact arithmetic")
        return largest

    def _readout(self, node: fx.Node) -> None:
        (logits,) = node.all_input_nodes
        constant = self._constant("output_unit", self.values[logits].unit, node)
        with self.graph.graph.inserting_before(node):
            worth = self.graph.graph.call_function(operator.mul, (logits, constant))
        node.replace_input_with(logits, worth)

    def _layers_that_meet(self) -> dict[fx.Node, list[fx.Node]]:
        """Return for each layer with weights those whose currents are added to its own; note their thresholds."""
        meeting: dict[fx.Node, list[fx.Node]] = {}
        for node in self.graph.graph.nodes:
            module = self._module(node)
            if isinstance(module, _WEIGHTED):
                meeting[node] = [node]
            elif node.target in (*_SUMS, operator.neg, "permute") or isinstance(module, (*MAX_POOLS, *_SUM_POOLS)):
                met = [layer for before in node.all_input_nodes for layer in meeting.get(before, [])]
                group = list(dict.fromkeys(other for layer in met for other in meeting[layer]))
                meeting[node] = group
                for layer in group:
                    # Pixels are worth far less than spikes: what reads them has units of its own.
                    meeting[layer] = [
                        other for other in group if (other in self.before_neurons) == (layer in self.before_neurons)
                    ]
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
        return module_of(self.graph, node)

    def _shape_of(self, node: fx.Node) -> torch.Size:
        return torch.Size(node.meta["tensor_meta"].shape[1:])

    def _obstacle(self, node: fx.Node, reason: str) -> ConversionError:
        name = str(node.target) if node.op == "call_module" else node.name
        return ConversionError(
            f"layer {name!r} can't be written in whole numbers: {reason}. Change it, or convert with precision='fp32'."
        )


class _Largest(fx.Interpreter):
    """Keeps the largest magnitude of some nodes' values."""

    def __init__(self, graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
        super().__init__(graph)
        self.nodes = set(nodes)
        self.found: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "get_attr" and n not in self.nodes:
            return None
        value = super().run_node(n)
        if n in self.nodes:
            self.found[n] = float(value.abs().max())
        return value


@torch.no_grad()
def _largest_values(graph: fx.GraphModule, nodes: Sequence[fx.Node], images: Tensor) -> dict[fx.Node, float]:
    """Return the largest magnitude that each of some nodes has over images."""
    largest = _Largest(graph, nodes)
    largest.run(images)
    return largest.found


def _over(channels: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat one value, or one a channel, over the elements of one image, ``[C, ...]``."""
    return channels.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
