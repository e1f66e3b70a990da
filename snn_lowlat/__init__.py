"""Turn a trained ReLU network into a spiking network of a few time steps, inside SpikingJelly."""

from snn_lowlat.convert import convert
from snn_lowlat.errors import CalibrationError, ConversionError, FileFormatError, SnnLowlatError
from snn_lowlat.evaluation import Report, evaluate
from snn_lowlat.graph import check_convertible
from snn_lowlat.model import SpikingModel
from snn_lowlat.persistence import load
from snn_lowlat.plan import Plan, SitePlan
from snn_lowlat.refinement import Refinement, refinements, register_refinement
from snn_lowlat.strategies import Strategy, register_strategy, strategies

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
