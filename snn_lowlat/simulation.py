"""Running a network in normal form with spiking neurons in its sites, without any host library.

This is the reference that every adapter is tested against, and what refinements run before a host's modules exist.
Time is folded into the batch: ``[T * N, ...]`` through the layers, ``[T, N, ...]`` through the neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from snn_lowlat.graph import MAX_POOLS, Site, find_sites
from snn_lowlat.neurons import NEURONS, per_channel
from snn_lowlat.plan import Plan, SitePlan

__all__ = ["count", "count_spikes", "fire", "is_counted", "micro_batches", "pool_charges", "simulate"]


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
    return NEURONS[plan.neuron].run(currents, plan)


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


def pool_charges(pool: Callable[[Tensor], Tensor], currents: Tensor) -> Tensor:
    """Max-pool what a window's currents add up to, and return it as currents again.

    The maximum of currents that vary from step to step is larger on average than the maximum of their sums, which is
    what neurons that see their whole window need. The difference of the pooled sums after and before each step adds up
    to exactly that.

    Parameters
    ----------
    pool : callable
        A max-pool of ``[N, C, ...]``.
    currents : Tensor
        A window's currents ``[T, N, C, ...]``.
    """
    pooled = torch.stack([pool(charge) for charge in currents.cumsum(0)])
    return torch.cat([pooled[:1], pooled[1:] - pooled[:-1]])


@torch.no_grad()
def simulate(graph: fx.GraphModule, plan: Plan, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a whole network spike by spike.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form.
    plan : mapping of str to SitePlan
        What each site becomes.
    inputs : Tensor
        Input currents ``[T, N, ...]``.

    Returns
    -------
    outputs : Tensor
        The network's output in each step, ``[T, N, classes]``.
    spikes : dict of str to Tensor
        The spikes of each site, ``[T, N, C, ...]``.
    """
    runner = _Simulation(graph, plan, inputs.shape[0])
    outputs = runner.run(inputs.flatten(0, 1))
    return outputs.unflatten(0, inputs.shape[:2]), runner.spikes


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
    runner = _Counting(graph, plan, timesteps)
    return runner.run(inputs), runner.spikes


class _Runner(fx.Interpreter):
    """Runs a network with neurons in its sites."""

    def __init__(self, graph: fx.GraphModule, plan: Plan, timesteps: int) -> None:
        super().__init__(graph)
        self.spikes: dict[str, Tensor] = {}
        self.plan = plan
        self.timesteps = timesteps
        self._sites = {site.node: site for site in find_sites(graph).values()}
        self._rest = {node for site in self._sites.values() for node in site.rest}

    def run_node(self, n: fx.Node) -> Any:
        if n in self._rest:  # the neuron has the ceiling in its threshold, and rounds of itself
            return self.env[n.all_input_nodes[0]]
        if n in self._sites:
            site = self._sites[n]
            return self.neurons(site, self.plan[site.name], self.env[site.current])
        return super().run_node(n)

    def neurons(self, site: Site, plan: SitePlan, currents: Tensor) -> Tensor:
        """Record the spikes for a site's currents; return them times the amplitude."""
        raise NotImplementedError


class _Simulation(_Runner):
    """Every step, ``[T * N, ...]``."""

    def neurons(self, site: Site, plan: SitePlan, currents: Tensor) -> Tensor:
        spikes = fire(currents.reshape(self.timesteps, -1, *currents.shape[1:]), plan)
        self.spikes[site.name] = spikes
        return spikes.flatten(0, 1) * per_channel(plan.amplitude, currents)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(target)
        if isinstance(layer, MAX_POOLS) and is_counted(self.plan):
            return pool_charges(layer, args[0].reshape(self.timesteps, -1, *args[0].shape[1:])).flatten(0, 1)
        return layer(*args, **kwargs)


class _Counting(_Runner):
    """Means over the window, ``[N, ...]``."""

    def neurons(self, site: Site, plan: SitePlan, currents: Tensor) -> Tensor:
        self.spikes[site.name] = count_spikes(currents, self.timesteps, plan)
        return self.spikes[site.name] / self.timesteps * per_channel(plan.amplitude, currents)


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
