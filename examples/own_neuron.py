"""Write a neuron of one's own: its equation once, and it runs in both hosts, in time loops and whole windows.

python examples/own_neuron.py

The neuron here rests for some steps after each spike, as biological ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from trained_digits import trained_digits

import snn_lowlat
from snn_lowlat import checks
from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.neurons import NeuronModel, NeuronValues, per_channel, register_neuron
from snn_lowlat.strategies import find_threshold


class State(NamedTuple):
    """The membrane potential, and for how many steps each neuron still rests."""

    potential: Tensor
    resting: Tensor


def rest(current: Tensor, values: NeuronValues, start: int) -> State:
    return State(torch.zeros_like(current), torch.zeros_like(current))


def step(current: Tensor, state: State, values: NeuronValues) -> tuple[Tensor, State]:
    threshold = per_channel(values.threshold, current)
    potential = state.potential + current
    reached = potential + per_channel(values.initial_potential, current) >= threshold
    spikes = (reached & (state.resting == 0)).to(current.dtype)
    resting = torch.where(spikes > 0, values.parameters["pause"], (state.resting - 1).clamp(min=0))
    return spikes, State(potential - spikes * threshold, resting)


def window(currents: Tensor, values: NeuronValues) -> Tensor:
    state, steps = rest(currents[0], values, 0), []
    for current in currents:
        spikes, state = step(current, state, values)
        steps.append(spikes)
    return torch.stack(steps)


register_neuron(
    NeuronModel(
        *("refractory", window, rest, step, State, "potential"),
        parameters={"pause": partial(checks.count, maximum=100)},
    )
)


@snn_lowlat.register_strategy("refractory")
@dataclass(frozen=True, eq=False)
class Refractory(snn_lowlat.Strategy):
    """Thresholds and amplitudes so large that neurons that rest between spikes can send the largest activation."""

    pause: int = 1

    def plan(self, statistics: SiteStatistics, timesteps: int) -> snn_lowlat.SitePlan:
        """Plan one site's neurons from what calibration saw there."""
        threshold = (1 + self.pause) * find_threshold(statistics, "mmse", timesteps)
        return snn_lowlat.SitePlan(threshold, threshold / 2, threshold, "refractory", {"pause": self.pause})


def main() -> dict[str, float]:
    model, data = trained_digits()
    accuracies = {}
    for backend in ("spikingjelly", "snntorch"):
        for pause in (1, 3):
            snn = snn_lowlat.convert(
                model,
                data.calibration_dataloader(500, 100),
                strategy=Refractory(pause=pause),
                timesteps=16,
                backend=backend,
                refinements=["bias_correction"],
            )
            report = snn_lowlat.evaluate(snn, data.test_dataloader(), ann=model)
            accuracies[f"{backend}, {pause}"] = report.accuracy
            print(f"{backend}, neurons that rest for {pause} steps after a spike: {report.accuracy:.3f}")
    return accuracies


if __name__ == "__main__":
    main()
