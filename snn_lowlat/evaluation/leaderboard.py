"""One table and one picture of all runs of a ``--multirun``, whether they succeeded or not.

What is compared is read from the runs' own files: runs may have been done by any launcher, in any order, by processes
that are gone, and those that failed or were killed take nothing from the others.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from snn_lowlat.evaluation.measuring.report import Report
from snn_lowlat.evaluation.reporting.figures import energy_figure, latency_figure
from snn_lowlat.evaluation.reporting.rendering import FORMATS, Rows, microjoules, write_report
from snn_lowlat.files import atomic_write, write_text

__all__ = ["ERROR_FILE", "JOB_FILE", "RUN_FILE", "Run", "read_note", "read_runs", "write_leaderboard"]

ERROR_FILE, JOB_FILE, RUN_FILE = "error.txt", "job.json", "run.json"
"""What the command line notes in the folder of a run: why it failed, what it was told, and whether it has ended."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Parameters
    ----------
    name : str
        Its folder's path below the sweep's.
    overrides : tuple of str
        What the command line said for it.
    reports : tuple of Report
        What it found; several where it compared strategies.
    error : str or None
        Why it did not succeed.
    formats, models : tuple of str
        The formats of reports that it was asked for, and the cost models.
    """

    name: str
    overrides: tuple[str, ...]
    reports: tuple[Report, ...]
    error: str | None = None
    formats: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


def read_runs(folder: str | Path) -> list[Run]:
    """Read what the runs of a sweep have written.

    Parameters
    ----------
    folder : path
        The sweep's folder.
    """
    folder = Path(folder)
    places = {path.parent for path in folder.rglob(JOB_FILE)}
    return [_read_run(folder, place) for place in sorted(places, key=_natural)]


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _read_run(folder: Path, place: Path) -> Run:
    error_file, results, config = place / ERROR_FILE, place / "results.json", place / "config.yaml"
    overrides = tuple(json.loads((place / JOB_FILE).read_text(encoding="utf-8"))["overrides"])
    error = error_file.read_text(encoding="utf-8").strip() if error_file.is_file() else None
    reports: tuple[Report, ...] = ()
    formats: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    if results.is_file():
        content = json.loads(results.read_text(encoding="utf-8"))
        reports = tuple(Report.from_dict(report) for report in content["reports"])
    if error is None and (not results.is_file() or not read_note(place).get("finished", True)):
        error = "it did not finish"
    if config.is_file():
        wanted = OmegaConf.load(config)
        formats = tuple(OmegaConf.select(wanted, "report.formats") or ())
        models = tuple(OmegaConf.select(wanted, "report.energy") or ())
    return Run(str(place.relative_to(folder)), overrides, reports, error, formats, models)


def read_note(folder: Path) -> dict[str, Any]:
    """Return what is noted of a run in its folder; nothing if there is no note, or a damaged one."""
    try:
        note: dict[str, Any] = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def write_leaderboard(folder: str | Path) -> list[Run]:
    """Compare the runs of a sweep: ``leaderboard.csv``, ``leaderboard.md``, ``pareto.png`` and a report if asked for.

    Parameters
    ----------
    folder : path
        The sweep's folder; files in it are replaced.

    Returns
    -------
    list of Run
        The runs compared; without any, nothing is written.
    """
    folder = Path(folder)
    runs = read_runs(folder)
    if not runs:
        return runs
    rows = sorted(_rows(runs), key=lambda row: -float(row.get("accuracy", -1)))
    columns = dict.fromkeys(name for row in rows for name in row if name != "error")
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=[*columns, "error"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "leaderboard.csv", text.getvalue())
    reports = [_at_its_end(report) for run in runs for report in run.reports]
    models = next((run.models for run in runs if run.models), ())
    figure = None
    if reports:
        drawn = [report for report in reports if report.costs]
        figure = energy_figure(drawn, models[:2]) if drawn else None
        figure = figure or latency_figure(reports)
        with atomic_write(folder / "pareto.png") as temporary:
            figure.savefig(temporary, dpi=200, format="png")
    write_text(folder / "leaderboard.md", _markdown(runs, rows, drawn=figure is not None))
    failures = [(title, run.error) for title, run in zip(_titles(runs), runs, strict=True) if run.error is not None]
    for kind in dict.fromkeys(kind for run in runs for kind in run.formats if kind in FORMATS):
        found = [report for run in runs for report in run.reports]
        if found:
            path = folder / f"report{FORMATS[kind]}"
            write_report(found, path, models=models, title=f"Comparison: {folder.name}", failures=failures)
    return runs


def _rows(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for run in runs:
        start = {"run": run.name, "overrides": " ".join(run.overrides)}
        for report in run.reports:
            within = {f"steps_within_{points}": report.steps_within(points) for points in (1, 0.1)}
            yield {**start, **report.rows()[-1], **within}
        if run.error is not None:
            yield {**start, "error": run.error}


def _at_its_end(report: Report) -> Report:
    """Leave out all but the last number of steps: one point for each run."""
    last = report.timesteps
    costs = {last: report.costs[last]} if last in report.costs else {}
    return replace(report, accuracies={last: report.accuracy}, latencies={last: report.latency_steps}, costs=costs)


def _markdown(runs: Sequence[Run], rows: Sequence[dict[str, Any]], *, drawn: bool) -> str:
    energies = dict.fromkeys(name for row in rows for name in row if name.startswith("energy_nj_"))
    header = (
        *("run", "strategy", "backend", "T", "latency (steps)", "seed", "accuracy (%)", "ANN (%)"),
        *("T within 1 point", "T within 0.1 points"),
        *(f"{name.removeprefix('energy_nj_')} (µJ)" for name in energies),
    )
    table = [
        (
            *(str(row[name]) for name in ("run", "strategy", "backend", "timesteps", "latency_steps", "seed")),
            *(_percent(row[name]) for name in ("accuracy", "ann_accuracy")),
            *(str(row[name] or "-") for name in ("steps_within_1", "steps_within_0.1")),
            *(microjoules(1000 * row[name]) if name in row else "-" for name in energies),
        )
        for row in rows
        if "accuracy" in row
    ]
    anns = [row for row in rows if row.get("ann_accuracy") is not None and energies.keys() <= row.keys()]
    if energies and anns:
        known = (microjoules(1000 * anns[0]["ann_" + name]) for name in energies)
        table.append(("-", "ANN", *["-"] * 5, _percent(anns[0]["ann_accuracy"]), "-", "-", *known))
    parts = ["# Leaderboard", Rows(header, tuple(table), texts=3).markdown()]
    if drawn:
        parts.append("![accuracy against cost](pareto.png)")
    shared = _shared(runs)
    listing = [(run.name, _difference(run, shared), (run.error or "").replace("\n", " ")) for run in runs]
    parts += ["## Runs", Rows(("run", "overrides", "error"), tuple(listing), texts=3).markdown()]
    if shared:
        parts.append(f"All runs: `{' '.join(shared)}`")
    return "\n\n".join(parts) + "\n"


def _shared(runs: Sequence[Run]) -> list[str]:
    """Return what the command line said for all runs alike."""
    return [override for override in runs[0].overrides if len(runs) > 1 and all(override in r.overrides for r in runs)]


def _difference(run: Run, shared: Sequence[str]) -> str:
    return " ".join(override for override in run.overrides if override not in shared)


def _titles(runs: Sequence[Run]) -> list[str]:
    shared = _shared(runs)
    return [f"{run.name}: {_difference(run, shared)}" for run in runs]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def __getattr__(name: str) -> Any:
    # Configs that were written before the callback moved name it here.
    if name == "LeaderboardCallback":
        return import_module("snn_lowlat.cli.leaderboard").LeaderboardCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
