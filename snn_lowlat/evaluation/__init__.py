"""How good a converted network is: accuracy after every step, spikes, reports, tables and plots."""

from __future__ import annotations

from snn_lowlat.evaluation.plots import plot_reports
from snn_lowlat.evaluation.report import COLUMNS, Report, table, write_csv, write_json
from snn_lowlat.evaluation.sweep import FiringRates, evaluate, labels_of

__all__ = [
    "COLUMNS",
    "FiringRates",
    "Report",
    "evaluate",
    "labels_of",
    "plot_reports",
    "table",
    "write_csv",
    "write_json",
]
