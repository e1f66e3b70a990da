"""One walk through a network in normal form: what is computed when, from what, and until when it is kept.

Time is folded into the batch: what varies in time is ``[T * N, ...]``, what is constant in time ``[N, ...]``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from snn_lowlat.graph.sites import Site, find_sites
from snn_lowlat.neurons.max_pool import MAX_POOLS, max_pool_window

__all__ = ["Schedule", "Walk"]


class Schedule:
    """In which order a network in normal form is computed, and what is known of its nodes before.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form. Where other modules take the place of its own, another schedule is needed.
    sites : iterable of Site, optional
        Its layers of neurons; by default its ReLUs.
    sums : mapping of Node to sequence of Node, optional
        By nodes of neurons, the terms of a sum in front of them that is left to them.

    Attributes
    ----------
    input : Node
        The network's input.
    nodes : list of Node
        What is computed of it, in order, up to the output; not what is left to neurons, and no constants.
    sites : dict of Node to Site
        The layers of neurons.
    taken_over : set of Node
        Ceilings and rounding, which neurons have in their thresholds and do of themselves.
    modules : dict of Node to Module
        What is called.
    reads : dict of Node to sequence of Node
        What each node is computed from.
    read_last : dict of Node to list of Node
        The values that nothing reads after each node.
    before_neurons : frozenset of Node
        What no neurons decide: it is constant in time if the input is.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        sites: Iterable[Site] | None = None,
        sums: Mapping[fx.Node, Sequence[fx.Node]] | None = None,
    ) -> None:
        self.graph = graph
        self.sites = {site.node: site for site in (find_sites(graph).values() if sites is None else sites)}
        self.taken_over = {node for site in self.sites.values() for node in site.rest}
        reads: dict[fx.Node, Sequence[fx.Node]] = {node: node.all_input_nodes for node in graph.graph.nodes}
        reads |= sums or {}
        self.input = next(node for node in reads if node.op == "placeholder")
        needed: set[fx.Node] = set()
        for node in reversed(reads):
            if node.op == "output" or node in needed:
                needed.update(reads[node])
        self.nodes = [node for node in reads if node.op == "output" or (node in needed and reads[node])]
        self.reads = {node: reads[node] for node in self.nodes}
        self.modules: dict[fx.Node, nn.Module] = {
            node: graph.get_submodule(str(node.target)) for node in self.nodes if node.op == "call_module"
        }
        last = {before: node for node in self.nodes for before in self.reads[node] if before.op != "get_attr"}
        self.read_last: dict[fx.Node, list[fx.Node]] = {node: [] for node in (self.input, *self.nodes)}
        for before, node in last.items():
            self.read_last[node].append(before)
        decided: set[fx.Node] = set()
        for node, before_it in reads.items():
            if node not in self.sites and decided.issuperset(before_it):
                decided.add(node)
        self.before_neurons = frozenset(decided)


class Walk:
    """One pass of values through a network: what neurons, max-pools and all other layers do is up to each kind of walk.

    A walk is one call and keeps its values to itself; threads share the schedule.

    Parameters
    ----------
    schedule : Schedule
        Of the network.
    timesteps : int
        The steps that are folded into the batch; 1 where there are none, as for counts and means over a window.
    constant : bool
        Whether the input is constant in time.

    Attributes
    ----------
    values : dict of Node to Any
        What is still to be read.
    """

    def __init__(self, schedule: Schedule, timesteps: int = 1, *, constant: bool = False) -> None:
        self.schedule = schedule
        self.timesteps = timesteps
        self.values: dict[fx.Node, Any] = {}
        self._constant = schedule.before_neurons if constant else frozenset()

    def neurons(self, site: Site, terms: Sequence[Any]) -> Any:
        """Return what a layer of neurons sends for its currents, or for the terms of the sum left to it."""
        raise NotImplementedError

    def max_pool(self, node: fx.Node, currents: Any) -> Any:
        """Return what a max-pool makes of currents: over time where they vary in time, else as any layer."""
        pool = self.schedule.modules[node]
        return max_pool_window(pool, currents, self.timesteps) if self.varies(node) else pool(currents)

    def layer(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what any other node computes."""
        if node.op == "call_module":
            return self.schedule.modules[node](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def each_step(self, value: Any) -> Any:
        """Repeat what is constant in time, ``[N, ...]``, for each step, ``[T * N, ...]``."""
        return torch.cat([value] * self.timesteps)

    def run(self, inputs: Any) -> Any:
        """Take the network's input through all nodes; return the output."""
        self.put(self.schedule.input, inputs)
        for node in self.schedule.nodes:
            self.step(node)
        return self.values.pop(node)

    def step(self, node: fx.Node) -> None:
        """Compute a node; those before it have been computed."""
        self.put(node, self._computed(node))

    def put(self, node: fx.Node, value: Any) -> None:
        """Take a value for that of a node, and let go of what nothing reads after it."""
        self.values[node] = value
        for before in self.schedule.read_last[node]:
            del self.values[before]

    def read(self, node: fx.Node, reader: fx.Node) -> Any:
        """Return a value as a node reads it: for each step, if anything that the node reads varies in time."""
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.schedule.graph)
        value = self.values[node]
        return self.each_step(value) if node in self._constant and self.varies(reader) else value

    def varies(self, node: fx.Node) -> bool:
        """Say whether anything that a node reads varies in time."""
        return self.timesteps > 1 and not self._constant.issuperset(self.schedule.reads[node])

    def _computed(self, node: fx.Node) -> Any:
        schedule = self.schedule
        if node in schedule.sites:
            return self.neurons(schedule.sites[node], [self.read(term, node) for term in schedule.reads[node]])
        if node in schedule.taken_over:
            return self.values[schedule.reads[node][0]]
        if node.op == "output":
            return self.read(schedule.reads[node][0], node)
        args, kwargs = map_arg((node.args, node.kwargs), lambda before: self.read(before, node))
        if isinstance(schedule.modules.get(node), MAX_POOLS):
            return self.max_pool(node, args[0])
        return self.layer(node, args, kwargs)
