"""The mathematics of the spiking neurons: pure functions on tensors, free of any host library."""

from __future__ import annotations

from snn_lowlat.neurons.accumulate_then_fire import (
    MARGIN,
    accumulate,
    accumulate_then_fire,
    spike_counts,
    spread_spikes,
)
from snn_lowlat.neurons.base import NEURONS, NeuronModel, NeuronValues, Values, check_plan, register_neuron
from snn_lowlat.neurons.integrate_and_fire import (
    integrate_and_fire,
    integrate_and_fire_sequence,
    integrate_and_fire_step,
)
from snn_lowlat.neurons.max_pool import (
    MAX_POOLINGS,
    MAX_POOLS,
    PoolState,
    cumulative_max_pool,
    cumulative_max_pool_step,
    is_cumulative,
    max_pool_window,
)
from snn_lowlat.neurons.parameters import per_channel
from snn_lowlat.neurons.streams import Delay, MaxPoolStream, NeuronStream, Stream, map_state
from snn_lowlat.neurons.temporal_switch import (
    event_counts,
    online_temporal_switch,
    online_temporal_switch_step,
    pipelined_temporal_switch,
    pipelined_temporal_switch_step,
    switch_events,
    switch_states,
    synaptic_register,
    temporal_switch,
)

__all__ = [
    "MARGIN",
    "MAX_POOLINGS",
    "MAX_POOLS",
    "NEURONS",
    "Delay",
    "MaxPoolStream",
    "NeuronModel",
    "NeuronStream",
    "NeuronValues",
    "PoolState",
    "Stream",
    "Values",
    "accumulate",
    "accumulate_then_fire",
    "check_plan",
    "cumulative_max_pool",
    "cumulative_max_pool_step",
    "event_counts",
    "integrate_and_fire",
    "integrate_and_fire_sequence",
    "integrate_and_fire_step",
    "is_cumulative",
    "map_state",
    "max_pool_window",
    "online_temporal_switch",
    "online_temporal_switch_step",
    "per_channel",
    "pipelined_temporal_switch",
    "pipelined_temporal_switch_step",
    "register_neuron",
    "spike_counts",
    "spread_spikes",
    "switch_events",
    "switch_states",
    "synaptic_register",
    "temporal_switch",
]
