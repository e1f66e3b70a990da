"""The figures of a report, each a matplotlib figure: told apart with any colour vision, and in grey print."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from snn_lowlat.evaluation.measuring.diagnosis import ERRORS, Diagnosis
from snn_lowlat.evaluation.measuring.energy import Cost
from snn_lowlat.evaluation.measuring.report import Report, labels, near

__all__ = [
    "Series",
    "accuracy_figure",
    "energy_figure",
    "error_figure",
    "firing_figure",
    "inline",
    "latency_figure",
    "line_look",
    "plain_axes",
    "raster_figure",
    "series",
    "series_names",
]

# Okabe and Ito's palette: told apart with any colour vision; line styles, markers and hatches tell them apart in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLES = ("-", "--", "-.", ":")
_HATCHES = ("", "\\\\\\", "///", "...", "xxx")
_ERROR_COLOURS = ("#BBBBBB", "#009E73", "#D55E00", "#0072B2", "#E69F00")


@dataclass(frozen=True)
class Series:
    """One line in a figure: one conversion, or the same conversion made anew for several numbers of steps.

    Parameters
    ----------
    name : str
        Its label.
    points : tuple of (int, int, float, Cost or None)
        Steps, latency, accuracy in per cent (or error in decibels, :attr:`Report.quality`), and cost.
    ann_accuracy : float or None
        The ANN's accuracy.
    """

    name: str
    points: tuple[tuple[int, int, float, Cost | None], ...]
    ann_accuracy: float | None = None

    def steps_within(self, points: float) -> tuple[int, int] | None:
        """Return the first steps listed, and their latency, that come so near to the ANN; None if there are none."""
        if self.ann_accuracy is None:
            return None
        enough = 100 * near(self.ann_accuracy, points)
        return next(((point[0], point[1]) for point in self.points if point[2] >= enough), None)


def series(reports: Sequence[Report]) -> list[Series]:
    """Put reports into series: those that differ in their number of steps alone become one, a point for each.

    Parameters
    ----------
    reports : sequence of Report
        At least one.
    """
    groups: dict[str, list[Report]] = {}
    for report, name in zip(reports, series_names(reports), strict=True):
        groups.setdefault(name, []).append(report)
    found = []
    for name, group in groups.items():
        if len({report.timesteps for report in group}) > 1:
            group = sorted(group, key=lambda report: report.timesteps)
            points = [(r.timesteps, r.latency_steps, r.quality[r.timesteps], r.costs.get(r.timesteps)) for r in group]
        else:
            only = group[0]
            points = [(t, only.latencies[t], quality, only.costs.get(t)) for t, quality in only.quality.items()]
        found.append(Series(name, tuple(points), group[0].ann_accuracy))
    return found


def series_names(reports: Sequence[Report]) -> list[str]:
    """Return the name of each report's series.

    Parameters
    ----------
    reports : sequence of Report
        At least one.
    """
    keys = []
    for report in reports:
        curve = {"accuracies": {1: 0.0}} if report.accuracies else {"errors": {1: 0.0}}
        measured = {**curve, "latencies": {1: 1}, "firing_rates": {}, "costs": {}}
        unknown = dict.fromkeys(("ann_accuracy", "ann_cost", "operations", "diagnosis", "example"))
        keys.append(repr(replace(report, **measured, **unknown)))  # type: ignore[arg-type]
    distinct = dict(zip(keys, reports, strict=True))
    names = dict(zip(distinct, labels(list(distinct.values())), strict=True))
    return [names[key] for key in keys]


def accuracy_figure(reports: Sequence[Report]) -> Figure:
    """Draw accuracy in per cent, or errors in decibels, against time steps: a line for each series beside the ANN's.

    Parameters
    ----------
    reports : sequence of Report
        At least one.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for index, line in enumerate(series(reports)):
        steps, latency = line.points[-1][:2]
        name = line.name
        if latency != steps:
            name += f" (latency {latency} steps at T = {steps})"
        axes.plot(
            [point[0] for point in line.points],
            [point[2] for point in line.points],
            **line_look(index),
            label=name,
        )
    known = list(dict.fromkeys(report.ann_accuracy for report in reports if report.ann_accuracy is not None))
    for accuracy in known:
        axes.axhline(
            100 * accuracy, color="black", linestyle="--", linewidth=1.2, label=f"ANN ({100 * accuracy:.2f} %)"
        )
    axes.set_xlabel("time steps T")
    _label_quality(axes, reports)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_title(_title(reports), fontsize="medium")
    plain_axes(axes)
    axes.legend(frameon=False, fontsize="small")
    return figure


def energy_figure(reports: Sequence[Report], models: Sequence[str]) -> Figure | None:
    """Draw accuracy against energy, a panel for each cost model, with the points that no other one beats.

    Parameters
    ----------
    reports : sequence of Report
        At least one; those whose operations were not measured are left out.
    models : sequence of str
        Names of cost models.

    Returns
    -------
    Figure or None
        None if no report has energies.
    """
    reports = [report for report in reports if report.costs and report.ann_cost is not None]
    if not reports or not models:
        return None
    figure = Figure(figsize=(4.4 * len(models) + 0.4, 4.3), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        _draw_energies(axes, reports, model)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), frameon=False, fontsize="small")
    return figure


def _draw_energies(axes: Any, reports: Sequence[Report], model: str) -> None:
    every: list[tuple[float, float]] = []
    for index, line in enumerate(series(reports)):
        points = [(cost.energies[model] / 1e6, quality, steps) for steps, _, quality, cost in line.points if cost]
        if not points:
            continue
        energies, accuracies, steps = zip(*points, strict=True)
        axes.plot(energies, accuracies, **line_look(index), label=line.name)
        # A few numbers of steps are enough to read a line by.
        shown = {t for t in steps if t & (t - 1) == 0} | {steps[-1]}
        for energy, accuracy, t in points:
            if t in shown:
                axes.annotate(
                    f"{t}", (energy, accuracy), xytext=(3, -9), textcoords="offset points", fontsize=6.5, color="0.25"
                )
        every += [point[:2] for point in points]
    anns = dict.fromkeys(
        (report.ann_cost.energies[model] / 1e6, 100 * report.ann_accuracy)
        for report in reports
        if report.ann_cost is not None and report.ann_accuracy is not None
    )
    for number, (energy, accuracy) in enumerate(anns):
        axes.plot(energy, accuracy, "*", color="black", markersize=12, label="ANN" if number == 0 else None, zorder=4)
    front = best_trade_offs([*every])
    axes.plot(
        *zip(*front, strict=True), color="0.6", linewidth=5, alpha=0.35, solid_capstyle="round", zorder=1,
        label="no other run is better in both",
    )  # fmt: skip
    axes.set_xscale("log")
    low, high = min(point[0] for point in [*every, *anns]), max(point[0] for point in [*every, *anns])
    digits = range(1, 10) if high / low < 4 else (1, 2, 5) if high / low < 200 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=digits))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("energy of one image (µJ)")
    _label_quality(axes, reports)
    axes.set_title(f"cost model {model}; numbers: T", fontsize="small")
    plain_axes(axes)


def latency_figure(reports: Sequence[Report]) -> Figure:
    """Draw accuracy against latency, for runs whose operations were not measured.

    Parameters
    ----------
    reports : sequence of Report
        At least one.
    """
    figure = Figure(figsize=(6.0, 4.3), layout="constrained")
    axes = figure.subplots()
    for index, line in enumerate(series(reports)):
        _, latencies, qualities, _ = zip(*line.points, strict=True)
        axes.plot(latencies, qualities, **line_look(index), label=line.name)
    for accuracy in dict.fromkeys(report.ann_accuracy for report in reports if report.ann_accuracy is not None):
        axes.axhline(
            100 * accuracy, color="black", linestyle="--", linewidth=1.2, label=f"ANN ({100 * accuracy:.2f} %)"
        )
    axes.set_xlabel("latency (steps)")
    _label_quality(axes, reports)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_title(_title(reports), fontsize="medium")
    plain_axes(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def best_trade_offs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points of energy and accuracy that no other one beats in both, by rising energy."""
    best: list[tuple[float, float]] = []
    for energy, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((energy, accuracy))
    return best


def error_figure(diagnosis: Diagnosis) -> Figure:
    """Draw what each layer's error is made of, as stacked bars, with a mark for the whole.

    Parameters
    ----------
    diagnosis : Diagnosis
        The errors of every layer.
    """
    names = [site.name for site in diagnosis.sites]
    figure = Figure(figsize=(6.4, 1.4 + 0.26 * len(names)), layout="constrained")
    axes = figure.subplots()
    places, left = np.arange(len(names)), np.zeros(len(names))
    for index, error in enumerate(ERRORS):
        sizes = np.array([100 * site.parts[error] for site in diagnosis.sites])
        if not sizes.any():  # as of pooling in networks without max-pools
            continue
        axes.barh(
            places, sizes, left=left, height=0.72, color=_ERROR_COLOURS[index], hatch=_HATCHES[index],
            edgecolor="white", linewidth=0.4, label=error,
        )  # fmt: skip
        left += sizes
    whole = [100 * site.relative_error for site in diagnosis.sites]
    axes.plot(whole, places, "D", color="black", markersize=4.5, label="the whole difference")
    axes.set_yticks(places, names, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("norm of the error, % of the norm of the ANN's activations")
    axes.set_title(
        f"error by layer after T = {diagnosis.timesteps} steps, {diagnosis.images:,} images", fontsize="medium"
    )
    plain_axes(axes)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize="small", handlelength=1.4)
    return figure


def firing_figure(diagnosis: Diagnosis) -> Figure:
    """Draw the firing rates of every layer's channels, sorted within the layer, as a heat map.

    Parameters
    ----------
    diagnosis : Diagnosis
        The firing rates of every layer.
    """
    columns = 96
    rows = []
    for site in diagnosis.sites:
        rates = sorted(site.firing_rates, reverse=True)
        rows.append([rates[int(place * len(rates) / columns)] for place in range(columns)])
    figure = Figure(figsize=(6.4, max(2.4, 1.2 + 0.24 * len(rows))), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(
        rows, aspect="auto", cmap="cividis", vmin=0, extent=(0, 100, len(rows) - 0.5, -0.5), interpolation="nearest"
    )
    axes.set_yticks(range(len(rows)), [f"{s.name} ({len(s.firing_rates)})" for s in diagnosis.sites], fontsize="small")
    axes.set_xlabel("channels of the layer, by falling rate (%); in brackets: how many there are")
    axes.set_title(f"firing rates over T = {diagnosis.timesteps} steps", fontsize="medium")
    figure.colorbar(picture, ax=axes, pad=0.02).set_label("spikes per neuron, step", fontsize="small")
    return figure


def raster_figure(report: Report) -> Figure | None:
    """Draw what one image makes the network do: its input, the spikes of two layers, and the readout.

    Parameters
    ----------
    report : Report
        A report with an example.

    Returns
    -------
    Figure or None
        None without an example.
    """
    example = report.example
    if example is None:
        return None
    steps = len(example.outputs[0])
    figure = Figure(figsize=(8.8, 3.5), layout="constrained")
    panels = figure.subplots(1, 2 + len(example.rasters), width_ratios=[1] * (1 + len(example.rasters)) + [1.25])
    inputs = np.array(example.inputs)
    inputs = np.broadcast_to(inputs, (len(inputs), steps)) if inputs.shape[1] == 1 else inputs[:, :steps]
    extent = (0.5, steps + 0.5, len(inputs) + 0.5, 0.5)
    picture = panels[0].imshow(inputs, aspect="auto", cmap="cividis", extent=extent, interpolation="nearest")
    figure.colorbar(picture, ax=panels[0], location="bottom", label="intensity", shrink=0.9)
    panels[0].set_title("input (constant)" if len(example.inputs[0]) == 1 else "input", fontsize="small")
    panels[0].set_ylabel("pixels, some")
    for axes, (name, rows) in zip(panels[1:], example.rasters.items(), strict=False):
        events = [[step for step, spike in enumerate(row, start=1) if spike == "1"] for row in rows]
        axes.eventplot(
            events, lineoffsets=list(range(1, len(rows) + 1)), linelengths=0.9, linewidths=2.0, colors="black"
        )
        axes.set_title(f"spikes of {name}", fontsize="small")
        axes.set_ylabel("neurons, some")
        axes.set_xlim(0.5, steps + 0.5)
        axes.set_ylim(len(rows) + 0.5, 0.5)
    outputs = np.array(example.outputs)
    best = int(outputs[:, -1].argmax()) if example.classes else None
    for index, values in enumerate(outputs):
        right = index == best or len(outputs) == 1
        panels[-1].plot(
            range(1, steps + 1),
            values,
            color=_COLOURS[0] if right else "0.7",
            linewidth=1.8 if right else 0.8,
            zorder=3 if right else 2,
        )
    readout = "readout, some values" if best is None else f"readout of each class; bold: class {best}"
    panels[-1].set_title("readout" if len(outputs) == 1 else readout, fontsize="small")
    panels[-1].set_ylabel("mean output")
    for axes in panels:
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=5))
        axes.tick_params(labelsize="x-small")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def inline(figure: Figure) -> str:
    """Return a figure as an address that holds the picture itself, to use in ``<img src=...>``."""
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def line_look(index: int) -> dict[str, Any]:
    """Return colour, marker and style of a figure's line by its number: no two are alike in colour or grey."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        # Every other line is dashed, so that of two that lie on one another both can be seen.
        "linestyle": _STYLES[(index % 2 + 2 * (index // len(_COLOURS))) % len(_STYLES)],
        "markersize": 4.5,
        "linewidth": 1.6,
        "zorder": 3,
    }


def plain_axes(axes: Any) -> None:
    """Give axes a light grid, and no frame at the top and right."""
    axes.grid(color="0.88", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label_quality(axes: Any, reports: Sequence[Report]) -> None:
    axes.set_ylabel(reports[0].quality_name)
    if reports[0].accuracies:
        axes.set_ylim(top=min(axes.get_ylim()[1], 102))


def _title(reports: Sequence[Report]) -> str:
    networks = dict.fromkeys(f"{report.model or 'network'} on {report.dataset or 'data'}" for report in reports)
    images = sorted({report.images for report in reports})
    return f"{', '.join(networks)}: {' / '.join(f'{number:,}' for number in images)} images"
