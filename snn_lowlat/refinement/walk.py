"""Walking through the original and the spiking network side by side, layer by layer."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from snn_lowlat.calibration import inputs_of
from snn_lowlat.errors import CalibrationError
from snn_lowlat.graph import Site, find_sites
from snn_lowlat.plan import SitePlan
from snn_lowlat.simulation import fire, micro_batches, per_channel

__all__ = ["LayerwiseWalk", "channel_mean", "gather_images"]


class LayerwiseWalk(ABC):
    """One pass through a network in which each layer is corrected before the layers after it are computed.

    All images are at one node of the graph at a time. A node's value is a list over micro-batches: ``[n, ...]`` in the
    original network and ``[T * n, ...]`` in the spiking one; spikes are kept as bytes until they are read. Memory: the
    currents of one layer for all images and steps, as floats.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form; the walk works on a copy.
    plan : dict of str to SitePlan
        What each site becomes; the walk works on a copy.
    images : Tensor
        Calibration images ``[N, ...]``.
    timesteps : int
        The number of steps.
    """

    def __init__(self, graph: fx.GraphModule, plan: dict[str, SitePlan], images: Tensor, timesteps: int) -> None:
        self.graph = copy.deepcopy(graph)
        self.plan = dict(plan)
        self.timesteps = timesteps
        self._batches = list(micro_batches(images, timesteps))
        self._interpreter = fx.Interpreter(self.graph, garbage_collect_values=False)
        self._analog: dict[fx.Node, Sequence[Any]] = {}
        self._spiking: dict[fx.Node, Sequence[Any]] = {}

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
            The neurons' input currents, ``[T * n, C, ...]``.

        Returns
        -------
        Tensor or None
            By how much the currents of each channel, ``[C]``, changed with a bias.
        """

    @abstractmethod
    def correct_output(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Correct the readout, from logits ``[n, classes]`` of the original and ``[T * n, classes]`` of the spikes."""

    @torch.no_grad()
    def run(self) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        """Walk; return the corrected network and plan."""
        nodes = list(self.graph.graph.nodes)
        sites = {site.node: site for site in find_sites(self.graph).values()}
        clips = {site.output: site for site in sites.values() if site.output is not site.node}
        last_reader = {before: node for node in nodes for before in node.all_input_nodes}
        for node in nodes:
            if node.op == "output":
                logits = node.all_input_nodes[0]
                self.correct_output(self._analog[logits], [_decoded(part) for part in self._spiking[logits]])
                continue
            self._analog[node] = [self._compute(node, self._analog, i) for i in range(len(self._batches))]
            if node in clips:
                self._spiking[node] = self._spiking[clips[node].node]
            elif node in sites:
                self._spiking[node] = self._corrected_spikes(sites[node])
            else:
                self._spiking[node] = [self._compute(node, self._spiking, i) for i in range(len(self._batches))]
            for before in node.all_input_nodes:
                if last_reader[before] is node:
                    del self._analog[before], self._spiking[before]
        return self.graph, self.plan

    def fired(self, currents: Iterable[Tensor], plan: SitePlan, shift: Tensor | None = None) -> Iterator[Tensor]:
        """Drive neurons with currents ``[T * n, C, ...]``, shifted by ``shift`` in each channel; yield the spikes."""
        for values in currents:
            shifted = values if shift is None else values + per_channel(shift, values)
            yield fire(shifted.reshape(self.timesteps, -1, *shifted.shape[1:]), plan).flatten(0, 1)

    def add_bias(self, layer_name: str, shift: Tensor) -> None:
        """Add to the bias of a layer with weights."""
        bias = self.graph.get_parameter(f"{layer_name}.bias")
        bias.data = bias.data + shift.to(bias)

    def _corrected_spikes(self, site: Site) -> list[_Spikes]:
        activations = self._analog[site.node]
        if site.ceiling is not None:
            activations = [torch.minimum(part, per_channel(site.ceiling, part)) for part in activations]
        currents = self._spiking[site.current]
        shift = self.correct_site(site, activations, currents)
        plan = self.plan[site.name]
        spikes = self.fired(currents, plan, shift)
        return [_Spikes(s.to(torch.int8), plan.amplitude, c.dtype) for s, c in zip(spikes, currents, strict=True)]

    def _compute(self, node: fx.Node, values: dict[fx.Node, Sequence[Any]], index: int) -> Any:
        if node.op == "placeholder":
            images = self._batches[index]
            return images if values is self._analog else images.repeat(self.timesteps, *[1] * (images.dim() - 1))
        args, kwargs = map_arg((node.args, node.kwargs), lambda before: _decoded(values[before][index]))
        return getattr(self._interpreter, node.op)(node.target, args, kwargs)


@dataclass(frozen=True)
class _Spikes:
    """The spikes of one layer for one micro-batch, as bytes."""

    values: Tensor
    amplitude: Tensor
    dtype: torch.dtype

    def decoded(self) -> Tensor:
        values = self.values.to(self.dtype)
        return values * per_channel(self.amplitude, values)


def _decoded(value: Any) -> Any:
    return value.decoded() if isinstance(value, _Spikes) else value


def gather_images(graph: fx.GraphModule, batches: Iterable[object], count: int, refinement: str) -> Tensor:
    """Collect the first ``count`` calibration images on the network's device; none at all is a ``CalibrationError``."""
    reference = next(graph.parameters())
    parts: list[Tensor] = []
    missing = count
    for batch in batches:
        parts.append(inputs_of(batch)[:missing].to(reference))
        missing -= len(parts[-1])
        if missing == 0:
            break
    if missing == count:
        raise CalibrationError(f"{refinement}: there are no calibration data: the loader yields no batch.")
    return torch.cat(parts)


def channel_mean(parts: Iterable[Tensor]) -> Tensor:
    """Average over everything but the channels: ``[n, C, ...]`` each, ``[C]`` in all."""
    total, count, dtype = torch.zeros(()), 0, torch.float32
    for part in parts:
        channels = part.movedim(1, 0).flatten(1)
        total = total.to(part.device) + channels.sum(1, dtype=torch.float64)
        count, dtype = count + channels.shape[1], part.dtype
    return (total / count).to(dtype)
