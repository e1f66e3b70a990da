"""What the benchmark found, as a CSV file, a table and a figure."""

from __future__ import annotations

import csv
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, ScalarFormatter
from rich.table import Table
from rich.text import Text

from snn_lowlat.benchmark.contestants import ANN
from snn_lowlat.benchmark.measuring import Times
from snn_lowlat.benchmark.tasks import TASKS
from snn_lowlat.evaluation.reporting.figures import line_look, plain_axes
from snn_lowlat.files import atomic_write
from snn_lowlat.provenance import current_versions

__all__ = ["Result", "conditions", "draw", "ratio_of", "rows", "shown_time", "tables", "write_rows"]


_TIMES = {"cpu": "CPU time", "wall": "wall time"}
_LIBRARIES = ("torch", "spikingjelly", "snntorch", "numba", "snn_lowlat")


@dataclass(frozen=True)
class Result:
    """What one contestant did with one network, number of steps and batch size.

    Parameters
    ----------
    task : str
        A key of ``TASKS``.
    network, contestant : str
        Their names.
    timesteps, batch_size : int
        The setting.
    weights : str
        Where the network's weights are from.
    times : Times
        Round by round; empty if it failed.
    error : str or None
        Why it failed.
    memory : float or None
        What its first run takes beyond what was there before, in MiB; None where it was not measured.
    memory_error : str or None
        Why it could not be measured.
    """

    task: str
    network: str
    contestant: str
    timesteps: int
    batch_size: int
    weights: str
    times: Times = field(default_factory=Times)
    error: str | None = None
    memory: float | None = None
    memory_error: str | None = None

    @property
    def setting(self) -> tuple[str, int, int]:
        """Network, steps and batch size: what contestants are compared in."""
        return self.network, self.timesteps, self.batch_size


def conditions(seed: int) -> dict[str, Any]:
    """Return what all results were measured with: the processor, threads, versions and the seed."""
    try:
        numba = version("numba")
    except PackageNotFoundError:
        numba = "not installed"
    versions = {**current_versions(), "numba": numba}
    return {"cpu": _processor(), "threads": torch.get_num_threads(), "seed": seed, **versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "unknown"


def rows(results: Sequence[Result], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row of plain values for each result.

    ``cpu_seconds`` and ``wall_seconds`` are medians over the rounds, beside their quartiles (``_q1``, ``_q3``);
    ``_ratio`` says how many times the ANN's median in the same setting they are. What was not measured is None.

    Parameters
    ----------
    results : sequence of Result
        In any order.
    facts : mapping
        What :func:`conditions` returned; the last columns.
    """
    anns = {result.setting: result for result in results if result.contestant == ANN}
    found = []
    for result in results:
        row: dict[str, Any] = {
            "task": result.task,
            "network": result.network,
            "timesteps": result.timesteps,
            "batch_size": result.batch_size,
            "contestant": result.contestant,
            "precision": TASKS[result.task].contestants[result.contestant].precision,
        }
        ann = anns.get(result.setting)
        for kind in ("cpu", "wall"):
            row |= _summary(kind, getattr(result.times, kind))
            row[f"{kind}_ratio"] = ratio_of(result, ann, kind)
        row["rounds"] = len(result.times.cpu)
        row["extra_memory_mib"] = result.memory
        row["memory_ratio"] = _quotient(result.memory, ann.memory if ann else None)
        row |= {"error": result.error, "memory_error": result.memory_error, "weights": result.weights, **facts}
        found.append(row)
    return found


def ratio_of(result: Result, ann: Result | None, kind: str) -> float | None:
    """Return how many times the ANN's median time a result's is; None if either has none.

    Parameters
    ----------
    result : Result
        Of a contestant.
    ann : Result or None
        The original network's in the same setting.
    kind : str
        ``"cpu"`` or ``"wall"``.
    """
    times = [getattr(each.times, kind) for each in (result, ann) if each is not None]
    medians = [statistics.median(values) if values else None for values in times]
    return _quotient(medians[0], medians[1]) if len(medians) == 2 else None


def shown_time(facts: Mapping[str, Any]) -> str:
    """Return which time tables and figures show: that on the processor, unless several threads share the work."""
    return "cpu" if facts["threads"] == 1 else "wall"


def write_rows(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows into a CSV file, replaced if it exists; what is None is left empty.

    Parameters
    ----------
    found : sequence of mapping
        What :func:`rows` returned; at least one.
    path : Path
        The file.
    """
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def tables(found: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return a table for each network: the ANN's times, the others' as multiples of them, and memory if measured.

    Parameters
    ----------
    found : sequence of mapping
        What :func:`rows` returned; at least one.
    """
    return [
        _table(network, [row for row in found if row["network"] == network])
        for network in dict.fromkeys(row["network"] for row in found)
    ]


def _table(network: str, here: Sequence[Mapping[str, Any]]) -> Table:
    kind = shown_time(here[0])
    table = Table(
        title=f"{network}: {_TIMES[kind]} of {TASKS[here[0]['task']].title}, and as a multiple of the ANN's",
        # No markup: reasons hold brackets.
        caption=Text(_caption(here)),
        caption_justify="left",
        min_width=78,
    )
    steps = list(dict.fromkeys(row["timesteps"] for row in here))
    weighed = [row for row in here if row["extra_memory_mib"] is not None]
    table.add_column("batch", justify="right")
    table.add_column("")
    for t in steps:
        table.add_column(f"T = {t}", justify="right")
    if weighed:
        table.add_column(f"MiB, T = {weighed[0]['timesteps']}", justify="right")
    cells = {(row["batch_size"], row["contestant"], row["timesteps"]): row for row in here}
    for size in dict.fromkeys(row["batch_size"] for row in here):
        for name in dict.fromkeys(row["contestant"] for row in here):
            line = [cells[size, name, t] for t in steps]
            memory = [_memory(row) for row in weighed if (row["batch_size"], row["contestant"]) == (size, name)]
            table.add_row(str(size), name, *(_time(row, kind) for row in line), *memory)
        table.add_section()
    return table


def _time(row: Mapping[str, Any], kind: str) -> str:
    value = row[f"{kind}_seconds" if row["contestant"] == ANN else f"{kind}_ratio"]
    if value is None:
        return "-"
    return f"{1000 * value:.3g} ms" if row["contestant"] == ANN else _multiple(value)


def _memory(row: Mapping[str, Any]) -> str:
    amount = f"{row['extra_memory_mib']:.0f}"
    return amount if row["contestant"] == ANN else f"{amount} ({_multiple(row['memory_ratio'])})"


def _multiple(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def _caption(here: Sequence[Mapping[str, Any]]) -> str:
    first = here[0]
    libraries = ", ".join(f"{name} {first[name]}" for name in _LIBRARIES)
    whole = dict.fromkeys(row["contestant"] for row in here if row["precision"] != "fp32")
    lines = [
        f"{first['cpu']}, {first['threads']} thread{'s' if first['threads'] > 1 else ''}; {libraries}; "
        f"{first['weights']} weights, seed {first['seed']}.",
        f"Medians of {_range(row['rounds'] for row in here if row['error'] is None)} rounds. "
        f"Weights are fp32{''.join(f', of 8 bits in {name}' for name in whole)}.",
    ]
    if any(row["extra_memory_mib"] is not None for row in here):
        lines.append("MiB: the most resident memory in the first run, less that before it.")
    settings = {(row["timesteps"], row["batch_size"]) for row in here}
    for key, what in (("error", ""), ("memory_error", " (memory)")):
        problems: dict[tuple[str, str], list[str]] = {}
        for row in here:
            if row[key] is not None:
                place = f"T = {row['timesteps']}, batch {row['batch_size']}"
                problems.setdefault((row["contestant"], row[key]), []).append(place)
        for (name, text), places in problems.items():
            where = "" if len(places) == len(settings) else f", {'; '.join(places)}"
            lines.append(f"- {name}{what}{where}: {text}")
    return "\n".join(lines)


def _range(numbers: Iterable[int]) -> str:
    ordered = sorted(set(numbers)) or [0]
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def draw(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw ratios to the ANN's time against the steps, a panel for each network and batch size.

    Parameters
    ----------
    found : sequence of mapping
        What :func:`rows` returned; at least one.
    path : Path
        The file, replaced if it exists.
    """
    kind = shown_time(found[0])
    networks = list(dict.fromkeys(row["network"] for row in found))
    sizes = sorted({row["batch_size"] for row in found})
    names = [name for name in dict.fromkeys(row["contestant"] for row in found) if name != ANN]
    figure = Figure(figsize=(3.2 * len(sizes) + 0.8, 2.9 * len(networks) + 0.9), layout="constrained")
    panels = figure.subplots(len(networks), len(sizes), squeeze=False, sharex=True, sharey="row")
    for line, network in zip(panels, networks, strict=True):
        for axes, size in zip(line, sizes, strict=True):
            here = [row for row in found if (row["network"], row["batch_size"]) == (network, size)]
            for index, name in enumerate(names):
                points = sorted(
                    (row["timesteps"], row[f"{kind}_ratio"])
                    for row in here
                    if row["contestant"] == name and row[f"{kind}_ratio"] is not None
                )
                axes.plot([x for x, _ in points], [y for _, y in points], **line_look(index), label=name)
            axes.axhline(1, color="black", linestyle="--", linewidth=1.2, label="ANN")
            axes.set_title(f"{network}, batch {size}", fontsize="medium")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sorted({row["timesteps"] for row in found}))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_formatter(NullFormatter())
            plain_axes(axes)
        line[0].set_ylabel(f"{_TIMES[kind]} / ANN's")
    figure.suptitle(f"{_TIMES[kind]} of {TASKS[found[0]['task']].title}", fontsize="medium")
    for axes in panels[-1]:
        axes.set_xlabel("time steps T")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, 1 + len(sizes)), frameon=False, fontsize="small"
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")


def _summary(kind: str, values: Sequence[float]) -> dict[str, float | None]:
    names = f"{kind}_seconds", f"{kind}_seconds_q1", f"{kind}_seconds_q3"
    if not values:
        return dict.fromkeys(names)
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return dict(zip(names, (statistics.median(values), quartiles[0], quartiles[2]), strict=True))


def _quotient(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None
