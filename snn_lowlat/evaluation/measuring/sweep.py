"""Accuracy, or the error of other outputs, after every step, from one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snn_lowlat import checks
from snn_lowlat.answers import check_alike, class_indices, classes_of, predictions
from snn_lowlat.calibration import inputs_of
from snn_lowlat.devices import device_of
from snn_lowlat.evaluation.measuring.report import Report
from snn_lowlat.evaluation.measuring.steps import listed_steps
from snn_lowlat.images import floating_type, usable_images
from snn_lowlat.model import SpikingModel
from snn_lowlat.modes import eval_mode
from snn_lowlat.progress import progress_bar
from snn_lowlat.provenance import current_versions

__all__ = ["FiringRates", "compare", "evaluate", "labels_of"]

_NO_CLASSES = (
    " evaluate() counts right classes: compare(snn, loader, ann) measures how far other outputs are from the original "
    "network's, and analyse() and diagnose() where that comes from."
)
_LABEL_KEYS = ("label", "labels", "target", "targets", "y")


def evaluate(
    snn: SpikingModel,
    loader: Iterable[object],
    ann: nn.Module | None = None,
    timesteps: int | Sequence[int] | None = None,
    *,
    progress: bool = False,
    device: torch.device | str | None = None,
) -> Report:
    """Measure a spiking network's accuracy after every step, in one pass over the data.

    Outputs are one value for each class, ``[N, classes]``, of which the largest counts, or one logit for two classes,
    ``[N]`` or ``[N, 1]``, positive for class 1.

    Parameters
    ----------
    snn : SpikingModel
        The converted network.
    loader : iterable
        Batches of images and labels: ``(images, labels)`` pairs or dicts such as ``{"image": ..., "label": ...}``.
        Labels are class indices ``[N]`` or ``[N, 1]`` of any whole type, one-hot rows ``[N, classes]``, or, for two
        classes, truth values.
    ann : nn.Module, optional
        The network it was converted from; its accuracy on the same images stands beside the spiking one's. Evaluated
        in eval mode and left in the mode it was in.
    timesteps : int or sequence of int, optional
        ``T`` lists the accuracy after 1, 2, ... T steps, a sequence lists the steps it names; all of the network's
        steps by default.
    progress : bool
        Show a progress bar.
    device : device, optional
        Both networks are moved there; by default images go to where the spiking network is.

    Returns
    -------
    Report
        Accuracies as fractions in ``[0, 1]``.

    Raises
    ------
    ValueError
        If there are no batches, a batch has no labels or labels that are no classes of the network's, the outputs are
        no class vector, the original network's are of another shape, or a step is listed that the network does not
        simulate, or an argument is something else; the message says what to give.
    """
    snn = checks.spiking_model("snn", snn)
    loader = checks.batches("loader", loader)
    if ann is not None:
        checks.network("ann", ann)
    steps = listed_steps(timesteps, snn.timesteps)
    if device is not None:
        snn.to(device)
        if ann is not None:
            ann.to(device)
    place = torch.device(device) if device is not None else device_of(snn)
    correct = torch.zeros(len(steps), dtype=torch.int64)
    ann_correct = 0
    images = 0
    networks = [snn] if ann is None else [snn, ann]
    rates = FiringRates()
    with torch.inference_mode(), eval_mode(*networks):
        for batch in progress_bar(loader, "evaluating", progress=progress):
            inputs, given = inputs_of(batch).to(place), _raw_labels(batch)
            if not len(inputs):
                continue
            outputs = _readouts(snn, inputs, steps, rates)
            labels = class_indices(given, classes_of(outputs.shape[1:], _NO_CLASSES)).cpu()
            if len(inputs) != len(labels):
                raise ValueError(f"a batch has {len(inputs)} images but {len(labels)} labels.")
            found = predictions(outputs.flatten(0, 1)).reshape(len(steps), -1)
            correct += (found.cpu() == labels).sum(1)
            if ann is not None:
                logits = ann(usable_images(inputs, floating_type(ann)))
                check_alike(logits, outputs.shape[1:])
                ann_correct += int((predictions(logits).cpu() == labels).sum())
            images += len(labels)
    if images == 0:
        raise ValueError("there are no images to evaluate: the loader gave none.")
    return _report(
        snn,
        steps,
        images,
        rates,
        accuracies={step: int(right) / images for step, right in zip(steps, correct, strict=True)},
        ann_accuracy=snn.ann_accuracy if ann is None else ann_correct / images,
        model=None if ann is None else type(ann).__name__,
    )


def compare(
    snn: SpikingModel,
    loader: Iterable[object],
    ann: nn.Module,
    timesteps: int | Sequence[int] | None = None,
    *,
    progress: bool = False,
    device: torch.device | str | None = None,
) -> Report:
    r"""Measure how far a spiking network's outputs are from the original's after every step, whatever their shape.

    For outputs that are no classes, as images or maps; :func:`evaluate` counts right classes. With the mean readout
    :math:`y(t)` after :math:`t` steps and the original network's output :math:`y`, over all images,

    .. math:: \epsilon(t) = \lVert y(t) - y \rVert / \lVert y \rVert

    Parameters
    ----------
    snn : SpikingModel
        The converted network.
    loader : iterable
        Batches of images, alone or with labels, which are not read.
    ann : nn.Module
        The network it was converted from. Evaluated in eval mode and left in the mode it was in.
    timesteps, progress, device
        As in :func:`evaluate`.

    Returns
    -------
    Report
        With relative ``errors`` in the place of accuracies; tables and plots show them in decibels.

    Raises
    ------
    ValueError
        If there are no batches, the outputs of the two networks are of different shapes or NaN, or a step is listed
        that the network does not simulate.
    """
    steps = listed_steps(timesteps, snn.timesteps)
    if device is not None:
        snn.to(device)
        ann.to(device)
    place = torch.device(device) if device is not None else device_of(snn)
    squares, whole, images = torch.zeros(len(steps), dtype=torch.float64), 0.0, 0
    rates = FiringRates()
    with torch.inference_mode(), eval_mode(snn, ann):
        for batch in progress_bar(loader, "comparing", progress=progress):
            inputs = inputs_of(batch).to(place)
            outputs, expected = _readouts(snn, inputs, steps, rates), ann(inputs)
            check_alike(expected, outputs.shape[1:])
            squares += (outputs - expected).double().square().flatten(1).sum(1).cpu()
            whole += float(expected.double().square().sum())
            images += len(inputs)
    if images == 0:
        raise ValueError("there are no images to compare the networks on: the loader gave none.")
    if not bool(torch.isfinite(squares).all()):
        raise ValueError("the networks' outputs are NaN or infinite: check images and weights.")
    errors = (squares / (whole or 1.0)).sqrt().tolist()
    return _report(snn, steps, images, rates, errors=dict(zip(steps, errors, strict=True)), model=type(ann).__name__)


def _report(snn: SpikingModel, steps: list[int], images: int, rates: FiringRates, **found: Any) -> Report:
    """Say what was found, and how the network was made."""
    return Report(
        **{"accuracies": {}, **found},
        strategy=snn.strategy,
        strategy_options=snn.provenance.options,
        refinements=tuple(snn.provenance.refinements),
        latencies={step: int(snn.latency_steps_at(step)) for step in steps},
        firing_rates=rates.compute(),
        computed="counts" if snn.is_counted else "spikes",
        precision=snn.precision,
        images=images,
        backend=snn.backend,
        encoder=str(snn.encoder),
        seed=snn.seed,
        versions=current_versions(),
        depth=snn.depth,
    )


def _readouts(snn: SpikingModel, inputs: Tensor, steps: list[int], rates: FiringRates) -> Tensor:
    """Read the network out for each number of steps, ``[len(steps), N, ...]``, counting the spikes of the last."""
    if not snn.is_counted:
        return snn.readout(inputs, steps[-1], rates)[torch.tensor(steps, device=inputs.device) - 1]
    # A window of each length: what a network has read out in the middle of a longer one says little.
    shorter = [snn.count(inputs, timesteps) for timesteps in steps[:-1]]
    return torch.stack([*shorter, snn.count(inputs, steps[-1], rates)])


class FiringRates:
    """Count spikes while a network runs: ``snn.readout(images, observe=rates)``. Sums are kept, spikes never."""

    def __init__(self) -> None:
        self._spikes: dict[str, Tensor] = {}
        self._chances: dict[str, int] = {}

    def __call__(self, name: str, spikes: Tensor) -> None:
        """Take what one layer's neurons have fired: 0 or 1 in each step, or the mean over a window, of any shape."""
        # The sum stays on its device: reading it in every step would stall an accelerator.
        number = spikes.sum(dtype=torch.float64) if spikes.is_floating_point() else spikes.sum()
        self._spikes[name] = self._spikes[name] + number if name in self._spikes else number
        self._chances[name] = self._chances.get(name, 0) + spikes.numel()

    def compute(self) -> dict[str, float]:
        """Return the spikes per neuron and step of every layer that ran."""
        return {name: float(spikes) / self._chances[name] for name, spikes in self._spikes.items()}


def labels_of(batch: object, classes: int | None = None) -> Tensor:
    """Return a batch's labels, class indices ``[N]`` on the CPU.

    Parameters
    ----------
    batch : object
        A pair of images and labels, or a dict with a key such as ``label`` or ``target``. Labels are whole numbers
        ``[N]`` or ``[N, 1]``, one-hot rows ``[N, classes]``, or, for two classes, truth values.
    classes : int, optional
        How many classes there are.

    Raises
    ------
    ValueError
        If there are none, or they are no class indices from 0 up to the number of classes.
    """
    return class_indices(_raw_labels(batch), classes).cpu()


def _raw_labels(batch: object) -> object:
    labels: object = None
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
    elif isinstance(batch, list | tuple) and len(batch) > 1:
        labels = batch[1]
    if labels is None:
        raise ValueError(
            "a batch has no labels: give (images, labels) pairs, or dicts with one of the keys "
            f"{', '.join(_LABEL_KEYS)}."
        )
    return labels
