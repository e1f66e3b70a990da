"""Running a network in normal form with spiking neurons in its sites, without any host library.

This is the reference that every adapter is tested against, and what refinements run before a host's modules exist.
Time is folded into the batch: ``[T * N, ...]`` through the layers, ``[T, N, ...]`` through the neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from snn_lowlat.graph import Schedule, Site, Walk, find_sites
from snn_lowlat.neurons import NEURONS, per_channel, switch_events, synaptic_register
from snn_lowlat.plan import Plan, SitePlan

__all__ = [
    "count",
    "count_spikes",
    "fire",
    "is_counted",
    "is_online",
    "lagging_inputs",
    "micro_batches",
    "simulate",
    "simulate_events",
    "transmissions",
    "window_starts",
]


def fire(currents: Tensor, plan: SitePlan) -> Tensor:
    """Drive one site's neurons.

    Parameters
    ----------
    currents : Tensor
        Input currents ``[T, N, C, ...]`` in units of the pre-activation.
    plan : SitePlan
        The neuron and its parameters.

    Returns
    -------
    Tensor
        Spikes ``[T, N, C, ...]``, not yet multiplied by the plan's amplitude.
    """
    return NEURONS[plan.neuron].window(currents, plan)


def count_spikes(mean: Tensor, timesteps: int, plan: SitePlan) -> Tensor:
    """Count the spikes of one site's neurons in a window; they must be of a kind that sees its whole window first.

    Parameters
    ----------
    mean : Tensor
        The mean current of the window, ``[N, C, ...]``.
    timesteps : int
        The window's length.
    plan : SitePlan
        The neuron and its parameters.
    """
    counts = NEURONS[plan.neuron].counts
    if counts is None:
        raise ValueError(f"neurons of kind {plan.neuron!r} fire as their input arrives: their counts need every step.")
    return counts(mean, timesteps, plan)


def is_counted(plan: Plan) -> bool:
    """Say whether all neurons see their whole window before they fire, so that counts say all there is to know."""
    return all(NEURONS[site.neuron].counts is not None for site in plan.values())


def is_online(plan: Plan) -> bool:
    """Say whether any neuron answers within the step; else each layer's window starts after that of the one before."""
    return any(NEURONS[site.neuron].online for site in plan.values())


def transmissions(spikes: Tensor, plan: SitePlan) -> Tensor:
    """Return what one site's neurons send to the layers after them: the events of their spikes.

    Parameters
    ----------
    spikes : Tensor
        Spikes ``[T, N, C, ...]``.
    plan : SitePlan
        The neuron and its parameters.

    Returns
    -------
    Tensor
        ``[T, N, C, ...]`` for neurons that send their spikes; else 1, -1 or 0, ``[T + 1, N, C, ...]``.
    """
    transmit = NEURONS[plan.neuron].transmissions
    return spikes if transmit is None else transmit(spikes, plan)


def window_starts(graph: fx.GraphModule, plan: Plan, timesteps: int) -> dict[fx.Node, int]:
    """Return by how many steps the window of each node's value starts after that of the network's input.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    plan : mapping of str to SitePlan
        What each site becomes.
    timesteps : int
        The length of a window.
    """
    sites = {site.node: site.name for site in find_sites(graph).values()}
    starts: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        starts[node] = max((starts[before] for before in node.all_input_nodes), default=0)
        delay = NEURONS[plan[sites[node]].neuron].delay if node in sites else None
        if delay is not None:
            starts[node] += delay(timesteps, plan[sites[node]])
    return starts


def lagging_inputs(graph: fx.GraphModule, plan: Plan, timesteps: int) -> dict[fx.Node, dict[fx.Node, int]]:
    """Return which nodes read values whose windows start at different times, and how long each input has to wait.

    A shortcut passes fewer layers than what it is added to. The arguments are those of :func:`window_starts`.
    """
    starts = window_starts(graph, plan, timesteps)
    lags: dict[fx.Node, dict[fx.Node, int]] = {}
    for node in graph.graph.nodes:
        signals = [before for before in node.all_input_nodes if before.op != "get_attr"]
        latest = max((starts[before] for before in signals), default=0)
        waiting = {before: latest - starts[before] for before in signals if starts[before] < latest}
        if waiting:
            lags[node] = waiting
    return lags


@torch.no_grad()
def simulate(
    graph: fx.GraphModule, plan: Plan, inputs: Tensor, observe: Callable[[str, Tensor, Tensor], None] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a whole network spike by spike.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    plan : mapping of str to SitePlan
        What each site becomes.
    inputs : Tensor
        Input currents ``[T, N, ...]``.
    observe : callable, optional
        ``observe(site, currents, spikes)`` is called at each site, with currents and spikes ``[T, N, C, ...]``. Spikes
        are then not kept.

    Returns
    -------
    outputs : Tensor
        The network's output in each step, ``[T, N, classes]``.
    spikes : dict of str to Tensor
        The spikes of each site, ``[T, N, C, ...]``; empty if they are observed.
    """
    walk = _Simulation(graph, plan, inputs.shape[0], observe)
    outputs = walk.run(inputs.flatten(0, 1))
    return outputs.unflatten(0, inputs.shape[:2]), walk.spikes


@torch.no_grad()
def simulate_events(
    graph: fx.GraphModule, plan: Plan, inputs: Tensor
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Run a network of temporal-switch neurons with nothing but their events between the layers.

    Each event passes the synapses once, when it is sent, and adds to their registers what it brings; neurons see the
    registers. What :func:`simulate` computes from the states in every step is the same, up to rounding.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    plan : mapping of str to SitePlan
        What each site becomes.
    inputs : Tensor
        Input currents ``[T, N, ...]``; what is sent are their changes.

    Returns
    -------
    outputs : Tensor
        The network's output in each step, ``[T, N, classes]``.
    events : dict of str to Tensor
        What the neurons of each site send, 1, -1 or 0, ``[T + 1, N, C, ...]``.
    left : dict of str to Tensor
        What the registers in front of each site hold after the window, ``[N, C, ...]``: nothing but rounding errors.

    Raises
    ------
    ValueError
        If neurons of a site send their spikes, not the changes of a state.
    """
    for name, site in plan.items():
        if NEURONS[site.neuron].transmissions is None:
            raise ValueError(f"layer {name!r}: neurons of kind {site.neuron!r} send spikes, which no register keeps.")
    walk = _EventSimulation(graph, plan, inputs.shape[0])
    outputs = synaptic_register(walk.run(switch_events(inputs).flatten(0, 1)).unflatten(0, (-1, inputs.shape[1])))
    return outputs[:-1], walk.events, walk.left


@torch.no_grad()
def count(graph: fx.GraphModule, plan: Plan, inputs: Tensor, timesteps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Evaluate a network of neurons that see their whole windows, on spike counts, in one pass.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    plan : mapping of str to SitePlan
        What each site becomes.
    inputs : Tensor
        The mean input current of the window, ``[N, ...]``.
    timesteps : int
        The window's length.

    Returns
    -------
    outputs : Tensor
        The network's mean output, ``[N, classes]``.
    counts : dict of str to Tensor
        The spikes of each neuron in its window, ``[N, C, ...]``.
    """
    walk = _Counting(graph, plan, timesteps)
    return walk.run(inputs), walk.counts


class _Simulation(Walk):
    """Every step, ``[T * N, ...]``."""

    def __init__(
        self,
        graph: fx.GraphModule,
        plan: Plan,
        timesteps: int,
        observe: Callable[[str, Tensor, Tensor], None] | None = None,
    ) -> None:
        super().__init__(Schedule(graph), timesteps)
        self.plan = plan
        self.observe = observe
        self.spikes: dict[str, Tensor] = {}

    def neurons(self, site: Site, terms: Sequence[Tensor]) -> Tensor:
        (currents,), plan = terms, self.plan[site.name]
        steps = currents.reshape(self.timesteps, -1, *currents.shape[1:])
        spikes = fire(steps, plan)
        if self.observe is None:
            self.spikes[site.name] = spikes
        else:
            self.observe(site.name, steps, spikes)
        return spikes.flatten(0, 1) * per_channel(plan.amplitude, currents)


class _EventSimulation(Walk):
    """What each event changes, ``[(T + 1) * N, ...]``; the biases' currents start with the window and end with it."""

    def __init__(self, graph: fx.GraphModule, plan: Plan, timesteps: int) -> None:
        super().__init__(Schedule(graph), timesteps)
        self.plan = plan
        self.events: dict[str, Tensor] = {}
        self.left: dict[str, Tensor] = {}

    def layer(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        # An affine map of a change is the change of the map, once what it makes of nothing is taken away.
        value: Tensor = super().layer(node, args, kwargs)
        nothing = map_arg((node.args, node.kwargs), lambda before: self._nothing(before, node))
        offset: Tensor = super().layer(node, *nothing)
        changes = value.reshape(self.timesteps + 1, -1, *value.shape[1:]) - offset
        changes[0] += offset
        changes[-1] -= offset
        return changes.flatten(0, 1)

    def max_pool(self, node: fx.Node, currents: Tensor) -> Tensor:
        registers = synaptic_register(currents.reshape(self.timesteps + 1, -1, *currents.shape[1:]))[:-1]
        pooled: Tensor = super().max_pool(node, registers.flatten(0, 1))
        return switch_events(pooled.view(*registers.shape[:2], *pooled.shape[1:])).flatten(0, 1)

    def neurons(self, site: Site, terms: Sequence[Tensor]) -> Tensor:
        (currents,), plan = terms, self.plan[site.name]
        registers = synaptic_register(currents.reshape(self.timesteps + 1, -1, *currents.shape[1:]))
        self.left[site.name] = registers[-1]
        events = transmissions(fire(registers[:-1], plan), plan)
        self.events[site.name] = events
        return events.flatten(0, 1) * per_channel(plan.amplitude, currents)

    def _nothing(self, node: fx.Node, reader: fx.Node) -> Tensor:
        value: Tensor = self.read(node, reader)
        return value if node.op == "get_attr" else torch.zeros_like(value[:1])


class _Counting(Walk):
    """Means over the window, ``[N, ...]``."""

    def __init__(self, graph: fx.GraphModule, plan: Plan, window: int) -> None:
        super().__init__(Schedule(graph))
        self.plan = plan
        self.window = window
        self.counts: dict[str, Tensor] = {}

    def neurons(self, site: Site, terms: Sequence[Tensor]) -> Tensor:
        (mean,), plan = terms, self.plan[site.name]
        self.counts[site.name] = count_spikes(mean, self.window, plan)
        return self.counts[site.name] / self.window * per_channel(plan.amplitude, mean)


def micro_batches(inputs: Tensor, timesteps: int, size: int | None = None) -> Iterator[Tensor]:
    """Split a batch so that a micro-batch over all steps stays in a processor's cache, or fits an accelerator's memory.

    Parameters
    ----------
    inputs : Tensor
        A batch ``[N, ...]``.
    timesteps : int
        How many steps each image is simulated for.
    size : int, optional
        Images in a micro-batch; by default 64 divided by the number of steps, or 4096 on an accelerator.
    """
    size = size or max(1, (64 if inputs.device.type == "cpu" else 4096) // timesteps)
    yield from torch.split(inputs, size)
