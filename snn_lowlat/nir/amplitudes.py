r"""What spikes are worth: from the neurons into the weights that read them, and out again.

A converted network computes :math:`\sum_i w_i (a_i s_i)` with the amplitudes :math:`a`, a NIR graph
:math:`\sum_i (w_i a_i) s_i` with the products as its weights. The two are rounded at different places, so that a
potential within a rounding error of its threshold may fire in one and not in the other. Hence a graph keeps what it
takes to undo the products: the amplitudes, and for each weight how far the quotient
:math:`\mathrm{fl}(\mathrm{fl}(w a) / a)` is from :math:`w`, a few floating-point numbers at most. Neither changes what
the graph computes by more than a rounding error, whatever it says.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import nir
import numpy as np

from snn_lowlat.nir.network import WEIGHTED, Array, Network, diagonal

__all__ = ["fold", "unfold"]

_PASSING = (nir.AvgPool2d, nir.SumPool2d, nir.Flatten)
"""The nodes whose output is worth what their input is worth, up to a pool's size."""

_ONE = np.ones(1, dtype=np.float32)


def fold(network: Network, *, sum_pools: bool = False) -> None:
    """Multiply what spikes are worth into the weights that read them; where there are none, a node with weights is put.

    Parameters
    ----------
    network : Network
        Nodes whose spikes are worth the ``amplitude`` in their metadata; it is changed.
    sum_pools : bool
        Write average pools as sums, with their size in the weights too.
    """
    worth: dict[str, Array] = {}
    scaled: dict[str, str] = {}
    for name, node in list(network.nodes.items()):
        if sum_pools and isinstance(node, nir.AvgPool2d):
            metadata = {**node.metadata, "averages": True}
            node = nir.SumPool2d(node.kernel_size, node.stride, node.padding, metadata=metadata)
            network.nodes[name] = node
        read = _common(node, [worth[source] for source in network.sources[name]])
        if read is None:
            for source in network.sources[name]:
                if source not in scaled and worth[source] is not _ONE:
                    scaled[source] = _multiplied(network, source, worth[source])
            network.sources[name] = [scaled.get(source, source) for source in network.sources[name]]
            read = _ONE
        worth[name] = _passed_on(node, read)
        if isinstance(node, WEIGHTED) and read is not _ONE:
            plain, factor = node.weight, _for_each_input(read, node.weight)
            node.weight = plain * factor
            steps = _numbered(plain) - _numbered(node.weight / factor)
            if steps.any():
                node.metadata["rounding"] = steps.clip(-127, 127).astype(np.int8)


def unfold(network: Network) -> bool:
    """Undo :func:`fold`: spikes are worth the ``amplitude`` in their neurons' metadata again.

    Returns
    -------
    bool
        False, with the network unchanged, if what reads the spikes has no weights to take the amplitudes out of.
    """
    worth: dict[str, Array] = {}
    changed: dict[str, Any] = {}
    for name, node in network.nodes.items():
        read = _common(node, [worth[source] for source in network.sources[name]])
        if read is None:
            return False
        worth[name] = _passed_on(node, read)
        if isinstance(node, nir.SumPool2d) and "averages" in node.metadata:
            changed[name] = nir.AvgPool2d(node.kernel_size, node.stride, node.padding, metadata=node.metadata)
        if isinstance(node, WEIGHTED) and read is not _ONE:
            changed[name] = copy.copy(node)
            quotient = node.weight / _for_each_input(read, node.weight)
            steps = np.broadcast_to(node.metadata.get("rounding", 0), quotient.shape)
            changed[name].weight = np.where(steps == 0, quotient, _value(_numbered(quotient) + steps, quotient.dtype))
    network.nodes.update(changed)
    return True


def _common(node: Any, worths: list[Array]) -> Array | None:
    """Return what the inputs of a node are worth; None if it can't take that in or pass it on."""
    if all(worth is _ONE for worth in worths):
        return _ONE
    same = all(np.array_equal(worths[0], worth) for worth in worths[1:])
    if isinstance(node, _PASSING) and same:
        return worths[0]
    fits = isinstance(node, WEIGHTED) and node.weight.shape[1] % len(worths[0]) == 0
    return worths[0] if same and fits else None


def _passed_on(node: Any, read: Array) -> Array:
    """Return what a unit of a node's output is worth, for each channel; a flattened layer keeps those it came from."""
    if isinstance(node, nir.IF) and "amplitude" in node.metadata:
        amplitude = node.metadata["amplitude"]
        worth = amplitude.reshape(len(amplitude), -1)[:, 0]
        return _ONE if bool((worth == 1).all()) else worth
    if isinstance(node, nir.SumPool2d) and "averages" in node.metadata:
        size = np.prod(np.asarray(node.kernel_size)) * np.ones(1)
        return cast(Array, read * (1 / size).astype(read.dtype))
    return read if isinstance(node, _PASSING) else _ONE


def _multiplied(network: Network, source: str, worth: Array) -> str:
    """Add a node that multiplies another node's output by what it is worth."""
    shape = network.shapes[source]
    factor = np.repeat(worth, shape[0] // len(worth))
    return network.add(f"{source}_scaled", diagonal(shape, factor, np.zeros_like(factor)), [source], shape)


def _for_each_input(worth: Array, weight: Array) -> Array:
    """Shape values for channels so that they broadcast over a weight ``[outputs, inputs, ...]``."""
    repeated = np.repeat(worth, weight.shape[1] // len(worth)).astype(weight.dtype)
    return repeated.reshape(1, -1, *[1] * (weight.ndim - 2))


def _numbered(values: Array) -> Array:
    """Number floating-point values in their order, neighbours by neighbouring numbers."""
    kind = f"i{values.itemsize}"
    bits = np.ascontiguousarray(values).view(kind).astype(np.int64)
    return np.where(bits < 0, np.iinfo(kind).min - bits, bits)


def _value(numbers: Array, dtype: Any) -> Array:
    """Undo :func:`_numbered`."""
    kind = f"i{np.dtype(dtype).itemsize}"
    return np.where(numbers < 0, np.iinfo(kind).min - numbers, numbers).astype(kind).view(dtype)
