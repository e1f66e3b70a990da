"""Running a network in normal form with spiking neurons in its sites, without any host library.

This is the reference that every adapter is tested against, and what refinements run before a host's modules exist.
Time is folded into the batch: ``[T * N, ...]`` through the layers, ``[T, N, ...]`` through the neurons.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from snn_lowlat.graph import Site, find_sites
from snn_lowlat.neurons import NEURONS
from snn_lowlat.plan import Plan, SitePlan

__all__ = ["fire", "micro_batches", "per_channel", "simulate"]


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


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Shape one value, or one a channel, so that it broadcasts over ``like``, ``[N, C, ...]``."""
    values = values.to(like)
    return values.view(-1, *[1] * (like.dim() - 2)) if values.dim() else values


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


class _Simulation(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, plan: Plan, timesteps: int) -> None:
        super().__init__(graph)
        self.spikes: dict[str, Tensor] = {}
        self._plan = plan
        self._timesteps = timesteps
        self._sites = {site.node: site for site in find_sites(graph).values()}
        self._clips = {site.output for site in self._sites.values()} - set(self._sites)

    def run_node(self, n: fx.Node) -> Any:
        if n in self._clips:  # the neuron has the ceiling in its threshold
            return self.env[n.all_input_nodes[0]]
        if n not in self._sites:
            return super().run_node(n)
        site: Site = self._sites[n]
        currents = self.env[site.current]
        plan = self._plan[site.name]
        spikes = fire(currents.unflatten(0, (self._timesteps, -1)), plan)
        self.spikes[site.name] = spikes
        return spikes.flatten(0, 1) * per_channel(plan.amplitude, currents)


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
