r"""Neurons that switch on once and off once: the value is the time in between.

After Han & Roy, "Deep spiking neural network: energy efficiency through time based coding" (ECCV 2020). A neuron sends
two events, ON (+1) and OFF (-1). Each adds its weight to the register of a synapse or subtracts it, and membranes
integrate the registers: two additions and two memory accesses a synapse at most, however long the window is.

The paper's encoder, its register and its bound are confirmed; when a hidden neuron switches is not known to us from the
paper itself. The three output rules here are a reconstruction that keeps what its abstract states.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.neurons.accumulate_then_fire import accumulate, count_in_window, spike_counts
from snn_lowlat.neurons.base import NeuronModel, NeuronValues, register_neuron, whole
from snn_lowlat.neurons.parameters import per_channel

__all__ = [
    "ONLINE_TEMPORAL_SWITCH",
    "PIPELINED_TEMPORAL_SWITCH",
    "TEMPORAL_SWITCH",
    "event_counts",
    "online_temporal_switch",
    "online_temporal_switch_step",
    "pipelined_temporal_switch",
    "pipelined_temporal_switch_step",
    "switch_events",
    "switch_states",
    "synaptic_register",
    "temporal_switch",
]


def switch_states(durations: Tensor, timesteps: int) -> Tensor:
    """Return which neurons are on in each step of a window: those of duration ``d`` in the first ``d`` steps.

    Parameters
    ----------
    durations : Tensor
        Whole numbers from 0 to ``timesteps``, ``[N, C, ...]``.
    timesteps : int
        The window's length.

    Returns
    -------
    Tensor
        0 or 1 in the durations' type, ``[T, N, C, ...]``.
    """
    steps = torch.arange(1, timesteps + 1, dtype=durations.dtype, device=durations.device)
    return (durations >= steps.view(-1, *[1] * durations.dim())).to(durations.dtype)


def switch_events(states: Tensor) -> Tensor:
    r"""Return what neurons send when they are on and off like this: the changes of their states.

    .. math:: e(t) = s(t) - s(t - 1), \qquad s(0) = s(T + 1) = 0

    A neuron that would switch off and on in the same step sends nothing.

    Parameters
    ----------
    states : Tensor
        1 where a neuron is on and 0 where it is off, ``[T, N, C, ...]``: one window, or several in a row.

    Returns
    -------
    Tensor
        1 (ON), -1 (OFF) or 0, ``[T + 1, N, C, ...]``: what is on in the last step switches off in the one after it.
    """
    return torch.cat([states[:1], states[1:] - states[:-1], -states[-1:]])


def event_counts(durations: Tensor) -> Tensor:
    """Return how many events neurons send that are on for so long in one go, 2 or 0, in the same shape."""
    return 2 * (durations > 0).to(durations.dtype)


def synaptic_register(charges: Tensor) -> Tensor:
    r"""Add up what events bring to a synapse: each adds or subtracts its weight once.

    .. math:: u(t) = u(t - 1) + w\, e(t)

    Parameters
    ----------
    charges : Tensor
        Events times weights, ``[T + 1, ...]``.

    Returns
    -------
    Tensor
        What the register holds after each step, ``[T + 1, ...]``: the currents of the window's steps, and after them
        zero again. In floating point it is what rounding left of zero; on integers it is zero.
    """
    register = torch.empty_like(charges)
    held = torch.zeros_like(charges[0])
    for charge, current in zip(charges, register, strict=True):
        held += charge
        current.copy_(held)
    return register


@torch.no_grad()
def temporal_switch(currents: Tensor, threshold: Tensor, initial_potential: Tensor) -> Tensor:
    r"""States of neurons that integrate a window and are on from the start of the window after it; no gradients pass.

    With a current whose mean over the window is :math:`\bar z`, a neuron is on for

    .. math:: d = \mathrm{clip}\left(\left\lfloor \frac{T \bar z + v_0}{\theta} \right\rfloor, 0, T\right)

    steps: the membrane, which holds :math:`T \bar z + v_0`, drains by :math:`\theta` in each step in which the neuron
    is on. With :math:`v_0 = \theta / 2` that is rounding to the nearest of :math:`T + 1` levels, and a network of such
    neurons equals the network with these activations.

    Parameters
    ----------
    currents : Tensor
        A window's currents ``[T, N, C, ...]``.
    threshold, initial_potential : Tensor
        Of shape ``[]`` or ``[C]``, in units of the pre-activation.

    Returns
    -------
    Tensor
        1 where a neuron is on in the window that follows, else 0, ``[T, N, C, ...]``.
    """
    timesteps = currents.shape[0]
    return switch_states(spike_counts(accumulate(currents), timesteps, threshold, initial_potential), timesteps)


def pipelined_temporal_switch_step(
    charge: Tensor, sent: Tensor, state: Tensor, timesteps: int, threshold: Tensor, initial_potential: Tensor
) -> Tensor:
    """Return which neurons are on in a step, if each may be on once, for as long as its membrane drains.

    Parameters
    ----------
    charge : Tensor
        What the window's currents add up to so far, ``[N, C, ...]``.
    sent : Tensor
        For how many steps the neurons have been on in this window.
    state : Tensor
        Which were on in the step before.
    timesteps : int
        The window's length.
    threshold, initial_potential : Tensor
        Of shape ``[]`` or ``[C]``, in units of the pre-activation.

    Returns
    -------
    Tensor
        0 or 1 in the charge's type, ``[N, C, ...]``.
    """
    # Whole thresholds rather than a potential that is drained: rounding then is that of the windowed rule.
    filled = spike_counts(charge, timesteps, threshold, initial_potential) > sent
    return (filled & ((state > 0) | (sent == 0))).to(charge.dtype)


@torch.no_grad()
def pipelined_temporal_switch(currents: Tensor, threshold: Tensor, initial_potential: Tensor, gap: int) -> Tensor:
    """States of neurons that may switch on before they have seen their whole window; no gradients pass.

    A neuron may switch on from ``gap`` steps after its window's start, is on while its membrane, drained by a threshold
    in each of these steps, holds one, and then stays off. Charge that arrives later is lost, and what inhibits later
    comes too late. With ``gap`` equal to the window it is :func:`temporal_switch`.

    Parameters
    ----------
    currents : Tensor
        A window's currents ``[T, N, C, ...]``.
    threshold, initial_potential : Tensor
        Of shape ``[]`` or ``[C]``, in units of the pre-activation.
    gap : int
        The steps from the start of a layer's window to the start of the next layer's, from 0 to T.

    Returns
    -------
    Tensor
        1 where a neuron is on, else 0, ``[T, N, C, ...]``: from step ``gap + 1`` to step ``gap + T``.
    """
    timesteps = currents.shape[0]
    charge, states = torch.zeros_like(currents[0]), torch.empty_like(currents)
    sent, state = torch.zeros_like(charge), torch.zeros_like(charge)
    for step in range(1, timesteps + gap + 1):
        if step <= timesteps:
            charge += currents[step - 1]
        if step > gap:
            state = pipelined_temporal_switch_step(charge, sent, state, timesteps, threshold, initial_potential)
            sent += state
            states[step - gap - 1] = state
    return states


def online_temporal_switch_step(
    current: Tensor, potential: Tensor, state: Tensor, threshold: Tensor, offset: Tensor, hysteresis: float
) -> tuple[Tensor, Tensor]:
    r"""One time step of neurons that answer within the step.

    .. math::

        u(t) = v(t-1) + z(t), \qquad
        s(t) = [\,u(t) + o \ge \theta\,] \text{ if on, } [\,u(t) + o \ge H \theta\,] \text{ if off}, \qquad
        v(t) = u(t) - \theta\, s(t)

    Parameters
    ----------
    current : Tensor
        The current of one step, ``[N, C, ...]``.
    potential, state : Tensor
        The membrane potential after the step before, and which neurons were on in it, of the same shape.
    threshold, offset : Tensor
        Of shape ``[]`` or ``[C]``, in units of the pre-activation.
    hysteresis : float
        How many thresholds switch a neuron on, :math:`H`; one keeps it on. With 1 the states are the spikes of
        :func:`~snn_lowlat.neurons.integrate_and_fire_step`.

    Returns
    -------
    state : Tensor
        0 or 1 in the current's type, ``[N, C, ...]``.
    potential : Tensor
        The membrane potential after the step.
    """
    threshold = per_channel(threshold, current)
    charged = potential + current
    needed = threshold if hysteresis == 1 else torch.where(state > 0, threshold, hysteresis * threshold)
    state = (charged + per_channel(offset, current) >= needed).to(current.dtype)
    return state, charged - state * threshold


@torch.no_grad()
def online_temporal_switch(
    currents: Tensor, threshold: Tensor, initial_potential: Tensor, hysteresis: float = 1.0
) -> Tensor:
    """States of neurons that answer within the step and may switch more than once; no gradients pass.

    Each is an integrate-and-fire neuron that sends the changes of its state instead of every spike, and with
    ``hysteresis`` above 1 changes it less often. The bound of two events a neuron is lost.

    Parameters
    ----------
    currents : Tensor
        Of shape ``[T, N, C, ...]``.
    threshold, initial_potential : Tensor
        Of shape ``[]`` or ``[C]``, in units of the pre-activation.
    hysteresis : float
        How many thresholds switch a neuron on; one keeps it on.

    Returns
    -------
    Tensor
        1 where a neuron is on, else 0, ``[T, N, C, ...]``.
    """
    states = torch.empty_like(currents)
    state = potential = torch.zeros_like(currents[0])
    for step, current in enumerate(currents):
        state, potential = online_temporal_switch_step(
            current, potential, state, threshold, initial_potential, hysteresis
        )
        states[step] = state
    return states


class _State(NamedTuple):
    """What a window's neurons remember.

    The step in the window, from 1; how many windows have begun; what this window's currents add up to so far, and what
    the last one's did; for how many steps neurons have been on in this window; and which are on.
    """

    step: int
    windows: int
    charge: Tensor | None
    seen: Tensor | None
    sent: Tensor | None
    on: Tensor


def _gap(values: NeuronValues) -> int:
    return int(values.parameters.get("gap", values.parameters["timesteps"]))


def _window(currents: Tensor, values: NeuronValues) -> Tensor:
    gap = int(values.parameters.get("gap", len(currents)))
    if gap >= len(currents):
        return temporal_switch(currents, values.threshold, values.initial_potential)
    return pipelined_temporal_switch(currents, values.threshold, values.initial_potential, gap)


def _rest(current: Tensor, values: NeuronValues, start: int) -> _State:
    return _State(-start, 0, None, None, None, torch.zeros_like(current))


@torch.no_grad()
def _step(current: Tensor, state: _State, values: NeuronValues) -> tuple[Tensor, _State]:
    timesteps, gap = int(values.parameters["timesteps"]), _gap(values)
    step = state.step + 1 if state.step < timesteps else 1
    charge = current if state.charge is None or step <= 1 else state.charge + current
    windows, seen, sent, on = state.windows, state.seen, state.sent, state.on
    if step == 1:
        seen, windows = state.charge if windows else None, windows + 1
    filled = charge if step > gap else seen
    if step >= 1 and filled is not None:
        if sent is None or step == gap % timesteps + 1:
            sent = torch.zeros_like(current)
        on = pipelined_temporal_switch_step(filled, sent, on, timesteps, values.threshold, values.initial_potential)
        sent = sent + on
    return on, _State(step, windows, charge, seen, sent, on)


def _delay_of_pipelined(timesteps: int, values: NeuronValues | None) -> int:
    if values is None:
        raise ValueError("the latency of pipelined neurons depends on their gap: give their plan.")
    return int(values.parameters["gap"])


def _transmissions(states: Tensor, values: NeuronValues) -> Tensor:
    return switch_events(states)


def _transmission_counts(durations: Tensor, values: NeuronValues) -> Tensor:
    return event_counts(durations)


TEMPORAL_SWITCH = register_neuron(
    NeuronModel(
        *("temporal_switch", _window, _rest, _step, _State, "charge"),
        counts=count_in_window,
        transmissions=_transmissions,
        transmission_counts=_transmission_counts,
        delay=lambda timesteps, values: timesteps,
        parameters={"timesteps": whole},
    )
)
"""Sees its whole window, and is on from the start of the next."""

PIPELINED_TEMPORAL_SWITCH = register_neuron(
    NeuronModel(
        *("temporal_switch_pipelined", _window, _rest, _step, _State, "charge"),
        transmissions=_transmissions,
        delay=_delay_of_pipelined,
        parameters={"timesteps": whole, "gap": partial(whole, minimum=0)},
    )
)
"""May be on once in each window, from ``gap`` steps after its start."""


class _OnlineState(NamedTuple):
    potential: Tensor
    on: Tensor


def _online_window(currents: Tensor, values: NeuronValues) -> Tensor:
    parameters = values.threshold, values.initial_potential, float(values.parameters["hysteresis"])
    return online_temporal_switch(currents, *parameters)


def _online_rest(current: Tensor, values: NeuronValues, start: int) -> _OnlineState:
    return _OnlineState(torch.zeros_like(current), torch.zeros_like(current))


@torch.no_grad()
def _online_step(current: Tensor, state: _OnlineState, values: NeuronValues) -> tuple[Tensor, _OnlineState]:
    parameters = values.threshold, values.initial_potential, float(values.parameters["hysteresis"])
    on, potential = online_temporal_switch_step(current, state.potential, state.on, *parameters)
    return on, _OnlineState(potential, on)


ONLINE_TEMPORAL_SWITCH = register_neuron(
    NeuronModel(
        *("temporal_switch_online", _online_window, _online_rest, _online_step, _OnlineState, "potential"),
        transmissions=_transmissions,
        parameters={"hysteresis": partial(checks.number, minimum=1)},
    )
)
"""Answers within the step, and may switch more than once."""
