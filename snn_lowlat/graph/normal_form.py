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

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from snn_lowlat import checks
from snn_lowlat.devices import device_of
from snn_lowlat.errors import ConversionError
from snn_lowlat.graph import operations
from snn_lowlat.graph.channels import put_channels_first
from snn_lowlat.graph.max_pools import move_max_pools
from snn_lowlat.graph.names import free_name
from snn_lowlat.graph.obstacles import Obstacle, conversion_error
from snn_lowlat.graph.passes import fold_batch_norms
from snn_lowlat.graph.tracer import ValueTracer
from snn_lowlat.neurons.accumulate_then_fire import MARGIN
from snn_lowlat.training.activations import CeilingReLU, ValueRangeReLU

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
    model = copy.deepcopy(model).eval()
    tracer = ValueTracer(example_input, leaves=(CeilingReLU, ValueRangeReLU))
    try:
        traced = tracer.trace(model, concrete_args=_defaults(model))
    except Exception as error:
        return None, [_trace_obstacle(error)]
    graph, obstacles = Builder(tracer.root, traced).build()
    if not obstacles:
        obstacles = _rewritten(graph, example_input)
    if not obstacles:
        obstacles = _differences(model, graph, example_input)
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
        Its graph, with a ``value`` and a ``scope`` in each node's ``meta``.
    """

    def __init__(self, root: nn.Module, traced: fx.Graph) -> None:
        self._root = root
        self._traced = traced
        self._graph = fx.Graph()
        self._modules = nn.Module()
        self._shapes: dict[fx.Node, torch.Size] = {}
        self._current: fx.Node

    def build(self) -> tuple[fx.GraphModule, list[Obstacle]]:
        """Return the new graph and what stood in its way."""
        obstacles: list[Obstacle] = []
        environment: dict[fx.Node, Any] = {}
        for node in self._traced.nodes:
            self._current = node
            try:
                environment[node] = self._translate(node, environment)
            except operations.Unsupported as reason:
                obstacles.append(Obstacle(node.name, self._describe(node), str(reason)))
                # Whatever follows is still looked at, so that one run names every obstacle.
                inputs = [environment.get(n) for n in node.all_input_nodes]
                environment[node] = next((value for value in inputs if isinstance(value, fx.Node)), None)
        graph = fx.GraphModule(self._modules, self._graph)
        if not obstacles:
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

    def is_site(self, node: fx.Node) -> bool:
        """Say whether a new node is an activation site without a ceiling."""
        return node.op == "call_module" and isinstance(getattr(self._modules, str(node.target)), nn.ReLU)

    # What rules build.

    def layer(self, module: nn.Module, x: fx.Node) -> fx.Node:
        """Add a module and a call of it."""
        name = free_name(self._modules, self._scope())
        setattr(self._modules, name, module)
        return self._added(self._graph.call_module(name, (x,)))

    def function(self, target: Callable[..., Any], *args: Any, shape: torch.Size | None = None) -> fx.Node:
        """Add a call of a function."""
        return self._added(self._graph.call_function(target, args), shape)

    def method(self, target: str, *args: Any) -> fx.Node:
        """Add a call of a tensor method."""
        return self._added(self._graph.call_method(target, args))

    def site(self, x: fx.Node, ceiling: float | Tensor | None = None) -> fx.Node:
        """Add an activation site, with its ceiling if it has one."""
        site = self.layer(nn.ReLU(), x)
        return site if ceiling is None else self.ceiling(site, ceiling)

    def ceiling(self, site: fx.Node, ceiling: float | Tensor) -> fx.Node:
        """Clip a site's output at a ceiling: one number, or one a channel."""
        value = torch.as_tensor(ceiling, dtype=self.result.dtype, device=device_of(self._root)).detach().clone()
        channels, rank = self._shapes[site][1], len(self._shapes[site])
        if value.numel() not in (1, channels) or not bool((value > 0).all()):
            raise operations.Unsupported(
                f"its ceiling must be positive, one number or one for each of {channels} channels"
            )
        shape = (channels, *[1] * (rank - 2)) if value.numel() > 1 else ()
        return self.function(torch.minimum, site, self._constant(value.reshape(shape), f"{site.target}_ceiling"))

    def rounded(self, clipped: fx.Node, levels: int, shift: float = 0.0) -> fx.Node:
        """Round a clipped site's output down to so many levels below its ceiling, after a shift in levels."""
        site, limit = clipped.args
        ceiling = getattr(self._modules, str(limit.target))  # type: ignore[union-attr]

        def factor(values: Tensor, name: str) -> Any:
            if values.dim() == 0:
                return float(values)
            return self._constant(values, f"{site.target}_{name}")  # type: ignore[union-attr]

        scaled = self.function(operator.mul, clipped, factor(levels / ceiling, "inverse_step"))
        floor = self.function(torch.floor, self.function(operator.add, scaled, shift + MARGIN))
        return self.function(operator.mul, floor, factor(ceiling / levels, "step"))

    def operand(self, x: fx.Node, other: Any) -> Any:
        """Make the second operand of a sum or product: a node or number as it is, a constant tensor as a buffer."""
        if not isinstance(other, Tensor):
            return other
        if other.dim() > len(self._shapes[x]) or (other.dim() == len(self._shapes[x]) and other.shape[0] != 1):
            raise operations.Unsupported("its constant has a batch dimension: it must be the same for every image")
        return self._constant(other.detach().clone(), f"{self._scope()}_constant")

    # How a node is translated.

    def _translate(self, node: fx.Node, environment: dict[fx.Node, Any]) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self._root)  # type: ignore[arg-type]
        args = map_aggregate(node.args, lambda a: environment[a] if isinstance(a, fx.Node) else a)
        kwargs = map_aggregate(node.kwargs, lambda a: environment[a] if isinstance(a, fx.Node) else a)
        if node.op == "output":
            return self._output(args[0])  # type: ignore[index]
        if not _contains_node((args, kwargs)):
            return node.meta.get("value")
        rule = self._rule(node)
        if rule is None:
            raise operations.Unsupported(
                operations.ACTIVATIONS.get(self.operation.lower(), "there is no spiking counterpart for it; replace it")
            )
        if node.op == "call_module":
            kwargs = {"module": self._root.get_submodule(str(node.target)), **kwargs}  # type: ignore[dict-item]
        try:
            return rule(self, *args, **kwargs)  # type: ignore[misc]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise operations.Unsupported(f"these arguments are not supported ({error})") from error

    def _rule(self, node: fx.Node) -> operations.Rule | None:
        if node.op == "call_module":
            return operations.module_rule(self._root.get_submodule(str(node.target)))
        if node.op == "call_function" and not _is_torch(node.target):
            return None
        return operations.function_rule(self.operation)

    def _placeholder(self, node: fx.Node) -> fx.Node | None:
        if "value" not in node.meta or node.meta["value"] is None:
            return None
        new = self._graph.placeholder("input")
        self._shapes[new] = self.result_shape
        return new

    def _output(self, value: Any) -> fx.Node:
        if not isinstance(value, fx.Node):
            kind = type(value).__name__
            raise operations.Unsupported(
                f"the network returns a {kind}, not one tensor: wrap it so that it returns the logits"
            )
        return self._graph.output(value)  # type: ignore[no-any-return]

    def _added(self, node: fx.Node, shape: torch.Size | None = None) -> fx.Node:
        value = self.result
        self._shapes[node] = (
            torch.Size(value.shape) if shape is None and isinstance(value, Tensor) else shape or torch.Size()
        )
        return node

    def _constant(self, value: Tensor, name: str) -> fx.Node:
        name = free_name(self._modules, name)
        self._modules.register_buffer(name, value)
        return self._graph.get_attr(name)

    def _scope(self) -> str:
        """Name the current operation by its place in the user's network, as in ``layer1_0_relu``."""
        if self._current.op == "call_module":
            path = str(self._current.target)
        else:
            path = ".".join(part for part in (self._current.meta.get("scope", ""), self.operation) if part)
        return path.replace(".", "_")

    def _describe(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{type(self._root.get_submodule(str(node.target))).__name__} ({node.target})"
        scope = node.meta.get("scope", "")
        return f"{_name(node)}()" + (f" (in {scope})" if scope else "")


def _name(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return str(name).rsplit(".", 1)[-1].rstrip("_") or str(name)


def _is_torch(target: object) -> bool:
    """Say whether a function is torch's or Python's own, and not a user's of the same name."""
    module = getattr(target, "__module__", None) or "torch"
    return module.split(".")[0] in ("torch", "_operator", "builtins", "torchvision")


def _contains_node(values: Any) -> bool:
    found: list[bool] = []
    map_aggregate(
        values, lambda a: found.append(isinstance(a, (fx.Node, operations.Pieces))) if a is not None else None
    )
    return any(found)


def _small_batch(model: nn.Module, example_input: Tensor) -> Tensor:
    try:
        checks.images("example_input", example_input)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    return example_input[:2].detach().to(device_of(model)).repeat(2, *[1] * (example_input.dim() - 1))[:2]


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Return the defaults of ``forward``'s further parameters: they are traced as constants."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _trace_obstacle(error: Exception) -> Obstacle:
    advice = (
        "rewrite forward() so that it does not depend on the values of activations, and takes one tensor"
        if isinstance(error, (fx.proxy.TraceError, TypeError))
        else "check that the network runs on the example input in evaluation mode"
    )
    return Obstacle("forward", f"tracing stopped: {type(error).__name__}: {error}", advice)


@torch.no_grad()
def _differences(model: nn.Module, graph: fx.GraphModule, example_input: Tensor) -> list[Obstacle]:
    """Compare the normal form with the network itself, for two batch sizes."""
    for batch in (example_input, example_input[[0, 1, 0]]):
        expected = model(batch.clone())
        advice = (
            f"it differs from the network for a batch of {len(batch)}: look for an in-place operation whose input is "
            "read again (inplace=True, +=), or for a tensor made with the batch's size"
        )
        try:
            found = graph(batch.clone())
        except RuntimeError as error:
            return [Obstacle("output", f"the rewritten network fails: {error}", advice)]
        scale = float(expected.abs().max())
        if found.shape != expected.shape or not float((found - expected).abs().max()) <= 1e-3 * scale + 1e-6:
            return [Obstacle("output", "the rewritten network computes something else", advice)]
    return []
