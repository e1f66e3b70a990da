"""The neuron models by name: what adapters and reports need to know of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from snn_lowlat.neurons.accumulate_then_fire import accumulate_then_fire, spike_counts
from snn_lowlat.neurons.integrate_and_fire import integrate_and_fire
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
    """

    name: str
    run: Callable[[Tensor, SitePlan], Tensor]
    counts: Callable[[Tensor, int, SitePlan], Tensor] | None = None

    @property
    def online(self) -> bool:
        """Whether the neuron answers within the step. If not, it fires in the window after the one it has seen."""
        return self.counts is None

    def latency_steps(self, timesteps: int, depth: int) -> int:
        """Return the steps from the first input to the last output of a network of such neurons.

        Parameters
        ----------
        timesteps : int
            The simulation window of one layer.
        depth : int
            The number of spiking layers that a signal passes one after the other.
        """
        return timesteps if self.online else timesteps * (depth + 1)


def _run_integrate_and_fire(currents: Tensor, plan: SitePlan) -> Tensor:
    return integrate_and_fire(currents, plan.threshold, plan.initial_potential)


def _run_leaky(currents: Tensor, plan: SitePlan) -> Tensor:
    return integrate_and_fire(currents, plan.threshold, plan.initial_potential, plan.parameters["leak"])


def _run_accumulate_then_fire(currents: Tensor, plan: SitePlan) -> Tensor:
    return accumulate_then_fire(currents, plan.threshold, plan.initial_potential)


def _count_accumulate_then_fire(mean: Tensor, timesteps: int, plan: SitePlan) -> Tensor:
    return spike_counts(mean, timesteps, plan.threshold, plan.initial_potential, times=timesteps)


NEURONS: dict[str, NeuronModel] = {
    model.name: model
    for model in (
        NeuronModel("integrate_and_fire", _run_integrate_and_fire),
        NeuronModel("leaky_integrate_and_fire", _run_leaky),
        NeuronModel("accumulate_then_fire", _run_accumulate_then_fire, _count_accumulate_then_fire),
    )
}
"""The neuron models by name."""
