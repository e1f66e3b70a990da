"""SpikingJelly: converted networks in its own modules, and conversion in its own idiom.

A site becomes an ``ActivationAwareIFNode``, which has a threshold and an initial potential for each channel (as an
offset of the membrane potential, which gives the same spikes as starting there), followed by a ``ChannelVoltageScaler``
that gives its spikes their amplitude. The network works in step modes ``"s"`` and ``"m"``, and with
``functional.reset_net`` and the monitors. Written for SpikingJelly 2.0.0.

Every registered strategy is also a recipe that the stock converter runs, by name or as a class of its own::

    from spikingjelly.activation_based.ann2snn import FXConverter
    from snn_lowlat.adapters.spikingjelly import LowLatencyRecipe, OptimizedPotentialRecipe

    snn = FXConverter(LowLatencyRecipe("optimized_potential", calibration=loader, timesteps=8)).convert(ann)
    snn = FXConverter(OptimizedPotentialRecipe(calibration=loader, timesteps=8)).convert(ann)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from spikingjelly.activation_based import base, functional, neuron
from spikingjelly.activation_based.ann2snn.modules import ChannelVoltageScaler
from spikingjelly.activation_based.ann2snn.recipes import FXConversionRecipe
from spikingjelly.activation_based.ann2snn.recipes.step_mode_adapters import adapt_step_mode_graph
from torch import Tensor, fx, nn

from snn_lowlat.adapters.windows import align_windows, window_length
from snn_lowlat.errors import SnnLowlatError, unknown_name
from snn_lowlat.graph import find_sites, without_ceilings
from snn_lowlat.neurons import (
    PoolState,
    accumulate_then_fire,
    check_plan,
    cumulative_max_pool,
    cumulative_max_pool_step,
    integrate_and_fire_sequence,
    is_cumulative,
    online_temporal_switch,
    online_temporal_switch_step,
    pipelined_temporal_switch,
    pipelined_temporal_switch_step,
    spike_counts,
    spread_spikes,
    temporal_switch,
)
from snn_lowlat.plan import Plan, SitePlan
from snn_lowlat.simulation import is_online

if TYPE_CHECKING:
    from snn_lowlat.strategies import Strategy

__all__ = [
    "AccumulateThenFireNode",
    "ChargeMaxPool",
    "DelayLine",
    "IntegrateAndFireNode",
    "LowLatencyRecipe",
    "OnlineTemporalSwitchNode",
    "TemporalSwitchNode",
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

_STATELESS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Upsample),
)
"""Modules of the normal form that SpikingJelly wraps for its multi-step mode."""

_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
"""Modules that count dimensions from the last, so that a leading time dimension changes nothing."""


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


class _WindowModule(base.MemoryModule):  # type: ignore[misc]
    """What has to see a whole window: in multi-step mode one window is given whole, in single-step mode it streams.

    In single-step mode windows of ``timesteps`` steps follow one another, and each layer fires in the window after the
    one it has seen, as pipelined hardware does. With :attr:`counting` set, the module maps a window's mean currents
    to its mean output instead.

    Parameters
    ----------
    timesteps : int
        The window's length.
    start : int
        In single-step mode, the steps that pass before the first window.
    """

    step: int
    charge: Any

    def __init__(self, timesteps: int, start: int = 0) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.start = start
        self.counting: int | None = None
        self.register_memory("step", 0)
        self.register_memory("charge", None)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map ``[N, C, ...]``, or ``[T, N, C, ...]`` in multi-step mode, to the same shape."""
        if self.counting is not None:
            return self.mean_output(x, self.counting)
        return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]

    def mean_output(self, mean: Tensor, timesteps: int) -> Tensor:
        """Map the mean currents of a window of so many steps to the mean output, both ``[N, C, ...]``."""
        raise NotImplementedError

    def add(self, current: Tensor) -> int:
        """Add one step's currents to the window's charge; return the step's number in the window, from 1.

        A new window starts after the last step of one; where the batch's size changes all starts anew. Before the first
        window the number is 0 or less.
        """
        fresh = not isinstance(self.charge, Tensor) or self.charge.shape != current.shape
        self.step = 1 - self.start if fresh else self.step + 1 if self.step < self.timesteps else 1
        self.charge = current if self.step <= 1 else self.charge + current
        return self.step

    def extra_repr(self) -> str:
        """Show the window and the step mode."""
        return f"timesteps={self.timesteps}, step_mode={self.step_mode}"


class _WindowNeuron(_WindowModule):
    """Neurons that see a window before they fire, of any kind.

    Parameters
    ----------
    plan : SitePlan
        Threshold and initial potential, ``[]`` or ``[C]``, and the window's length ``timesteps`` as a parameter.
    start : int
        In single-step mode, the steps that pass before the first window.
    """

    def __init__(self, plan: SitePlan, start: int = 0) -> None:
        super().__init__(int(plan.parameters["timesteps"]), start)
        self.register_buffer("v_threshold", plan.threshold.clone())
        self.register_buffer("v_offset", plan.initial_potential.clone())

    def mean_output(self, mean: Tensor, timesteps: int) -> Tensor:
        """Map mean currents to the mean of the spikes, ``[N, C, ...]``."""
        counts = spike_counts(mean, timesteps, self.v_threshold, self.v_offset, times=timesteps)
        return counts.div_(timesteps)


class AccumulateThenFireNode(_WindowNeuron):
    """Neurons that add up the currents of a window and fire in the next; see :func:`snn_lowlat.neurons.spike_counts`.

    A network of these, stepped in single-step mode with the same input in each window, gives its output in window
    ``depth + 1``: run it for ``SpikingModel.latency_steps`` steps and average the last ``timesteps`` outputs.

    Parameters
    ----------
    plan : SitePlan
        Threshold and initial potential, ``[]`` or ``[C]``, and the window's length ``timesteps`` as a parameter.
    """

    def __init__(self, plan: SitePlan) -> None:
        super().__init__(plan)
        self.counts: Any
        self.register_memory("counts", None)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Take the currents of one step and return the spikes of one step: those of the window before."""
        step = self.add(x)
        if not isinstance(self.counts, Tensor) or self.counts.shape != x.shape:
            self.counts = torch.zeros_like(x)
        spikes = spread_spikes(self.counts, step, self.timesteps)
        if step == self.timesteps:
            self.counts = spike_counts(self.charge, self.timesteps, self.v_threshold, self.v_offset)
        return spikes

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Map one window's currents to the spikes of the window that follows, ``[T, N, C, ...]``."""
        return accumulate_then_fire(x_seq, self.v_threshold, self.v_offset)


class TemporalSwitchNode(_WindowNeuron):
    """Neurons that are on for a time in each window; see :func:`snn_lowlat.neurons.pipelined_temporal_switch`.

    Their output is their state, 1 or 0: times a weight it is what the synapse's register holds. What they send is the
    change of it, :attr:`event`.

    Parameters
    ----------
    plan : SitePlan
        Threshold and initial potential, ``[]`` or ``[C]``; as parameters the window's length ``timesteps``, and ``gap``
        if the neurons switch before they have seen all of it.
    start : int
        In single-step mode, the steps that pass before the first window.
    """

    def __init__(self, plan: SitePlan, start: int = 0) -> None:
        super().__init__(plan, start)
        self.gap = int(plan.parameters.get("gap", self.timesteps))
        self.state: Any
        self.before: Any
        self.sent: Any
        self.seen: Any
        self.windows: int
        self.register_memory("state", None)
        self.register_memory("before", None)
        self.register_memory("sent", None)
        self.register_memory("seen", None)
        self.register_memory("windows", 0)

    @property
    def event(self) -> Tensor:
        """What the neurons sent in the last step of single-step mode: 1 (ON), -1 (OFF) or 0, ``[N, C, ...]``."""
        return self.state - self.before  # type: ignore[no-any-return]

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Take the currents of one step and return which neurons are on in it."""
        last, known = self.charge, self.state
        if not isinstance(known, Tensor) or known.shape != x.shape:
            self.state, self.seen, self.windows = torch.zeros_like(x), None, 0
        step = self.add(x)
        if step == 1:
            self.seen = last if self.windows else None
            self.windows += 1
        self.before = self.state
        charge = self.charge if step > self.gap else self.seen
        if step >= 1 and charge is not None:
            sent = torch.zeros_like(x) if step == self.gap % self.timesteps + 1 else self.sent
            self.state = pipelined_temporal_switch_step(
                charge, sent, self.state, self.timesteps, self.v_threshold, self.v_offset
            )
            self.sent = sent + self.state
        return self.state  # type: ignore[no-any-return]

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Map one window's currents to the states of the window that follows, ``[T, N, C, ...]``."""
        if self.gap >= len(x_seq):
            return temporal_switch(x_seq, self.v_threshold, self.v_offset)
        return pipelined_temporal_switch(x_seq, self.v_threshold, self.v_offset, self.gap)

    def extra_repr(self) -> str:
        """Show the window, the gap and the step mode."""
        return f"{super().extra_repr()}, gap={self.gap}"


class OnlineTemporalSwitchNode(base.MemoryModule):  # type: ignore[misc]
    """Neurons that answer within the step; see :func:`snn_lowlat.neurons.online_temporal_switch`.

    Their output is their state, 1 or 0; what they send is the change of it, :attr:`event`.

    Parameters
    ----------
    plan : SitePlan
        Threshold and initial potential, ``[]`` or ``[C]``, and ``hysteresis`` as a parameter.
    """

    def __init__(self, plan: SitePlan) -> None:
        super().__init__()
        self.hysteresis = float(plan.parameters["hysteresis"])
        self.register_buffer("v_threshold", plan.threshold.clone())
        self.register_buffer("v_offset", plan.initial_potential.clone())
        self.v: Any
        self.state: Any
        self.before: Any
        self.register_memory("v", None)
        self.register_memory("state", None)
        self.register_memory("before", None)

    @property
    def event(self) -> Tensor:
        """What the neurons sent in the last step of single-step mode: 1 (ON), -1 (OFF) or 0, ``[N, C, ...]``."""
        return self.state - self.before  # type: ignore[no-any-return]

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Take the currents of one step and return which neurons are on in it."""
        if not isinstance(self.v, Tensor) or self.v.shape != x.shape:
            self.v = self.state = torch.zeros_like(x)
        self.before = self.state
        self.state, self.v = online_temporal_switch_step(
            x, self.v, self.state, self.v_threshold, self.v_offset, self.hysteresis
        )
        return self.state  # type: ignore[no-any-return]

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Map currents, from rest, to states, ``[T, N, C, ...]``."""
        return online_temporal_switch(x_seq, self.v_threshold, self.v_offset, self.hysteresis)

    def extra_repr(self) -> str:
        """Show the hysteresis and the step mode."""
        return f"hysteresis={self.hysteresis:g}, step_mode={self.step_mode}"


class DelayLine(base.MemoryModule):  # type: ignore[misc]
    """What makes a shortcut wait, in single-step mode, for the layers that it leaves out; in multi-step mode nothing.

    Parameters
    ----------
    steps : int
        For how many steps it holds what it is given, at least 1.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.counting: int | None = None
        self.held: Any
        self.register_memory("held", None)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map ``[N, ...]``, or ``[T, N, ...]`` in multi-step mode, to the same shape."""
        return x if self.counting is not None else super().forward(x, *args, **kwargs)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Map ``[N, ...]`` to what was given so many steps before; zeros at first."""
        if not self.held or self.held[-1].shape != x.shape:
            self.held = [torch.zeros_like(x)] * self.steps
        out, *rest = self.held
        self.held = [*rest, x]
        return out  # type: ignore[no-any-return]

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Return the window as it is: each layer's steps are counted from the start of its own."""
        return x_seq

    def extra_repr(self) -> str:
        """Show the delay and the step mode."""
        return f"steps={self.steps}, step_mode={self.step_mode}"


class ChargeMaxPool(base.MemoryModule):  # type: ignore[misc]
    """A max-pool in front of neurons: it pools what currents add up to; see :mod:`snn_lowlat.neurons.max_pool`.

    Parameters
    ----------
    pool : Module
        Torch's max-pool.
    timesteps : int, optional
        The length of the windows after which it starts anew, in front of neurons that see a window before they fire. By
        default it goes on until it is reset.
    start : int
        In single-step mode, the steps that pass before the first window.
    """

    def __init__(self, pool: nn.Module, timesteps: int | None = None, start: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.timesteps = timesteps
        self.start = start
        self.counting: int | None = None
        self.step: int
        self.sums: Any
        self.maxima: Any
        self.register_memory("step", 0)
        self.register_memory("sums", None)
        self.register_memory("maxima", None)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map ``[N, C, ...]``, or ``[T, N, C, ...]`` in multi-step mode, to pooled currents."""
        if self.counting is not None:
            return self.pool(x)  # type: ignore[no-any-return]
        return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, ...]`` to pooled currents."""
        state = self._state(x)
        self.step = 1 - self.start if self.sums is None else self.step + 1
        if self.timesteps is not None and self.step > self.timesteps:
            self.step = 1
        pooled, state = cumulative_max_pool_step(self.pool, x, state if self.step > 1 else None)
        self.sums, self.maxima = state
        return pooled

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Map ``[T, N, C, ...]`` to pooled currents: one whole window, or what follows the steps before."""
        pooled, state = cumulative_max_pool(self.pool, x_seq, self._state(x_seq[0]) if self.timesteps is None else None)
        if self.timesteps is None and state is not None:
            self.sums, self.maxima = state
            self.step += len(x_seq)
        return pooled

    def extra_repr(self) -> str:
        """Show the window and the step mode."""
        return f"timesteps={self.timesteps}, step_mode={self.step_mode}"

    def _state(self, current: Tensor) -> PoolState | None:
        # Where the batch's size changes all starts anew.
        if not isinstance(self.sums, Tensor) or self.sums.shape != current.shape:
            self.step, self.sums, self.maxima = 0, None, None
            return None
        return self.sums, self.maxima


def _integrate_and_fire(plan: SitePlan) -> nn.Module:
    leak = plan.parameters.get("leak", 1.0)
    return IntegrateAndFireNode(plan.threshold, plan.initial_potential, channel_dim=_CHANNEL_DIM, leak=leak)


_NEURONS: dict[str, Callable[[SitePlan], nn.Module]] = {
    "integrate_and_fire": _integrate_and_fire,
    "leaky_integrate_and_fire": _integrate_and_fire,
    "accumulate_then_fire": AccumulateThenFireNode,
    "temporal_switch": TemporalSwitchNode,
    "temporal_switch_pipelined": TemporalSwitchNode,
    "temporal_switch_online": OnlineTemporalSwitchNode,
}
"""How each neuron model is built from SpikingJelly's modules."""


def build(graph: fx.GraphModule, plan: Plan, input_shape: Sequence[int]) -> fx.GraphModule:
    """Return SpikingJelly's network, in single-step mode; see :meth:`snn_lowlat.adapters.Backend.build`."""
    network = without_ceilings(graph)
    reference = next(iter(network.parameters()), torch.empty(0))
    check_plan(plan, find_sites(network))
    for site_plan in plan.values():
        if site_plan.neuron not in _NEURONS:
            raise unknown_name("SpikingJelly neuron", site_plan.neuron, _NEURONS)
    starts = align_windows(network, plan, DelayLine)
    for site in find_sites(network).values():
        site_plan = plan[site.name]
        neurons = _NEURONS[site_plan.neuron](site_plan)
        if isinstance(neurons, TemporalSwitchNode):
            neurons.start = starts.get(site.name, 0)
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
        wrap_module_types=_STATELESS,
        safe_module_types=_PADS,
        safe_call_functions=(torch.clamp, torch.round),
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
    windows = [module for module in network.modules() if isinstance(module, (_WindowModule, ChargeMaxPool, DelayLine))]
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
    kinds = (IntegrateAndFireNode, AccumulateThenFireNode, TemporalSwitchNode, OnlineTemporalSwitchNode)
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


class LowLatencyRecipe(FXConversionRecipe):  # type: ignore[misc]
    """Any strategy of this package as a recipe for SpikingJelly's ``FXConverter``.

    Parameters
    ----------
    strategy : str or Strategy
        A registered name, or a configured strategy.
    calibration : iterable
        Batches of training images: tensors, ``(x, y)`` tuples or dicts. Read once, and once more for each refinement.
    timesteps : int
        The number of steps the network will run for.
    refinements : sequence of str or Refinement
        Corrections that follow, in order.
    calibration_batches : int, optional
        Read only so many batches.
    max_pool : str
        What max-pools do over time; see :func:`snn_lowlat.convert`.
    progress : bool
        Show a progress bar while calibrating.
    **options
        The strategy's options, when it is given by name.
    """

    def __init__(
        self,
        strategy: str | Strategy,
        *,
        calibration: Iterable[object],
        timesteps: int,
        refinements: Sequence[object] = (),
        calibration_batches: int | None = None,
        max_pool: str = "cumulative",
        progress: bool = False,
        **options: Any,
    ) -> None:
        from snn_lowlat.convert import Conversion

        self.conversion = Conversion.of(
            strategy,
            calibration,
            timesteps,
            refinements,
            calibration_batches,
            max_pool=max_pool,
            progress=progress,
            **options,
        )

    def before_trace(self, converter: Any, ann: nn.Module) -> nn.Module:
        """Hand the converter the network's normal form, which its own trace leaves as it is."""
        return self.conversion.normalise(ann)

    def calibrate(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Collect the statistics of every site in one pass."""
        self.conversion.calibrate(fx_model.eval())
        return fx_model

    def replace(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Plan, refine, and put neurons in place of the activations."""
        graph, plan = self.conversion.plan(fx_model)
        return build(graph, plan, self.conversion.example.shape[1:])


def __getattr__(name: str) -> type[LowLatencyRecipe]:
    """Return the recipe class of a registered strategy: ``OptimizedPotentialRecipe`` for ``optimized_potential``."""
    from snn_lowlat.strategies import strategies

    names = {"".join(word.capitalize() for word in key.split("_")) + "Recipe": key for key in strategies()}
    if name not in names:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its recipes are {', '.join(names)}")

    def __init__(self: LowLatencyRecipe, **options: Any) -> None:  # noqa: N807
        LowLatencyRecipe.__init__(self, names[name], **options)

    documentation = f"The strategy ``{names[name]}`` as a recipe; see :class:`LowLatencyRecipe` for the parameters."
    recipe = type(name, (LowLatencyRecipe,), {"__init__": __init__, "__doc__": documentation, "__module__": __name__})
    globals()[name] = recipe
    return recipe
