"""snnTorch: converted networks of ``snn.Leaky`` neurons, stepped in the user's own time loop.

A site becomes an :class:`IntegrateAndFire`, a subclass of ``snn.Leaky`` with a threshold, an initial potential and an
amplitude (``graded_spikes_factor``) for each channel and no leak (``beta`` is 1). Written for snnTorch 1.0.0, whose own
ways of resetting, counting and pickling neurons do not fit converted networks; the classes here say where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import snntorch
import torch
from snntorch import surrogate
from torch import Tensor, fx, nn

from snn_lowlat.errors import SnnLowlatError, unknown_name
from snn_lowlat.graph import current_shapes, find_sites, without_ceilings
from snn_lowlat.hosts.windows import align_windows, window_length
from snn_lowlat.neurons import (
    NEURONS,
    Delay,
    MaxPoolStream,
    NeuronStream,
    Stream,
    Values,
    check_plan,
    integrate_and_fire_sequence,
    is_cumulative,
    map_state,
)
from snn_lowlat.plan import Plan, SitePlan
from snn_lowlat.simulation import is_online

__all__ = [
    "AccumulateThenFire",
    "ChargeMaxPool",
    "IntegrateAndFire",
    "OnlineTemporalSwitch",
    "Spiking",
    "Streaming",
    "Surrogate",
    "TemporalSwitch",
    "build",
    "count",
    "current_plan",
    "fired",
    "make_learnable",
    "reset",
    "run",
    "spiking_layers",
    "weights",
]

_SURROGATES = (
    *("atan", "fast_sigmoid", "heaviside", "LSO", "SFS", "sigmoid", "spike_rate_escape", "SSO"),
    *("straight_through_estimator", "triangular"),
)


class Surrogate:
    """Spikes where the membrane potential has reached the threshold, with the gradient of one of snnTorch's surrogates.

    snnTorch's surrogates fire above the threshold only, SpikingJelly's neurons at the threshold too; and they are
    closures, which can't be pickled. This one fires at the threshold, and is pickled by its name and options.

    Parameters
    ----------
    kind : str or callable
        The name of a function in ``snntorch.surrogate``, or a surrogate such as ``surrogate.fast_sigmoid(slope=10)``;
        with one that can't be pickled, neither can the network.
    **options
        The named function's arguments.

    Raises
    ------
    ValueError
        If there is no surrogate of that name.
    """

    def __init__(self, kind: str | Callable[[Tensor], Tensor] = "atan", **options: Any) -> None:
        if isinstance(kind, str) and kind not in _SURROGATES:
            raise unknown_name("surrogate", kind, _SURROGATES)
        self.kind = kind
        self.options = options
        self._function = getattr(surrogate, kind)(**options) if isinstance(kind, str) else kind

    def __call__(self, distance: Tensor) -> Tensor:
        """Map the distance of the potential from the threshold to spikes, 1 where it is not negative."""
        fired = (distance >= 0).to(distance.dtype)
        if not (torch.is_grad_enabled() and distance.requires_grad):
            return fired
        smooth = self._function(distance).to(distance.dtype)
        return smooth + (fired - smooth).detach()

    def __reduce__(self) -> tuple[Any, ...]:
        return _surrogate, (self.kind, self.options)

    def __repr__(self) -> str:
        return f"Surrogate({self.kind!r}{''.join(f', {key}={value!r}' for key, value in self.options.items())})"


def _surrogate(kind: str | Callable[[Tensor], Tensor], options: dict[str, Any]) -> Surrogate:
    return Surrogate(kind, **options)


class IntegrateAndFire(snntorch.Leaky):  # type: ignore[misc]
    r"""A layer of ``snn.Leaky`` neurons that keeps its membrane potentials (``init_hidden=True``).

    .. math::

        m(t) = \beta\,(m(t-1) - \theta\, s(t-1)) + z(t), \qquad s(t) = [\,m(t) + v_0 \ge \theta\,]

    and :math:`a\, s(t)` is passed on, with the threshold :math:`\theta` (``threshold``), the initial potential
    :math:`v_0` (``initial_potential``), the amplitude :math:`a` (``graded_spikes_factor``) and :math:`\beta` (``beta``,
    1 unless it is trained). ``mem`` is :math:`m`: the potential before the reset, as everywhere in snnTorch, counted
    from the initial potential. So it is 0 after a reset, and neither a batch of another size nor any way of resetting
    can lose the initial potential. All in units of the pre-activation.

    What differs from ``snn.Leaky``:

    - it fires at the threshold, not only above it;
    - it is left out of ``SpikingNeuron.instances``, by which ``snntorch.utils.reset`` would reset every other network
      too and which keeps neurons alive for good. Reset a network with :func:`snn_lowlat.snntorch.reset`;
    - with a ``beta`` below 1 the reset is subtracted before the leak, not after it; and a ``beta`` of 1 can be trained,
      though the clamp that ``snn.Leaky`` has there lets no gradient through;
    - ``reset_delay`` is always True: in snnTorch 1.0.0 its False loses spikes of potentials above twice the threshold.

    Parameters
    ----------
    plan : SitePlan
        Threshold, initial potential and amplitude, ``[]`` or ``[C]``, and the leak if there is one.
    dimensions : int
        The number of dimensions of the currents, ``[N, C, ...]``: two or more.
    """

    _at_rest = False

    def __init__(self, plan: SitePlan, dimensions: int) -> None:
        super().__init__(
            beta=plan.parameters.get("leak", 1.0),
            threshold=_spread(plan.threshold, dimensions),
            graded_spikes_factor=_spread(plan.amplitude, dimensions),
            spike_grad=Surrogate(),
            init_hidden=True,
        )
        snntorch.SpikingNeuron.instances.remove(self)
        self.register_buffer("initial_potential", _spread(plan.initial_potential, dimensions))
        self.folded_steps: int | None = None

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor:
        """Map the currents of one step ``[N, C, ...]`` to spikes times the amplitude, of the same shape."""
        if self.folded_steps is None:
            self._at_rest = self.mem.shape != input_.shape
            return super().forward(input_, mem)  # type: ignore[no-any-return]
        return self._window(input_.reshape(self.folded_steps, -1, *input_.shape[1:])).flatten(0, 1)

    def fire(self, mem: Tensor) -> Tensor:
        """Return the spikes times the amplitude."""
        return super().fire(mem + self.initial_potential)  # type: ignore[no-any-return]

    def mem_reset(self, mem: Tensor) -> Tensor:
        """Return which neurons have fired, without a gradient; at rest none, however high the initial potential is."""
        if self._at_rest:
            return torch.zeros_like(mem)
        return super().mem_reset(mem + self.initial_potential)  # type: ignore[no-any-return]

    def reset_mem(self) -> Tensor:
        """Forget everything, the batch's size too: the next step starts from the initial potential."""
        rest: Tensor = self.threshold.new_zeros(0)
        self.mem = rest
        return rest

    def site_plan(self, plan: SitePlan) -> SitePlan:
        """Return the site's plan with the values that these neurons have now.

        Raises
        ------
        ValueError
            If training has made a threshold or amplitude negative, or there is more than one ``beta``.
        """
        if self.beta.numel() != 1:
            raise ValueError(f"beta must be one number for the layer, not of shape {tuple(self.beta.shape)}.")
        leak = float(self.beta.detach().clamp(0, 1))
        return replace(
            plan,
            threshold=_flat(self.threshold),
            initial_potential=_flat(self.initial_potential),
            amplitude=_flat(self.graded_spikes_factor),
            neuron="integrate_and_fire" if leak == 1 else "leaky_integrate_and_fire",
            parameters={} if leak == 1 else {"leak": leak},
        )

    def extra_repr(self) -> str:
        """Show how many thresholds there are, the leak and the surrogate."""
        return f"thresholds={self.threshold.numel()}, beta={float(self.beta):g}, spike_grad={self.spike_grad}"

    def _base_sub(self, input_: Tensor) -> Tensor:
        # The gradient passes the clamp: torch gives none at its edge, where a converted network starts.
        leak = self.beta.detach().clamp(0, 1) + (self.beta - self.beta.detach())
        # In this order the rounding is that of SpikingJelly's neuron.
        return leak * (self.mem - self.reset * self.threshold) + input_  # type: ignore[no-any-return]

    def _window(self, currents: Tensor) -> Tensor:
        """Map the currents of a whole window ``[T, N, C, ...]``, from rest, to spikes times the amplitude."""
        rest = torch.zeros_like(currents[0])
        leak = float(self.beta.detach().clamp(0, 1))
        threshold, offset = _flat(self.threshold), _flat(self.initial_potential)
        spikes, _ = integrate_and_fire_sequence(currents, rest, threshold, offset, leak)
        return spikes * self.graded_spikes_factor.detach()  # type: ignore[no-any-return]


class Streaming(nn.Module):
    """What remembers something from step to step, in a time loop; see :class:`snn_lowlat.neurons.Stream`.

    In a time loop windows follow one another, and each layer of neurons that see a window before they fire does so in
    the window after it, as pipelined hardware does. With :attr:`counting` set, the module maps a window's mean currents
    to its mean output instead; with :attr:`folded_steps`, one whole window ``[T * N, C, ...]``.

    Parameters
    ----------
    stream : Stream
        What it does.
    *args, **kwargs
        Another base class's.
    """

    memory: Any
    batch: torch.Size | None

    def __init__(self, stream: Stream | None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stream = stream
        self.counting: int | None = None
        self.folded_steps: int | None = None
        self.reset_mem()

    @property
    def stream(self) -> Stream:
        """What it does, with the values that it has now."""
        assert self._stream is not None
        return self._stream

    def forward(self, input_: Tensor) -> Tensor:
        """Map the currents of one step ``[N, C, ...]`` to the output of one step."""
        if self.counting is not None:
            return self.stream.mean(input_, self.counting)
        if self.folded_steps is not None:
            return self.stream.window(input_.reshape(self.folded_steps, -1, *input_.shape[1:])).flatten(0, 1)
        if self.batch != input_.shape:  # another batch begins
            self.memory, self.batch = self.stream.rest(input_), input_.shape
        output, self.memory = self.stream.step(input_, self.memory)
        return output

    def reset_mem(self) -> None:
        """Forget everything, the batch's size too."""
        self.memory = self.batch = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.memory = map_state(fn, self.memory)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Show what it does."""
        return str(self.stream)


class Spiking(Streaming, snntorch.SpikingNeuron):  # type: ignore[misc]
    """Neurons of any model of :data:`snn_lowlat.neurons.NEURONS`; their output is their spikes times the amplitude.

    Parameters
    ----------
    plan : SitePlan
        The model's name, threshold, initial potential and amplitude, ``[]`` or ``[C]``, and what else the model needs.
    dimensions : int
        The number of dimensions of the currents, ``[N, C, ...]``: two or more.
    start : int
        In a time loop, the steps that pass before the first window.
    """

    threshold: Tensor
    graded_spikes_factor: Tensor
    initial_potential: Tensor
    spikes: Tensor | None
    before: Tensor | None

    def __init__(self, plan: SitePlan, dimensions: int, start: int = 0) -> None:
        super().__init__(
            None,
            threshold=_spread(plan.threshold, dimensions),
            graded_spikes_factor=_spread(plan.amplitude, dimensions),
            spike_grad=Surrogate(),
            init_hidden=True,
        )
        snntorch.SpikingNeuron.instances.remove(self)
        self.register_buffer("initial_potential", _spread(plan.initial_potential, dimensions))
        self.neuron = plan.neuron
        self.start = start
        self.parameters_ = dict(plan.parameters)

    @property
    def stream(self) -> NeuronStream:
        """The neurons, with the values that they have now."""
        values = Values(_flat(self.threshold), _flat(self.initial_potential), self.parameters_)
        return NeuronStream(NEURONS[self.neuron], values, self.start)

    @property
    def mem(self) -> Tensor | None:
        """The membrane potential after the last step, or what the window's currents add up to, ``[N, C, ...]``."""
        return getattr(self.memory, NEURONS[self.neuron].membrane, None)

    @property
    def state(self) -> Tensor | None:
        """What the neurons fired in the last step of a time loop, 1 or 0: for those that switch, which are on."""
        return self.spikes

    @property
    def event(self) -> Tensor | None:
        """What neurons that switch sent in the last step of a time loop: 1 (ON), -1 (OFF) or 0, ``[N, C, ...]``.

        Raises
        ------
        AttributeError
            If they send their spikes.
        """
        if NEURONS[self.neuron].transmissions is None:
            raise AttributeError(f"neurons of kind {self.neuron!r} send their spikes, not the changes of a state.")
        return None if self.spikes is None or self.before is None else self.spikes - self.before

    def forward(self, input_: Tensor) -> Tensor:
        """Map the currents of one step ``[N, C, ...]`` to the spikes of one step times the amplitude."""
        fresh = self.batch != input_.shape
        spikes = super().forward(input_.detach())
        if self.counting is None and self.folded_steps is None:
            self.before, self.spikes = torch.zeros_like(spikes) if fresh else self.spikes, spikes
        return spikes * self.graded_spikes_factor

    def reset_mem(self) -> None:
        """Forget everything: the next step starts from rest."""
        super().reset_mem()
        self.spikes = self.before = None

    def site_plan(self, plan: SitePlan) -> SitePlan:
        """Return the site's plan with the values that these neurons have now."""
        return replace(
            plan,
            threshold=_flat(self.threshold),
            initial_potential=_flat(self.initial_potential),
            amplitude=_flat(self.graded_spikes_factor),
        )

    def extra_repr(self) -> str:
        """Show the model, its parameters and how many thresholds there are."""
        parameters = "".join(f", {name}={value:g}" for name, value in self.parameters_.items())
        return f"{self.neuron}{parameters}, thresholds={self.threshold.numel()}"


# Each of these is any model's neurons; the names are those that models once had.
AccumulateThenFire = TemporalSwitch = OnlineTemporalSwitch = Spiking


class ChargeMaxPool(Streaming):
    """A max-pool in front of neurons: it pools what currents add up to; see :class:`snn_lowlat.neurons.MaxPoolStream`.

    Parameters
    ----------
    pool : Module
        Torch's max-pool.
    timesteps : int, optional
        The length of the windows after which it starts anew. By default it goes on until it is reset.
    start : int
        In a time loop, the steps that pass before the first window.
    """

    def __init__(self, pool: nn.Module, timesteps: int | None = None, start: int = 0) -> None:
        super().__init__(MaxPoolStream(pool, timesteps, start))
        self.pool = pool


def _spread(values: Tensor, dimensions: int) -> Tensor:
    """Shape one value, or one a channel, so that snnTorch's operations broadcast it over ``[N, C, ...]``."""
    return values.reshape(-1, *[1] * (dimensions - 2)).clone() if values.dim() else values.clone()


def _flat(values: Tensor) -> Tensor:
    return values.detach().reshape(-1) if values.dim() else values.detach()


def _neurons(plan: SitePlan, dimensions: int, start: int) -> nn.Module:
    if NEURONS[plan.neuron].soft_reset:
        return IntegrateAndFire(plan, dimensions)
    return Spiking(plan, dimensions, start)


def _delay_line(steps: int) -> Streaming:
    return Streaming(Delay(steps))


def build(graph: fx.GraphModule, plan: Plan, input_shape: Sequence[int]) -> fx.GraphModule:
    """Return snnTorch's network for a network in normal form; see :meth:`snn_lowlat.hosts.Backend.build`."""
    network = without_ceilings(graph)
    reference = next(network.parameters(), torch.empty(0))
    shapes = current_shapes(network, input_shape)
    check_plan(plan, find_sites(network))
    starts = align_windows(network, plan, _delay_line)
    for site in find_sites(network).values():
        site_plan = plan[site.name]
        neurons = _neurons(site_plan, len(shapes[site.name]) + 1, starts.get(site.name, 0))
        setattr(network, site.name, neurons.to(reference))
    window = None if is_online(plan) else window_length(plan)
    for name, module in list(network.named_children()):
        if is_cumulative(module):
            setattr(network, name, ChargeMaxPool(module, window, starts.get(name, 0)))
    return network.eval()


def reset(network: nn.Module) -> None:
    """Put every neuron of this network, and of no other, into its initial state.

    Parameters
    ----------
    network : Module
        A converted network, or any module that holds one at any depth; other neurons of snnTorch with a ``reset_mem``
        are reset too.
    """
    for module in network.modules():
        if isinstance(module, (snntorch.SpikingNeuron, Streaming)) and hasattr(module, "reset_mem"):
            module.reset_mem()


@torch.no_grad()
def run(network: nn.Module, inputs: Tensor) -> Tensor:
    """Reset the network and run input currents ``[T, N, ...]``; returns each step's output, ``[T, N, classes]``.

    Time is folded into the batch, layer by layer: the spikes are those of a time loop.
    """
    reset(network)
    with _on_all(network, "folded_steps", inputs.shape[0]):
        return network(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])  # type: ignore[no-any-return]


@torch.no_grad()
def count(network: nn.Module, inputs: Tensor, timesteps: int) -> Tensor:
    """Map the mean input of a window ``[N, ...]`` to the mean output ``[N, classes]``, in one pass on spike counts.

    Only for networks whose neurons all see their whole window before they fire.
    """
    with _on_all(network, "counting", timesteps):
        return network(inputs)  # type: ignore[no-any-return]


@contextmanager
def _on_all(network: nn.Module, attribute: str, value: int) -> Iterator[None]:
    modules = [module for module in network.modules() if hasattr(module, attribute)]
    for module in modules:
        setattr(module, attribute, value)
    try:
        yield
    finally:
        for module in modules:
            setattr(module, attribute, None)


def spiking_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the neuron modules by the names of their sites, in order."""
    kinds = (IntegrateAndFire, Spiking)
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


def fired(layer: nn.Module, output: Any) -> Tensor:
    """Return the spikes that a neuron module has fired, ``[T * N, C, ...]``, or their mean, ``[N, C, ...]``."""
    spikes = output[0] if isinstance(output, tuple) else output
    return spikes / layer.graded_spikes_factor  # type: ignore[no-any-return, operator]


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the layers between the neurons, by their names in the normal form."""
    neurons = spiking_layers(network)
    return {key: value for key, value in network.state_dict().items() if key.rpartition(".")[0] not in neurons}


def current_plan(network: nn.Module, plan: Plan) -> dict[str, SitePlan]:
    """Return the plan with the values that the neurons have now: they may have been trained.

    Raises
    ------
    SnnLowlatError
        If training has left a layer with values that no neuron can have.
    """
    current = {}
    for name, layer in spiking_layers(network).items():
        try:
            current[name] = layer.site_plan(plan[name])  # type: ignore[operator]
        except ValueError as error:
            raise SnnLowlatError(f"layer {name!r} has been trained to something else than a neuron: {error}") from error
    return current


def make_learnable(
    network: nn.Module,
    *,
    threshold: bool = False,
    beta: bool = False,
    graded_spikes_factor: bool = False,
    spike_grad: str | Surrogate | Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """Make values of a converted network's neurons trainable, as ``snn.Leaky``'s ``learn_...`` options do.

    Parameters
    ----------
    network : Module
        A converted network; it is changed.
    threshold, beta, graded_spikes_factor : bool
        Which values become parameters: one threshold or amplitude for each channel that has one, one leak for a layer.
    spike_grad : str, Surrogate or callable, optional
        The surrogate gradient, by its name in ``snntorch.surrogate`` or as an object; the arc tangent if it is not
        given.

    Returns
    -------
    Module
        The same network.
    """
    chosen = {"threshold": threshold, "beta": beta, "graded_spikes_factor": graded_spikes_factor}
    gradient = spike_grad if isinstance(spike_grad, (Surrogate, type(None))) else Surrogate(spike_grad)
    for layer in spiking_layers(network).values():
        for name in (name for name, learn in chosen.items() if learn):
            value = getattr(layer, name)
            if not isinstance(value, nn.Parameter):
                delattr(layer, name)
                setattr(layer, name, nn.Parameter(value.detach().clone()))
        if gradient is not None:
            layer.spike_grad = gradient  # type: ignore[assignment]
    return network
