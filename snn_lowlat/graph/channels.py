"""Where the channels of a network's values are: asked here, and nowhere else.

Convolutions and batch norms have their channels in dimension 1, a linear layer over ``[N, L, C]`` or ``[N, H, W, C]``
has them in the last one, and permutations carry them elsewhere. Neurons, histograms and plans all count on dimension
1, so :func:`put_channels_first` lets every activation site read, and answer, with its channels there.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from snn_lowlat.graph.sites import WEIGHTED, find_sites
from snn_lowlat.graph.vocabulary import module_of

__all__ = ["channel_dimensions", "put_channels_first"]


def channel_dimensions(graph: fx.GraphModule, example: Tensor) -> dict[fx.Node, int]:
    """Return the dimension that holds the channels of each node's value, as the layers before it have put them.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    example : Tensor
        A batch for it, ``[N, ...]``: its shape counts. Each node's shape is left in its ``meta``.

    Returns
    -------
    dict of Node to int
        1 where no layer with weights says otherwise.
    """
    with torch.no_grad():
        # A process may have no image of its own.
        ShapeProp(graph).propagate(example[:2] if len(example) else example.new_zeros(2, *example.shape[1:]))
    known: dict[fx.Node, int | None] = {}
    for node in graph.graph.nodes:
        known[node] = _dimension(graph, node, known)
    return {node: 1 if dimension is None else dimension for node, dimension in known.items()}


def put_channels_first(graph: fx.GraphModule, example: Tensor) -> None:
    """Let every site have its channels in dimension 1: where they are elsewhere, it stands between two permutations.

    A site with a trained ceiling for each channel keeps its place: its ceilings have said where its channels are. Where
    the layers had them is left in the site's ``meta``, as ``"channels"``.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form; rewritten in place, and it computes the same.
    example : Tensor
        A batch for it, ``[N, ...]``.
    """
    dimensions = channel_dimensions(graph, example)
    for site in find_sites(graph).values():
        dimension, rank = dimensions[site.current], len(_shape(site.current) or ())
        site.node.meta["channels"] = dimension
        if dimension == 1 or (site.ceiling is not None and site.ceiling.dim() > 0):
            continue
        order = [0, dimension, *(d for d in range(1, rank) if d != dimension)]
        with graph.graph.inserting_before(site.node):
            first = _permuted(graph, site.current, order)
        site.node.replace_input_with(site.current, first)
        with graph.graph.inserting_after(site.output):
            back = graph.graph.call_method("permute", (site.output, *(order.index(d) for d in range(rank))))
        site.output.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)  # type: ignore[misc]
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def _permuted(graph: fx.GraphModule, node: fx.Node, order: Sequence[int]) -> fx.Node:
    """Add a permutation of a node; one that undoes the permutation before it is none at all."""
    while node.target == "permute":
        order = [int(str(node.args[1 + d])) for d in order]
        node = node.all_input_nodes[0]
    if list(order) == list(range(len(order))):
        return node
    return graph.graph.call_method("permute", (node, *order))


def _dimension(graph: fx.GraphModule, node: fx.Node, known: dict[fx.Node, int | None]) -> int | None:
    """Return where a node's channels are; None if no layer has said so."""
    shape = _shape(node)
    if node.op in ("placeholder", "get_attr") or shape is None:
        return None
    module = module_of(graph, node)
    if isinstance(module, WEIGHTED):
        return len(shape) - 1 if isinstance(module, nn.Linear) else 1
    read = [before for before in node.all_input_nodes if before.op != "get_attr" and known.get(before) is not None]
    if not read:
        return None
    # Of terms that are added, one of the sum's own shape says where its channels are.
    before = next((term for term in read if len(_shape(term) or ()) == len(shape)), read[0])
    dimension = known[before]
    assert dimension is not None
    if node.target == "permute":
        return list(node.args[1:]).index(dimension)
    if node.target in (torch.flatten, torch.reshape):
        return _reshaped(_shape(before) or (), shape, dimension)
    if node.target is torch.mean:
        averaged: Any = node.args[1]
        if len(node.args) > 2 and node.args[2]:
            return dimension
        return None if dimension in averaged else dimension - sum(d < dimension for d in averaged)
    if node.target is operator.getitem:
        return _indexed(node.args[1], len(_shape(before) or ()), dimension)
    return dimension if dimension < len(shape) else None


def _reshaped(before: Sequence[int], after: Sequence[int], dimension: int) -> int | None:
    """Return where a dimension is after a reshape: where it is whole, or else where its outermost part is."""
    outside = prod(before[1:dimension])
    starts = [prod(after[1:d]) for d in range(len(after))]
    whole = (d for d in range(1, len(after)) if starts[d] == outside and after[d] == before[dimension])
    parts = (d for d in range(1, len(after)) if starts[d] <= outside < starts[d] * after[d])
    return next(whole, next(parts, None))


def _indexed(index: Any, rank: int, dimension: int) -> int | None:
    """Return where a dimension is after indexing with slices, numbers, None and an ellipsis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (rank - taken)
    old, new = 0, 0
    for part in [*parts, *[slice(None)] * rank]:
        if part is not None and old == dimension:
            return new if isinstance(part, slice) else None
        old += part is not None
        new += part is None or isinstance(part, slice)
    return None


def _shape(node: fx.Node) -> torch.Size | None:
    return getattr(node.meta.get("tensor_meta"), "shape", None)
