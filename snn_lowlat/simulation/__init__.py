"""Running a network in normal form with spiking neurons in its sites, without any host library."""

from __future__ import annotations

from snn_lowlat.simulation.events import EventRecorder, Events
from snn_lowlat.simulation.reference import (
    count,
    count_spikes,
    fire,
    is_counted,
    is_online,
    lagging_inputs,
    micro_batches,
    simulate,
    simulate_events,
    transmissions,
    window_starts,
)
from snn_lowlat.simulation.scan import SCANS, FusedNeurons
from snn_lowlat.simulation.simulator import Observer, Simulator

__all__ = [
    "SCANS",
    "EventRecorder",
    "Events",
    "FusedNeurons",
    "Observer",
    "Simulator",
    "count",
    "count_spikes",
    "fire",
    "is_counted",
    "is_online",
    "lagging_inputs",
    "micro_batches",
    "simulate",
    "simulate_events",
    "transmissions",
    "window_starts",
]
