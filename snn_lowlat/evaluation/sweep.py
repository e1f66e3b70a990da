"""Accuracy after every step, from one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from snn_lowlat.calibration import inputs_of
from snn_lowlat.devices import device_of
from snn_lowlat.evaluation.report import Report
from snn_lowlat.evaluation.steps import listed_steps
from snn_lowlat.images import floating_type, usable_images
from snn_lowlat.model import SpikingModel, current_versions
from snn_lowlat.modes import evaluating
from snn_lowlat.progress import tracked

__all__ = ["FiringRates", "evaluate", "labels_of"]

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

    Parameters
    ----------
    snn : SpikingModel
        The converted network.
    loader : iterable
        Batches of images and labels: ``(images, labels)`` pairs or dicts such as ``{"image": ..., "label": ...}``.
        Labels are class indices ``[N]``.
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
        If there are no batches, a batch has no labels, or a step is listed that the network does not simulate.
    """
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
    with torch.inference_mode(), evaluating(*networks):
        for batch in tracked(loader, "evaluating", progress=progress):
            inputs, labels = inputs_of(batch).to(place), labels_of(batch)
            if len(inputs) != len(labels):
                raise ValueError(f"a batch has {len(inputs)} images but {len(labels)} labels.")
            correct += (_readouts(snn, inputs, steps, rates).argmax(-1).cpu() == labels).sum(1)
            if ann is not None:
                logits = ann(usable_images(inputs, floating_type(ann)))
                ann_correct += int((logits.argmax(-1).cpu() == labels).sum())
            images += len(labels)
    if images == 0:
        raise ValueError("there are no images to evaluate: the loader gave none.")
    return Report(
        strategy=snn.strategy,
        strategy_options=snn.provenance.options,
        refinements=tuple(snn.provenance.refinements),
        accuracies={step: int(right) / images for step, right in zip(steps, correct, strict=True)},
        latencies={step: int(snn.latency_steps_at(step)) for step in steps},
        firing_rates=rates.compute(),
        computed="counts" if snn.is_counted else "spikes",
        precision=snn.precision,
        images=images,
        backend=snn.backend,
        encoder=str(snn.encoder),
        seed=snn.seed,
        ann_accuracy=snn.ann_accuracy if ann is None else ann_correct / images,
        model=None if ann is None else type(ann).__name__,
        versions=current_versions(),
        depth=snn.depth,
    )


def _readouts(snn: SpikingModel, inputs: Tensor, steps: list[int], rates: FiringRates) -> Tensor:
    """Read the network out for each number of steps, ``[len(steps), N, classes]``, counting the spikes of the last."""
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


def labels_of(batch: object) -> Tensor:
    """Return a batch's labels, class indices ``[N]`` on the CPU.

    Parameters
    ----------
    batch : object
        A pair of images and labels, or a dict with a key such as ``label`` or ``target``.

    Raises
    ------
    ValueError
        If there are none, or they are no class indices.
    """
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
    indices = torch.as_tensor(labels).cpu()
    if indices.dim() == 2 and indices.shape[1] == 1:
        indices = indices.squeeze(1)
    if indices.dim() != 1 or indices.is_floating_point():
        raise ValueError(f"labels must be class indices of shape [N], not {indices.dtype} of {list(indices.shape)}.")
    return indices
