"""How good a converted network is: accuracy after every step, spikes, reports, tables and plots."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from snn_lowlat.evaluation.measuring.analysis import Analysis, analyse, diagnose
from snn_lowlat.evaluation.measuring.diagnosis import Advice, Diagnosis, SiteErrors
from snn_lowlat.evaluation.measuring.energy import COST_MODELS, Cost, CostModel, Energy, cost_model
from snn_lowlat.evaluation.measuring.operations import LayerOperations, Operations, ann_operations, measure_operations
from snn_lowlat.evaluation.measuring.report import COLUMNS, Report, table, write_csv, write_json
from snn_lowlat.evaluation.measuring.sweep import FiringRates, compare, evaluate, labels_of
from snn_lowlat.simulation import Events

if TYPE_CHECKING:
    from snn_lowlat.evaluation.reporting.plots import plot_events, plot_reports
    from snn_lowlat.evaluation.reporting.rendering import FORMATS, write_report

__all__ = [
    "COLUMNS",
    "COST_MODELS",
    "FORMATS",
    "Advice",
    "Analysis",
    "Cost",
    "CostModel",
    "Diagnosis",
    "Energy",
    "Events",
    "FiringRates",
    "LayerOperations",
    "Operations",
    "Report",
    "SiteErrors",
    "analyse",
    "ann_operations",
    "compare",
    "cost_model",
    "diagnose",
    "evaluate",
    "labels_of",
    "measure_operations",
    "plot_events",
    "plot_reports",
    "table",
    "write_csv",
    "write_json",
    "write_report",
]

_LATER = {"FORMATS": "rendering", "plot_events": "plots", "plot_reports": "plots", "write_report": "rendering"}

# The former places of these modules, for programs and pickles that name them.
for _name in ("analysis", "diagnosis", "energy", "operations", "report", "sweep"):
    sys.modules[f"{__name__}.{_name}"] = sys.modules[f"{__name__}.measuring.{_name}"]
sys.modules[f"{__name__}.events"] = sys.modules["snn_lowlat.simulation.events"]


def __getattr__(name: str) -> Any:
    # Whoever only measures need not wait for matplotlib and jinja2 to be imported.
    if name in _LATER:
        return getattr(import_module(f"{__name__}.reporting.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
