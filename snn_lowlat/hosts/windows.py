"""What networks need whose layers' windows start one after the other, when they are stepped in a time loop."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from snn_lowlat.graph import find_sites
from snn_lowlat.plan import Plan
from snn_lowlat.simulation import is_online, lagging_inputs, window_starts

__all__ = ["align_windows", "window_length"]


def window_length(plan: Plan) -> int:
    """Return the length of the windows that neurons were planned for, which have to see theirs before they fire."""
    return max(int(site.parameters["timesteps"]) for site in plan.values())


def align_windows(network: fx.GraphModule, plan: Plan, delay_line: Callable[[int], nn.Module]) -> dict[str, int]:
    """Make shortcuts wait for the layers that they leave out, so that windows meet that belong to one image.

    Parameters
    ----------
    network : GraphModule
        A network in normal form; delay lines are put into it where windows would not meet.
    plan : mapping of str to SitePlan
        What each site becomes.
    delay_line : callable
        Makes the host's module that delays by a number of steps.

    Returns
    -------
    dict of str to int
        The step after which the first window arrives at each of the network's modules; empty if neurons answer within
        the step.
    """
    if is_online(plan):
        return {}
    timesteps = window_length(plan)
    starts = window_starts(network, plan, timesteps)
    sites = {site.node: site for site in find_sites(network).values()}
    arrivals = {
        str(node.target): starts[sites[node].current if node in sites else node]
        for node in network.graph.nodes
        if node.op == "call_module"
    }
    for reader, lags in lagging_inputs(network, plan, timesteps).items():
        for before, steps in lags.items():
            name = f"{reader.name}_{before.name}_delay"
            network.add_submodule(name, delay_line(steps))
            with network.graph.inserting_before(reader):
                delayed = network.graph.call_module(name, (before,))
            reader.replace_input_with(before, delayed)
    network.recompile()
    return arrivals
