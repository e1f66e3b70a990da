"""Rewrites of a network in normal form that leave what it computes as it is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from snn_lowlat.graph.names import free_name
from snn_lowlat.graph.obstacles import Obstacle
from snn_lowlat.graph.sites import BATCH_NORMS, MAX_POOLS, find_sites

__all__ = ["fold_batch_norms", "move_max_pools", "without_ceilings"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def fold_batch_norms(graph: fx.GraphModule) -> None:
    """Fold each batch norm into the convolution or linear layer before it, where that layer feeds nothing else.

    A batch norm that follows anything else stays: in evaluation mode it is an affine layer.
    """
    for node in list(graph.graph.nodes):
        norm = _module(graph, node)
        if not isinstance(norm, BATCH_NORMS):
            continue
        before = node.all_input_nodes[0]
        layer = _module(graph, before)
        if len(before.users) != 1 or not isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
            continue
        fused: Any
        if isinstance(layer, nn.Linear):
            if norm.num_features != layer.out_features:
                continue
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            fused = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _TRANSPOSED))
        setattr(graph, str(before.target), fused.eval())
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    _finish(graph)


def move_max_pools(graph: fx.GraphModule) -> list[Obstacle]:
    """Put each max-pool that follows activations before them, so that currents are pooled and not spikes.

    Through a concatenation it moves into every branch. A site that something else reads too keeps its place, and the
    pooled currents get neurons of their own.

    Returns
    -------
    list of Obstacle
        The max-pools that read activations in another way, such as their sum: on spikes they would overestimate.
    """
    obstacles = []
    for node in list(graph.graph.nodes):
        pool = _module(graph, node)
        if not isinstance(pool, MAX_POOLS):
            continue
        pooled = _pool_before(graph, node, pool, node.all_input_nodes[0], alone=True)
        if pooled is not None:
            node.replace_all_uses_with(pooled)
            graph.graph.erase_node(node)
            graph.graph.eliminate_dead_code()
        elif _reads_spikes(graph, node.all_input_nodes[0]):
            obstacles.append(
                Obstacle(
                    node.name,
                    f"{type(pool).__name__} ({node.target})",
                    "it takes the maximum over sums of spikes, which overestimates: put it right after a ReLU or a "
                    "layer with weights, or use average pooling",
                )
            )
    _finish(graph)
    return obstacles


def without_ceilings(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a network with plain ReLUs: spiking neurons clip by their thresholds, and round anyway."""
    graph = copy.deepcopy(graph)
    for site in find_sites(graph).values():
        if site.rest:
            constants = [part.args[1] for part in site.rest if part.target is not torch.floor]
            site.output.replace_all_uses_with(site.node)
            for node in reversed(site.rest):
                graph.graph.erase_node(node)
            for constant in constants:
                if isinstance(constant, fx.Node) and not constant.users:
                    graph.graph.erase_node(constant)
                    delattr(graph, str(constant.target))
    graph.graph.eliminate_dead_code()
    _finish(graph)
    return graph


def _pool_before(graph: fx.GraphModule, at: fx.Node, pool: nn.Module, node: fx.Node, alone: bool) -> fx.Node | None:
    """Return a node equal to ``pool(node)`` that pools before the activation; None if ``node`` is no activation.

    ``alone`` says that nothing but this pool reads the nodes between: if nothing else reads the site either, it moves.
    """
    sites = {site.output: site for site in find_sites(graph).values()}
    alone = alone and len(node.users) == 1
    if node in sites:
        site = sites[node]
        if alone:
            pooled = _call(graph, site.node, f"{site.name}_pool", copy.deepcopy(pool), site.current)
            site.node.args = (pooled,)
            return node
        pooled = _call(graph, at, f"{site.name}_pool", copy.deepcopy(pool), site.current)
        fired = _call(graph, at, f"{site.name}_pooled", nn.ReLU(), pooled)
        for part in site.rest:
            with graph.graph.inserting_before(at):
                fired = graph.graph.create_node(part.op, part.target, (fired, *part.args[1:]))
        return fired
    if node.target is torch.cat and node.args[1] == 1:
        branches: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
        moved = [_pool_before(graph, at, pool, branch, alone) for branch in branches]
        if any(branch is not None for branch in moved):
            rest = [
                new if new is not None else _call(graph, at, f"{at.target}_branch", copy.deepcopy(pool), old)
                for new, old in zip(moved, branches, strict=True)
            ]
            with graph.graph.inserting_before(at):
                return graph.graph.call_function(torch.cat, (rest, 1))
    return None


def _reads_spikes(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node's value comes from sites without a layer with weights between."""
    waiting, seen = [node], {node}
    while waiting:
        node = waiting.pop()
        module = _module(graph, node)
        if isinstance(module, nn.ReLU):
            return True
        if not isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, *BATCH_NORMS, nn.Linear)):
            waiting += [before for before in node.all_input_nodes if before not in seen]
            seen.update(node.all_input_nodes)
    return False


def _call(graph: fx.GraphModule, before: fx.Node, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
    unique = free_name(graph, name)
    graph.add_submodule(unique, module.eval())
    with graph.graph.inserting_before(before):
        return graph.graph.call_module(unique, (x,))


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _finish(graph: fx.GraphModule) -> None:
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
