"""The mathematics of the spiking neurons: pure functions on tensors, free of any host library."""

from __future__ import annotations

from snn_lowlat.neurons.accumulate_then_fire import (
    MARGIN,
    accumulate,
    accumulate_then_fire,
    spike_counts,
    spread_spikes,
)
from snn_lowlat.neurons.integrate_and_fire import (
    integrate_and_fire,
    integrate_and_fire_sequence,
    integrate_and_fire_step,
)
from snn_lowlat.neurons.model import NEURONS, NeuronModel
from snn_lowlat.neurons.parameters import per_channel

__all__ = [
    "MARGIN",
    "NEURONS",
    "NeuronModel",
    "accumulate",
    "accumulate_then_fire",
    "integrate_and_fire",
    "integrate_and_fire_sequence",
    "integrate_and_fire_step",
    "per_channel",
    "spike_counts",
    "spread_spikes",
]
