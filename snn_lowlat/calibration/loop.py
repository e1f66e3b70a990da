"""The calibration pass: run the network over some data and watch what arrives at every activation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed, fx, nn

from snn_lowlat import checks
from snn_lowlat.calibration.histogram import Histogram
from snn_lowlat.calibration.statistics import SiteStatistics
from snn_lowlat.devices import device_of
from snn_lowlat.errors import CalibrationError
from snn_lowlat.graph import Site, find_sites
from snn_lowlat.images import floating_type, usable_images
from snn_lowlat.modes import eval_mode
from snn_lowlat.processes import gathered
from snn_lowlat.progress import progress_bar

__all__ = ["calibrate", "inputs_of", "observe"]

_LOGGER = logging.getLogger(__name__)

_INPUT_KEYS = ("image", "images", "x", "input", "inputs", "pixel_values", "data")


def inputs_of(batch: object) -> Tensor:
    """Return the network's input from a batch as data loaders give them.

    Parameters
    ----------
    batch : object
        A tensor; a tuple or list whose first item is the input, such as ``(x, y)``; or a mapping with the input at
        ``"image"``, ``"images"``, ``"x"``, ``"input"``, ``"inputs"``, ``"pixel_values"`` or ``"data"``.

    Raises
    ------
    CalibrationError
        If there is no tensor at any of these places, or it is no batch of images; it may be an empty one.
    """
    if isinstance(batch, Tensor):
        try:
            images = checks.tensor("images", batch)
        except ValueError as error:
            raise CalibrationError(str(error)) from error
        if images.dim() == 0:
            raise CalibrationError(f"a batch must be a tensor [N, ...], not the single number {images}.")
        return images
    if isinstance(batch, Mapping):
        for key in _INPUT_KEYS:
            if isinstance(batch.get(key), Tensor):
                return inputs_of(batch[key])
        raise CalibrationError(
            f"the batch is a mapping with the keys {sorted(map(str, batch))}, none of which is the input: name the "
            f"input's key one of {', '.join(_INPUT_KEYS)}."
        )
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 0:
        if isinstance(batch[0], (Tensor, Mapping, tuple, list, np.ndarray)):
            return inputs_of(batch[0])
        raise CalibrationError(f"the batch's first item must be the input tensor, not a {type(batch[0]).__name__}.")
    advice = ": give torch.from_numpy(images)" if isinstance(batch, np.ndarray) else ""
    raise CalibrationError(
        f"a batch must be a tensor, a tuple or list that begins with one, or a mapping; not {type(batch).__name__}"
        f"{advice}."
    )


@torch.no_grad()
def calibrate(
    graph: fx.GraphModule,
    batches: Iterable[object],
    *,
    limit: int | None = None,
    progress: bool = False,
    device: torch.device | str | None = None,
) -> dict[str, SiteStatistics]:
    """Run a network over data and collect the distribution of every site's pre-activations.

    Where ``torch.distributed`` is initialised, every process must call this with a share of the data, and each gets
    the statistics of all the data.

    Parameters
    ----------
    graph : fx.GraphModule
        The network in normal form. It runs in eval mode; each module's training flag is then as it was before.
    batches : iterable
        Batches in any form that :func:`inputs_of` reads, or one tensor, which is one batch.
    limit : int, optional
        The largest number of batches to use; all of them by default.
    progress : bool
        Show a progress bar, where the output is a terminal.
    device : torch.device or str, optional
        Where the batches are moved; by default to the device of the network's first parameter.

    Returns
    -------
    dict of str to SiteStatistics
        For each site, in the network's order, with the counts on the CPU.

    Raises
    ------
    CalibrationError
        If there are no data, a batch can't be read, a pre-activation is NaN or infinite, or a whole layer never has a
        positive pre-activation, or the images are constant or of several sizes. A single channel without one is no
        error.
    ValueError
        If ``limit`` is not positive, or ``batches`` are none.
    """
    sites = find_sites(graph)
    places = {name: graph.get_submodule(name) for name in sites}
    histograms = observe(graph, places, batches, device=device, limit=limit, progress=progress)
    return {name: _statistics(site, histograms.get(name)) for name, site in sites.items()}


@torch.no_grad()
def observe(
    network: nn.Module,
    places: Mapping[str, nn.Module],
    batches: Iterable[object],
    *,
    device: torch.device | str | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> dict[str, Histogram]:
    """Collect histograms of what arrives at some of a network's modules, in evaluation mode, of all processes.

    Parameters
    ----------
    network : Module
        The network; it is run, and left as it was.
    places : mapping of str to Module
        Its modules to observe, by the names that errors give them.
    batches, device, limit, progress
        As in :func:`calibrate`.

    Returns
    -------
    dict of str to Histogram
        Without the places that no images reached.

    Raises
    ------
    CalibrationError
        If a batch can't be read, what arrives is NaN or infinite, or images are constant or of several sizes.
    ValueError
        If ``limit`` is not positive, or ``batches`` are none.
    """
    if limit is not None:
        limit = checks.count("limit", limit)
    histograms: dict[str, Histogram] = {}
    seen = _Seen()
    target = torch.device(device) if device is not None else device_of(network)
    dtype = floating_type(network)
    handles = [place.register_forward_pre_hook(_observer(name, histograms)) for name, place in places.items()]
    try:
        with eval_mode(network):
            given = checks.batches("batches", batches)
            for batch in progress_bar(given, "calibrating", progress=progress, limit=limit):
                values = inputs_of(batch)
                if len(values) == 0:
                    continue
                seen.add(values)
                values = values.to(target)
                try:
                    values = usable_images(values, dtype)
                except ValueError as error:
                    raise CalibrationError(f"calibration data can't be used: {error}") from error
                network(values)
    finally:
        for handle in handles:
            handle.remove()
    histograms, parts = _of_all_processes(histograms, seen)
    _check_variety(parts)
    return histograms


@dataclass
class _Seen:
    """What there is to say about images: their shape, and how much they differ from one another."""

    images: int = 0
    first: Tensor | None = None
    constant: bool = True
    alike: bool = True

    def add(self, images: Tensor) -> None:
        """Take a batch ``[N, ...]``, which is not empty."""
        if self.first is None:
            self.first = images[0].detach().cpu().clone()
        elif images.shape[1:] != self.first.shape:
            raise CalibrationError(
                f"the images of a batch have the shape {[*images.shape[1:]]}, the first had {[*self.first.shape]}: "
                "give images of one size, cropped or scaled."
            )
        self.images += len(images)
        # Most images differ at once, so that the rest is never looked at.
        self.alike = self.alike and bool((images == self.first.to(images)).all())
        if self.constant:
            pixels = images.flatten(1)
            self.constant = pixels.shape[1] > 1 and bool((pixels == pixels[:, :1]).all())


def _check_variety(parts: Sequence[_Seen]) -> None:
    """See that there is something in images, and that they differ where there is more than one.

    Raises
    ------
    CalibrationError
        If all hold one value alone, such as zeros or ones: no thresholds that follow from these have a meaning.
    """
    firsts = [part.first for part in parts if part.first is not None]
    if not firsts:
        return
    constant = all(part.constant for part in parts)
    alike = all(part.alike for part in parts) and all(torch.equal(first, firsts[0]) for first in firsts)
    number = sum(part.images for part in parts)
    advice = "Give training images, as the network sees them in use."
    if constant and alike:
        raise CalibrationError(
            f"the calibration images are constant: there is nothing in them but the value "
            f"{float(firsts[0].flatten()[0]):.3g}. {advice}"
        )
    if constant:
        _LOGGER.warning("each of the %d calibration images is one value all over. %s", number, advice)
    elif alike and number > 1:
        _LOGGER.warning(
            "the %d calibration images are all the same: thresholds fit this one image. %s", *(number, advice)
        )


def _observer(name: str, histograms: dict[str, Histogram]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def observe(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0]
        if values.dim() < 2:
            raise CalibrationError(
                f"site {name!r} has pre-activations of shape {list(values.shape)}: it needs a batch and a channel axis."
            )
        if name not in histograms:
            histograms[name] = Histogram(values.shape[1])
        try:
            histograms[name].update(values)
        except CalibrationError as error:
            raise CalibrationError(f"the pre-activations at site {name!r} can't be used: {error}") from error
        except ValueError as error:
            raise CalibrationError(f"the pre-activations at site {name!r} changed in kind: {error}") from error

    return observe


def _of_all_processes(histograms: dict[str, Histogram], seen: _Seen) -> tuple[dict[str, Histogram], list[_Seen]]:
    """Merge the histograms of all processes that work together, in the same order in each of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return histograms, [seen]
    shares = gathered(({name: histogram.to("cpu") for name, histogram in histograms.items()}, seen))
    merged, *others = (share for share, _ in shares)
    for share in others:
        for name, histogram in share.items():
            if name in merged:
                merged[name].merge(histogram)
            else:
                merged[name] = histogram
    return merged, [part for _, part in shares]


def _statistics(site: Site, histogram: Histogram | None) -> SiteStatistics:
    if histogram is None or histogram.count == 0:
        raise CalibrationError(
            f"no calibration data reached site {site.name!r}: give at least one batch that is not empty "
            "(an iterator can be used only once)."
        )
    if not bool((histogram.maximum > 0).any()):
        raise CalibrationError(
            f"site {site.name!r} is dead: none of its {histogram.channels} channels has a positive pre-activation in "
            f"the calibration data (largest: {float(histogram.maximum.max()):.3g}). Check that the weights are loaded "
            "and that the calibration data are normalised as in training."
        )
    ceiling = None if site.ceiling is None else site.ceiling.detach().cpu()
    return SiteStatistics(site.name, histogram.to("cpu"), ceiling, site.levels, site.shift)
