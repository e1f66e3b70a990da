"""Walking through the original and the spiking network side by side, layer by layer."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from snn_lowlat.calibration import inputs_of
from snn_lowlat.errors import CalibrationError
from snn_lowlat.graph import Schedule, Site, Walk, channel_dimensions
from snn_lowlat.int8 import original_of
from snn_lowlat.neurons import MARGIN, per_channel
from snn_lowlat.plan import SitePlan
from snn_lowlat.processes import gathered, mean_of_all, share_of
from snn_lowlat.simulation import count_spikes, fire, is_counted, micro_batches

__all__ = ["LayerwiseWalk", "channel_mean", "gather_images"]


class LayerwiseWalk(ABC):
    """One pass through a network in which each layer is corrected before the layers after it are computed.

    All images are at one node of the graph at a time. A node's value is a list over micro-batches: ``[n, ...]`` in the
    original network and ``[T * n, ...]`` in the spiking one; spikes are kept as small integers until they are read.
    Memory: the currents of one layer for all images and steps, as floats. Where every neuron sees its whole window
    before it fires, means over the window, ``[n, ...]``, take the place of the steps: they say all there is to know.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form; the walk works on a copy. If its weights have been rounded
        (:func:`snn_lowlat.int8.with_rounded_weights`), the original network is that with the weights before.
    plan : dict of str to SitePlan
        What each site becomes; the walk works on a copy.
    images : Tensor
        Calibration images ``[N, ...]``; this process's share of them where several work together.
    timesteps : int
        The number of steps.
    """

    def __init__(self, graph: fx.GraphModule, plan: dict[str, SitePlan], images: Tensor, timesteps: int) -> None:
        self.graph = copy.deepcopy(graph)
        self.plan = dict(plan)
        self._original = original_of(graph)
        self.timesteps = timesteps
        self._counted = is_counted(plan)
        parts = micro_batches(images, 1 if self._counted else timesteps)
        self._batches = [part for part in parts if len(part)]
        self.channels = channel_dimensions(self.graph, images)

    @abstractmethod
    def correct_site(self, site: Site, activations: Sequence[Tensor], currents: Sequence[Tensor]) -> Tensor | None:
        """Correct one layer of neurons: change its plan or a bias, all layers before it being corrected.

        Parameters
        ----------
        site : Site
            The layer.
        activations : sequence of Tensor
            What the original network's activations are, ``[n, C, ...]`` for each micro-batch.
        currents : sequence of Tensor
            The neurons' input currents, ``[T * n, C, ...]``, or their means over the window, ``[n, C, ...]``.

        Returns
        -------
        Tensor or None
            By how much the currents of each channel, ``[C]``, changed with a bias.
        """

    @abstractmethod
    def correct_output(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Correct the readout, from outputs ``[n, ...]`` of the original and of every step, or their means."""

    @torch.no_grad()
    def run(self) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        """Walk; return the corrected network and plan."""
        original, corrected = Schedule(self._original), Schedule(self.graph)
        analog = [_Analog(original, self.activation) for _ in self._batches]
        spiking = [_Spiking(corrected, 1 if self._counted else self.timesteps) for _ in self._batches]
        for images, before, after in zip(self._batches, analog, spiking, strict=True):
            before.put(original.input, images)
            each_step = images if self._counted else images.repeat(self.timesteps, *[1] * (images.dim() - 1))
            after.put(corrected.input, each_step)
        for old, new in zip(original.nodes, corrected.nodes, strict=True):
            for before in analog:
                before.step(old)
            if new in corrected.sites:
                site = corrected.sites[new]
                currents = [after.read(site.current, new) for after in spiking]
                fired = self._corrected_spikes(site, [before.values[old] for before in analog], currents)
                for after, spikes in zip(spiking, fired, strict=True):
                    after.put(new, spikes)
            else:
                for after in spiking:
                    after.step(new)
        self.correct_output([before.values[old] for before in analog], [after.values[new] for after in spiking])
        return self.graph, self.plan

    def activation(self, site: Site, current: Tensor) -> Tensor:
        """Return what the spiking neurons should send on average: the original network's activation, ``[n, C, ...]``.

        Parameters
        ----------
        site : Site
            The layer.
        current : Tensor
            Its pre-activation in the original network, ``[n, C, ...]``.
        """
        activation = current.relu()
        if site.ceiling is not None:
            activation = activation.minimum(per_channel(site.ceiling, current))
        if site.ceiling is None or site.levels is None:
            return activation
        step = per_channel(site.ceiling / site.levels, current)
        return (activation / step + site.shift + MARGIN).floor() * step

    def fired(self, currents: Iterable[Tensor], plan: SitePlan, shift: Tensor | None = None) -> Iterator[Tensor]:
        """Drive neurons with currents, shifted by ``shift`` in each channel; yield spikes, or their means, alike."""
        for values in currents:
            shifted = values if shift is None else values + per_channel(shift, values)
            if self._counted:
                yield count_spikes(shifted, self.timesteps, plan) / self.timesteps
            else:
                yield fire(shifted.reshape(self.timesteps, -1, *shifted.shape[1:]), plan).flatten(0, 1)

    def add_bias(self, layer_name: str, shift: Tensor) -> None:
        """Add to the bias of a layer with weights."""
        bias = self.graph.get_parameter(f"{layer_name}.bias")
        bias.data = bias.data + shift.to(bias)

    def _corrected_spikes(self, site: Site, activations: Sequence[Tensor], currents: Sequence[Tensor]) -> list[_Spikes]:
        shift = self.correct_site(site, activations, currents)
        plan = self.plan[site.name]
        spikes = self.fired(currents, plan, shift)
        levels = self.timesteps if self._counted else 1
        return [
            _Spikes((levels * s).round().to(torch.int16), plan.amplitude / levels, c.dtype)
            for s, c in zip(spikes, currents, strict=True)
        ]


class _Analog(Walk):
    """The original network, of one micro-batch."""

    def __init__(self, schedule: Schedule, activation: Callable[[Site, Tensor], Tensor]) -> None:
        super().__init__(schedule)
        self._activation = activation

    def neurons(self, site: Site, terms: Sequence[Tensor]) -> Tensor:
        return self._activation(site, *terms)


class _Spiking(Walk):
    """The spiking network, of one micro-batch."""

    def read(self, node: fx.Node, reader: fx.Node) -> Any:
        value = super().read(node, reader)
        return value.decoded() if isinstance(value, _Spikes) else value


@dataclass(frozen=True)
class _Spikes:
    """The spikes of one layer for one micro-batch, as small integers."""

    values: Tensor
    amplitude: Tensor
    dtype: torch.dtype

    def decoded(self) -> Tensor:
        values = self.values.to(self.dtype)
        return values * per_channel(self.amplitude, values)


def gather_images(graph: fx.GraphModule, batches: Iterable[object], count: int, refinement: str) -> Tensor:
    """Collect the first ``count`` calibration images on the network's device.

    Where several processes work together, they collect as many in all, and one of them may have none.

    Raises
    ------
    CalibrationError
        If there are none in any process.
    """
    reference = next(graph.parameters())
    parts: list[Tensor] = []
    missing = count
    for batch in batches:
        parts.append(inputs_of(batch)[:missing].to(reference))
        missing -= len(parts[-1])
        if missing == 0:
            break
    shapes = [shape for shape in gathered(parts[0].shape[1:] if parts else None) if shape is not None]
    if not shapes or not sum(gathered(count - missing)):
        raise CalibrationError(f"{refinement}: there are no calibration data: the loader yields no batch.")
    share = share_of(count - missing, count)
    return torch.cat(parts)[:share] if parts else reference.new_empty(0, *shapes[0])


def channel_mean(parts: Iterable[Tensor], dimension: int = 1) -> Tensor:
    """Average over all but the channels, which are in this dimension, and over all processes; returns ``[C]``."""
    total, count, dtype = torch.zeros(()), 0, torch.float32
    for part in parts:
        channels = (part if part.dim() > 1 else part[:, None]).movedim(dimension, 0).flatten(1)
        total = total.to(part.device) + channels.sum(1, dtype=torch.float64)
        count, dtype = count + channels.shape[1], part.dtype
    return mean_of_all(total, count, dtype)
