"""Images written to files: accuracy, or the error of other outputs, against time; and what neurons sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from snn_lowlat import checks
from snn_lowlat.evaluation.measuring.report import Report, check_comparable
from snn_lowlat.evaluation.reporting.figures import accuracy_figure
from snn_lowlat.files import atomic_write
from snn_lowlat.simulation import Events

__all__ = ["plot_events", "plot_reports"]

_ON, _OFF = "#0072B2", "#D55E00"


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
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=200, format=Path(path).suffix.lstrip(".").lower() or "png")


def plot_events(events: Events, path: str | Path, image: int = 0, neurons: int = 100) -> None:
    """Draw one image's events: a panel for each layer, time to the right, a row for each neuron.

    snnTorch's ``spikeplot.raster`` draws one layer of them, ``events.raster(layer)``, where pandas is installed.

    Parameters
    ----------
    events : Events
        From ``snn.simulate(images, record_events=True)``.
    path : path
        Replaced if it exists; its ending chooses the format, ``.png`` without one.
    image : int
        Which image.
    neurons : int
        How many neurons of each layer to draw at most, evenly chosen.

    Raises
    ------
    ValueError
        If there is no such image, or the format is not one that matplotlib writes.
    """
    image = checks.count("image", image, 0, events.images - 1)
    neurons = checks.count("neurons", neurons)
    shares = [min(size, neurons) for size in events.sizes]
    figure = Figure(figsize=(7.0, 1.0 + 0.9 * len(shares)), layout="constrained")
    panels = figure.subplots(len(shares), 1, sharex=True, squeeze=False)[:, 0]
    for index, (axes, share) in enumerate(zip(panels, shares, strict=True)):
        shown = np.linspace(0, events.sizes[index] - 1, share).round().astype(int)
        chosen = (events.layer == index) & (events.image == image) & np.isin(events.neuron, shown)
        rows = np.searchsorted(shown, events.neuron[chosen])
        for sign, colour, marker, label in ((1, _ON, "|", "on"), (-1, _OFF, "|", "off")):
            here = events.sign[chosen] == sign
            axes.scatter(events.time[chosen][here], rows[here], s=9, c=colour, marker=marker, label=label, linewidths=1)
        axes.axvspan(events.starts[index] + 0.5, events.starts[index] + events.timesteps + 0.5, color="0.94", zorder=0)
        axes.set_yticks([])
        axes.set_ylabel(events.layers[index], rotation=0, ha="right", va="center", fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("time step")
    panels[-1].set_xlim(0, max(events.starts) + events.timesteps + 2)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=200, format=Path(path).suffix.lstrip(".").lower() or "png")
