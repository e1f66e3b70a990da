"""The way of a window of steps through a network that is trained, forwards."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from snn_lowlat.graph import WEIGHTED, is_sum_for_one_reader
from snn_lowlat.kernels.surrogate import Repeat
from snn_lowlat.neurons import is_cumulative, max_pool_window
from snn_lowlat.training.trainable_neurons import TrainableNeurons

__all__ = ["WindowPass"]


class WindowPass:
    """The nodes of a network in order, and what becomes of a window that passes them.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form whose sites are :class:`TrainableNeurons`.
    timesteps : int
        The number of steps.
    constant : bool
        Whether the inputs are the same in all steps.
    whole : bool
        Whether the whole network is computed at once, not segment by segment: then potentials may take the place of
        currents, and layers keep for the way back how spikes are fired again, not the spikes.

    Attributes
    ----------
    nodes : list of Node
        What is computed, in order.
    """

    def __init__(self, graph: fx.GraphModule, timesteps: int, constant: bool, whole: bool) -> None:
        self._whole = whole
        self._timesteps = timesteps
        self._interpreter = fx.Interpreter(graph)
        self._modules = dict(graph.named_modules())
        # Sums that nothing but neurons read are left to them.
        sums = {node for node in graph.graph.nodes if self._is_left_to_neurons(node)}
        self.nodes = [node for node in graph.graph.nodes if node not in sums]
        self._reads = {
            node: [term for before in node.all_input_nodes for term in (before.args if before in sums else [before])]
            for node in self.nodes
        }
        self._last_reader = {before: node for node, reads in self._reads.items() for before in reads}
        self._varying: set[fx.Node] = set()
        for node, reads in self._reads.items():
            varies = not constant if node.op == "placeholder" else self._neurons(node) is not None
            if varies or not self._varying.isdisjoint(reads):
                self._varying.add(node)

    def run(self, start: int, end: int, values: dict[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        """Compute some of the nodes; maps the values that they read to those that are read after them."""
        values, repeats = dict(values), dict[fx.Node, Repeat | None]()
        for node in self.nodes[start:end]:
            if self._neurons(node) is not None:
                values[node], repeats[node] = self._fire(node, values)
            elif node.op != "placeholder":
                values[node] = self._compute(node, values, repeats)
            for before in self._reads[node]:
                if self._last_reader[before] is node:
                    del values[before]
                    repeats.pop(before, None)
        return values

    def _fire(self, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> tuple[Tensor, Repeat | None]:
        neurons: Any = self._neurons(node)
        reads = sorted(self._reads[node], key=self._is_for_one_reader, reverse=True)
        terms = [self._value(before, node, values) for before in reads]
        if len({term.shape for term in terms}) > 1:
            terms = [operator.add(*terms)]
        steps = self._timesteps if self._varies(node) else 1
        windows = [term.reshape(steps, -1, *term.shape[1:]) for term in terms]
        outputs, repeat = neurons(*windows, overwrite=self._whole and self._is_for_one_reader(reads[0]))
        return outputs.flatten(0, 1), repeat

    def _compute(
        self, node: fx.Node, values: Mapping[fx.Node, Tensor], repeats: Mapping[fx.Node, Repeat | None]
    ) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda before: self._value(before, node, values))
        if node.target is operator.getitem and isinstance(args[0], Tensor) and _are_slices(args[1]):
            return _Slice.apply(*args)
        module = self._modules[str(node.target)] if node.op == "call_module" else None
        if module is not None and is_cumulative(module) and node in self._varying:
            return max_pool_window(module, args[0], self._timesteps)  # type: ignore[arg-type]
        fired = [
            (values[before], repeat) for before in self._reads[node] if (repeat := repeats.get(before)) is not None
        ]
        with _spikes_from_potentials(fired) if fired and self._whole else nullcontext():
            return getattr(self._interpreter, node.op)(node.target, args, kwargs)

    def _value(self, node: fx.Node, reader: fx.Node, values: Mapping[fx.Node, Tensor]) -> Tensor:
        """Return what a node reads: for each step, if anything that it reads differs from step to step."""
        found = values[node]
        if node in self._varying or node.op == "get_attr" or not self._varies(reader):
            return found
        return found.repeat(self._timesteps, *[1] * (found.dim() - 1))

    def _varies(self, node: fx.Node) -> bool:
        return not self._varying.isdisjoint(self._reads[node])

    def _is_for_one_reader(self, node: fx.Node) -> bool:
        """Say whether a layer has computed this for one reader, without needing it on the way back."""
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        return len(node.users) == 1 and type(module) in WEIGHTED

    def _is_left_to_neurons(self, node: fx.Node) -> bool:
        """Say whether a node adds up two values for neurons and nothing else."""
        return is_sum_for_one_reader(node) and self._neurons(next(iter(node.users))) is not None

    def _neurons(self, node: fx.Node) -> TrainableNeurons | None:
        module = self._modules[str(node.target)] if node.op == "call_module" else None
        return module if isinstance(module, TrainableNeurons) else None


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
def _spikes_from_potentials(fired: list[tuple[Tensor, Repeat]]) -> Iterator[None]:
    """Keep for the way back, in the place of what neurons have sent, how they send it again; empties the list."""

    def pack(kept: Tensor) -> Tensor | Repeat:
        for spikes, repeat in fired:
            if (kept.data_ptr(), kept.shape, kept.stride()) == (spikes.data_ptr(), spikes.shape, spikes.stride()):
                return repeat
        return kept

    def unpack(kept: Tensor | Repeat) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept().flatten(0, 1)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
    # Autograd keeps the functions, which would keep the spikes.
    fired.clear()
