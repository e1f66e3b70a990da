"""The mathematics of the spiking neurons: pure functions on tensors, free of any host library."""

from __future__ import annotations

from snn_lowlat.neurons.integrate_and_fire import (
    integrate_and_fire,
    integrate_and_fire_sequence,
    integrate_and_fire_step,
)
from snn_lowlat.neurons.model import NEURONS, NeuronModel

__all__ = ["NEURONS", "NeuronModel", "integrate_and_fire", "integrate_and_fire_sequence", "integrate_and_fire_step"]
