"""Which neuron sent what and when: events of a simulation as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from snn_lowlat import checks
from snn_lowlat.encoding import input_events
from snn_lowlat.graph import current_shapes, find_sites
from snn_lowlat.plan import SitePlan
from snn_lowlat.provenance import Provenance
from snn_lowlat.simulation.reference import transmissions, window_starts

__all__ = ["EventRecorder", "Events"]


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


class _Network(Protocol):
    """What a recorder asks a :class:`snn_lowlat.SpikingModel` for."""

    timesteps: int
    encoder: str
    seed: int
    provenance: Provenance

    def normal_form(self) -> tuple[fx.GraphModule, dict[str, SitePlan]]: ...


class EventRecorder:
    """Record what a network's neurons send while it runs: ``snn.readout(images, observe=recorder)``.

    Parameters
    ----------
    snn : SpikingModel
        The network. Its spikes of one micro-batch are held at a time, and all events.
    """

    def __init__(self, snn: _Network) -> None:
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
