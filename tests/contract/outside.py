"""A package of somebody else's, which brings a neuron, a strategy that plans it, and a host library."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from snn_lowlat import SitePlan, Strategy, checks
from snn_lowlat.graph import find_sites, without_ceilings
from snn_lowlat.neurons import NEURONS, NeuronModel, NeuronStream, Values, per_channel
from snn_lowlat.simulation import count as count_spikes
from snn_lowlat.strategies import find_threshold


class Refractory(NamedTuple):
    """The membrane potential, and for how many steps a neuron still has to rest."""

    potential: torch.Tensor
    resting: torch.Tensor


def rest(current, values, start):
    return Refractory(torch.zeros_like(current), torch.zeros_like(current))


def step(current, state, values):
    """Integrate and fire, but not for so many steps after a spike."""
    threshold = per_channel(values.threshold, current)
    potential = state.potential + current
    charged = potential + per_channel(values.initial_potential, current) >= threshold
    spikes = (charged & (state.resting == 0)).to(current.dtype)
    resting = torch.where(spikes > 0, values.parameters["pause"], (state.resting - 1).clamp(min=0))
    return spikes, Refractory(potential - spikes * threshold, resting)


def window(currents, values):
    state, spikes = rest(currents[0], values, 0), []
    for current in currents:
        fired, state = step(current, state, values)
        spikes.append(fired)
    return torch.stack(spikes)


REFRACTORY = NeuronModel(
    *("refractory", window, rest, step, Refractory, "potential"),
    parameters={"pause": partial(checks.count, maximum=100)},
)


@dataclass(frozen=True, eq=False)
class WithPause(Strategy):
    """Thresholds at the largest value, neurons that rest after each spike."""

    pause: int = 1

    def plan(self, statistics, timesteps):
        threshold = find_threshold(statistics, "max", timesteps)
        return SitePlan(threshold, threshold / 2, threshold, "refractory", {"pause": self.pause})


class Neurons(nn.Module):
    """The host's neurons: one time loop of its own, in which a window is folded into the batch."""

    def __init__(self, plan):
        super().__init__()
        self.register_buffer("threshold", plan.threshold)
        self.register_buffer("potential", plan.initial_potential)
        self.register_buffer("amplitude", plan.amplitude)
        self.plan, self.steps, self.state = plan, None, None

    def forward(self, x):
        values = Values(self.threshold, self.potential, self.plan.parameters)
        stream = NeuronStream(NEURONS[self.plan.neuron], values)
        if self.steps is not None:
            spikes = stream.window(x.unflatten(0, (self.steps, -1))).flatten(0, 1)
        else:
            self.state = stream.rest(x) if self.state is None else self.state
            spikes, self.state = stream.step(x, self.state)
        return spikes * per_channel(self.amplitude, spikes)


class Host:
    """A host library of the smallest size: a graph with :class:`Neurons` in its sites."""

    def build(self, graph, plan, input_shape):
        network = without_ceilings(graph)
        for name in find_sites(network):
            setattr(network, name, Neurons(plan[name]))
        return network.to(next(network.parameters())).eval()

    def run(self, network, inputs):
        with self._folded(network, len(inputs)):
            return network(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])

    def count(self, network, inputs, timesteps):
        graph = without_ceilings(network)
        plan = self.current_plan(network, {name: layer.plan for name, layer in self.spiking_layers(network).items()})
        for name in plan:
            setattr(graph, name, nn.ReLU())
        return count_spikes(graph, plan, inputs, timesteps)[0]

    def reset(self, network):
        for layer in self.spiking_layers(network).values():
            layer.state = None

    def spiking_layers(self, network):
        return {name: module for name, module in network.named_modules() if isinstance(module, Neurons)}

    def fired(self, layer, output):
        return output / per_channel(layer.amplitude, output)

    def weights(self, network):
        layers = self.spiking_layers(network)
        return {key: value for key, value in network.state_dict().items() if key.rpartition(".")[0] not in layers}

    def current_plan(self, network, plan):
        return {
            name: replace(
                plan[name], threshold=layer.threshold, initial_potential=layer.potential, amplitude=layer.amplitude
            )
            for name, layer in self.spiking_layers(network).items()
        }

    @contextmanager
    def _folded(self, network, steps):
        layers = self.spiking_layers(network).values()
        for layer in layers:
            layer.steps = steps
        yield
        for layer in layers:
            layer.steps = None


HOST = Host()
ENTRY_POINTS = {
    "snn_lowlat.neurons": {"refractory": REFRACTORY},
    "snn_lowlat.strategies": {"with_pause": WithPause},
    "snn_lowlat.hosts": {"smallest": HOST},
}

__all__ = ["ENTRY_POINTS", "HOST", "REFRACTORY"]
