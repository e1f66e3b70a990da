"""One pass through test images that finds what a report shows beside accuracy: operations, errors, and one example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from snn_lowlat import checks
from snn_lowlat.calibration import inputs_of
from snn_lowlat.devices import device_of
from snn_lowlat.encoding import input_events, make_encoder
from snn_lowlat.evaluation.measuring.diagnosis import Diagnosis, ErrorCounter
from snn_lowlat.evaluation.measuring.energy import COST_MODELS, Cost, CostModel
from snn_lowlat.evaluation.measuring.example import Example
from snn_lowlat.evaluation.measuring.operations import EventCounter, Operations, ann_operations
from snn_lowlat.evaluation.measuring.report import Report
from snn_lowlat.evaluation.measuring.steps import listed_steps
from snn_lowlat.graph import normalise
from snn_lowlat.images import floating_type, usable_images
from snn_lowlat.model import SpikingModel
from snn_lowlat.progress import progress_bar
from snn_lowlat.simulation import micro_batches

__all__ = ["Analysis", "Example", "analyse", "diagnose"]

_ROWS = 48


@dataclass(frozen=True)
class Analysis:
    """What one pass through test images found.

    Parameters
    ----------
    operations : mapping of int to Operations
        By the number of steps.
    ann_operations : Operations
        Those of the original network: the same layers on real numbers.
    diagnosis : Diagnosis or None
        The errors of each layer, where the original network was given.
    example : Example
        What the first image made the network do.
    """

    operations: Mapping[int, Operations]
    ann_operations: Operations
    diagnosis: Diagnosis | None
    example: Example

    def added_to(self, report: Report, models: Iterable[CostModel] = tuple(COST_MODELS.values())) -> Report:
        """Return a report with all this, and with energies by these models."""
        models = tuple(models)
        return replace(
            report,
            costs={steps: Cost.of(operations, models) for steps, operations in self.operations.items()},
            ann_cost=Cost.of(self.ann_operations, models),
            operations=self.operations[max(self.operations)],
            diagnosis=self.diagnosis,
            example=self.example,
        )


@torch.no_grad()
def analyse(
    snn: SpikingModel,
    loader: Iterable[object],
    ann: nn.Module | None = None,
    *,
    images: int | None = None,
    timesteps: int | Sequence[int] | None = None,
    progress: bool = False,
) -> Analysis:
    """Run a spiking network, in normal form, beside the original one; count its operations and its layers' errors.

    Parameters
    ----------
    snn : SpikingModel
        The converted network.
    loader : iterable
        Batches of images, alone or with labels.
    ann : Module, optional
        The network it was converted from, for the errors.
    images : int, optional
        Stop after so many; all of them by default.
    timesteps : int or sequence of int, optional
        ``T`` counts operations for 1, 2, ... T steps, a sequence for those it names; all of the network's steps by
        default. Errors are those after the largest number.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        If there are no images, a step is listed that the network does not simulate, or the networks have different
        layers.
    """
    snn = checks.spiking_model("snn", snn)
    loader = checks.batches("loader", loader)
    if ann is not None:
        ann = checks.network("ann", ann, rewritten=True)
    if images is not None:
        images = checks.count("images", images)
    graph, plan = snn.normal_form()
    steps, place = listed_steps(timesteps, snn.timesteps), device_of(snn)
    graph.to(place)
    counter = EventCounter(graph, plan, snn.encoder, steps)
    errors: ErrorCounter | None = None
    example: Example | None = None
    shape: torch.Size = torch.Size()
    seen = 0
    for batch in progress_bar(loader, "analysing", progress=progress):
        inputs = inputs_of(batch)[: None if images is None else images - seen].to(place)
        if not len(inputs):
            continue
        inputs = usable_images(inputs, floating_type(graph), snn.provenance.input_shape)
        if ann is not None and errors is None:
            errors = ErrorCounter(normalise(ann, inputs[:2]).to(place), graph, plan)
        for part in micro_batches(inputs, counter.timesteps, snn.micro_batch):
            seeing = _Watch(errors, keep=example is None)
            if errors is not None:
                errors.expect(part, make_encoder(snn.encoder)(part, counter.timesteps, snn.seed).mean(0))
            outputs = counter.run(part, snn.seed, seeing)
            example = example or seeing.example(snn, part, outputs)
        seen, shape = seen + len(inputs), inputs.shape[1:]
        if images is not None and seen >= images:
            break
    operations = counter.compute()
    if example is None:
        raise ValueError("there are no images to analyse: the loader gave none.")
    diagnosis: Diagnosis | None = None
    if errors is not None:
        diagnosis = errors.compute(snn.strategy, snn.provenance.options, snn.provenance.refinements)
    return Analysis(
        operations=operations,
        ann_operations=ann_operations(graph, shape),
        diagnosis=diagnosis,
        example=example,
    )


def diagnose(
    snn: SpikingModel,
    ann: nn.Module,
    loader: Iterable[object],
    *,
    images: int | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Compare a spiking network's layers with those of the network it was converted from.

    Parameters
    ----------
    snn : SpikingModel
        The converted network; it runs for its own number of steps.
    ann : Module
        The network it was converted from.
    loader : iterable
        Batches of images, alone or with labels.
    images : int, optional
        Stop after so many; all of them by default.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Diagnosis
        The errors of every layer and what to attack first.

    Raises
    ------
    ValueError
        If there are no images, or the networks have different layers.
    """
    found = analyse(snn, loader, ann, images=images, timesteps=[snn.timesteps], progress=progress).diagnosis
    assert found is not None
    return found


class _Watch:
    """Shows a simulation's spikes to the counter of errors, and keeps those of the first image."""

    def __init__(self, errors: ErrorCounter | None, *, keep: bool) -> None:
        self._errors = errors
        self._keep = keep
        self._rasters: dict[str, tuple[str, ...]] = {}

    def __call__(self, name: str, currents: Tensor, spikes: Tensor) -> None:
        if self._errors is not None:
            self._errors.observe(name, currents, spikes)
        if self._keep:
            rows = _some(spikes[:, 0]) != 0
            self._rasters[name] = tuple("".join(str(int(spike)) for spike in row) for row in rows)

    def example(self, snn: SpikingModel, images: Tensor, outputs: Tensor) -> Example:
        steps = len(outputs)
        sent = input_events(snn.encoder, images[:1], steps, snn.seed)
        inputs = _some((images[:1] if sent is None else sent[:, 0]).float())
        values = outputs[:, 0].reshape(steps, -1).double()
        readout = values.cumsum(0) / torch.arange(1, steps + 1, device=outputs.device)[:, None]
        classes = values.shape[1] > 1 and values.shape[1] in outputs.shape[2:]
        shown = readout.T if classes else _some(readout)
        ends = dict.fromkeys(list(self._rasters)[:1] + list(self._rasters)[-1:])
        return Example(_rows(inputs), {name: self._rasters[name] for name in ends}, _rows(shown), classes)


def _some(steps: Tensor) -> Tensor:
    """Choose some rows evenly: ``[T, ...]`` to ``[rows, T]``."""
    rows = steps.flatten(1).T
    return rows[torch.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).round().long()]


def _rows(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(value, 4) for value in row) for row in values.tolist())
