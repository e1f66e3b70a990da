"""What an evaluation found: accuracy after every step, the ANN's, firing rates, and how it was obtained."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from snn_lowlat import checks
from snn_lowlat.evaluation.measuring.diagnosis import Diagnosis
from snn_lowlat.evaluation.measuring.energy import Cost
from snn_lowlat.evaluation.measuring.example import Example
from snn_lowlat.evaluation.measuring.operations import Operations
from snn_lowlat.files import atomic_write

__all__ = ["COLUMNS", "Report", "table", "write_csv", "write_json"]

COLUMNS = (
    "experiment",
    "strategy",
    "backend",
    "model",
    "dataset",
    "timesteps",
    "latency_steps",
    "accuracy",
    "ann_accuracy",
    "seed",
)
"""The columns that a CSV file starts with; further ones may follow."""

_COST_COLUMNS = ("spikes", "synaptic_operations", "macs", "additions", "comparisons", "memory_accesses")


@dataclass(frozen=True)
class Report:
    """A spiking network's accuracy against time, and where the numbers come from.

    Accuracies are fractions in ``[0, 1]`` here and in files; tables and plots show per cent. Where outputs are no
    classes, there are relative errors in their place, which tables and plots show in decibels.

    Parameters
    ----------
    strategy : str
        The conversion strategy's name.
    accuracies : mapping of int to float
        Accuracy of the mean readout after each number of steps listed; none where outputs are no classes.
    latencies : mapping of int to int
        For the same numbers of steps, the steps from the first input to the last output. They exceed the number of
        steps where neurons see a whole window before they fire.
    firing_rates : mapping of str to float
        Spikes per neuron and step, the mean over a layer's neurons, the steps and the images, by the layer's name.
    images : int
        Number of images evaluated.
    backend, encoder : str
        The host library, and how images become input (``"direct"`` or ``"poisson"``).
    seed : int
        The seed of the conversion.
    ann_accuracy : float or None
        The ANN's accuracy on the same images, if known.
    strategy_options : mapping
        The strategy's options.
    refinements : sequence of mapping
        The refinements that followed, each with its ``name`` and options.
    computed : str
        What was computed: ``"spikes"``, every one of them, or ``"counts"``, how many each neuron fires in its window,
        in one pass.
    precision : str
        What the network computed in, as :attr:`snn_lowlat.SpikingModel.precision` says.
    experiment, model, dataset : str or None
        Names, where known; ``dataclasses.replace`` sets them afterwards.
    versions : mapping of str to str
        Of Python and the libraries.
    depth : int
        The number of spiking layers that a signal passes one after the other.
    costs : mapping of int to Cost
        Operations and energies of one image by the number of steps, where they were measured.
    ann_cost : Cost or None
        The same of the original network.
    operations : Operations or None
        The operations of each layer after the largest number of steps.
    diagnosis : Diagnosis or None
        The errors of each layer.
    example : Example or None
        What one image makes the network do.
    errors : mapping of int to float
        The norm of the difference between the mean readout and the original network's outputs, over the latter's norm,
        after each number of steps listed; for outputs that are no classes, see :func:`~snn_lowlat.evaluation.compare`.

    Raises
    ------
    ValueError
        If there are neither accuracies nor errors, or both, or no latency for each.
    """

    strategy: str
    accuracies: Mapping[int, float]
    latencies: Mapping[int, int]
    firing_rates: Mapping[str, float]
    images: int
    backend: str
    encoder: str
    seed: int
    ann_accuracy: float | None = None
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    refinements: Sequence[Mapping[str, Any]] = ()
    computed: str = "spikes"
    precision: str = "fp32"
    experiment: str | None = None
    model: str | None = None
    dataset: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    depth: int = 0
    costs: Mapping[int, Cost] = field(default_factory=dict)
    ann_cost: Cost | None = None
    operations: Operations | None = None
    diagnosis: Diagnosis | None = None
    example: Example | None = None
    errors: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        measured = self.accuracies or self.errors
        if not measured or (self.accuracies and self.errors) or measured.keys() != self.latencies.keys():
            raise ValueError("a report needs accuracies, or else errors, and a latency for each.")
        for name in ("accuracies", "errors", "latencies"):
            object.__setattr__(self, name, MappingProxyType(dict(sorted(getattr(self, name).items()))))
        for name in ("firing_rates", "strategy_options", "versions", "costs"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def timesteps(self) -> int:
        """The largest number of steps listed."""
        return max(self.latencies)

    @property
    def accuracy(self) -> float:
        """The accuracy after :attr:`timesteps` steps, in ``[0, 1]``.

        Raises
        ------
        ValueError
            If the outputs are no classes.
        """
        if not self.accuracies:
            raise ValueError("the network's outputs are no classes: there is no accuracy, but errors.")
        return self.accuracies[self.timesteps]

    @property
    def quality(self) -> dict[int, float]:
        """What tables and plots show, the more the better: accuracies in per cent, or errors in decibels."""
        if self.accuracies:
            return {steps: 100 * accuracy for steps, accuracy in self.accuracies.items()}
        return {steps: decibels(error) for steps, error in self.errors.items()}

    @property
    def quality_name(self) -> str:
        """What :attr:`quality` is, with its unit."""
        return "accuracy (%)" if self.accuracies else "signal to error (dB)"

    @property
    def latency_steps(self) -> int:
        """The steps from the first input to the last output for :attr:`timesteps`."""
        return self.latencies[self.timesteps]

    def pipelined_latency(self, timesteps: int) -> int:
        """Return the latency, in steps, on hardware whose layers work on what was sent in the step before.

        Images may then follow each other every ``timesteps`` steps, whatever the latency. Where layers see their whole
        window first, :attr:`latencies` are those of such hardware already.
        """
        if timesteps not in self.latencies:
            raise ValueError(f"timesteps must be one of {', '.join(map(str, self.latencies))}, not {timesteps!r}.")
        return max(self.latencies[timesteps], timesteps + self.depth)

    def steps_within(self, points: float) -> int | None:
        """Return the first number of steps listed whose accuracy comes so near to the ANN's; None if there is none.

        Parameters
        ----------
        points : float
            How near, in percentage points.
        """
        points = checks.number("points", points)
        if self.ann_accuracy is None:
            return None
        enough = near(self.ann_accuracy, points)
        return next((steps for steps, accuracy in self.accuracies.items() if accuracy >= enough), None)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each number of steps: :data:`COLUMNS`, and further ones.

        Where operations were measured, they and energies in nJ follow.
        """
        return [
            {
                "experiment": self.experiment,
                "strategy": self.strategy,
                "backend": self.backend,
                "model": self.model,
                "dataset": self.dataset,
                "timesteps": timesteps,
                "latency_steps": self.latencies[timesteps],
                "accuracy": self.accuracies.get(timesteps),
                "ann_accuracy": self.ann_accuracy,
                "seed": self.seed,
                "encoder": self.encoder,
                "precision": self.precision,
                "images": self.images,
                "computed": self.computed,
                "pipelined_latency_steps": self.pipelined_latency(timesteps),
                **({"relative_error": self.errors[timesteps]} if self.errors else {}),
                **self._cost_columns(timesteps),
            }
            for timesteps in self.latencies
        ]

    def _cost_columns(self, timesteps: int) -> dict[str, Any]:
        if timesteps not in self.costs or self.ann_cost is None:
            return {}
        cost, ann = self.costs[timesteps], self.ann_cost
        columns = {name: getattr(cost, name) for name in _COST_COLUMNS}
        for model, energy in cost.energies.items():
            columns[f"energy_nj_{model}"] = energy / 1000
            columns[f"ann_energy_nj_{model}"] = ann.energies[model] / 1000
        return columns

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {
            "experiment": self.experiment,
            "strategy": self.strategy,
            "strategy_options": {name: _plain(value) for name, value in self.strategy_options.items()},
            "refinements": _plain(self.refinements),
            "backend": self.backend,
            "encoder": self.encoder,
            "precision": self.precision,
            "computed": self.computed,
            "model": self.model,
            "dataset": self.dataset,
            "images": self.images,
            "seed": self.seed,
            "timesteps": self.timesteps,
            "latency_steps": self.latency_steps,
            "pipelined_latency_steps": self.pipelined_latency(self.timesteps),
            "depth": self.depth,
            "accuracy": self.accuracies.get(self.timesteps),
            "ann_accuracy": self.ann_accuracy,
            "curve": [
                {
                    "timesteps": timesteps,
                    "latency_steps": latency,
                    **({"relative_error": self.errors[timesteps]} if self.errors else {}),
                    **({"accuracy": self.accuracies[timesteps]} if self.accuracies else {}),
                }
                for timesteps, latency in self.latencies.items()
            ],
            "steps_within": {f"{points} points": self.steps_within(points) for points in (1, 0.1)},
            "firing_rates": dict(self.firing_rates),
            "versions": dict(self.versions),
            **self._analysis(),
        }

    def _analysis(self) -> dict[str, Any]:
        """Return what was measured beside accuracy."""
        found: dict[str, Any] = {}
        if self.costs:
            found["costs"] = [{"timesteps": steps, **cost.to_dict()} for steps, cost in self.costs.items()]
        for name in ("ann_cost", "operations", "diagnosis", "example"):
            part = getattr(self, name)
            if part is not None:
                found[name] = part.to_dict()
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Read back what :meth:`to_dict` returned, or one of the ``reports`` in a file of :func:`write_json`."""
        names = {field.name for field in fields(cls)} & values.keys()
        kinds: dict[str, Any] = {"operations": Operations, "diagnosis": Diagnosis, "example": Example}
        read: dict[str, Any] = {name: values[name] for name in names}
        read |= {name: kind.from_dict(values[name]) for name, kind in kinds.items() if name in values}
        for name, key in (("accuracies", "accuracy"), ("errors", "relative_error")):
            read[name] = {row["timesteps"]: row[key] for row in values["curve"] if key in row}
        read["latencies"] = {row["timesteps"]: row["latency_steps"] for row in values["curve"]}
        read["refinements"] = tuple(values.get("refinements", ()))
        costs = [dict(row) for row in values.get("costs", ())]
        read["costs"] = {row.pop("timesteps"): Cost(**row) for row in costs}
        if "ann_cost" in values:
            read["ann_cost"] = Cost(**values["ann_cost"])
        return cls(**read)

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON."""
        _write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def to_csv(self, path: str | Path) -> None:
        """Write one row for each number of steps."""
        write_csv([self], path)

    def plot(self, path: str | Path) -> None:
        """Draw accuracy against steps beside the ANN's; the ending of ``path`` chooses the format (png, pdf, svg)."""
        from snn_lowlat.evaluation.reporting.plots import plot_reports

        plot_reports([self], path)

    def table(self) -> Table:
        """Return a table for rich to print."""
        return table([self])

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=100)
        with console.capture() as text:
            console.print(self.table())
        return text.get().rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        return (type(self), tuple(dict(value) if isinstance(value, Mapping) else value for value in values))


def near(accuracy: float, points: float) -> float:
    """Return the accuracy that is so many percentage points below another one, give or take rounding."""
    return accuracy - points / 100 - 1e-9


def decibels(error: float) -> float:
    """Return how far the signal is above a relative error, in decibels, or 120 where that would be more."""
    return min(120.0, -20 * math.log10(max(error, 1e-300)))


def check_comparable(reports: Sequence[Report]) -> None:
    """Check that there are reports, and that all of them are about the same quality; ``ValueError`` says otherwise."""
    if not reports:
        raise ValueError("there is no report.")
    if len({report.quality_name for report in reports}) > 1:
        raise ValueError("some of the reports are about classes, others about other outputs: they can't be compared.")


def labels(reports: Sequence[Report]) -> list[str]:
    """Return a name for each report: its strategy, and whatever else tells it from the others."""
    chains = [[str(step["name"]) for step in report.refinements] for report in reports]
    shared = next(
        (i for i, steps in enumerate(zip(*chains, strict=False)) if len(set(steps)) > 1), min(map(len, chains))
    )
    names = [" + ".join([report.strategy, *chain[shared:]]) for report, chain in zip(reports, chains, strict=True)]
    for attribute in ("backend", "model", "dataset", "encoder", "precision", "seed"):
        if len({str(getattr(report, attribute)) for report in reports}) > 1:
            names = [f"{name}, {getattr(report, attribute)}" for name, report in zip(names, reports, strict=True)]
    for name in {name for name in names if names.count(name) > 1}:
        same = [index for index, other in enumerate(names) if other == name]
        options = [{key: str(_plain(value)) for key, value in reports[i].strategy_options.items()} for i in same]
        differing = [key for key in options[0] if len({option.get(key) for option in options}) > 1]
        for number, (index, option) in enumerate(zip(same, options, strict=True), start=1):
            difference = ", ".join(f"{key}={option.get(key)}" for key in differing) or f"({number})"
            names[index] = f"{name}, {difference}"
    return names


def table(reports: Sequence[Report]) -> Table:
    """Return one table of several reports for rich to print, a row for each number of steps.

    Accuracies are in per cent, errors in decibels.

    Parameters
    ----------
    reports : sequence of Report
        At least one.

    Raises
    ------
    ValueError
        If there is none, or some are about classes and others not.
    """
    check_comparable(reports)
    first = reports[0]
    ann = {report.ann_accuracy for report in reports if report.ann_accuracy is not None}
    what = [f"{name} on {data}" for name, data in {(r.model or "network", r.dataset or "data") for r in reports}]
    quality = "Accuracy in %" if first.accuracies else "Signal to error in dB"
    title = f"{quality}: {'; '.join(sorted(what))}, {first.images:,} images"
    if len(ann) == 1:
        title += f", ANN {100 * ann.pop():.2f}"
    # A table narrower than its title would break it.
    result = Table(title=title, min_width=min(len(title) + 2, 78))
    result.add_column("timesteps", justify="right")
    same_latency = len({tuple(report.latencies.items()) for report in reports}) == 1
    if same_latency:
        result.add_column("latency_steps", justify="right")
    for name in labels(reports):
        result.add_column(name, justify="right")
        if not same_latency:
            result.add_column("latency_steps", justify="right")
    for steps in sorted({steps for report in reports for steps in report.latencies}):
        cells = [str(steps)]
        if same_latency:
            cells.append(str(first.latencies[steps]))
        for report in reports:
            cells.append(f"{report.quality[steps]:.2f}" if steps in report.latencies else "")
            if not same_latency:
                cells.append(str(report.latencies.get(steps, "")))
        result.add_row(*cells)
    return result


def write_csv(reports: Sequence[Report], path: str | Path) -> None:
    """Write several reports into one CSV file, one row for each report and number of steps.

    Parameters
    ----------
    reports : sequence of Report
        At least one.
    path : path
        Replaced if it exists.

    Raises
    ------
    ValueError
        If there is no report, or some are about classes and others not.
    """
    check_comparable(reports)
    rows = [row for report in reports for row in report.rows()]
    text = StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write_text(path, text.getvalue())


def write_json(reports: Sequence[Report], path: str | Path) -> None:
    """Write several reports into one JSON file.

    The file holds the first report's values, as :meth:`Report.to_json` writes them, and all reports under ``reports``.

    Parameters
    ----------
    reports : sequence of Report
        At least one.
    path : path
        Replaced if it exists.

    Raises
    ------
    ValueError
        If there is no report, or some are about classes and others not.
    """
    check_comparable(reports)
    content = {**reports[0].to_dict(), "reports": [report.to_dict() for report in reports]}
    _write_text(path, json.dumps(content, indent=2) + "\n")


def _write_text(path: str | Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
