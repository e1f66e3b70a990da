"""Turn a trained ReLU network into a spiking network of a few time steps, inside SpikingJelly or snnTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from snn_lowlat.convert import convert
from snn_lowlat.errors import CalibrationError, ConversionError, FileFormatError, SnnLowlatError
from snn_lowlat.evaluation import Report, evaluate
from snn_lowlat.graph import check_convertible
from snn_lowlat.model import SpikingModel
from snn_lowlat.persistence import load
from snn_lowlat.plan import Plan, SitePlan
from snn_lowlat.refinement import Refinement, refinements, register_refinement
from snn_lowlat.strategies import Strategy, register_strategy, strategies

if TYPE_CHECKING:
    from snn_lowlat import snntorch as snntorch
    from snn_lowlat import spikingjelly as spikingjelly
    from snn_lowlat.nir import from_nir as from_nir
    from snn_lowlat.nir import to_nir as to_nir

__version__ = "0.1.0"

__all__ = [
    "CalibrationError",
    "ConversionError",
    "FileFormatError",
    "Plan",
    "Refinement",
    "Report",
    "SitePlan",
    "SnnLowlatError",
    "SpikingModel",
    "Strategy",
    "check_convertible",
    "convert",
    "evaluate",
    "load",
    "refinements",
    "register_refinement",
    "register_strategy",
    "strategies",
]


def __getattr__(name: str) -> Any:
    """Import what not everybody needs when it is asked for: the hosts' idioms, and NIR, whose package is an extra."""
    if name in ("spikingjelly", "snntorch"):
        return import_module(f"{__name__}.{name}")
    if name in ("from_nir", "to_nir"):
        return getattr(import_module("snn_lowlat.nir"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
