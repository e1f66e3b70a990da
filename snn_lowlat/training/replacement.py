"""Putting other activations into a network that is written with ReLUs, however it calls them."""

from __future__ import annotations

import copy
import dis
import inspect
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from snn_lowlat import checks
from snn_lowlat.activations import Activation, ChannelsElsewhere, make_activation, needs_channels
from snn_lowlat.devices import device_of
from snn_lowlat.errors import ConversionError
from snn_lowlat.graph import find_sites, try_normalise
from snn_lowlat.graph.preparing import computed_tensors
from snn_lowlat.modes import eval_mode

__all__ = ["replace_activations"]

_RELUS = (nn.ReLU, nn.ReLU6)
_RELU_FUNCTIONS = frozenset({functional.relu, functional.relu6, torch.relu, torch.relu_})
_RELU_METHODS = frozenset({"relu", "relu_"})
_DROPOUTS = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
_STATE = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set", "training")


def replace_activations(
    model: nn.Module, activation: Activation = "ceiling", example_input: Tensor | None = None
) -> nn.Module:
    """Return a copy of a network with another activation in the place of each ReLU and ReLU6, to be trained further.

    Every call gets an activation of its own, also where the network calls one ReLU module in several places or uses
    ``F.relu(x)``, ``torch.relu(x)`` or ``x.relu()``. A module whose ``forward`` does that is replaced by a
    :class:`torch.fx.GraphModule` with the same parameters under the same names, which takes the arguments of
    ``forward`` that have no default; all others stay as they are. Batch norm and dropout are kept. Weights of the
    original load into the copy with ``strict=False``: only the new activations' own parameters are missing.

    Parameters
    ----------
    model : Module
        A ReLU network; it is not changed.
    activation : {"ceiling", "channel_ceiling", "relu"} or callable
        What takes the ReLUs' place: see :func:`make_activation`.
    example_input : Tensor, optional
        A batch ``[N, ...]`` for the network, from which the number of channels at each activation is read;
        ``channel_ceiling`` and others with one ceiling a channel need it.

    Raises
    ------
    ConversionError
        If a ReLU can't be replaced, because tracing its module's ``forward`` fails or what that computes depends on
        ``training``; the message names every such module. Also if there is no ReLU.
    ValueError
        If there is no activation of that name, or the number of channels is needed and can't be read.
    """
    make_activation(activation, channels=1)
    model = checks.network("model", model, rewritten=True)
    if example_input is not None:
        checks.images("example_input", example_input)
    model = copy.deepcopy(model, computed_tensors(model))
    rewritten: dict[nn.Module, nn.Module] = {}
    called: set[nn.Module] = set()
    idle: set[nn.Module] = set()
    obstacles = []
    for path, module in model.named_modules():
        # What torch.nn itself provides calls no ReLU, except through a child.
        if type(module).__module__.startswith("torch.nn."):
            continue
        try:
            graph = _traced(module, training=True)
            if graph is None:
                continue
            relus = {child for child in module.children() if isinstance(child, _RELUS)}
            calls = {module.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
            called |= calls
            idle |= relus - calls
            if _give_own_relus(module, graph):
                rewritten[module] = _graph_module(module, graph)
        except _NotReplaced as reason:
            obstacles.append(f"\n  - {type(module).__name__} ({path or 'the network itself'}): {reason}.")
    if obstacles:
        raise ConversionError(f"the activations of this network can't be replaced:{''.join(obstacles)}")
    for parent, name, child in _children(model):
        if child in rewritten:
            setattr(parent, name, rewritten[child])
    # A ReLU that nothing calls would get a ceiling that nothing trains.
    return _swapped(rewritten.get(model, model), idle - called, activation, example_input)


class _NotReplaced(Exception):  # noqa: N818 - a reason, not an error
    """Why a module's activations can't be replaced."""


class _OwnForward(fx.Tracer):
    """Trace a module's own ``forward``; everything that it calls is one node, and options keep their defaults."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # Options are often asked about, as in `if mask is not None`, which a traced value would answer wrongly.
        required = [
            parameter.name
            for parameter in list(inspect.signature(root_fn).parameters.values())[1:]
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in required)]


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Go through every place where a module is held, also by the second name of a shared one."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                yield parent, name, child


def _give_own_relus(module: nn.Module, graph: fx.Graph) -> bool:
    """Change the graph of a module's ``forward`` so that each ReLU is a child called once; False if it is so."""
    seen: set[object] = set()
    others = []
    for node in graph.nodes:
        if _is_relu(node, module):
            if node.op != "call_module" or node.target in seen:
                others.append(node)
            seen.add(node.target)
    if not others:
        return False
    _replace_dropouts(module, graph)
    for node in others:
        if not node.users:
            raise _NotReplaced(f"it calls {node.name} for its effect on its argument; use what it returns instead")
        _replace(graph, node, module, nn.ReLU())
    graph.lint()
    return True


def _traced(module: nn.Module, *, training: bool) -> fx.Graph | None:
    """Trace a module's own ``forward``; None if that fails and no ReLU is at stake."""
    flag = module.training
    module.training = training
    try:
        return _OwnForward().trace(module)
    except Exception as error:
        if _may_call_relus(module):
            raise _NotReplaced(
                f"its forward() can't be traced ({type(error).__name__}: {error}), so its ReLUs can't be told apart; "
                "make each an nn.ReLU of its own, or leave out what depends on the values of activations"
            ) from error
        return None
    finally:
        module.training = flag


def _may_call_relus(module: nn.Module) -> bool:
    """Say whether a class's code may call a ReLU otherwise than as ``self.NAME``, named once."""
    methods = inspect.getmembers(type(module), inspect.isfunction)
    names: Counter[str] = Counter()
    for name, method in methods:
        if name == "__init__" or method is getattr(nn.Module, name, None):
            continue
        for before, instruction in pairwise(dis.get_instructions(method)):
            called = instruction.argval
            if isinstance(called, str) and "relu" in called.lower():
                owner = before.argval[-1] if isinstance(before.argval, tuple) else before.argval
                names[called] += 1 if owner == "self" and isinstance(module._modules.get(called), _RELUS) else 2
    return any(number > 1 for number in names.values())


def _is_relu(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _RELUS)
    names = {"call_function": _RELU_FUNCTIONS, "call_method": _RELU_METHODS}
    return node.target in names.get(node.op, ())


def _replace_dropouts(module: nn.Module, graph: fx.Graph) -> None:
    """Make modules of the dropouts that ``forward`` switches by ``self.training``, which a graph can't ask."""
    other = _traced(module, training=False)
    if other is None or len(other.nodes) != len(graph.nodes):
        raise _NotReplaced("its forward() takes another way in training; branch on self.training in a child instead")
    pairs = zip(graph.nodes, other.nodes, strict=True)
    for node in [node for node, twin in pairs if _described(node) != _described(twin)]:
        if node.target not in _DROPOUTS:
            raise _NotReplaced(f"{node.name} computes something else in training; make it a child module")
        options = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
        _replace(graph, node, module, _DROPOUTS[node.target](options.get("p", 0.5)))


def _described(node: fx.Node) -> tuple[object, ...]:
    return node.op, node.target, str(node.args), str(node.kwargs)


def _replace(graph: fx.Graph, node: fx.Node, module: nn.Module, child: nn.Module) -> None:
    """Let a new child of the module compute what a node computes."""
    name, number = type(child).__name__.lower(), 0
    while hasattr(module, f"{name}_{number}"):
        number += 1
    module.add_module(f"{name}_{number}", child.train(module.training))
    with graph.inserting_before(node):
        call = graph.call_module(f"{name}_{number}", (node.all_input_nodes[0],))
    node.replace_all_uses_with(call)
    graph.erase_node(node)


def _graph_module(module: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    result = fx.GraphModule(module, graph, class_name=type(module).__name__)
    # Its constructor keeps only what the graph reads; the rest, such as an unused head, belongs to the state as well.
    result.__dict__.update({name: module.__dict__[name] for name in _STATE})
    return result


def _swapped(model: nn.Module, idle: set[nn.Module], activation: Activation, example_input: Tensor | None) -> nn.Module:
    places = []
    for parent, name, child in _children(model):
        if isinstance(child, _RELUS) and child not in idle:
            # One of its own in each place, so that the channels seen are those of the place.
            places.append((parent, name, nn.ReLU()))
            setattr(parent, name, places[-1][2])
    if not places:
        raise ConversionError("this network has no ReLU: there is nothing to replace.")
    channels = {} if example_input is None else _channels(model, [relu for _, _, relu in places], example_input)
    paths = {module: path for path, module in model.named_modules()}
    for parent, name, relu in places:
        if needs_channels(activation) and relu not in channels:
            reason = "give an example_input" if example_input is None else "it does not run in evaluation mode"
            raise ValueError(f"the number of channels at the ReLU {paths[relu]!r} is not known: {reason}.")
        shape, dimension = channels.get(relu, (None, 1))
        made = make_activation(activation, None if shape is None else shape[dimension]).to(device_of(model))
        if needs_channels(activation) and shape is not None and dimension != 1:
            made = ChannelsElsewhere(made, dimension, len(shape))
        setattr(parent, name, made.train(parent.training))
    return model


@torch.no_grad()
def _channels(
    model: nn.Module, relus: list[nn.Module], example_input: Tensor
) -> dict[nn.Module, tuple[torch.Size, int]]:
    """Run a batch through the network and note the shape of what arrives at each ReLU, and where its channels are."""
    found: dict[nn.Module, torch.Size] = {}

    def note(relu: nn.Module, inputs: tuple[Any, ...]) -> None:
        found[relu] = inputs[0].shape

    handles = [relu.register_forward_pre_hook(note) for relu in relus]
    try:
        with eval_mode(model):
            model(example_input.to(device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    dimensions: dict[str, int] = {}
    # Dimension 1, unless the network is known to have them elsewhere.
    if any(len(shape) > 2 for shape in found.values()):
        graph, obstacles = try_normalise(model, example_input)
        if graph is not None and not obstacles:
            dimensions = {name: site.node.meta["channels"] for name, site in find_sites(graph).items()}
    names = {module: path.replace(".", "_") for path, module in model.named_modules()}
    return {relu: (shape, dimensions.get(names[relu], 1)) for relu, shape in found.items()}
