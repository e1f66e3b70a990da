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
from snn_lowlat.graph import Site, channel_dimensions, find_sites
from snn_lowlat.neurons import MARGIN, MAX_POOLS, max_pool_window, per_channel
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
        A network in normal form; the walk works on a copy.
    plan : dict of str to SitePlan
        What each site becomes; the walk works on a copy.
    images : Tensor
        Calibration images ``[N, ...]``; this process's share of them where several work together.
    timesteps : int
        The number of steps.
    reference : GraphModule, optional
        The original network, where it is another than the one to correct; see :meth:`Refinement.refine`.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        plan: dict[str, SitePlan],
        images: Tensor,
        timesteps: int,
        reference: fx.GraphModule | None = None,
    ) -> None:
        self.graph = copy.deepcopy(graph)
        self.plan = dict(plan)
        self._original = fx.Interpreter(graph if reference is None else reference, garbage_collect_values=False)
        self.timesteps = timesteps
        self._counted = is_counted(plan)
        parts = micro_batches(images, 1 if self._counted else timesteps)
        self._batches = [part for part in parts if len(part)]
        self._interpreter = fx.Interpreter(self.graph, garbage_collect_values=False)
        self.channels = channel_dimensions(self.graph, images)
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
        nodes = list(self.graph.graph.nodes)
        sites = {site.node: site for site in find_sites(self.graph).values()}
        rest = {node for site in sites.values() for node in site.rest}
        last_reader = {before: node for node in nodes for before in node.all_input_nodes}
        for node in nodes:
            if node.op == "output":
                logits = node.all_input_nodes[0]
                self.correct_output(self._analog[logits], [_decoded(part) for part in self._spiking[logits]])
                continue
            if node in sites:
                site = sites[node]
                self._analog[node] = [self.activation(site, part) for part in self._analog[site.current]]
            elif node in rest:
                self._analog[node] = self._analog[node.all_input_nodes[0]]
            else:
                self._analog[node] = [self._compute(node, self._analog, i) for i in range(len(self._batches))]
            if node in rest:
                self._spiking[node] = self._spiking[node.all_input_nodes[0]]
            elif node in sites:
                self._spiking[node] = self._corrected_spikes(sites[node])
            else:
                self._spiking[node] = [self._compute(node, self._spiking, i) for i in range(len(self._batches))]
            for before in node.all_input_nodes:
                if last_reader[before] is node:
                    del self._analog[before], self._spiking[before]
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

    def _corrected_spikes(self, site: Site) -> list[_Spikes]:
        # Spikes themselves, where neurons read neurons.
        currents = [_decoded(part) for part in self._spiking[site.current]]
        shift = self.correct_site(site, self._analog[site.node], currents)
        plan = self.plan[site.name]
        spikes = self.fired(currents, plan, shift)
        levels = self.timesteps if self._counted else 1
        return [
            _Spikes((levels * s).round().to(torch.int16), plan.amplitude / levels, c.dtype)
            for s, c in zip(spikes, currents, strict=True)
        ]

    def _compute(self, node: fx.Node, values: dict[fx.Node, Sequence[Any]], index: int) -> Any:
        if node.op == "placeholder":
            images = self._batches[index]
            whole = values is self._analog or self._counted
            return images if whole else images.repeat(self.timesteps, *[1] * (images.dim() - 1))
        args, kwargs = map_arg((node.args, node.kwargs), lambda before: _decoded(values[before][index]))
        if values is self._spiking and not self._counted and node.op == "call_module":
            layer: Any = self.graph.get_submodule(str(node.target))
            if isinstance(layer, MAX_POOLS):
                return max_pool_window(layer, args[0], self.timesteps)  # type: ignore[arg-type]
        interpreter = self._original if values is self._analog else self._interpreter
        return getattr(interpreter, node.op)(node.target, args, kwargs)


@dataclass(frozen=True)
class _Spikes:
    """The spikes of one layer for one micro-batch, as small integers."""

    values: Tensor
    amplitude: Tensor
    dtype: torch.dtype

    def decoded(self) -> Tensor:
        values = self.values.to(self.dtype)
        return values * per_channel(self.amplitude, values)


def _decoded(value: Any) -> Any:
    return value.decoded() if isinstance(value, _Spikes) else value


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
