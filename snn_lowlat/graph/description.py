"""A network in normal form as plain values, from which it can be built again without the code it was written in.

The normal form uses torch's own modules and functions only, so their names and options say all there is to say. Nothing
in a description is code, and nothing in it becomes code: whoever reads one, from whatever file, can get no other
operation than those listed here, on nothing but layers' outputs, numbers and slices, under names that are names.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat.graph.names import is_safe_name, safe_name, safe_names
from snn_lowlat.graph.passes import without_ceilings
from snn_lowlat.graph.sites import find_sites
from snn_lowlat.graph.vocabulary import OPERATIONS, functions

__all__ = ["describe", "fill", "rebuild", "with_safe_names"]

_MODULES = {operation.name: operation for operation in OPERATIONS if operation.is_module}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in functions(is_saved=True) if not isinstance(function, str)
}
_METHODS = tuple(method for method in functions(is_saved=True) if isinstance(method, str))
_LARGEST = 2**31 - 1
_DEEPEST = 3


def describe(graph: fx.GraphModule) -> dict[str, Any]:
    """Describe what a network in normal form computes, weights aside.

    Ceilings are left out: a spiking network has them in its thresholds.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.

    Returns
    -------
    dict
        ``nodes``, a list of operations in order, ``modules``, the options of each layer by its name, and ``buffers``,
        the names of constants: numbers, strings, lists and tuples only.
    """
    graph = without_ceilings(graph)
    nodes: list[dict[str, Any]] = []
    modules: dict[str, dict[str, Any]] = {}
    buffers: list[str] = []
    for node in graph.graph.nodes:
        target = node.target if isinstance(node.target, str) else node.target.__name__
        nodes.append({"op": node.op, "name": node.name, "target": target, "args": _encoded(node.args)})
        if node.op == "call_module":
            module = graph.get_submodule(target)
            modules[target] = {"type": type(module).__name__, "options": _options(module)}
        elif node.op == "get_attr":
            buffers.append(target)
    return {"nodes": nodes, "modules": modules, "buffers": buffers}


def rebuild(description: Mapping[str, Any], weights: Mapping[str, Tensor], *, share: bool = False) -> fx.GraphModule:
    """Build a network in normal form from its description and weights.

    Parameters
    ----------
    description : mapping
        What :func:`describe` returned.
    weights : mapping of str to Tensor
        The state of its layers and constants, by name.
    share : bool
        Use the weights as they are; otherwise they are copied.

    Returns
    -------
    GraphModule
        The network in evaluation mode, with the weights' device and type.

    Raises
    ------
    KeyError
        If weights are missing.
    RuntimeError
        If weights have other shapes than the description says.
    ValueError
        If the description says anything that no network in normal form has; the message names the layer.
    """
    root, graph, nodes = nn.Module(), fx.Graph(), dict[str, fx.Node]()
    entries, kinds = description["nodes"], [entry["op"] for entry in description["nodes"]]
    if kinds.count("placeholder") != 1 or kinds.count("output") != 1 or kinds[-1] != "output":
        raise ValueError("there must be one input, and one output at the end")
    with torch.device("meta"):
        for name, entry in description["modules"].items():
            root.add_module(_checked_name(name), _module(name, entry["type"], entry["options"]))
    for name in description["buffers"]:
        if name not in root._buffers:
            root.register_buffer(_checked_name(name), torch.empty_like(weights[name], device="meta"))
    for entry in entries:
        args = _decoded(entry["args"], nodes)
        op, target = entry["op"], entry["target"]
        if not _is_operation(op, target, args, description):
            raise ValueError(f"{entry['name']!r} is no operation of the normal form: {op!r} of {target!r}"[:200])
        if op == "output":
            graph.output(args[0])
        else:
            target = _FUNCTIONS[target] if op == "call_function" else target
            nodes[entry["name"]] = graph.create_node(op, target, args, name=safe_name(entry["name"]))
    for node in graph.nodes:
        if not node.users and node.op != "output":
            raise ValueError(f"{node.name} is computed, but nothing reads it")
    graph.lint()
    network = fx.GraphModule(root, graph)
    fill(network, weights, share=share)
    return network.eval()


def with_safe_names(description: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Give layers and constants names that are safe in a graph, as those in files of earlier versions may not be.

    Returns
    -------
    description : dict
        The same network.
    names : dict of str to str
        The new name of each layer and constant.

    Raises
    ------
    KeyError, TypeError, ValueError
        If it is no description.
    """
    kinds = {"nodes": list, "modules": dict, "buffers": list}
    if not all(isinstance(description[part], kind) for part, kind in kinds.items()):
        raise ValueError("its structure is none of operations, layers and constants")
    entries = [*description["nodes"], *description["modules"].values()]
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("its operations and layers are none")
    if not all(isinstance(entry[key], str) for entry in description["nodes"] for key in ("op", "name", "target")):
        raise ValueError("its operations have no names")
    names = safe_names(dict.fromkeys([*description["modules"], *description["buffers"]]))
    nodes = [
        {**entry, "target": names[entry["target"]]} if entry["op"] in ("call_module", "get_attr") else entry
        for entry in description["nodes"]
    ]
    modules = {names[name]: entry for name, entry in description["modules"].items()}
    return {"nodes": nodes, "modules": modules, "buffers": [names[name] for name in description["buffers"]]}, names


def fill(graph: fx.GraphModule, weights: Mapping[str, Tensor], *, share: bool = False) -> None:
    """Give a network in normal form these weights, or copies of them; ceilings and levels alone may be missing.

    Raises
    ------
    KeyError
        If weights are missing, or there are some that the network has no place for.
    RuntimeError
        If weights have other shapes.
    """
    # What was made in inference mode is no parameter outside it.
    shared = {name for name, value in weights.items() if share and not value.is_inference()}
    values = {name: value.detach() if name in shared else value.detach().clone() for name, value in weights.items()}
    found = graph.load_state_dict(values, strict=False, assign=True)
    of_activations = {
        str(read.target) for s in find_sites(graph).values() for n in s.rest for read in n.all_input_nodes
    }
    missing = [name for name in found.missing_keys if name not in of_activations]
    if missing or found.unexpected_keys:
        raise KeyError(f"weights {', '.join((missing or found.unexpected_keys)[:3])}")


def _checked_name(name: Any) -> str:
    if not is_safe_name(name):
        raise ValueError(f"{name!r} is no name of a layer"[:200])
    return str(name)


def _module(name: str, kind: Any, options: Mapping[str, Any]) -> nn.Module:
    if not isinstance(kind, str) or kind not in _MODULES or not options.keys() <= set(_parameters(kind)):
        raise ValueError(f"layer {name!r} is none of the normal form: {kind!r} with {list(options)}"[:200])
    for option, value in options.items():
        values = value if isinstance(value, (tuple, list)) else (value,)
        low = 1 if option in _MODULES[kind].positive else -math.inf
        words = _MODULES[kind].words.get(option, ())
        if not all(part >= low if _is_number(part) else part in (None, *words) for part in values):
            raise ValueError(f"layer {name!r} can't have {option}={value!r}"[:200])
    module: nn.Module = _MODULES[kind].target(**options)
    return module


@functools.cache
def _parameters(kind: str) -> list[str]:
    parameters = inspect.signature(_MODULES[kind].target).parameters
    return [name for name in parameters if name not in ("device", "dtype", "inplace")]


def _is_number(value: Any) -> bool:
    return math.isfinite(value) if type(value) is float else type(value) in (bool, int) and abs(value) <= _LARGEST


def _is_bound(value: Any) -> bool:
    return value is None or (type(value) is int and abs(value) < 2**63)


def _is_operation(op: Any, target: Any, args: tuple[Any, ...], description: Mapping[str, Any]) -> bool:
    """Say whether a node is one of the normal form: something known, of what other nodes have computed."""
    if op in ("placeholder", "get_attr"):
        return not args and (target == "input" if op == "placeholder" else target in description["buffers"])
    if op in ("call_module", "output"):
        known = target == "output" if op == "output" else target in description["modules"]
        return known and len(args) == 1 and isinstance(args[0], fx.Node)
    if op == "call_function" and target == "cat":
        return bool(args) and isinstance(args[0], tuple) and all(isinstance(part, fx.Node) for part in args[0])
    known = target in _FUNCTIONS if op == "call_function" else op == "call_method" and target in _METHODS
    return known and bool(args) and isinstance(args[0], fx.Node)


def _options(module: nn.Module) -> dict[str, Any]:
    """Read the arguments that a module of torch's was made with from its attributes of the same names."""
    options = {name: getattr(module, name) for name in _parameters(type(module).__name__)}
    if "bias" in options:
        options["bias"] = options["bias"] is not None
    return {name: _encoded(value) for name, value in options.items()}


def _encoded(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, slice):
        return {"slice": (value.start, value.stop, value.step)}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, (tuple, list)):
        return tuple(_encoded(entry) for entry in value)
    return value


def _decoded(value: Any, nodes: Mapping[str, fx.Node], depth: int = 0) -> Any:
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "node" and content in nodes:
            return nodes[content]
        if kind == "slice" and len(content) == 3 and all(map(_is_bound, content)):
            return slice(*content)
        if kind == "ellipsis":
            return Ellipsis
    if isinstance(value, (tuple, list)) and depth < _DEEPEST:
        return tuple(_decoded(entry, nodes, depth + 1) for entry in value)
    if value is None or _is_number(value):
        return value
    raise ValueError(f"{value!r} is no argument of an operation in normal form"[:200])
