"""The refinements by name: this package's own and those that other packages bring."""

from __future__ import annotations

from snn_lowlat.refinement.base import Refinement
from snn_lowlat.registry import Registry

__all__ = ["REGISTRY", "make_refinement", "refinements", "register_refinement"]

REGISTRY: Registry[Refinement] = Registry("refinement", Refinement, "snn_lowlat.refinements")  # type: ignore[type-abstract]

register_refinement = REGISTRY.register
refinements = REGISTRY.names
make_refinement = REGISTRY.make
