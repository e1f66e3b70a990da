"""The refinements there are, by name."""

from __future__ import annotations

from snn_lowlat.refinement.base import Refinement
from snn_lowlat.registry import Registry

__all__ = ["make_refinement", "refinements", "register_refinement"]

_REGISTRY: Registry[Refinement] = Registry("refinement", Refinement, "snn_lowlat.refinements")  # type: ignore[type-abstract]

register_refinement = _REGISTRY.register
refinements = _REGISTRY.names
make_refinement = _REGISTRY.make
