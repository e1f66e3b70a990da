"""Accuracy, or the error of other outputs, against time as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snn_lowlat.evaluation.figures import accuracy_figure
from snn_lowlat.evaluation.report import Report, check_comparable
from snn_lowlat.files import whole_file

__all__ = ["plot_reports"]


def plot_reports(reports: Sequence[Report], path: str | Path) -> None:
    """Draw accuracy in per cent, or errors in decibels, against time steps: a line for each report beside the ANN's.

    Reports that differ in their number of steps alone become one line, with a point for each.

    Parameters
    ----------
    reports : sequence of Report
        At least one.
    path : path
        Replaced if it exists; its ending chooses the format, ``.png`` without one.

    Raises
    ------
    ValueError
        If there is no report, some are about classes and others not, or the format is not one that matplotlib writes.
    """
    check_comparable(reports)
    figure = accuracy_figure(reports)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=200, format=Path(path).suffix.lstrip(".").lower() or "png")
