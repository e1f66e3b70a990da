"""The strategies by name: this package's own and those that other packages bring."""

from __future__ import annotations

from snn_lowlat.registry import Registry
from snn_lowlat.strategies.base import Strategy

__all__ = ["REGISTRY", "make_strategy", "register_strategy", "strategies"]

REGISTRY: Registry[Strategy] = Registry("strategy", Strategy, "snn_lowlat.strategies")  # type: ignore[type-abstract]

register_strategy = REGISTRY.register
strategies = REGISTRY.names
make_strategy = REGISTRY.make
