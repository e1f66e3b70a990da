"""How good a converted network is: accuracy after every step, spikes, reports, tables and plots."""

from __future__ import annotations

from snn_lowlat.evaluation.analysis import Analysis, analyse
from snn_lowlat.evaluation.diagnosis import Advice, Diagnosis, SiteErrors, diagnose
from snn_lowlat.evaluation.energy import COST_MODELS, Cost, CostModel, Energy, cost_model
from snn_lowlat.evaluation.events import Events, plot_events
from snn_lowlat.evaluation.operations import LayerOperations, Operations, ann_operations, measure_operations
from snn_lowlat.evaluation.plots import plot_reports
from snn_lowlat.evaluation.rendering import FORMATS, write_report
from snn_lowlat.evaluation.report import COLUMNS, Report, table, write_csv, write_json
from snn_lowlat.evaluation.sweep import FiringRates, compare, evaluate, labels_of

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
