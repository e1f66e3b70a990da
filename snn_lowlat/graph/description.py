"""A network in normal form as plain values, from which it can be built again without the code it was written in.

The normal form uses torch's own modules and functions only, so their names and options say all there is to say. Nothing
in a description is code: whoever reads one can get no other operation than those listed here.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat.graph.passes import without_ceilings
from snn_lowlat.graph.sites import find_sites

__all__ = ["describe", "fill", "rebuild"]

_MODULES: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.ReLU, nn.Upsample),
        *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    )
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(operator.add, operator.sub, operator.mul, operator.neg, operator.getitem),
        *(torch.cat, torch.clamp, torch.flatten, torch.mean, torch.reshape, torch.round),
    )
}
_METHODS = ("permute",)


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
        If the description names an operation that the normal form does not have, or weights are missing.
    RuntimeError
        If weights have other shapes than the description says.
    """
    root = nn.Module()
    with torch.device("meta"):
        for name, entry in description["modules"].items():
            root.add_module(name, _MODULES[entry["type"]](**entry["options"]))
    for name in description["buffers"]:
        root.register_buffer(name, torch.empty_like(weights[name], device="meta"))
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for entry in description["nodes"]:
        args = _decoded(entry["args"], nodes)
        op, target = entry["op"], entry["target"]
        if op == "call_function":
            target = _FUNCTIONS[target]
        elif op == "call_method" and target not in _METHODS:
            raise KeyError(target)
        if op == "output":
            graph.output(args[0])
        else:
            nodes[entry["name"]] = graph.create_node(op, target, args, name=entry["name"])
    graph.lint()
    network = fx.GraphModule(root, graph)
    fill(network, weights, share=share)
    return network.eval()


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


def _options(module: nn.Module) -> dict[str, Any]:
    """Read the arguments that a module of torch's was made with from its attributes of the same names."""
    kind = _MODULES[type(module).__name__]
    names = [name for name in inspect.signature(kind).parameters if name not in ("device", "dtype", "inplace")]
    options = {name: getattr(module, name) for name in names}
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


def _decoded(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, Mapping):
        ((kind, content),) = value.items()
        return nodes[content] if kind == "node" else slice(*content) if kind == "slice" else Ellipsis
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_decoded(entry, nodes) for entry in value)
    return value
