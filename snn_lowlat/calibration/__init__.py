"""Calibration: one pass over some data, and the distribution of the pre-activations at every site."""

from __future__ import annotations

from snn_lowlat.calibration.histogram import Histogram
from snn_lowlat.calibration.loop import calibrate, inputs_of, observe
from snn_lowlat.calibration.statistics import SiteStatistics

__all__ = ["Histogram", "SiteStatistics", "calibrate", "inputs_of", "observe"]
