"""The way of a window of steps through a network that is trained, forwards."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx

from snn_lowlat.graph import WEIGHTED, Schedule, Site, Walk, is_sum_for_one_reader
from snn_lowlat.kernels.surrogate import Recompute
from snn_lowlat.training.trainable_neurons import TrainableNeurons

__all__ = ["WindowPass"]


class WindowPass(Walk):
    """The nodes of a network in order, and what becomes of a window that passes them.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form whose sites are :class:`TrainableNeurons`.
    timesteps : int
        The number of steps.
    constant : bool
        Whether the input is constant in time.
    whole : bool
        Whether the whole network is computed at once, not segment by segment: then potentials may take the place of
        currents, and layers keep for the way back how spikes are fired again, not the spikes.

    Attributes
    ----------
    nodes : list of Node
        The input and what is computed of it, in order.
    """

    def __init__(self, graph: fx.GraphModule, timesteps: int, constant: bool, whole: bool) -> None:
        calls = [node for node in graph.graph.nodes if node.op == "call_module"]
        layers = {node: graph.get_submodule(str(node.target)) for node in calls}
        # What a layer has computed for one reader, without needing it on the way back.
        self._free = {node for node, layer in layers.items() if len(node.users) == 1 and type(layer) in WEIGHTED}
        neurons = [node for node, layer in layers.items() if isinstance(layer, TrainableNeurons)]
        sites = [Site(str(node.target), node, (), None) for node in neurons]
        sums = {
            site.node: sorted(site.current.all_input_nodes, key=self._free.__contains__, reverse=True)
            for site in sites
            if is_sum_for_one_reader(site.current)
        }
        super().__init__(Schedule(graph, sites, sums), timesteps, constant=constant)
        self.nodes = [self.schedule.input, *self.schedule.nodes]
        self._whole = whole
        self._recomputes: dict[fx.Node, Recompute | None] = {}

    def part(self, start: int, end: int, values: dict[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        """Compute some of the nodes; maps the values that they read to those that are read after them."""
        walk = copy.copy(self)
        walk.values, walk._recomputes = dict(values), {}
        for node in self.nodes[max(start, 1) : end]:
            walk.step(node)
        return walk.values

    def put(self, node: fx.Node, value: Any) -> None:
        """Let go of what nothing reads any more, and of how it is computed again."""
        super().put(node, value)
        for before in self.schedule.read_last[node]:
            self._recomputes.pop(before, None)

    def neurons(self, site: Site, terms: Sequence[Tensor]) -> Tensor:
        """Fire, and keep how to do so again."""
        if len({term.shape for term in terms}) > 1:
            terms = [operator.add(*terms)]
        steps = self.timesteps if self.varies(site.node) else 1
        windows = [term.reshape(steps, -1, *term.shape[1:]) for term in terms]
        overwrite = self._whole and self.schedule.reads[site.node][0] in self._free
        outputs, self._recomputes[site.node] = self.schedule.modules[site.node](*windows, overwrite=overwrite)
        return outputs.flatten(0, 1)  # type: ignore[no-any-return]

    def layer(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Keep for the way back how the spikes that a layer reads are fired again."""
        if node.target is operator.getitem and isinstance(args[0], Tensor) and _are_slices(args[1]):
            return _Slice.apply(*args)
        reads = [(before, self._recomputes.get(before)) for before in self.schedule.reads[node]]
        fired = [(self.values[before], repeat) for before, repeat in reads if repeat is not None]
        with _spikes_from_potentials(fired) if fired and self._whole else nullcontext():
            return super().layer(node, args, kwargs)

    def each_step(self, value: Tensor) -> Tensor:
        """Repeat what is constant in time in such a way that its gradient is one sum."""
        return value.repeat(self.timesteps, *[1] * (value.dim() - 1))


def _are_slices(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(part, slice) for part in parts)


class _Slice(torch.autograd.Function):
    """A slice of a tensor, whose gradient lies in memory as the tensor does; torch's own has its channels first."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Any) -> Tensor:
        """Return ``values[index]``."""
        ctx.index, ctx.like = index, torch.empty_like(values, device="meta")
        return values[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the values."""
        whole = torch.zeros_like(ctx.like, dtype=gradient.dtype, device=gradient.device)
        whole[ctx.index] = gradient
        return whole, None


@contextmanager
def _spikes_from_potentials(fired: list[tuple[Tensor, Recompute]]) -> Iterator[None]:
    """Keep for the way back, in the place of what neurons have sent, how they send it again; empties the list."""

    def pack(kept: Tensor) -> Tensor | Recompute:
        for spikes, repeat in fired:
            if (kept.data_ptr(), kept.shape, kept.stride()) == (spikes.data_ptr(), spikes.shape, spikes.stride()):
                return repeat
        return kept

    def unpack(kept: Tensor | Recompute) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept().flatten(0, 1)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
    # Autograd keeps the functions, which would keep the spikes.
    fired.clear()
