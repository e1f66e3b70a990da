"""Where max-pools stand in the normal form: before the neurons, so that they pool currents."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat.graph.names import free_name
from snn_lowlat.graph.sites import BATCH_NORMS, WEIGHTED, find_sites
from snn_lowlat.graph.vocabulary import keeps_signs, module_of, modules
from snn_lowlat.neurons.max_pool import MAX_POOLS, is_cumulative, per_step

__all__ = ["move_max_pools", "with_per_step_max_pools"]

_PADS = modules("pad")


def move_max_pools(graph: fx.GraphModule) -> None:
    """Put each max-pool that follows activations before them, so that currents are pooled and not spikes.

    - ``max(relu(z)) = relu(max(z))``. Through a concatenation the pool moves into every branch. A site that something
      else reads too keeps its place, and the pooled currents get neurons of their own.
    - Through a batch norm it moves with the sign of each channel's scale: ``max(-y) = -min(y)``, and
      ``min(relu(z)) = relu(-max(-z))``.
    - Padding moves with it: after an activation, padded zeros are what neurons without input send.
    - What reads activations in another way, such as their sum or average, is pooled as a current, and gets neurons
      where a layer with weights would read it: values that are never negative are what a ReLU leaves as they are.
    """
    for node in list(graph.graph.nodes):
        pool = module_of(graph, node)
        if not isinstance(pool, MAX_POOLS):
            continue
        read = node.all_input_nodes[0]
        pooled = _pool_before(graph, node, _Pooling(pool), read, alone=True)
        if pooled is not None:
            node.replace_all_uses_with(pooled)
            graph.graph.erase_node(node)
            graph.graph.eliminate_dead_code()
        elif _is_read_by_weights(graph, node) and read in _never_negative(graph):
            name = free_name(graph, f"{node.target}_neurons")
            graph.add_submodule(name, nn.ReLU().eval())
            with graph.graph.inserting_after(node):
                neurons = graph.graph.call_module(name, (node,))
            node.replace_all_uses_with(neurons, delete_user_cb=lambda user, new=neurons: user is not new)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()


def with_per_step_max_pools(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a network in normal form whose max-pools pool each step's currents, for comparison."""
    graph = copy.deepcopy(graph)
    for name, module in list(graph.named_modules()):
        if is_cumulative(module):
            graph.set_submodule(name, per_step(module).eval())
    return graph


@dataclass(frozen=True, eq=False)
class _Pooling:
    """A max-pool on its way through a network, and what it takes along.

    Attributes
    ----------
    pool : Module
        The pool.
    pads : tuple of Module
        What pads its input, in order.
    signs : Tensor or None
        1 and -1 for each channel, ``[C]``: with -1 the pool takes the minimum. None where all are 1.
    """

    pool: nn.Module
    pads: tuple[nn.Module, ...] = ()
    signs: Tensor | None = None

    def call(self, graph: fx.GraphModule, before: fx.Node, name: str, x: fx.Node) -> fx.Node:
        """Pool a node, with the calls before another node of the graph."""
        for pad in self.pads:
            x = _call(graph, before, f"{name}_pad", copy.deepcopy(pad), x)
        x = self._signed(graph, before, name, x)
        x = _call(graph, before, f"{name}_pool", copy.deepcopy(self.pool), x)
        return self._signed(graph, before, name, x)

    def _signed(self, graph: fx.GraphModule, before: fx.Node, name: str, x: fx.Node) -> fx.Node:
        if self.signs is None:
            return x
        dimensions = next(n for n, kind in enumerate(MAX_POOLS, 1) if isinstance(self.pool, kind))
        constant = free_name(graph, f"{name}_signs")
        graph.register_buffer(constant, self.signs.reshape(-1, *[1] * dimensions).clone())
        with graph.graph.inserting_before(before):
            return graph.graph.call_function(operator.mul, (x, graph.graph.get_attr(constant)))


def _pool_before(
    graph: fx.GraphModule, at: fx.Node, pooling: _Pooling, node: fx.Node, *, alone: bool
) -> fx.Node | None:
    """Return a node equal to the pooled ``node`` that pools before the activation; None if there is none to pass.

    ``alone`` says that nothing but this pool reads the nodes between: if nothing else reads the site either, it moves.
    """
    sites = {site.output: site for site in find_sites(graph).values()}
    alone = alone and len(node.users) == 1
    module: Any = module_of(graph, node)
    if node in sites:
        site = sites[node]
        if alone:
            site.node.args = (pooling.call(graph, site.node, site.name, site.current),)
            return node
        fired = _call(graph, at, f"{site.name}_pooled", nn.ReLU(), pooling.call(graph, at, site.name, site.current))
        for part in site.rest:
            with graph.graph.inserting_before(at):
                fired = graph.graph.create_node(part.op, part.target, (fired, *part.args[1:]))
        return fired
    if isinstance(module, BATCH_NORMS) and not pooling.pads:
        scale = module.weight.detach()
        signs = torch.where(scale < 0, -1.0, 1.0).to(scale)
        if pooling.signs is not None:
            signs = signs * pooling.signs
        through = replace(pooling, signs=signs if bool((signs < 0).any()) else None)
        pooled = _pool_before(graph, at, through, node.all_input_nodes[0], alone=alone)
        return None if pooled is None else _call(graph, at, f"{node.target}_pooled", copy.deepcopy(module), pooled)
    if isinstance(module, _PADS) and (module.value >= 0 or pooling.signs is None):
        # After an activation a negative number never is the largest, nor is zero if there is anything else.
        kind: Any = type(module)
        pad = kind(module.padding, max(float(module.value), 0.0))
        through = replace(pooling, pads=(pad, *pooling.pads))
        return _pool_before(graph, at, through, node.all_input_nodes[0], alone=alone)
    if node.target is torch.cat and node.args[1] == 1 and pooling.signs is None:
        branches: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
        moved = [_pool_before(graph, at, pooling, branch, alone=alone) for branch in branches]
        if any(branch is not None for branch in moved):
            rest = [
                new if new is not None else pooling.call(graph, at, f"{at.target}_branch", old)
                for new, old in zip(moved, branches, strict=True)
            ]
            with graph.graph.inserting_before(at):
                return graph.graph.call_function(torch.cat, (rest, 1))
    return None


def _is_read_by_weights(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a layer with weights reads a node's value with no neurons between; a batch norm alone is none."""
    waiting, seen = list(node.users), set[fx.Node]()
    while waiting:
        user = waiting.pop()
        module = module_of(graph, user)
        if isinstance(module, WEIGHTED) and not isinstance(module, BATCH_NORMS):
            return True
        if user not in seen and not isinstance(module, nn.ReLU):
            seen.add(user)
            waiting.extend(user.users)
    return False


def _never_negative(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose values are zero or more whatever the image: activations, and what only adds them up."""
    sites = find_sites(graph).values()
    found = {part for site in sites for part in (site.node, *site.rest)}
    for node in graph.graph.nodes:
        reads = [before for before in node.all_input_nodes if before.op != "get_attr"]
        if keeps_signs(graph, node) and len(reads) == len(node.all_input_nodes) and reads and found.issuperset(reads):
            numbers = [argument for argument in node.args if isinstance(argument, (int, float))]
            if node.target is not operator.add or all(number >= 0 for number in numbers):
                found.add(node)
    return found


def _call(graph: fx.GraphModule, before: fx.Node, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
    unique = free_name(graph, name)
    graph.add_submodule(unique, module.eval())
    with graph.graph.inserting_before(before):
        return graph.graph.call_module(unique, (x,))
