"""Activations that people write out of several operations: clipped, and rounded to levels, as quantised networks have.

A quantiser is ``floor(clip(x / up) * L + 0.5) / L * up``, in any of its spellings: clipped before or after rounding, by
``floor`` or ``round``, with or without a straight-through estimator. In the normal form each is a site with a ceiling
and levels; see :mod:`snn_lowlat.graph.normal_form`.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat.graph.names import free_name
from snn_lowlat.graph.obstacles import Obstacle
from snn_lowlat.graph.sites import find_sites
from snn_lowlat.graph.vocabulary import functions, module_of

__all__ = ["recognise_levels", "separate_ceilings"]

_LINEAR = functions("sum", "factor")
_MOST_LEVELS = 2**16


def separate_ceilings(graph: fx.GraphModule) -> None:
    """Give activations that are read both clipped and as they are, or with two ceilings, a site for each."""
    for node in list(graph.graph.nodes):
        if not _is_relu(graph, node):
            continue
        clips = [user for user in node.users if user.target is torch.minimum]
        keep_plain = len(clips) != len(node.users)
        for clip in clips if keep_plain else clips[1:]:
            name = free_name(graph, f"{node.target}_clipped")
            graph.add_submodule(name, nn.ReLU().eval())
            with graph.graph.inserting_before(clip):
                own = graph.graph.call_module(name, (node.args[0],))
            clip.replace_input_with(node, own)
    graph.recompile()


def recognise_levels(graph: fx.GraphModule) -> list[Obstacle]:
    """Write quantised activations as sites with levels, and take scales off sites that are scaled back behind.

    Returns
    -------
    list of Obstacle
        The operations that round something else.
    """
    floors = [node for node in graph.graph.nodes if node.target is torch.floor and not node.meta.get("written")]
    if floors:
        _cancel_straight_through(graph)
    obstacles = []
    for node in floors:
        if node.users and not _write_as_site(graph, node):
            advice = (
                "rounding is understood only of a clipped activation, as in "
                "floor(clamp(x / up, 0, 1) * L + 0.5) / L * up with a whole number of levels L"
            )
            obstacles.append(Obstacle(node.name, str(node.meta.get("described", node.name)), advice))
    for site in find_sites(graph).values():
        _take_off_scale(graph, site.node)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    for name in set(dict(graph.named_buffers(recurse=False))) - {str(n.target) for n in graph.graph.nodes}:
        delattr(graph, name)
    graph.recompile()
    return obstacles


@dataclass(frozen=True)
class _Affine:
    """``factor * base + shift``; numbers, or tensors with one value a channel."""

    base: fx.Node
    factor: Any
    shift: Any


def _affine(graph: fx.GraphModule, node: fx.Node) -> _Affine:
    """Follow sums with and products by constants back to what is neither."""
    factor: Any = 1.0
    shift: Any = 0.0
    while node.target in _LINEAR:
        if node.target is operator.neg:
            node, factor = node.args[0], -factor  # type: ignore[assignment]
            continue
        first, second = node.args
        constants = [_constant(graph, argument) for argument in (first, second)]
        if (constants[0] is None) == (constants[1] is None):
            break
        constant, reads = (constants[1], first) if constants[0] is None else (constants[0], second)
        if node.target is operator.mul:
            factor = factor * constant
        elif node.target is operator.add:
            shift = shift + factor * constant
        elif constants[0] is None:
            shift = shift - factor * constant
        else:
            shift, factor = shift + factor * constant, -factor
        node = reads  # type: ignore[assignment]
    return _Affine(node, factor, shift)


def _cancel_straight_through(graph: fx.GraphModule) -> None:
    """Replace ``x + (floor(x) - x)``, which people write for its gradient, by ``floor(x)``."""
    forms: dict[fx.Node, tuple[dict[fx.Node, Any], Any]] = {}
    for node in list(graph.graph.nodes):
        forms[node] = terms, constant = _linear_form(graph, node, forms)
        if len(terms) < 2 or node.target not in functions("sum"):
            continue
        left = {base: factor for base, factor in terms.items() if not _is_zero(factor)}
        if len(left) != 1 or len(left) == len(terms) or not _is_zero(constant):
            continue
        ((base, factor),) = left.items()
        with graph.graph.inserting_before(node):
            new = base if _is_one(factor) else graph.graph.call_function(operator.mul, (base, _argument(graph, factor)))
        node.replace_all_uses_with(new)
        forms[new] = left, 0.0
    graph.graph.eliminate_dead_code()


def _linear_form(
    graph: fx.GraphModule, node: fx.Node, forms: dict[fx.Node, tuple[dict[fx.Node, Any], Any]]
) -> tuple[dict[fx.Node, Any], Any]:
    """Return by what factor each node goes into a sum that involves rounding, and the constant."""
    alone: tuple[dict[fx.Node, Any], Any] = ({node: 1.0}, 0.0)
    if node.target not in _LINEAR or len(node.args) > 2:
        return alone
    parts = []
    for argument in node.args:
        constant = _constant(graph, argument)
        parts.append(forms[argument] if constant is None else ({}, constant))  # type: ignore[index]
    if node.target is operator.neg:
        parts, sign = [({}, 0.0), *parts], -1.0
    elif node.target is operator.mul:
        (first, first_constant), (second, second_constant) = parts
        if first and second:
            return alone
        terms, scale = (first, second_constant) if first else (second, first_constant)
        return {base: factor * scale for base, factor in terms.items()}, first_constant * second_constant
    else:
        sign = 1.0 if node.target is operator.add else -1.0
    terms = dict(parts[0][0])
    for base, factor in parts[1][0].items():
        terms[base] = terms.get(base, 0.0) + sign * factor
    if len(terms) > 8:  # no straight-through estimator, and long sums would cost much
        return alone
    return terms, parts[0][1] + sign * parts[1][1]


def _write_as_site(graph: fx.GraphModule, floor: fx.Node) -> bool:
    """Write ``floor(factor * clip + shift)`` as a site with levels; say whether it is one."""
    inside = _affine(graph, floor.all_input_nodes[0])
    after = next(iter(floor.users))
    shape = inside.base.meta.get("shape", ())
    if inside.base.target is torch.minimum:
        ceiling, end = _constant(graph, inside.base.args[1]), floor
        site = inside.base.all_input_nodes[0]
        if len(inside.base.users) > 1 or len(site.users) > 1:
            site = _twin(graph, site)
        source, scale = _unscaled(graph, site.all_input_nodes[0])
    elif len(floor.users) == 1 and _is_relu(graph, after):
        # Clipped after it was rounded: the same, if both bounds are whole numbers.
        end = next((user for user in after.users if user.target is torch.minimum), after)
        if end is after or len(after.users) != 1 or not _is_positive(inside.factor):
            return False
        ceiling, site, source, scale = _constant(graph, end.args[1]) / inside.factor, after, inside.base, 1.0
        if _is_relu(graph, source):
            source, scale = _unscaled(graph, source.all_input_nodes[0])
    else:
        return False
    # floor(factor * clip(scale * x, 0, ceiling) + shift) = floor(factor * scale * clip(x, 0, ceiling / scale) + shift)
    inverse_step, ceiling = inside.factor * scale, ceiling / scale
    if not _is_positive(inverse_step) or not all(_by_channel(value, shape) for value in (inverse_step, ceiling)):
        return False
    counts, shifts = _tensor(inverse_step * ceiling).flatten(), _tensor(inside.shift).flatten()
    levels, shift = int(counts[0].round()), float(shifts[0])
    if not bool(((counts - levels).abs() <= 1e-3).all()) or not 1 <= levels <= _MOST_LEVELS:
        return False
    if not _is_zero(shifts - shift) or not 0 <= shift < 1:
        return False
    # What follows the rounding as a factor is, in full or in part, the step.
    step, worth = 1 / inverse_step, 1.0
    while len(end.users) == 1:
        (user,) = end.users
        factor = next((f for f in (_constant(graph, argument) for argument in user.args) if f is not None), None)
        if user.target is not operator.mul or factor is None:
            break
        worth, end = worth * factor, user
    name = str(site.target)
    with graph.graph.inserting_before(end):
        activation = graph.graph.call_module(name, (source,))
        clipped = _call(graph, torch.minimum, activation, _buffer(graph, f"{name}_ceiling", _tensor(ceiling)))
        scaled = _call(graph, operator.mul, clipped, _argument(graph, inverse_step, f"{name}_inverse_step"))
        levelled = _call(graph, torch.floor, _call(graph, operator.add, scaled, shift))
        output = _call(graph, operator.mul, levelled, _argument(graph, step, f"{name}_step"))
        if not _is_one(worth / step):
            output = _call(graph, operator.mul, output, _argument(graph, worth / step, f"{name}_worth"))
    end.replace_all_uses_with(output)
    graph.graph.eliminate_dead_code()
    return True


def _unscaled(graph: fx.GraphModule, current: fx.Node) -> tuple[fx.Node, Any]:
    """Return what a positive constant factor is applied to, and the factor."""
    found = _affine(graph, current)
    positive = _is_zero(found.shift) and _is_positive(found.factor)
    source, scale = (found.base, found.factor) if positive else (current, 1.0)
    return (source.all_input_nodes[0], scale) if _is_relu(graph, source) else (source, scale)


def _by_channel(value: Any, shape: tuple[int, ...]) -> bool:
    """Say whether a constant is one number, or one for each channel of values of this shape."""
    value = _tensor(value)
    if value.numel() == 1:
        return True
    aligned = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
    return len(shape) > 1 and aligned == (1, shape[1], *[1] * (len(shape) - 2))


def _take_off_scale(graph: fx.GraphModule, relu: fx.Node) -> None:
    """Write ``clip(x / up, 0, 1) * up`` as ``clip(x, 0, up)``."""
    current = _affine(graph, relu.all_input_nodes[0])
    shape = current.base.meta.get("shape", ())
    clips = [user for user in relu.users if user.target is torch.minimum]
    if current.base is relu.all_input_nodes[0] or len(clips) != 1 or len(relu.users) != 1:
        return
    readers = list(clips[0].users)
    factors = [_affine(graph, user) for user in readers]
    if not _is_zero(current.shift) or not _is_positive(current.factor) or not _by_channel(current.factor, shape):
        return
    if not all(f.base is clips[0] and _is_zero(f.shift) and _is_one(f.factor * current.factor) for f in factors):
        return
    ceiling = _tensor(_constant(graph, clips[0].args[1]) / current.factor)
    relu.args = (current.base,)
    with graph.graph.inserting_before(clips[0]):
        clips[0].args = (relu, _buffer(graph, f"{relu.target}_ceiling", ceiling))
    for user in readers:
        user.replace_all_uses_with(clips[0])
    graph.graph.eliminate_dead_code()


def _twin(graph: fx.GraphModule, site: fx.Node) -> fx.Node:
    """Give who reads an activation in another way a site of its own."""
    name = free_name(graph, f"{site.target}_rounded")
    graph.add_submodule(name, nn.ReLU().eval())
    with graph.graph.inserting_after(site):
        return graph.graph.call_module(name, site.args)


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(module_of(graph, node), nn.ReLU)


def _constant(graph: fx.GraphModule, argument: Any) -> Any:
    """Return a number or constant tensor; None for what is computed from the input."""
    if isinstance(argument, fx.Node):
        return operator.attrgetter(str(argument.target))(graph).detach() if argument.op == "get_attr" else None
    return argument


def _call(graph: fx.GraphModule, target: Any, *args: Any) -> fx.Node:
    return graph.graph.call_function(target, args)


def _argument(graph: fx.GraphModule, value: Any, name: str = "constant") -> Any:
    tensor = _tensor(value)
    return float(tensor) if tensor.numel() == 1 else _buffer(graph, name, tensor)


def _buffer(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    name = free_name(graph, name)
    if value.numel() == 1:
        value = value.reshape(())
    elif value.shape[0] == 1:
        value = value[0]
    reference = next((v for v in (*graph.parameters(), *graph.buffers()) if v.is_floating_point()), value)
    graph.register_buffer(name, value.to(reference))
    return graph.graph.get_attr(name)


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value)


def _is_zero(value: Any) -> bool:
    return bool((_tensor(value).abs() <= 1e-6).all())


def _is_one(value: Any) -> bool:
    return bool(((_tensor(value) - 1).abs() <= 1e-6).all())


def _is_positive(value: Any) -> bool:
    return bool((_tensor(value) > 0).all())
