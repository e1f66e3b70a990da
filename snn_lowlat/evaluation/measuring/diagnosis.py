r"""Where a converted network loses accuracy: the errors of each layer, by what causes them.

For one layer, with the original network's activation :math:`a` and the spiking layer's mean output :math:`\phi` over
the window, the difference is split without a remainder. With the layer's activation function :math:`f`, the mean
:math:`\bar z` of the currents that arrive in the spiking network, the mean :math:`\hat z` that would arrive if
max-pools read the means of what they read, the amplitude :math:`A` and the output :math:`q` that neurons would have if
the same mean arrived as a constant current:

.. math::
    \phi - a = \underbrace{f(\hat z) - a}_{\text{inherited}}
    + \underbrace{f(\bar z) - f(\hat z)}_{\text{pooling}}
    + \underbrace{\min(f(\bar z), A) - f(\bar z)}_{\text{clipping}}
    + \underbrace{q(\bar z) - \min(f(\bar z), A)}_{\text{quantisation}}
    + \underbrace{\phi - q(\bar z)}_{\text{unevenness}}

- *inherited*: the layers before have sent something else than the original's.
- *pooling*: max-pools of each step's currents overestimate; those of running sums do not, see
  :mod:`snn_lowlat.neurons.max_pool`.
- *clipping*: a neuron can send no more than its amplitude in each step.
- *quantisation*: the mean output has as many levels as there are steps.
- *unevenness*: currents vary from step to step, and neurons fire too early or too late. What leaks from leaky neurons
  and what neurons that switch once leave out is here too.

The names follow Bu et al., "Optimal ANN-SNN conversion" (ICLR 2022, arXiv 2303.04347), eq. 12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from snn_lowlat.graph import Schedule, Site, Walk, find_sites
from snn_lowlat.neurons import MARGIN, MAX_POOLS, NEURONS, per_channel
from snn_lowlat.plan import Plan, SitePlan

__all__ = ["ERRORS", "Advice", "Diagnosis", "ErrorCounter", "SiteErrors", "remedies"]

ERRORS = ("inherited", "pooling", "clipping", "quantisation", "unevenness")
"""What a layer's error is made of; all but the first are its own."""


@dataclass(frozen=True)
class SiteErrors:
    """The errors of one layer of neurons, over all images measured.

    Parameters
    ----------
    name : str
        The site's name.
    relative_error : float
        The norm of the difference between the mean output and the original's activation, over the latter's norm.
    cosine : float
        The cosine between the two.
    parts : mapping of str to float
        The norm of each part of the difference, over the norm of the activation, by :data:`ERRORS`. Norms of a sum are
        at most the sum of the norms, so these add up to more than the relative error.
    firing_rates : tuple of float
        Spikes per neuron and step of each channel.
    dead : float
        The share of neurons that fired for none of the images.
    saturated : float
        How many of the neurons fire in every step, on average over the images, as a share.
    """

    name: str
    relative_error: float
    cosine: float
    parts: Mapping[str, float]
    firing_rates: tuple[float, ...]
    dead: float
    saturated: float

    @property
    def firing_rate(self) -> float:
        """Spikes per neuron and step."""
        return sum(self.firing_rates) / len(self.firing_rates)

    @property
    def own_error(self) -> tuple[str, float]:
        """The largest part of the error that arises in this layer, and how large it is."""
        return max(((name, self.parts[name]) for name in ERRORS[1:]), key=lambda part: part[1])


@dataclass(frozen=True)
class Advice:
    """What to attack first.

    Parameters
    ----------
    site, error : str
        The layer with the largest error of its own, and which one it is.
    size : float
        How large it is, relative to the layer's activations.
    options : tuple of str
        Options of this package that attack it, as the command line spells them.
    """

    site: str
    error: str
    size: float
    options: tuple[str, ...]

    def __str__(self) -> str:
        options = ", or ".join(f"`{option}`" for option in self.options)
        return (
            f"Attack the {self.error} error of layer {self.site}: it is {100 * self.size:.1f} % of the layer's "
            f"activations, more than any other error that arises in a layer. Try {options}."
        )


@dataclass(frozen=True)
class Diagnosis:
    """The errors of every layer.

    Parameters
    ----------
    sites : tuple of SiteErrors
        In the order in which the layers are computed.
    timesteps : int
        The number of steps.
    images : int
        How many images were measured.
    advice : Advice
        What to attack first.
    """

    sites: tuple[SiteErrors, ...]
    timesteps: int
    images: int
    advice: Advice

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "timesteps": self.timesteps,
            "images": self.images,
            "advice": {**vars(self.advice), "options": list(self.advice.options), "text": str(self.advice)},
            "sites": [
                {**vars(site), "parts": dict(site.parts), "firing_rates": list(site.firing_rates)}
                for site in self.sites
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Diagnosis:
        """Read back what :meth:`to_dict` returned."""
        no_errors = dict.fromkeys(ERRORS, 0.0)
        sites = tuple(
            # Reports of older versions have no pooling error.
            SiteErrors(**{**site, "firing_rates": tuple(site["firing_rates"]), "parts": no_errors | site["parts"]})
            for site in values["sites"]
        )
        found = values["advice"]
        advice = Advice(found["site"], found["error"], found["size"], tuple(found["options"]))
        return cls(sites, values["timesteps"], values["images"], advice)


class ErrorCounter:
    """Add up the errors of every layer over images; memory: a few numbers for each neuron.

    Parameters
    ----------
    graph : GraphModule
        The original network in normal form.
    spiking : GraphModule
        The spiking network in normal form, with its own weights.
    plan : mapping of str to SitePlan
        What each site became.
    """

    def __init__(self, graph: fx.GraphModule, spiking: fx.GraphModule, plan: Plan) -> None:
        if find_sites(graph).keys() != plan.keys():
            raise ValueError("the original network has other layers than the spiking one: give the one it came from.")
        self._plan = plan
        self._activations = _Activations(graph)
        has_pools = any(isinstance(module, MAX_POOLS) for module in spiking.modules())
        self._means = _Means(spiking) if has_pools else None
        self._sums: dict[str, _Sums] = {}
        self._timesteps = 0
        self._images = 0

    def expect(self, images: Tensor, inputs: Tensor) -> None:
        """Compute what the original network's activations are for a few images.

        Parameters
        ----------
        images : Tensor
            ``[N, ...]``.
        inputs : Tensor
            The mean of the currents as which they enter the spiking network, ``[N, ...]``.
        """
        self._activations.run(images)
        if self._means is not None:
            self._means.start(inputs)
        self._images += len(images)

    def observe(self, name: str, currents: Tensor, spikes: Tensor) -> None:
        """Compare one layer's spikes with the activations expected; both ``[T, N, C, ...]``."""
        plan, mean = self._plan[name], currents.mean(0)
        self._timesteps = len(spikes)
        amplitude = per_channel(plan.amplitude, mean)
        expected = self._activations.found.pop(name)
        response = self._activations.response(name, mean)
        steady = response if self._means is None else self._activations.response(name, self._means.current(name))
        clipped = response.minimum(amplitude)
        quantised = _constant_response(mean, self._timesteps, plan) * amplitude
        output = spikes.mean(0) * amplitude
        if self._means is not None:
            self._means.send(name, output)
        differences = (
            *(steady - expected, response - steady),
            *(clipped - response, quantised - clipped, output - quantised),
        )
        sums = self._sums.setdefault(name, _Sums(mean))
        sums.add(expected, output, differences, spikes)

    def compute(self, strategy: str, options: Mapping[str, Any], refinements: Sequence[Mapping[str, Any]]) -> Diagnosis:
        """Return the diagnosis of a network made by a strategy with these options and refinements."""
        if self._images == 0:
            raise ValueError("there are no images to compare the networks on: the loader gave none.")
        sites = tuple(sums.errors(name, self._timesteps, self._images) for name, sums in self._sums.items())
        worst = max(sites, key=lambda site: site.own_error[1])
        error, size = worst.own_error
        advice = Advice(worst.name, error, size, remedies(error, self._timesteps, strategy, options, refinements))
        return Diagnosis(sites, self._timesteps, self._images, advice)


class _Sums:
    """Sums over images of what one layer's errors are computed from."""

    def __init__(self, like: Tensor) -> None:
        self._products = torch.zeros(3, dtype=torch.float64, device=like.device)
        self._squares = torch.zeros(1 + len(ERRORS), dtype=torch.float64, device=like.device)
        self._spikes = torch.zeros(like.shape[1:], dtype=torch.float64, device=like.device)
        self._saturated = torch.zeros((), dtype=torch.float64, device=like.device)

    def add(self, expected: Tensor, output: Tensor, differences: Sequence[Tensor], spikes: Tensor) -> None:
        pairs = ((expected, expected), (output, output), (expected, output))
        self._products += torch.stack([(one.double() * other).sum() for one, other in pairs])
        errors = (output - expected, *differences)
        self._squares += torch.stack([error.double().square().sum() for error in errors])
        fired = (spikes != 0).sum(0)
        self._spikes += fired.sum(0)
        self._saturated += (fired == len(spikes)).sum()

    def errors(self, name: str, timesteps: int, images: int) -> SiteErrors:
        expected, output, product = self._products.tolist()
        # A layer whose activations are all zero has nothing to be compared with.
        norms = (self._squares / (expected or 1.0)).sqrt().tolist()
        cosine = product / (expected * output) ** 0.5 if expected > 0 and output > 0 else 0.0
        channels = self._spikes.reshape(len(self._spikes), -1)
        return SiteErrors(
            name=name,
            relative_error=norms[0],
            cosine=cosine,
            parts=dict(zip(ERRORS, norms[1:], strict=True)),
            firing_rates=tuple((channels.mean(1) / (timesteps * images)).tolist()),
            dead=float((self._spikes == 0).double().mean()),
            saturated=float(self._saturated) / (images * self._spikes.numel()),
        )


class _Activations(Walk):
    """Runs the original network and keeps the activations of its sites."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(Schedule(graph))
        self.found: dict[str, Tensor] = {}
        self._by_name = {site.name: site for site in self.schedule.sites.values()}

    def neurons(self, site: Site, terms: Sequence[Tensor]) -> Tensor:
        self.found[site.name] = self.response(site.name, *terms)
        return self.found[site.name]

    def response(self, name: str, current: Tensor) -> Tensor:
        """Return a site's activation for other currents."""
        site = self._by_name[name]
        values: dict[fx.Node, Any] = {site.node: current.relu()}
        for node in site.rest:
            args = map_arg(node.args, lambda n: values[n] if n in values else self.read(n, site.node))
            values[node] = self.layer(node, args, {})
        return values[site.output]  # type: ignore[no-any-return]


class _Means(Walk):
    """Follows the means over the window through a spiking network whose max-pools read means."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(Schedule(graph))
        self._by_name = {site.name: site for site in self.schedule.sites.values()}

    def start(self, inputs: Tensor) -> None:
        """Begin with the mean of the input currents, ``[N, ...]``."""
        self.values.clear()
        self.put(self.schedule.input, inputs)
        self._waiting = (node for node in self.schedule.nodes if node not in self.schedule.sites)

    def current(self, name: str) -> Tensor:
        """Return a site's mean current, ``[N, C, ...]``; what all sites before it send must be known."""
        site = self._by_name[name]
        while site.current not in self.values:
            self.step(next(self._waiting))
        return self.values[site.current]  # type: ignore[no-any-return]

    def send(self, name: str, output: Tensor) -> None:
        """Take the mean of what a site's neurons send, ``[N, C, ...]``."""
        self.put(self._by_name[name].node, output)


def _constant_response(mean: Tensor, timesteps: int, plan: SitePlan) -> Tensor:
    """Return the firing rate for a constant current, ``[N, C, ...]``."""
    counts = NEURONS[plan.neuron].counts
    if counts is not None:
        return counts(mean, timesteps, plan) / timesteps
    threshold, start = per_channel(plan.threshold, mean), per_channel(plan.initial_potential, mean)
    return ((mean * timesteps + start) / threshold + MARGIN).floor().clamp(0, timesteps) / timesteps


def remedies(
    error: str,
    timesteps: int,
    strategy: str,
    options: Mapping[str, Any],
    refinements: Sequence[Mapping[str, Any]],
) -> tuple[str, ...]:
    """Name options that attack an error: those that the strategy has and that are not in use already.

    Parameters
    ----------
    error : str
        One of :data:`ERRORS` but the first.
    timesteps : int
        The number of steps.
    strategy : str
        The strategy's name.
    options : mapping
        Its options.
    refinements : sequence of mapping
        The refinements in use, each with its ``name``.

    Returns
    -------
    tuple of str
        As the command line spells them.
    """
    found: list[str] = []

    def offer(option: str, value: object) -> None:
        if option in options and options[option] != value:
            found.append(f"strategy.{option}={value}")

    if error == "pooling":
        found.append("max_pool=cumulative")
    elif error == "clipping":
        offer("threshold", "max")
        offer("ceiling", "max")
        offer("threshold_scale", round(1.25 * float(options.get("threshold_scale", 1.0)), 3))
    elif error == "quantisation":
        offer("threshold", "mmse")
        offer("objective", "mse")
        offer("granularity", "channel")
        found.append(f"timesteps={2 * timesteps}")
    else:
        offer("initial_potential", 0.3)
        offer("threshold_scale", 0.85)
        if strategy != "value_range":
            found.append("strategy=value_range")
    if error not in ("pooling", "clipping") and "bias_correction" not in {str(step["name"]) for step in refinements}:
        found.append("refinements=[bias_correction]")
    return tuple(found)
