"""Accuracy against time as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from snn_lowlat.evaluation.report import Report, labels
from snn_lowlat.files import whole_file

__all__ = ["plot_reports"]

# Okabe and Ito's palette: told apart with any colour vision; line styles and markers tell them apart in grey print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def plot_reports(reports: Sequence[Report], path: str | Path) -> None:
    """Draw accuracy in per cent against time steps, a line for each report beside the ANN's.

    Parameters
    ----------
    reports : sequence of Report
        At least one.
    path : path
        Replaced if it exists; its ending chooses the format, ``.png`` without one.

    Raises
    ------
    ValueError
        If there is no report, or the format is not one that matplotlib writes.
    """
    if not reports:
        raise ValueError("there is no report to draw.")
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for index, (report, name) in enumerate(zip(reports, labels(reports), strict=True)):
        steps = list(report.accuracies)
        if report.latency_steps != report.timesteps:
            name += f" (latency {report.latency_steps} steps at T = {report.timesteps})"
        axes.plot(
            steps,
            [100 * accuracy for accuracy in report.accuracies.values()],
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4.5,
            linewidth=1.6,
            label=name,
        )
    known = list(dict.fromkeys(report.ann_accuracy for report in reports if report.ann_accuracy is not None))
    for accuracy in known:
        axes.axhline(
            100 * accuracy, color="black", linestyle="--", linewidth=1.2, label=f"ANN ({100 * accuracy:.2f} %)"
        )
    axes.set_xlabel("time steps T")
    axes.set_ylabel("accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_title(_title(reports), fontsize="medium")
    axes.grid(color="0.88", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=200, format=Path(path).suffix.lstrip(".").lower() or "png")


def _title(reports: Sequence[Report]) -> str:
    networks = dict.fromkeys(f"{report.model or 'network'} on {report.dataset or 'data'}" for report in reports)
    images = sorted({report.images for report in reports})
    return f"{', '.join(networks)}: {' / '.join(f'{number:,}' for number in images)} images"
