"""The neuron models by name: what adapters and reports need to know of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from snn_lowlat.neurons.accumulate_then_fire import accumulate_then_fire, spike_counts
from snn_lowlat.neurons.integrate_and_fire import integrate_and_fire
from snn_lowlat.neurons.temporal_switch import (
    event_counts,
    online_temporal_switch,
    pipelined_temporal_switch,
    switch_events,
    temporal_switch,
)
from snn_lowlat.plan import SitePlan

__all__ = ["NEURONS", "NeuronModel"]


@dataclass(frozen=True)
class NeuronModel:
    """A spiking neuron: a map from currents to spikes, ``[T, N, C, ...] -> [T, N, C, ...]``.

    Parameters
    ----------
    name : str
        The name by which a :class:`~snn_lowlat.plan.SitePlan` asks for it.
    run : callable
        ``run(currents, plan) -> spikes``, both of shape ``[T, N, C, ...]``.
    counts : callable, optional
        ``counts(mean, timesteps, plan) -> counts``: how often neurons fire in a window whose currents have this mean,
        both of shape ``[N, C, ...]``. Only for neurons that see their whole window before they fire: a network
        of these is a quantised network, which one pass on counts evaluates whatever the number of steps.
    transmissions : callable, optional
        ``transmissions(spikes, plan) -> events``: what the neurons send to the layers after them, where that is not
        their spikes: 1, -1 or 0, ``[T, N, C, ...] -> [T + 1, N, C, ...]``. The last entry is sent in the step after the
        window.
    transmission_counts : callable, optional
        ``transmission_counts(counts, plan) -> events``: how many events the neurons send that fire so often in a
        window, both of shape ``[N, C, ...]``; only for neurons with ``counts``, where it is not the counts themselves.
    delay : callable, optional
        ``delay(timesteps, plan) -> steps``: how much later than the window it sees the window starts in which the
        neuron fires. Without it the neuron answers within the step.
    """

    name: str
    run: Callable[[Tensor, SitePlan], Tensor]
    counts: Callable[[Tensor, int, SitePlan], Tensor] | None = None
    transmissions: Callable[[Tensor, SitePlan], Tensor] | None = None
    transmission_counts: Callable[[Tensor, SitePlan], Tensor] | None = None
    delay: Callable[[int, SitePlan | None], int] | None = None

    @property
    def online(self) -> bool:
        """Whether the neuron answers within the step. If not, it fires in a window that starts later."""
        return self.delay is None

    def latency_steps(self, timesteps: int, depth: int, plan: SitePlan | None = None) -> int:
        """Return the steps from the first input to the last output of a network of such neurons.

        Parameters
        ----------
        timesteps : int
            The simulation window of one layer.
        depth : int
            The number of spiking layers that a signal passes one after the other.
        plan : SitePlan, optional
            The neuron's parameters, where the latency depends on them.
        """
        return timesteps + depth * (0 if self.delay is None else self.delay(timesteps, plan))


def _run_integrate_and_fire(currents: Tensor, plan: SitePlan) -> Tensor:
    return integrate_and_fire(currents, plan.threshold, plan.initial_potential)


def _run_leaky(currents: Tensor, plan: SitePlan) -> Tensor:
    return integrate_and_fire(currents, plan.threshold, plan.initial_potential, plan.parameters["leak"])


def _run_accumulate_then_fire(currents: Tensor, plan: SitePlan) -> Tensor:
    return accumulate_then_fire(currents, plan.threshold, plan.initial_potential)


def _count_accumulate_then_fire(mean: Tensor, timesteps: int, plan: SitePlan) -> Tensor:
    return spike_counts(mean, timesteps, plan.threshold, plan.initial_potential, times=timesteps)


def _run_temporal_switch(currents: Tensor, plan: SitePlan) -> Tensor:
    return temporal_switch(currents, plan.threshold, plan.initial_potential)


def _run_pipelined(currents: Tensor, plan: SitePlan) -> Tensor:
    gap = min(_gap(len(currents), plan), len(currents))
    return pipelined_temporal_switch(currents, plan.threshold, plan.initial_potential, gap)


def _run_online(currents: Tensor, plan: SitePlan) -> Tensor:
    return online_temporal_switch(currents, plan.threshold, plan.initial_potential, plan.parameters["hysteresis"])


def _transmit_switches(states: Tensor, plan: SitePlan) -> Tensor:
    return switch_events(states)


def _count_switches(durations: Tensor, plan: SitePlan) -> Tensor:
    return event_counts(durations)


def _window(timesteps: int, plan: SitePlan | None) -> int:
    return timesteps


def _gap(timesteps: int, plan: SitePlan | None) -> int:
    if plan is None:
        raise ValueError("the latency of pipelined neurons depends on their gap: give their plan.")
    return int(plan.parameters["gap"])


NEURONS: dict[str, NeuronModel] = {
    model.name: model
    for model in (
        NeuronModel("integrate_and_fire", _run_integrate_and_fire),
        NeuronModel("leaky_integrate_and_fire", _run_leaky),
        NeuronModel("accumulate_then_fire", _run_accumulate_then_fire, _count_accumulate_then_fire, delay=_window),
        NeuronModel(
            "temporal_switch",
            _run_temporal_switch,
            _count_accumulate_then_fire,
            transmissions=_transmit_switches,
            transmission_counts=_count_switches,
            delay=_window,
        ),
        NeuronModel("temporal_switch_pipelined", _run_pipelined, transmissions=_transmit_switches, delay=_gap),
        NeuronModel("temporal_switch_online", _run_online, transmissions=_transmit_switches),
    )
}
"""The neuron models by name."""
