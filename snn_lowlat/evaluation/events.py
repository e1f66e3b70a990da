"""Which neuron sent what and when: events of a simulation as arrays, and a picture of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.encoding import input_events
from snn_lowlat.files import whole_file
from snn_lowlat.graph import current_shapes, find_sites
from snn_lowlat.simulation import transmissions, window_starts

if TYPE_CHECKING:
    from snn_lowlat.model import SpikingModel

__all__ = ["EventRecorder", "Events", "plot_events"]

_ON, _OFF = "#0072B2", "#D55E00"


@dataclass(frozen=True, eq=False)
class Events:
    """What neurons sent, one entry an event, sorted by layer, image, time and neuron.

    Attributes
    ----------
    layers : tuple of str
        The layers' names: ``"input"`` first if images enter as spikes, then the sites in order.
    sizes : tuple of int
        The number of neurons in each layer.
    starts : tuple of int
        After how many steps each layer's window starts.
    images, timesteps : int
        The number of images, and the length of a window.
    layer, image, neuron : ndarray of int
        The indices of the layer, the image, and the neuron in its layer (of a flattened ``[C, ...]``), ``[events]``.
    time : ndarray of int
        The step in which the event is sent, counted from 1 at the first input, end to end, ``[events]``.
    sign : ndarray of int
        1 for a spike or for switching on, -1 for switching off, ``[events]``.
    """

    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    images: int
    timesteps: int
    layer: NDArray[np.int32]
    image: NDArray[np.int32]
    neuron: NDArray[np.int32]
    time: NDArray[np.int32]
    sign: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.layer)

    def counts(self, layer: str) -> NDArray[np.int64]:
        """Return how many events each neuron of a layer sent, ``[images, neurons]``.

        Raises
        ------
        ValueError
            If there is no such layer.
        """
        chosen, size = self._chosen(layer)
        places = self.image[chosen].astype(np.int64) * size + self.neuron[chosen]
        return np.bincount(places, minlength=self.images * size).reshape(self.images, size)

    def raster(self, layer: str, image: int = 0) -> NDArray[np.int8]:
        """Return the signs of one layer's events for one image, ``[steps, neurons]``, as plots of other libraries do.

        Raises
        ------
        ValueError
            If there is no such layer.
        """
        chosen, size = self._chosen(layer)
        chosen &= self.image == image
        signs = np.zeros((max(self.starts) + self.timesteps + 1, size), np.int8)
        signs[self.time[chosen] - 1, self.neuron[chosen]] = self.sign[chosen]
        return signs

    def _chosen(self, layer: str) -> tuple[NDArray[np.bool_], int]:
        if layer not in self.layers:
            raise ValueError(f"there is no layer {layer!r}; there are {', '.join(self.layers)}.")
        index = self.layers.index(layer)
        return self.layer == index, self.sizes[index]


class EventRecorder:
    """Record what a network's neurons send while it runs: ``snn.readout(images, observe=recorder)``.

    Parameters
    ----------
    snn : SpikingModel
        The network. Its spikes of one micro-batch are held at a time, and all events.
    """

    def __init__(self, snn: SpikingModel) -> None:
        snn = checks.spiking_model("snn", snn)
        graph, plan = snn.normal_form()
        self._snn, self._plan = snn, plan
        starts = window_starts(graph, plan, snn.timesteps)
        self._starts = {name: starts[site.node] for name, site in find_sites(graph).items()}
        self._shapes = current_shapes(graph, snn.provenance.input_shape)
        self._parts: dict[str, list[NDArray[np.int32]]] = {name: [] for name in self._starts}
        self._images: dict[str, int] = dict.fromkeys(self._starts, 0)

    def __call__(self, name: str, spikes: Tensor) -> None:
        """Take what one layer's neurons have fired in a window, ``[T, N, C, ...]``."""
        sent = transmissions(spikes.float().flatten(2), self._plan[name])
        self._parts[name].append(_rows(sent, self._images[name], self._starts[name]))
        self._images[name] += spikes.shape[1]

    def events(self, images: Tensor) -> Events:
        """Return what has been recorded for these images, ``[N, ...]``."""
        parts, starts = dict(self._parts), dict(self._starts)
        sizes = {name: prod(self._shapes[name]) for name in starts}
        snn = self._snn
        sent = input_events(snn.encoder, images, snn.timesteps, snn.seed)
        if sent is not None:
            parts, starts = {"input": [_rows(sent, 0, 0)], **parts}, {"input": 0, **starts}
            sizes = {"input": prod(images.shape[1:]), **sizes}
        rows = [np.concatenate(parts[name]) for name in starts]
        layer = np.repeat(np.arange(len(rows), dtype=np.int32), [len(part) for part in rows])
        image, time, neuron, sign = np.concatenate(rows).T
        return Events(
            tuple(starts),
            tuple(sizes[name] for name in starts),
            tuple(starts.values()),
            *(len(images), snn.timesteps),
            *(layer, image, neuron, time, sign.astype(np.int8)),
        )


def _rows(events: Tensor, first: int, start: int) -> NDArray[np.int32]:
    """Return image, time, neuron and sign of each event, ``[events, 4]``, of ``[T, N, ...]`` from such an image on."""
    sent = events.flatten(2).transpose(0, 1).cpu()
    places = sent.nonzero()
    signs = sent[tuple(places.T)].long()[:, None]
    rows: NDArray[np.int32] = (torch.cat([places, signs], 1) + torch.tensor([first, start + 1, 0, 0])).int().numpy()
    return rows


def plot_events(events: Events, path: str | Path, image: int = 0, neurons: int = 100) -> None:
    """Draw one image's events: a panel for each layer, time to the right, a row for each neuron.

    snnTorch's ``spikeplot.raster`` draws one layer of them, ``events.raster(layer)``, where pandas is installed.

    Parameters
    ----------
    events : Events
        From ``snn.simulate(images, record_events=True)``.
    path : path
        Replaced if it exists; its ending chooses the format, ``.png`` without one.
    image : int
        Which image.
    neurons : int
        How many neurons of each layer to draw at most, evenly chosen.

    Raises
    ------
    ValueError
        If there is no such image, or the format is not one that matplotlib writes.
    """
    image = checks.count("image", image, 0, events.images - 1)
    neurons = checks.count("neurons", neurons)
    shares = [min(size, neurons) for size in events.sizes]
    figure = Figure(figsize=(7.0, 1.0 + 0.9 * len(shares)), layout="constrained")
    panels = figure.subplots(len(shares), 1, sharex=True, squeeze=False)[:, 0]
    for index, (axes, share) in enumerate(zip(panels, shares, strict=True)):
        shown = np.linspace(0, events.sizes[index] - 1, share).round().astype(int)
        chosen = (events.layer == index) & (events.image == image) & np.isin(events.neuron, shown)
        rows = np.searchsorted(shown, events.neuron[chosen])
        for sign, colour, marker, label in ((1, _ON, "|", "on"), (-1, _OFF, "|", "off")):
            here = events.sign[chosen] == sign
            axes.scatter(events.time[chosen][here], rows[here], s=9, c=colour, marker=marker, label=label, linewidths=1)
        axes.axvspan(events.starts[index] + 0.5, events.starts[index] + events.timesteps + 0.5, color="0.94", zorder=0)
        axes.set_yticks([])
        axes.set_ylabel(events.layers[index], rotation=0, ha="right", va="center", fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("time step")
    panels[-1].set_xlim(0, max(events.starts) + events.timesteps + 2)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=200, format=Path(path).suffix.lstrip(".").lower() or "png")
