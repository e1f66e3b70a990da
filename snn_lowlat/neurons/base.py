"""What a neuron model says about itself, and the models by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.errors import unknown_name
from snn_lowlat.plan import Plan, SitePlan
from snn_lowlat.registry import Catalogue

__all__ = ["NEURONS", "NeuronModel", "NeuronValues", "State", "Values", "check_plan", "register_neuron", "whole"]

State: TypeAlias = Any
"""What neurons remember from one step to the next: a named tuple of tensors ``[N, C, ...]``, whole numbers and None."""


class NeuronValues(Protocol):
    """What a layer's neurons are at the moment: a :class:`~snn_lowlat.plan.SitePlan`, or what a host's module holds."""

    @property
    def threshold(self) -> Tensor:
        """The firing threshold, ``[]`` or ``[C]``."""

    @property
    def initial_potential(self) -> Tensor:
        """The membrane potential before the first step, ``[]`` or ``[C]``."""

    @property
    def parameters(self) -> Mapping[str, float]:
        """What else the neuron model needs."""


class Values(NamedTuple):
    """The values of a host's neurons, which may have been trained."""

    threshold: Tensor
    initial_potential: Tensor
    parameters: Mapping[str, float]


@dataclass(frozen=True)
class NeuronModel:
    """A spiking neuron: a map from currents to spikes, ``[T, N, C, ...] -> [T, N, C, ...]``.

    It is written twice, for whole windows and for single steps, and both fire the same spikes. Hosts, simulations and
    reports ask the model what they need to know; none knows a neuron by its name.

    Parameters
    ----------
    name : str
        The name by which a :class:`~snn_lowlat.plan.SitePlan` asks for it.
    window : callable
        ``window(currents, values) -> spikes``, both of shape ``[T, N, C, ...]``.
    rest : callable
        ``rest(current, values, start) -> state`` before the first step, for currents like this one, ``[N, C, ...]``.
        ``start`` is how many steps pass before the first window arrives; neurons that answer within the step need not
        know.
    step : callable
        ``step(current, state, values) -> (spikes, state)``, both of shape ``[N, C, ...]``.
    state : type
        The class of its state, a named tuple.
    membrane : str
        The field of the state that is the membrane potential, or what it is made of.
    counts : callable, optional
        ``counts(mean, timesteps, values) -> counts``: how often neurons fire in a window whose currents have this mean,
        both of shape ``[N, C, ...]``. Only for neurons that see their whole window before they fire: a network
        of these is a quantised network, which one pass on counts evaluates whatever the number of steps.
    transmissions : callable, optional
        ``transmissions(spikes, values) -> events``: what the neurons send to the layers after them, where that is not
        their spikes: 1, -1 or 0, ``[T, N, C, ...] -> [T + 1, N, C, ...]``. The last entry is sent in the step after the
        window. In a time loop it is the change of what they fire.
    transmission_counts : callable, optional
        ``transmission_counts(counts, values) -> events``: how many events the neurons send that fire so often in a
        window, both of shape ``[N, C, ...]``; only for neurons with ``counts``, where it is not the counts themselves.
    delay : callable, optional
        ``delay(timesteps, values) -> steps``: how much later than the window it sees the window starts in which the
        neuron fires. Without it the neuron answers within the step.
    parameters : mapping of str to callable
        What a plan must say beside threshold, potential and amplitude: for each parameter ``check(name, value)``, which
        raises a ``ValueError`` where the value has no meaning.
    soft_reset : bool
        It is the integrate-and-fire neuron with reset by subtraction, with or without a ``leak``: hosts have one of
        their own, and compiled loops for all steps at once and surrogate gradients know it.
    integers : bool
        On whole currents, thresholds and potentials all that it computes is whole.
    nir : bool
        NIR has a node for it.
    """

    name: str
    window: Callable[[Tensor, Any], Tensor]
    rest: Callable[[Tensor, Any, int], State]
    step: Callable[[Tensor, State, Any], tuple[Tensor, State]]
    state: type[tuple[Any, ...]]
    membrane: str
    counts: Callable[[Tensor, int, Any], Tensor] | None = None
    transmissions: Callable[[Tensor, Any], Tensor] | None = None
    transmission_counts: Callable[[Tensor, Any], Tensor] | None = None
    delay: Callable[[int, Any], int] | None = None
    parameters: Mapping[str, Callable[[str, Any], object]] = field(default_factory=dict)
    soft_reset: bool = False
    integers: bool = True
    nir: bool = False

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


def whole(name: str, value: Any, minimum: int = 1) -> int:
    """Check a whole number that may come as a float, as all numbers do from some files."""
    return checks.count(name, int(value) if isinstance(value, float) and value.is_integer() else value, minimum)


def _listed(parameters: Iterable[str]) -> str:
    return " and ".join(map(repr, parameters)) or "no parameters"


NEURONS: Catalogue[NeuronModel] = Catalogue("neuron", "snn_lowlat.neurons")
"""The neuron models by name."""


def register_neuron(model: NeuronModel) -> NeuronModel:
    """Make a neuron model known by its name, and return it; ``ValueError`` if another has that name."""
    return NEURONS.add(model.name, model)
