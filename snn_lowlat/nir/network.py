"""A NIR graph in an order in which it can be computed: what writing and reading share."""

from __future__ import annotations

import copy
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

import nir
import numpy as np

from snn_lowlat.errors import ConversionError

__all__ = ["WEIGHTED", "Array", "Network", "diagonal", "pair"]

Array = np.ndarray[Any, Any]

WEIGHTED = (nir.Conv2d, nir.Affine, nir.Linear)
"""The nodes whose weights can take in what spikes are worth."""


@dataclass
class Network:
    """NIR nodes in an order in which they can be computed, and what each of them reads.

    Attributes
    ----------
    nodes : dict of str to NIRNode
        The nodes.
    sources : dict of str to list of str
        The nodes whose outputs each node adds up, in order.
    shapes : dict of str to tuple of int
        The shapes of their outputs, without a batch; empty for a graph that is read.
    reserved : set of str
        Names that only neurons may have.
    """

    nodes: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    reserved: Set[str] = frozenset()

    @classmethod
    def of(cls, graph: Any) -> Network:
        """Order the nodes of a graph; they are copied, their arrays are not.

        Raises
        ------
        ConversionError
            If edges lead nowhere or in circles, or there is not one input and one output.
        """
        nodes = {str(name): copy.copy(node) for name, node in graph.nodes.items()}
        sources: dict[str, list[str]] = {name: [] for name in nodes}
        for source, target in graph.edges:
            for name in (source, target):
                if name not in nodes:
                    raise ConversionError(f"the NIR graph has an edge {source!r} -> {target!r}, but no node {name!r}.")
            sources[target].append(source)
        try:
            order = list(TopologicalSorter(sources).static_order())
        except CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            raise ConversionError(f"the NIR graph is recurrent ({circle}): only feed-forward ones are read.") from error
        for kind in (nir.Input, nir.Output):
            found = [name for name, node in nodes.items() if isinstance(node, kind)]
            if len(found) != 1:
                raise ConversionError(f"the NIR graph must have one {kind.__name__} node, not {len(found)}: {found}.")
        for name in order:
            if not sources[name] and not isinstance(nodes[name], nir.Input):
                raise ConversionError(f"NIR node {name!r} ({type(nodes[name]).__name__}) reads no other node.")
        return cls({name: nodes[name] for name in order}, sources)

    def add(self, name: str, node: Any, sources: Sequence[str], shape: Sequence[int]) -> str:
        """Add a node under a name, or one like it if that is taken, and return the name."""
        unique, number = name, 0
        while unique in self.nodes or (unique in self.reserved and not isinstance(node, nir.IF)):
            number += 1
            unique = f"{name}_{number}"
        self.nodes[unique], self.sources[unique], self.shapes[unique] = node, list(sources), tuple(shape)
        return unique

    def edges(self) -> list[tuple[str, str]]:
        """Return the edges; those into one node in the order in which it adds."""
        return [(source, name) for name, sources in self.sources.items() for source in sources]


def diagonal(shape: Sequence[int], factor: Array, shift: Array) -> Any:
    """Return a node that computes ``factor * x + shift`` for each channel.

    Parameters
    ----------
    shape : sequence of int
        The shape of ``x``: ``[C, H, W]`` or ``[C]``.
    factor, shift : array
        Of shape ``[C]``.

    Raises
    ------
    ConversionError
        If the layer has another number of dimensions.
    """
    if len(shape) == 1:
        return nir.Affine(np.diag(factor), shift)
    if len(shape) != 3:
        raise ConversionError(f"NIR can't multiply the channels of a layer of shape {list(shape)}, only of [C, H, W].")
    return nir.Conv2d(tuple(shape[1:]), np.diag(factor)[:, :, None, None], (1, 1), (0, 0), (1, 1), 1, shift)


def pair(value: Any) -> tuple[int, int]:
    """Read one number or two, in whatever type a tool has written them."""
    numbers = [int(number) for number in np.atleast_1d(np.asarray(value))]
    return (numbers[0], numbers[-1])
