"""SpikingJelly: converted networks in its own modules, and conversion in its own idiom.

A site becomes an ``ActivationAwareIFNode``, which has a threshold and an initial potential for each channel (as an
offset of the membrane potential, which gives the same spikes as starting there), followed by a ``ChannelVoltageScaler``
that gives its spikes their amplitude. The network works in step modes ``"s"`` and ``"m"``, and with
``functional.reset_net`` and the monitors. Written for SpikingJelly 2.0.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from spikingjelly.activation_based import base, functional, neuron
from spikingjelly.activation_based.ann2snn.modules import ChannelVoltageScaler
from spikingjelly.activation_based.ann2snn.recipes.step_mode_adapters import adapt_step_mode_graph
from torch import Tensor, fx, nn

from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.graph import find_sites, without_ceilings
from snn_lowlat.graph.vocabulary import functions, modules
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
    "ChargeMaxPool",
    "IntegrateAndFireNode",
    "SpikingNode",
    "Streaming",
    "build",
    "count",
    "current_plan",
    "fired",
    "reset",
    "run",
    "spiking_layers",
    "weights",
]

_CHANNEL_DIM = 1


class IntegrateAndFireNode(neuron.ActivationAwareIFNode):  # type: ignore[misc]
    """SpikingJelly's ``ActivationAwareIFNode`` with a multi-step mode that is faster on a CPU; the spikes are the same.

    In SpikingJelly 2.0.0 that mode copies every step on a CPU. With gradients, with ``store_v_seq`` and on a GPU, this
    class leaves everything to its base.

    Parameters
    ----------
    leak : float
        What stays of the membrane potential from one step to the next; 1 is the base class.
    *args, **kwargs
        The base class's.
    """

    def __init__(self, *args: Any, leak: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.leak = leak

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """Run one step: currents ``([N, C, ...],)`` and the potential before it give spikes and the potential after."""
        if self.leak != 1:
            states = (self.leak * states[0], *states[1:])
        return super().single_step_functional_forward(inputs, states, **kwargs)  # type: ignore[no-any-return]

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map currents ``[T, N, C, ...]`` to spikes of that shape."""
        tracked = torch.is_grad_enabled() and x_seq.requires_grad
        if tracked or x_seq.device.type != "cpu" or self.store_v_seq or self.v_reset is not None:
            return super().multi_step_forward(x_seq, *args, **kwargs)  # type: ignore[no-any-return]
        (potential,) = self.materialize_states((x_seq, *args), tuple(self._memories.values()), "m")
        spikes, self.v = integrate_and_fire_sequence(x_seq, potential, self.v_threshold, self.v_offset, self.leak)
        return spikes

    def extra_repr(self) -> str:
        """Show the leak beside what the base class shows."""
        return f"{super().extra_repr()}, leak={self.leak}"

    def _can_use_registered_multi_step(self, x_seq: Tensor, v: Tensor) -> bool:
        # The host's operation for all steps at once knows no leak.
        return self.leak == 1 and super()._can_use_registered_multi_step(x_seq, v)


class Streaming(base.MemoryModule):  # type: ignore[misc]
    """What remembers something from step to step, in both step modes; see :class:`snn_lowlat.neurons.Stream`.

    In single-step mode windows follow one another, and each layer of neurons that see a window before they fire does so
    in the window after it, as pipelined hardware does. In multi-step mode such windows are given whole; others go on
    from the steps before. With :attr:`counting` set, the module maps a window's mean currents to its mean output.

    Parameters
    ----------
    stream : Stream
        What it does.
    """

    memory: Any
    batch: Any

    def __init__(self, stream: Stream | None) -> None:
        super().__init__()
        self._stream = stream
        self.counting: int | None = None
        self.register_memory("memory", None)
        self.register_memory("batch", None)

    @property
    def stream(self) -> Stream:
        """What it does, with the values that it has now."""
        assert self._stream is not None
        return self._stream

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map ``[N, C, ...]``, or ``[T, N, C, ...]`` in multi-step mode, to outputs."""
        if self.counting is not None:
            return self.stream.mean(x, self.counting)
        return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Map the currents of one step, ``[N, C, ...]``, to the output of one step."""
        if self.batch != x.shape:  # another batch begins
            self.memory, self.batch = self.stream.rest(x), x.shape
        output, self.memory = self.stream.step(x, self.memory)
        return output

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Map the currents of several steps, ``[T, N, C, ...]``, to outputs: one whole window, or what goes on."""
        if self.stream.continues:
            return torch.stack([self.single_step_forward(x) for x in x_seq])
        return self.stream.window(x_seq)

    def detach(self) -> None:
        """Cut what it remembers off from the graph of gradients."""
        super().detach()
        self.memory = map_state(Tensor.detach, self.memory)

    def _apply(self, fn: Any) -> nn.Module:
        self.memory = map_state(fn, self.memory)
        return super()._apply(fn)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show what it does and the step mode."""
        return f"{self.stream}, step_mode={self.step_mode}"


class SpikingNode(Streaming):
    """Neurons of any model of :data:`snn_lowlat.neurons.NEURONS`; their output is their spikes, 1 or 0.

    Parameters
    ----------
    plan : SitePlan
        The model's name, threshold and initial potential, ``[]`` or ``[C]``, and what else the model needs.
    start : int
        In single-step mode, the steps that pass before the first window.
    """

    fired: Any
    before: Any

    def __init__(self, plan: SitePlan, start: int = 0) -> None:
        super().__init__(None)
        self.neuron = plan.neuron
        self.start = start
        self.parameters_ = dict(plan.parameters)
        self.register_buffer("v_threshold", plan.threshold.clone())
        self.register_buffer("v_offset", plan.initial_potential.clone())
        self.register_memory("fired", None)
        self.register_memory("before", None)

    @property
    def stream(self) -> NeuronStream:
        """The neurons, with the values that they have now."""
        return NeuronStream(NEURONS[self.neuron], Values(self.v_threshold, self.v_offset, self.parameters_), self.start)

    @property
    def v(self) -> Any:
        """The membrane potential after the last step, or what the window's currents add up to, ``[N, C, ...]``."""
        return getattr(self.memory, NEURONS[self.neuron].membrane, None)

    @property
    def state(self) -> Any:
        """What the neurons fired in the last step of single-step mode: for those that switch, which are on."""
        return self.fired

    @property
    def event(self) -> Tensor:
        """What neurons that switch sent in the last step of single-step mode: 1 (ON), -1 (OFF) or 0, ``[N, C, ...]``.

        Raises
        ------
        AttributeError
            If they send their spikes.
        """
        if NEURONS[self.neuron].transmissions is None:
            raise AttributeError(f"neurons of kind {self.neuron!r} send their spikes, not the changes of a state.")
        return self.fired - self.before  # type: ignore[no-any-return]

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Take the currents of one step, ``[N, C, ...]``, and return the spikes of one step."""
        fresh = self.batch != x.shape
        spikes = super().single_step_forward(x)
        self.before, self.fired = torch.zeros_like(spikes) if fresh else self.fired, spikes
        return spikes

    def extra_repr(self) -> str:
        """Show the model, its parameters and the step mode."""
        parameters = "".join(f", {name}={value:g}" for name, value in self.parameters_.items())
        return f"{self.neuron}{parameters}, step_mode={self.step_mode}"


class ChargeMaxPool(Streaming):
    """A max-pool in front of neurons: it pools what currents add up to; see :class:`snn_lowlat.neurons.MaxPoolStream`.

    Parameters
    ----------
    pool : Module
        Torch's max-pool.
    timesteps : int, optional
        The length of the windows after which it starts anew. By default it goes on until it is reset.
    start : int
        In single-step mode, the steps that pass before the first window.
    """

    def __init__(self, pool: nn.Module, timesteps: int | None = None, start: int = 0) -> None:
        super().__init__(MaxPoolStream(pool, timesteps, start))
        self.pool = pool


def _neurons(plan: SitePlan, start: int) -> nn.Module:
    if not NEURONS[plan.neuron].soft_reset:
        return SpikingNode(plan, start)
    leak = plan.parameters.get("leak", 1.0)
    return IntegrateAndFireNode(plan.threshold, plan.initial_potential, channel_dim=_CHANNEL_DIM, leak=leak)


def _delay_line(steps: int) -> Streaming:
    return Streaming(Delay(steps))


def build(graph: fx.GraphModule, plan: Plan, input_shape: Sequence[int]) -> fx.GraphModule:
    """Return SpikingJelly's network, in single-step mode; see :meth:`snn_lowlat.hosts.Backend.build`."""
    network = without_ceilings(graph)
    reference = next(iter(network.parameters()), torch.empty(0))
    check_plan(plan, find_sites(network))
    starts = align_windows(network, plan, _delay_line)
    for site in find_sites(network).values():
        site_plan = plan[site.name]
        neurons = _neurons(site_plan, starts.get(site.name, 0))
        setattr(network, site.name, neurons.to(reference))
        amplitude = f"{site.name}_amplitude"
        network.add_submodule(amplitude, ChannelVoltageScaler(site_plan.amplitude, _CHANNEL_DIM).to(reference))
        with network.graph.inserting_after(site.node):
            scaled = network.graph.call_module(amplitude, (site.node,))
        for reader in set(site.node.users) - {scaled}:
            reader.replace_input_with(site.node, scaled)
    window = None if is_online(plan) else window_length(plan)
    for name, module in list(network.named_children()):
        if is_cumulative(module):
            setattr(network, name, ChargeMaxPool(module, window, starts.get(name, 0)))
    adapt_step_mode_graph(
        network,
        context="snn_lowlat",
        wrap_module_types=modules(time="wrapped"),
        safe_module_types=modules(time="safe"),
        safe_call_functions=functions(time="safe"),
    )
    functional.invalidate_reset_cache(network)
    return network.eval()


def reset(network: nn.Module) -> None:
    """Put every neuron into its initial state."""
    # Somebody may have put other modules in since it was last reset.
    functional.invalidate_reset_cache(network)
    functional.reset_net(network)


def run(network: nn.Module, inputs: Tensor) -> Tensor:
    """Reset the network and run input currents ``[T, N, ...]``; returns each step's output, ``[T, N, classes]``.

    The network's own step modes are left as they were.
    """
    reset(network)
    with _step_mode(network, "m"):
        try:
            return network(inputs)  # type: ignore[no-any-return]
        finally:
            functional.reset_net(network)


@contextmanager
def _step_mode(network: nn.Module, mode: str) -> Iterator[None]:
    modes = {module: module.step_mode for module in network.modules() if isinstance(module, base.StepModule)}
    functional.set_step_mode(network, mode)
    try:
        yield
    finally:
        for module, before in modes.items():
            module.step_mode = before


@torch.no_grad()
def count(network: nn.Module, inputs: Tensor, timesteps: int) -> Tensor:
    """Map the mean input of a window ``[N, ...]`` to the mean output ``[N, classes]``, in one pass on spike counts.

    Only for networks whose neurons all see their whole window before they fire.
    """
    windows = [module for module in network.modules() if isinstance(module, Streaming)]
    with _step_mode(network, "s"):
        for module in windows:
            module.counting = timesteps
        try:
            return network(inputs)  # type: ignore[no-any-return]
        finally:
            for module in windows:
                module.counting = None


def spiking_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the neuron modules by the names of their sites, in order."""
    kinds = (IntegrateAndFireNode, SpikingNode)
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


def fired(layer: nn.Module, output: Tensor) -> Tensor:
    """Return the spikes that a neuron module has fired, ``[T * N, C, ...]``, or their mean, ``[N, C, ...]``."""
    return output.flatten(0, 1) if layer.step_mode == "m" else output


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the layers between the neurons, by their names in the normal form."""
    neurons = spiking_layers(network)
    foreign = {*neurons, *(f"{name}_amplitude" for name in neurons)}
    return {key: value for key, value in network.state_dict().items() if key.rpartition(".")[0] not in foreign}


def current_plan(network: nn.Module, plan: Plan) -> dict[str, SitePlan]:
    """Return the plan with the thresholds, potentials and amplitudes that the neurons have now.

    Raises
    ------
    SnnLowlatError
        If a layer has values that no neuron can have.
    """
    current = {}
    for name, layer in spiking_layers(network).items():
        neurons: Any = layer
        amplitude: Any = network.get_submodule(f"{name}_amplitude")
        try:
            current[name] = replace(
                plan[name],
                threshold=neurons.v_threshold,
                initial_potential=neurons.v_offset,
                amplitude=amplitude.scale,
            )
        except ValueError as error:
            raise SnnLowlatError(f"layer {name!r} has been changed to something else than a neuron: {error}") from error
    return current
