"""Reports to read: one HTML file with everything in it, or Markdown with its figures beside it."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from snn_lowlat import checks
from snn_lowlat.evaluation.measuring.diagnosis import Diagnosis
from snn_lowlat.evaluation.measuring.energy import COST_MODELS, Cost, cost_model
from snn_lowlat.evaluation.measuring.operations import Operations
from snn_lowlat.evaluation.measuring.report import Report, check_comparable
from snn_lowlat.evaluation.reporting.figures import (
    accuracy_figure,
    energy_figure,
    error_figure,
    firing_figure,
    inline,
    raster_figure,
    series,
    series_names,
)
from snn_lowlat.files import atomic_write

__all__ = ["FORMATS", "Rows", "microjoules", "write_report"]

_ENVIRONMENT = Environment(
    loader=PackageLoader("snn_lowlat.evaluation.reporting"),
    autoescape=lambda name: name is not None and ".html" in name,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["code"] = lambda text: Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(text))))
_PANELS = 2
_NEAR = (1, 0.1)


@dataclass(frozen=True)
class Rows:
    """A table: a heading for each column, and texts; the first ``texts`` columns are not numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1

    def html(self) -> Markup:
        """Return the table as HTML, its texts escaped."""
        return Markup(_ENVIRONMENT.get_template("table.html.j2").render(table=self))

    def markdown(self) -> str:
        """Return the table as Markdown."""
        marks = ["---"] * self.texts + ["---:"] * (len(self.header) - self.texts)
        lines = [self.header, marks, *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_report(
    reports: Sequence[Report],
    path: str | Path,
    *,
    models: Sequence[str] = tuple(COST_MODELS),
    title: str | None = None,
    failures: Sequence[tuple[str, str]] = (),
) -> None:
    """Write a report to read: tables and figures of accuracy, latency, operations, energy and errors.

    What was not measured is left out: :func:`~snn_lowlat.evaluation.analyse` measures operations and errors.

    Parameters
    ----------
    reports : sequence of Report
        At least one.
    path : path
        Ends with ``.html``, for one file that holds its figures, or ``.md``, whose figures are in a folder beside it.
        Replaced if it exists.
    models : sequence of str
        The cost models to list; the first two are drawn.
    title : str, optional
        By default the experiment's name.
    failures : sequence of (str, str)
        Runs that failed, and why.

    Raises
    ------
    ValueError
        If there is no report, some are about classes and others not, the ending is another one, or there is no such
        cost model.
    """
    path = Path(path)
    if not reports:
        raise ValueError("there is no report to write.")
    check_comparable(reports)
    checks.one_of("ending of a report", path.suffix, _TEMPLATES)
    for model in models:
        cost_model(model)
    template, picture, table = _TEMPLATES[path.suffix]
    known = [
        model for model in models if all(model in report.costs[t].energies for report in reports for t in report.costs)
    ]
    content = _content(reports, known, title, failures, picture(path))
    text = _ENVIRONMENT.get_template(template).render(**content, table=table)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _inlined(path: Path) -> Callable[[Figure, str], str]:
    return lambda figure, name: inline(figure)


def _beside(path: Path) -> Callable[[Figure, str], str]:
    folder = path.with_name(f"{path.stem}_figures")

    def place(figure: Figure, name: str) -> str:
        with atomic_write(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=150, format="png")
        return f"{folder.name}/{name}.png"

    return place


_TEMPLATES: dict[str, tuple[str, Callable[[Path], Callable[[Figure, str], str]], Callable[[Rows], str]]] = {
    ".html": ("report.html.j2", _inlined, Rows.html),
    ".md": ("report.md.j2", _beside, Rows.markdown),
}
FORMATS = {"html": ".html", "markdown": ".md"}
"""The endings of the formats of a report, by name."""


def _content(
    reports: Sequence[Report],
    models: Sequence[str],
    title: str | None,
    failures: Sequence[tuple[str, str]],
    picture: Callable[[Figure, str], str],
) -> dict[str, Any]:
    names = series_names(reports)
    energies = energy_figure(reports, models[:_PANELS])
    measured = sorted({cost.images for report in reports for cost in report.costs.values()})
    return {
        "title": title or f"Report: {reports[0].experiment or reports[0].strategy}",
        "subtitle": _subtitle(reports),
        "quality": _quality_rows(reports, names),
        "quality_name": reports[0].quality_name.split(" (")[0],
        "steps": _steps_rows(reports) if reports[0].accuracies else None,
        "quality_figure": picture(accuracy_figure(reports), "accuracy" if reports[0].accuracies else "errors"),
        "failures": Rows(("run", "error"), tuple(failures), texts=2) if failures else None,
        "operations": _operation_rows(reports, names) if measured else None,
        "energy": _energy_rows(reports, names, models) if measured and models else None,
        "energy_figure": energies and picture(energies, "energy"),
        "measured": " / ".join(f"{number:,}" for number in measured),
        "models": Rows(
            ("cost model", "prices", "source"),
            tuple((name, COST_MODELS[name].description, COST_MODELS[name].source) for name in models),
            texts=3,
        ),
        "runs": [
            _run(report, name, number, picture)
            for number, (report, name) in enumerate(zip(reports, names, strict=True), 1)
        ],
    }


def _subtitle(reports: Sequence[Report]) -> str:
    first = reports[0]
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items() if name != "python")
    networks = dict.fromkeys(f"{report.model or 'network'} on {report.dataset or 'data'}" for report in reports)
    images = " / ".join(f"{number:,}" for number in sorted({report.images for report in reports}))
    measured = "accuracies" if first.accuracies else "errors against the ANN's outputs"
    return f"{', '.join(networks)}; {measured} on {images} test images. {versions}, Python {platform.python_version()}."


def _quality_rows(reports: Sequence[Report], names: Sequence[str]) -> Rows:
    rows = []
    for report, name in zip(reports, names, strict=True):
        latencies = (report.timesteps, report.latency_steps, report.pipelined_latency(report.timesteps))
        cells = (name, *map(str, latencies), f"{report.quality[report.timesteps]:.2f}")
        if not report.accuracies:
            rows.append((*cells, f"{100 * report.errors[report.timesteps]:.2f}"))
            continue
        ann = report.ann_accuracy
        known = ("-", "-") if ann is None else (_percent(ann), f"{100 * (report.accuracy - ann):+.2f}")
        rows.append((*cells, *known))
    header = ("conversion", "T", "latency (steps)", "latency, pipelined (steps)", reports[0].quality_name)
    compared = ("ANN (%)", "difference (points)") if reports[0].accuracies else ("relative error (%)",)
    return Rows((*header, *compared), tuple(rows))


def _steps_rows(reports: Sequence[Report]) -> Rows:
    rows = []
    for line in series(reports):
        cells = [line.name]
        for points in _NEAR:
            near = line.steps_within(points)
            cells += ["-", "-"] if near is None else map(str, near)
        rows.append(tuple(cells))
    header = [text for points in _NEAR for text in (f"T within {points} point{'s' * (points != 1)}", "latency (steps)")]
    return Rows(("conversion", *header), tuple(rows))


def _measured(reports: Sequence[Report], names: Sequence[str]) -> list[tuple[str, Report | None, int | None, Cost]]:
    """List networks and numbers of steps whose operations were measured, and each original network once."""
    found: list[tuple[str, Report | None, int | None, Cost]] = []
    anns: list[Cost] = []
    for report, name in zip(reports, names, strict=True):
        # The steps in between say little more, and nothing where the same conversion was made for fewer steps too.
        repeated = names.count(name) > 1
        listed = [t for t in report.costs if t == report.timesteps or (t & (t - 1) == 0 and not repeated)]
        found += [(name, report, steps, report.costs[steps]) for steps in listed]
        if report.ann_cost is not None and report.ann_cost not in anns:
            anns.append(report.ann_cost)
    return found + [("ANN", None, None, cost) for cost in anns]


def _operation_rows(reports: Sequence[Report], names: Sequence[str]) -> Rows:
    rows = []
    for name, _, steps, cost in _measured(reports, names):
        counts = (cost.spikes, cost.synaptic_operations, cost.macs, cost.additions, cost.comparisons)
        rows.append((name, "-" if steps is None else str(steps), *map(_count, (*counts, cost.memory_accesses))))
    header = (
        "network",
        "T",
        "spikes",
        "synaptic operations",
        "MACs",
        "other additions",
        "comparisons",
        "memory accesses",
    )
    return Rows(header, tuple(rows))


def _energy_rows(reports: Sequence[Report], names: Sequence[str], models: Sequence[str]) -> Rows:
    rows = []
    known = next((100 * report.ann_accuracy for report in reports if report.ann_accuracy is not None), None)
    for name, report, steps, cost in _measured(reports, names):
        cells = [name, "-" if steps is None else str(steps)]
        quality = known if report is None or steps is None else report.quality.get(steps)
        cells.append("-" if quality is None else f"{quality:.2f}")
        for model in models:
            text = microjoules(cost.energies[model])
            if report is not None and report.ann_cost is not None:
                text += f" ({100 * cost.energies[model] / report.ann_cost.energies[model]:.0f} %)"
            cells.append(text)
        rows.append(tuple(cells))
    return Rows(
        ("network", "T", reports[0].quality_name, *(f"{model}, µJ (of the ANN's)" for model in models)), tuple(rows)
    )


def _run(report: Report, name: str, number: int, picture: Callable[[Figure, str], str]) -> dict[str, Any]:
    diagnosis = report.diagnosis
    raster = raster_figure(report)
    options = ", ".join(f"{key}={value}" for key, value in report.to_dict()["strategy_options"].items())
    chain = [str(step["name"]) for step in report.refinements]
    return {
        "name": name,
        "timesteps": report.timesteps,
        "advice": diagnosis and str(diagnosis.advice),
        "error_figure": diagnosis and picture(error_figure(diagnosis), f"{number}_errors"),
        "firing_figure": diagnosis and picture(firing_figure(diagnosis), f"{number}_firing_rates"),
        "raster_figure": raster and picture(raster, f"{number}_rasters"),
        "layers": diagnosis and _layer_rows(diagnosis),
        "operations": report.operations and _operations_by_layer(report.operations),
        "origin": f"{report.strategy} ({options}); refinements: {', '.join(chain) or 'none'}; "
        f"backend {report.backend}, {report.precision}, input {report.encoder}, seed {report.seed}.",
    }


def _layer_rows(diagnosis: Diagnosis) -> Rows:
    rows = []
    for site in diagnosis.sites:
        parts = (f"{100 * part:.1f}" for part in (site.relative_error, *site.parts.values()))
        shares = (f"{100 * share:.1f}" for share in (site.dead, site.saturated))
        rows.append((site.name, *parts, f"{site.cosine:.3f}", f"{site.firing_rate:.3f}", *shares))
    header = (
        *("layer", "error (%)", *(f"{error} (%)" for error in diagnosis.sites[0].parts), "cosine"),
        *("firing rate (spikes a step)", "dead (%)", "saturated (%)"),
    )
    return Rows(header, tuple(rows))


def _operations_by_layer(operations: Operations) -> Rows:
    rows = []
    for layer in operations.layers:
        counts = (layer.events, layer.synaptic_operations, layer.macs, layer.additions, layer.comparisons)
        rows.append((layer.name, layer.kind, *map(_count, (*counts, layer.memory_accesses))))
    header = (
        "part",
        "kind",
        "events",
        "synaptic operations",
        "MACs",
        "other additions",
        "comparisons",
        "memory accesses",
    )
    return Rows(header, tuple(rows), texts=2)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def microjoules(picojoules: float) -> str:
    """Write an energy of so many pJ in µJ."""
    value = picojoules / 1e6
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _count(value: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
