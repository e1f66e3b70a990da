"""The neuron models by name: what adapters and reports need to know of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.errors import unknown_name
from snn_lowlat.neurons.accumulate_then_fire import accumulate_then_fire, spike_counts
from snn_lowlat.neurons.integrate_and_fire import integrate_and_fire
from snn_lowlat.neurons.temporal_switch import (
    event_counts,
    online_temporal_switch,
    pipelined_temporal_switch,
    switch_events,
    temporal_switch,
)
from snn_lowlat.plan import Plan, SitePlan

__all__ = ["NEURONS", "NeuronModel", "check_plan"]


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
    parameters : mapping of str to callable
        What a plan must say beside threshold, potential and amplitude: for each parameter ``check(name, value)``, which
        raises a ``ValueError`` where the value has no meaning.
    """

    name: str
    run: Callable[[Tensor, SitePlan], Tensor]
    counts: Callable[[Tensor, int, SitePlan], Tensor] | None = None
    transmissions: Callable[[Tensor, SitePlan], Tensor] | None = None
    transmission_counts: Callable[[Tensor, SitePlan], Tensor] | None = None
    delay: Callable[[int, SitePlan | None], int] | None = None
    parameters: Mapping[str, Callable[[str, Any], object]] = field(default_factory=dict)

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


def check_plan(plan: Plan, sites: Iterable[str]) -> None:
    """See that a plan says of each site of a network what its neurons need.

    Raises
    ------
    ValueError
        If a site has no plan, there is no such neuron model, or a parameter is missing, not known or meaningless; the
        message names the site.
    """
    for site in sites:
        if site not in plan:
            raise ValueError(f"the plan says nothing of the site {site!r}: give a SitePlan for each layer of neurons.")
        neuron, given = plan[site].neuron, plan[site].parameters
        if neuron not in NEURONS:
            raise unknown_name(f"neuron of site {site!r}:", neuron, NEURONS)
        known = NEURONS[neuron].parameters
        if given.keys() != known.keys():
            raise ValueError(
                f"the neuron {neuron!r} of site {site!r} needs {_listed(known)}, but the plan gives it "
                f"{_listed(given)}."
            )
        for name, check in known.items():
            check(f"{name} of site {site!r}", given[name])


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


def _listed(parameters: Iterable[str]) -> str:
    return " and ".join(map(repr, parameters)) or "no parameters"


def _whole(name: str, value: Any, minimum: int = 1) -> int:
    """Check a whole number that may come as a float, as all numbers do from some files."""
    return checks.count(name, int(value) if isinstance(value, float) and value.is_integer() else value, minimum)


NEURONS: dict[str, NeuronModel] = {
    model.name: model
    for model in (
        NeuronModel("integrate_and_fire", _run_integrate_and_fire),
        NeuronModel("leaky_integrate_and_fire", _run_leaky, parameters={"leak": checks.fraction}),
        NeuronModel(
            "accumulate_then_fire",
            _run_accumulate_then_fire,
            _count_accumulate_then_fire,
            delay=_window,
            parameters={"timesteps": _whole},
        ),
        NeuronModel(
            "temporal_switch",
            _run_temporal_switch,
            _count_accumulate_then_fire,
            transmissions=_transmit_switches,
            transmission_counts=_count_switches,
            delay=_window,
            parameters={"timesteps": _whole},
        ),
        NeuronModel(
            "temporal_switch_pipelined",
            _run_pipelined,
            transmissions=_transmit_switches,
            delay=_gap,
            parameters={"timesteps": _whole, "gap": partial(_whole, minimum=0)},
        ),
        NeuronModel(
            "temporal_switch_online",
            _run_online,
            transmissions=_transmit_switches,
            parameters={"hysteresis": partial(checks.number, minimum=1)},
        ),
    )
}
"""The neuron models by name."""
