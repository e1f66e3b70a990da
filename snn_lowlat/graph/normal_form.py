"""Rewriting a user's network into the one form the rest of the package works on.

The normal form is an ``fx.GraphModule`` in evaluation mode that uses torch's own modules and functions only, so that
any host may trace it again and get the same graph:

- every activation is a *site*: a call of an ``nn.ReLU`` of its own, whose target is the site's name, followed by
  ``torch.minimum(site, ceiling)`` where the activation has a ceiling (a buffer named ``<site>_ceiling``), and by
  ``floor(... / step + shift + margin) * step`` where it is rounded down to levels;
- everything between sites is linear for each time step; batch norm is folded into the layer before it where there is
  one, and each layer with weights has a bias;
- max-pooling stands before the site, not after it: ``max(relu(z)) = relu(max(z))``, so that currents are pooled and
  never spikes; over time it pools what they have added up to, see :mod:`snn_lowlat.neurons.max_pool`;
- the channels of every site are in dimension 1: where the layers around it have them elsewhere, as a linear layer over
  ``[N, L, C]`` has, a permutation stands before the site and the inverse behind it;
- dimension 0 is the batch and every operation treats its entries alike.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from snn_lowlat import checks
from snn_lowlat.activations import CeilingReLU, ValueRangeReLU
from snn_lowlat.devices import device_of
from snn_lowlat.errors import ConversionError
from snn_lowlat.graph import operations
from snn_lowlat.graph.channels import put_channels_first
from snn_lowlat.graph.levels import recognise_levels, separate_ceilings
from snn_lowlat.graph.max_pools import move_max_pools
from snn_lowlat.graph.names import free_name
from snn_lowlat.graph.obstacles import Obstacle, conversion_error
from snn_lowlat.graph.passes import fold_batch_norms
from snn_lowlat.graph.preparing import prepared_copy
from snn_lowlat.graph.tracer import IN_PLACE, ValueTracer
from snn_lowlat.graph.verifying import differences, overflows, reference_dtype, trace_obstacle, unusable_images
from snn_lowlat.graph.vocabulary import keeps_signs, module_of, operation_of, row
from snn_lowlat.neurons.accumulate_then_fire import MARGIN

__all__ = ["Builder", "normalise", "try_normalise"]


def normalise(model: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """Rewrite a network into the normal form; the network itself is not changed.

    Parameters
    ----------
    model : Module
        A ReLU network with one input and one output tensor. It is traced in evaluation mode.
    example_input : Tensor
        A batch for it, ``[N, ...]``; sizes read from tensors take the values they have for this input.

    Returns
    -------
    GraphModule
        The normal form, with its own copies of all weights, on the model's device.

    Raises
    ------
    ConversionError
        If anything in the network has no place in a spiking network; the message lists all such obstacles.
    """
    graph, obstacles = try_normalise(model, example_input)
    if graph is None or obstacles:
        raise conversion_error(obstacles)
    return graph


def try_normalise(model: nn.Module, example_input: Tensor) -> tuple[fx.GraphModule | None, list[Obstacle]]:
    """Rewrite a network into the normal form, collecting obstacles; without any, the graph is whole and checked."""
    model = checks.network("model", model, rewritten=True)
    example_input = _small_batch(model, example_input)
    obstacles = unusable_images(example_input)
    if obstacles:
        return None, obstacles
    tracer = ValueTracer(example_input, leaves=(CeilingReLU, ValueRangeReLU))
    try:
        model, obstacles = prepared_copy(model, example_input)
        traced = tracer.trace(model)
    except Exception as error:
        return None, [*obstacles, trace_obstacle(model, example_input, error)]
    obstacles = obstacles + overflows(tracer.root, traced)
    graph, found = Builder(tracer.root, traced).build()
    obstacles += found
    separate_ceilings(graph)
    obstacles += recognise_levels(graph)
    if not obstacles:
        obstacles = _rewritten(graph, example_input)
    if not obstacles:
        obstacles = differences(model, graph, example_input, traced)
    return graph, obstacles


def _rewritten(graph: fx.GraphModule, example_input: Tensor) -> list[Obstacle]:
    """Bring layers, pools and sites into the order of the normal form."""
    try:
        fold_batch_norms(graph, example_input)
        move_max_pools(graph)
        put_channels_first(graph, example_input)
    except RuntimeError as error:
        advice = "look for a tensor made with the batch's size, or of another type than the network's"
        return [Obstacle("output", f"the rewritten network fails: {error.__cause__ or error}", advice)]
    return []


class Builder:
    """Builds the normal form of a traced graph, node by node, with the rules in :mod:`snn_lowlat.graph.operations`.

    Parameters
    ----------
    root : Module
        The module that was traced.
    traced : Graph
        Its graph, with the ``meta`` of :class:`snn_lowlat.graph.tracer.ValueTracer` in each node.
    """

    def __init__(self, root: nn.Module, traced: fx.Graph) -> None:
        self._root = root
        self._traced = traced
        self._graph = fx.Graph()
        self._modules = nn.Module()
        self._shapes: dict[fx.Node, torch.Size] = {}
        self._environment: dict[fx.Node, Any] = {}
        self._failed: set[fx.Node] = set()
        self._affected: set[fx.Node] = set()
        self._current: fx.Node

    def build(self) -> tuple[fx.GraphModule, list[Obstacle]]:
        """Return the new graph and what stood in its way."""
        obstacles: list[Obstacle] = []
        for node in _needed(self._traced):
            self._current = node
            try:
                self._environment[node] = self._translate(node)
            except operations.Unsupported as reason:
                # Whatever follows is still looked at, so that one run names every obstacle, and none that only follows.
                if not self._follows(node):
                    obstacles.append(Obstacle(node.name, self._describe(node), str(reason)))
                self._failed.add(node)
                self._environment[node] = self._stand_in(node)
            if node in self._failed or not self._affected.isdisjoint(node.all_input_nodes):
                self._affected.add(node)
            self._apply_changes(node)
        graph = fx.GraphModule(self._modules, self._graph)
        graph.graph.eliminate_dead_code()
        graph.graph.lint()
        graph.delete_all_unused_submodules()
        graph.recompile()
        return graph.eval(), obstacles

    # What rules ask about the node being translated.

    @property
    def operation(self) -> str:
        """The operation's name as the network spells it, without a trailing underscore; a module's type name."""
        if self._current.op == "call_module":
            return type(self._root.get_submodule(str(self._current.target))).__name__
        return _name(self._current)

    @property
    def result(self) -> Any:
        """What the operation computed for the example input."""
        return self._current.meta["value"]

    @property
    def result_shape(self) -> torch.Size:
        """The shape of what the operation computed for the example input."""
        return torch.Size(self.result.shape)

    def shape_of(self, node: fx.Node) -> torch.Size:
        """Return the shape a new node has for the example input."""
        return self._shapes[node]

    def module(self, node: Any) -> nn.Module | None:
        """Return the module that a new node calls; None for anything else."""
        return module_of(self._modules, node) if isinstance(node, fx.Node) else None

    def is_site(self, node: Any) -> bool:
        """Say whether a new node is an activation site, without its ceiling."""
        return isinstance(self.module(node), nn.ReLU)

    def clipped_site(self, node: Any) -> fx.Node | None:
        """Return the site of which a new node is the clipped output; None if it is anything else."""
        clipped = isinstance(node, fx.Node) and node.target is torch.minimum
        return node.args[0] if clipped else None  # type: ignore[return-value]

    def reads_alone(self) -> bool:
        """Say whether nothing else reads what the operation reads."""
        return all(len(before.users) == 1 for before in self._current.all_input_nodes if before.op != "get_attr")

    def keeps_signs(self, node: fx.Node) -> bool:
        """Say whether no negative numbers come out of a new node where none go in."""
        return keeps_signs(self._modules, node)

    def constant(self, value: Any) -> Any:
        """Return the value of a number, or of a new node that holds a constant."""
        return getattr(self._modules, str(value.target)) if isinstance(value, fx.Node) else value

    def ceiling_of(self, clipped: fx.Node) -> Tensor:
        """Return the ceiling of a clipped site, of shape ``[]`` or ``[C, 1, ...]``."""
        ceiling: Tensor = self.constant(clipped.args[1])
        return ceiling

    # What rules build.

    def layer(self, module: nn.Module, x: fx.Node, shape: torch.Size | None = None) -> fx.Node:
        """Add a module and a call of it."""
        _check_row(module)
        name = free_name(self._modules, self._scope())
        self._modules.add_module(name, module)
        return self._added(self._graph.call_module(name, (x,)), shape)

    def function(self, target: Callable[..., Any], *args: Any, shape: torch.Size | None = None) -> fx.Node:
        """Add a call of a function."""
        _check_row(target)
        return self._added(self._graph.call_function(target, args), shape)

    def method(self, target: str, *args: Any, shape: torch.Size | None = None) -> fx.Node:
        """Add a call of a tensor method."""
        _check_row(target)
        return self._added(self._graph.call_method(target, args), shape)

    def site(self, x: fx.Node, ceiling: float | Tensor | None = None) -> fx.Node:
        """Add an activation site, with its ceiling if it has one; none where an activation changes nothing.

        A ceiling on what is an activation already becomes that activation's.
        """
        if ceiling is None and self._is_activation(x):
            return x
        if self.is_site(x) or self.clipped_site(x) is not None:
            return self.ceiling(x, ceiling)  # type: ignore[arg-type]
        site = self.layer(nn.ReLU(), x)
        return site if ceiling is None else self.ceiling(site, ceiling)

    def ceiling(self, activation: fx.Node, ceiling: float | Tensor) -> fx.Node:
        """Clip a site's output at a ceiling: one number, or one a channel; if it has one already, at the lower one."""
        clipped = self.clipped_site(activation)
        site = activation if clipped is None else clipped
        dtype = reference_dtype(self._root) or self.result.dtype
        value = torch.as_tensor(ceiling, dtype=dtype, device=device_of(self._root)).detach().clone()
        channels, rank = self._shapes[site][1], len(self._shapes[site])
        if value.numel() not in (1, channels) or not bool((value > 0).all()):
            raise operations.Unsupported(
                f"its ceiling must be positive, one number or one for each of {channels} channels"
            )
        if value.numel() > 1 and value.dim() > 1 and list(value.shape)[-rank + 1 :][:1] != [channels]:
            raise operations.Unsupported("its ceiling must be one number or one for each channel")
        value = value.reshape((channels, *[1] * (rank - 2)) if value.numel() > 1 else ())
        if clipped is not None:
            value = torch.minimum(value, self.ceiling_of(activation))
        return self.function(torch.minimum, site, self._constant(value, f"{site.target}_ceiling"))

    def rounded(self, clipped: fx.Node, levels: int, shift: float = 0.0) -> fx.Node:
        """Round a clipped site's output down to so many levels below its ceiling, after a shift in levels."""
        site, ceiling = self.clipped_site(clipped), self.ceiling_of(clipped)

        def factor(values: Tensor, name: str) -> Any:
            if values.dim() == 0:
                return float(values)
            return self._constant(values, f"{site.target}_{name}")  # type: ignore[union-attr]

        scaled = self.function(operator.mul, clipped, factor(levels / ceiling, "inverse_step"))
        floor = self.rounding(self.function(operator.add, scaled, shift + MARGIN))
        floor.meta["written"] = True
        return self.function(operator.mul, floor, factor(ceiling / levels, "step"))

    def rounding(self, x: fx.Node) -> fx.Node:
        """Add a rounding down, which has to turn out to be a part of an activation."""
        floor = self.function(torch.floor, x)
        floor.meta["described"] = self._describe(self._current)
        return floor

    def operand(self, x: fx.Node, other: Any) -> Any:
        """Make the second operand of a sum or product: a node or number as it is, a constant tensor as a buffer."""
        if not isinstance(other, Tensor):
            return other
        if other.dim() > len(self._shapes[x]) or (other.dim() == len(self._shapes[x]) and other.shape[0] != 1):
            raise operations.Unsupported("its constant has a batch dimension: it must be the same for every image")
        return self._constant(other.detach().clone(), f"{self._scope()}_constant")

    # How a node is translated.

    def _translate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            new = self._graph.placeholder("input")
            self._shapes[new] = self.result_shape
            return new
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self._root)  # type: ignore[arg-type]
        args: Any = map_aggregate(node.args, self._translated)
        kwargs: Any = map_aggregate(node.kwargs, self._translated)
        if node.op == "output":
            return self._output(args[0])
        if not _contains((args, kwargs), fx.Node, operations.Pieces, operations.Comparison):
            return node.meta.get("value")
        rule = self._rule(node)
        if rule is None:
            raise operations.Unsupported(
                operations.ACTIVATIONS.get(self.operation.lower(), "there is no spiking counterpart for it; replace it")
            )
        if _contains((args, kwargs), operations.Comparison) and not operations.reads_comparisons(rule):
            raise operations.Unsupported(operations.OF_COMPARISONS)
        args, kwargs = operations.arranged(args, kwargs)
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            args, kwargs = (*args, *kwargs.values()), {"module": module}
        try:
            return rule(self, *args, **kwargs)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise operations.Unsupported(f"these arguments are not supported ({error})") from error

    def _translated(self, argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        value = self._environment[argument]
        if isinstance(value, _Stale):
            raise operations.Unsupported(
                f"it reads values a part of which the in-place operation {value.changed_by!r} has changed: write that "
                "operation so that it returns new values"
            )
        return value

    def _apply_changes(self, node: fx.Node) -> None:
        """Let whoever reads a tensor that this node has changed in place read what the node returns."""
        result = node.meta.get("value")
        for changed in node.meta.get("changed", ()):
            for earlier, environment in list(self._environment.items()):
                value = earlier.meta.get("value")
                if earlier is node or not isinstance(environment, fx.Node) or not _share_memory(value, changed):
                    continue
                same = isinstance(result, Tensor) and isinstance(value, Tensor) and _form(value) == _form(result)
                self._environment[earlier] = self._environment[node] if same else _Stale(node.name)

    def _follows(self, node: fx.Node) -> bool:
        """Say whether a node is an obstacle only because of one that has been found before it."""
        if node.op == "output":
            return node.args[0] in self._failed
        if self._rule(node) is None:
            return False
        images = next(len(n.meta["value"]) for n in self._traced.nodes if n.op == "placeholder")
        values = [before.meta.get("value") for before in node.all_input_nodes if before in self._affected]
        return any(isinstance(v, Tensor) and (v.dim() == 0 or len(v) != images) for v in values)

    def _stand_in(self, node: fx.Node) -> Any:
        """Make something of the form of what an obstacle computes, for those who read it."""
        if node.op == "output":
            reads = [self._environment[before] for before in node.all_input_nodes]
            return self._graph.output(tuple(_nodes_in(reads)))
        return _like(node.meta.get("value"), self._placed)

    def _placed(self, value: Tensor) -> fx.Node:
        new = self._graph.placeholder(f"unknown_{len(self._shapes)}")
        self._shapes[new] = value.shape
        return new

    def _rule(self, node: fx.Node) -> operations.Rule | None:
        if node.op == "call_module":
            return operations.module_rule(self._root.get_submodule(str(node.target)))
        if node.op == "call_function" and not _is_torch(node.target):
            return None
        return operations.function_rule(self.operation)

    def _output(self, value: Any) -> fx.Node:
        if not isinstance(value, fx.Node):
            returned: Any = self._current.args[0]
            returned = returned.meta.get("value") if isinstance(returned, fx.Node) else returned
            kind = next((k.__name__ for k in (dict, list, tuple) if isinstance(returned, k)), type(returned).__name__)
            raise operations.Unsupported(
                f"the network returns a {kind}, not one tensor: wrap it so that it returns the logits"
            )
        return self._graph.output(value)  # type: ignore[no-any-return]

    def _added(self, node: fx.Node, shape: torch.Size | None = None) -> fx.Node:
        value = self.result
        self._shapes[node] = (
            torch.Size(value.shape) if shape is None and isinstance(value, Tensor) else shape or torch.Size()
        )
        node.meta["shape"] = self._shapes[node]
        return node

    def _constant(self, value: Tensor, name: str) -> fx.Node:
        name = free_name(self._modules, name)
        self._modules.register_buffer(name, value)
        return self._graph.get_attr(name)

    def _is_activation(self, node: fx.Node) -> bool:
        """Say whether a node is what an activation computes, rearranged or the largest of it."""
        while (known := operation_of(self._modules, node)) and known.kind in ("rearrangement", "max pool"):
            node = node.all_input_nodes[0]
        written = node.target is operator.mul and isinstance(node.args[0], fx.Node) and node.args[0].meta.get("written")
        return self.is_site(node) or self.clipped_site(node) is not None or bool(written)

    def _scope(self) -> str:
        """Name the current operation by its place in the user's network, as in ``layer1_0_relu``."""
        if self._current.op == "call_module":
            path = str(self._current.target)
        else:
            path = ".".join(part for part in (self._current.meta.get("scope", ""), self.operation) if part)
        return path

    def _describe(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{type(self._root.get_submodule(str(node.target))).__name__} ({node.target})"
        scope = node.meta.get("scope", "")
        return f"{_name(node)}()" + (f" (in {scope})" if scope else "")


def _check_row(target: Any) -> None:
    """See that what a rule builds is known to all who follow a network."""
    if row(target) is None:
        raise operations.Unsupported(f"{target!r} is no operation of the normal form: it has no row in its vocabulary")


def _name(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    name = str(name).rsplit(".", 1)[-1].strip("_") or str(name)
    return name[1:] if node.target in IN_PLACE else name


def _is_torch(target: object) -> bool:
    """Say whether a function is torch's or Python's own, and not a user's of the same name."""
    module = getattr(target, "__module__", None) or "torch"
    return module.split(".")[0] in ("torch", "_operator", "builtins", "torchvision")


def _contains(values: Any, *kinds: type) -> bool:
    found: list[bool] = []
    map_aggregate(values, lambda a: found.append(isinstance(a, kinds)) if a is not None else None)
    return any(found)


def _small_batch(model: nn.Module, example_input: Tensor) -> Tensor:
    try:
        checks.images("example_input", example_input)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    return example_input[:2].detach().to(device_of(model)).repeat(2, *[1] * (example_input.dim() - 1))[:2]


def _needed(traced: fx.Graph) -> list[fx.Node]:
    """Return the nodes on which the output depends, and those that change something in place, in order."""
    needed: set[fx.Node] = set()
    for node in reversed(traced.nodes):
        if node.op in ("placeholder", "output") or node in needed or node.meta.get("changed"):
            needed.update((node, *node.all_input_nodes))
    return [node for node in traced.nodes if node in needed]


@dataclass(frozen=True)
class _Stale:
    """In the place of a value of which a part has been changed in place."""

    changed_by: str


def _share_memory(value: Any, changed: fx.Node) -> bool:
    other = changed.meta.get("value")
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return False
    storage = value.untyped_storage()
    if storage.data_ptr() != other.untyped_storage().data_ptr():
        return False
    if _form(value) == _form(other):
        return True
    places = torch.arange(storage.nbytes() // value.element_size())
    first, second = (places.as_strided(v.shape, v.stride(), v.storage_offset()) for v in (value, other))
    return bool(torch.isin(first, second).any())


def _form(value: Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), value.shape, value.stride()


def _like(value: Any, placed: Callable[[Tensor], fx.Node]) -> Any:
    if isinstance(value, Tensor):
        return placed(value)
    if isinstance(value, (tuple, list)):
        return operations.Pieces(_like(part, placed) for part in value)
    if isinstance(value, dict):
        return {key: _like(part, placed) for key, part in value.items()}
    return value


def _nodes_in(value: Any) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [node for part in parts for node in _nodes_in(part)]
