"""The conversion strategies: from the statistics of a site to its plan, one module for each method."""

from __future__ import annotations

from snn_lowlat.strategies.base import Strategy
from snn_lowlat.strategies.distribution_aware import DistributionAware
from snn_lowlat.strategies.optimized_potential import OptimizedPotential
from snn_lowlat.strategies.registry import make_strategy, register_strategy, strategies
from snn_lowlat.strategies.temporal_switch import TemporalSwitch
from snn_lowlat.strategies.threshold_balancing import ThresholdBalancing
from snn_lowlat.strategies.threshold_strategy import ThresholdStrategy
from snn_lowlat.strategies.thresholds import find_threshold
from snn_lowlat.strategies.value_range import ValueRange

__all__ = [
    "DistributionAware",
    "OptimizedPotential",
    "Strategy",
    "TemporalSwitch",
    "ThresholdBalancing",
    "ThresholdStrategy",
    "ValueRange",
    "find_threshold",
    "make_strategy",
    "register_strategy",
    "strategies",
]
