"""One table and one picture of all runs of a ``--multirun``, whether they succeeded or not.

What is compared is read from the runs' own files: runs may have been done by any launcher, in any order, by processes
that are gone, and those that failed or were killed take nothing from the others.
"""

from __future__ import annotations

import atexit
import csv
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from snn_lowlat.evaluation.measuring.report import Report
from snn_lowlat.evaluation.reporting.figures import energy_figure, latency_figure
from snn_lowlat.evaluation.reporting.rendering import FORMATS, Rows, microjoules, write_report
from snn_lowlat.files import whole_file
from snn_lowlat.run_record import is_unfinished

__all__ = ["LeaderboardCallback", "Run", "read_runs", "write_leaderboard"]

_LOGGER = logging.getLogger(__name__)
_ERROR_FILE = "error.txt"
_JOB_FILE = "job.json"


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
    places = {path.parent for path in folder.rglob(_JOB_FILE)}
    return [_read_run(folder, place) for place in sorted(places, key=_natural)]


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _read_run(folder: Path, place: Path) -> Run:
    error_file, results, config = place / _ERROR_FILE, place / "results.json", place / "config.yaml"
    overrides = tuple(json.loads((place / _JOB_FILE).read_text(encoding="utf-8"))["overrides"])
    error = error_file.read_text(encoding="utf-8").strip() if error_file.is_file() else None
    reports: tuple[Report, ...] = ()
    formats: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    if results.is_file():
        content = json.loads(results.read_text(encoding="utf-8"))
        reports = tuple(Report.from_dict(report) for report in content["reports"])
    if error is None and (not results.is_file() or is_unfinished(place)):
        error = "it did not finish"
    if config.is_file():
        wanted = OmegaConf.load(config)
        formats = tuple(OmegaConf.select(wanted, "report.formats") or ())
        models = tuple(OmegaConf.select(wanted, "report.energy") or ())
    return Run(str(place.relative_to(folder)), overrides, reports, error, formats, models)


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
    _write(folder / "leaderboard.csv", text.getvalue())
    reports = [_at_its_end(report) for run in runs for report in run.reports]
    models = next((run.models for run in runs if run.models), ())
    figure = None
    if reports:
        drawn = [report for report in reports if report.costs]
        figure = energy_figure(drawn, models[:2]) if drawn else None
        figure = figure or latency_figure(reports)
        with whole_file(folder / "pareto.png") as temporary:
            figure.savefig(temporary, dpi=200, format="png")
    _write(folder / "leaderboard.md", _markdown(runs, rows, drawn=figure is not None))
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


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class LeaderboardCallback(Callback):  # type: ignore[misc]
    """Hydra's callback: notes what each run is and why it failed, and compares all runs at the end of the sweep.

    Hydra does not come to the end of a sweep in which a run failed; the comparison is then written when the process
    that started the sweep ends.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember where the sweep is."""
        self._folder = Path(config.hydra.sweep.dir).absolute()
        atexit.register(self._compare)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note what the command line said for a run. Hydra's own note may be empty if the process is killed."""
        if config.hydra.mode == RunMode.MULTIRUN:
            note = {"overrides": [str(override) for override in config.hydra.overrides.task]}
            _write(Path(config.hydra.runtime.output_dir) / _JOB_FILE, json.dumps(note))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note why a run failed, or that it no longer does."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        path = Path(config.hydra.runtime.output_dir) / _ERROR_FILE
        if job_return.status == JobStatus.FAILED:
            error = job_return._return_value
            _write(path, f"{type(error).__name__}: {error}\n")
        else:
            path.unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the runs."""
        self._compare()

    def _compare(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None and write_leaderboard(folder):
            _LOGGER.info("The runs are compared in %s", folder / "leaderboard.md")
