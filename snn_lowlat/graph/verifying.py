"""Whether a network has values to convert, and whether its normal form computes the same; if not, why not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat.graph.obstacles import Obstacle
from snn_lowlat.graph.tracer import SignatureError

__all__ = ["differences", "overflows", "reference_dtype", "trace_obstacle", "unusable_images"]

_LARGEST_DIFFERENCE = {torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
"""How far outputs may lie apart, as a part of the largest, in numbers of few bits; 0.001 in all others."""


def reference_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the type of a network's weights; None if it has none."""
    values = (value for value in chain(model.parameters(), model.buffers()) if value.is_floating_point())
    return next((value.dtype for value in values), None)


def unusable_images(example_input: Tensor) -> list[Obstacle]:
    """Say whether the example input has NaN or infinite values."""
    if _is_finite(example_input):
        return []
    advice = "the first images contain NaN or infinity: mend the data or its normalisation"
    return [Obstacle("input", "the example input", advice)]


def trace_obstacle(model: nn.Module, example_input: Tensor, error: Exception) -> Obstacle:
    """Say why a network can't be traced."""
    dtype = reference_dtype(model)
    advice = "check that the network runs on the example input in evaluation mode"
    if isinstance(error, SignatureError):
        return Obstacle("forward", str(error), "wrap the network in a module whose forward() takes one tensor")
    if isinstance(error, RuntimeError) and dtype is not None and dtype != example_input.dtype:
        advice = f"images are {_short(example_input.dtype)} and weights {_short(dtype)}: make them of one type"
    elif "does not support item assignment" in str(error):
        advice = (
            "it assigns to a part of a tensor: build that tensor by torch.cat or F.pad, or multiply by a constant mask"
        )
    elif isinstance(error, NameError):
        advice = "forward() uses what is no part of the network, perhaps another one's layers: give it its own"
    elif isinstance(error, (fx.proxy.TraceError, TypeError)):
        advice = "rewrite forward() so that it does not depend on the values of activations, and takes one tensor"
    return Obstacle("forward", f"tracing stopped: {type(error).__name__}: {error}", advice)


def overflows(root: nn.Module, traced: fx.Graph) -> list[Obstacle]:
    """Name the weights that are NaN or infinite; else the first operation that makes the network's output so.

    Parameters
    ----------
    root : Module
        The module that was traced.
    traced : Graph
        Its graph, with a ``value`` in each node's ``meta``.
    """
    obstacles = []
    for name, value in dict(_weights_read(root, traced)).items():
        if not _is_finite(value):
            count = int((~value.isfinite()).sum())
            advice = f"{count} of its {value.numel()} values are NaN or infinite: the training has diverged"
            obstacles.append(Obstacle(name, f"the weight {name!r}", advice))
    output = next(node for node in traced.nodes if node.op == "output")
    if obstacles or all(_is_finite(node.meta.get("value")) for node in output.all_input_nodes):
        return obstacles
    for node in traced.nodes:
        if node.op not in ("placeholder", "output") and not _is_finite(node.meta.get("value")):
            if node.op == "call_module":
                operation = f"{type(root.get_submodule(str(node.target))).__name__} ({node.target})"
            else:
                operation = f"{node.name} (in {node.meta.get('scope') or 'forward()'})"
            advice = (
                "its output has NaN or infinite values on the first images, which then reach the logits: look for "
                "weights or running statistics that are too large, or for a variance that is not positive"
            )
            return [Obstacle(node.name, operation, advice)]
    return []


def _weights_read(root: nn.Module, traced: fx.Graph) -> Iterator[tuple[str, Tensor]]:
    for node in traced.nodes:
        target = str(node.target)
        if node.op == "call_module":
            yield from root.get_submodule(target).named_parameters(target)
            yield from root.get_submodule(target).named_buffers(target)
        elif node.op == "get_attr" and isinstance(node.meta.get("value"), nn.Parameter):
            yield target, node.meta["value"]


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(value.isfinite().all())


@torch.no_grad()
def differences(model: nn.Module, graph: fx.GraphModule, example_input: Tensor, traced: fx.Graph) -> list[Obstacle]:
    """Compare the normal form with the network itself, for two batch sizes.

    Parameters
    ----------
    model : Module
        The network, in evaluation mode, without hooks.
    graph : GraphModule
        Its normal form.
    example_input : Tensor
        Two images, ``[2, ...]``.
    traced : Graph
        The network as it was traced.
    """
    tolerance = max(_LARGEST_DIFFERENCE.get(dtype, 1e-3) for dtype in {example_input.dtype, *_dtypes(traced)})
    for batch in (example_input, example_input[[0, 1, 0]]):
        place = f"for a batch of {len(batch)}"
        try:
            expected = model(batch.clone())
        except Exception as error:
            reason = f"the network itself fails {place}: {type(error).__name__}: {error}"
            return [Obstacle("output", reason, "write it so that it takes batches of any size")]
        try:
            found = graph(batch.clone())
        except RuntimeError as error:
            reason = f"the rewritten network fails {place}: {error}"
            return [Obstacle("output", reason, _why(model, graph, batch, example_input, traced))]
        if not _agree(found, expected, tolerance) and not _agree_in_double(model, graph, batch):
            reason = f"the rewritten network computes something else {place}"
            return [Obstacle("output", reason, _why(model, graph, batch, example_input, traced))]
    return []


def _agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    found, expected = (value.to(torch.promote_types(value.dtype, torch.float32)) for value in (found, expected))
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max()) + 1e-6


def _agree_in_double(model: nn.Module, graph: fx.GraphModule, batch: Tensor) -> bool:
    """Compare with more bits, if values are rounded: those at the edge of a level may fall on either side."""
    if not any(node.target is torch.floor for node in graph.graph.nodes):
        return False
    try:
        expected, found = (copy.deepcopy(network).double()(batch.double()) for network in (model, graph))
    except RuntimeError:  # what casts to another type by itself
        return False
    return _agree(found, expected, 1e-3)


def _why(model: nn.Module, graph: fx.GraphModule, batch: Tensor, example_input: Tensor, traced: fx.Graph) -> str:
    first, second = (model(batch.clone()) for _ in range(2))
    if not torch.equal(first, second):
        return (
            "the network gives another output each time it is called on the same images: look for dropout or noise "
            "that stays active in evaluation mode, or for a state that each call changes"
        )
    if len(batch) != len(example_input):
        return "it is right for another batch size: look for a tensor made with the batch's size, or a fixed size"
    changes = [node.name for node in traced.nodes if node.meta.get("changed")]
    if changes:
        return f"look for values that are read again after an in-place operation has changed them: {', '.join(changes)}"
    return (
        "no reason was found, neither in-place operations nor randomness: look for code in forward() that depends on "
        "the values of its input, or that works outside torch"
    )


def _dtypes(traced: fx.Graph) -> Iterator[torch.dtype]:
    values = (node.meta.get("value") for node in traced.nodes)
    return (value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point())


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
