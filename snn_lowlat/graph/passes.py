"""Rewrites of a network in normal form that leave what it computes as it is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from snn_lowlat.graph.channels import channel_dimensions
from snn_lowlat.graph.sites import BATCH_NORMS, find_sites
from snn_lowlat.graph.vocabulary import module_of, modules

__all__ = ["fold_batch_norms", "without_ceilings"]

_FOLDS_NORMS = modules(folds_norm=True)
_TRANSPOSED = modules("transposed convolution")


def fold_batch_norms(graph: fx.GraphModule, example: Tensor) -> None:
    """Fold each batch norm into the convolution or linear layer before it, where that layer feeds nothing else.

    Permutations may lie between the two. A batch norm that follows anything else, or that normalises another dimension
    than the one with the layer's channels, stays: in evaluation mode it is an affine layer.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form; rewritten in place.
    example : Tensor
        A batch for it, ``[N, ...]``.
    """
    channels = channel_dimensions(graph, example)
    for node in list(graph.graph.nodes):
        norm = module_of(graph, node)
        if not isinstance(norm, BATCH_NORMS):
            continue
        before, dimension = node.all_input_nodes[0], 1
        while before.target == "permute" and len(before.users) == 1:
            before, dimension = before.all_input_nodes[0], int(str(before.args[1 + dimension]))
        layer = module_of(graph, before)
        if len(before.users) != 1 or not isinstance(layer, _FOLDS_NORMS):
            continue
        if channels[before] != dimension:
            continue
        fused: Any
        if isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            fused = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _TRANSPOSED))
        setattr(graph, str(before.target), fused.eval())
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.graph.erase_node(node)
    _finish(graph)


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


def _finish(graph: fx.GraphModule) -> None:
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
