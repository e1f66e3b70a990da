"""Writing converted networks as NIR graphs, and building networks from them."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.errors import ConversionError, SnnLowlatError
from snn_lowlat.files import MOST_STEPS, atomic_write
from snn_lowlat.graph import depth, describe
from snn_lowlat.hosts import get_backend
from snn_lowlat.model import SpikingModel
from snn_lowlat.nir.amplitudes import fold, unfold
from snn_lowlat.nir.drift import Drift, measure
from snn_lowlat.nir.hdf5 import read_graph
from snn_lowlat.nir.network import Network
from snn_lowlat.nir.reader import Reader
from snn_lowlat.nir.writer import Writer
from snn_lowlat.provenance import Provenance, current_versions, signature

__all__ = ["NIRExport", "from_nir", "to_nir"]

_PRODUCER = "snn_lowlat"
_NOTE = (
    "Neurons reset by subtracting their threshold (metadata 'reset'), start at a potential of their own (metadata "
    "'v_init') and fire at the threshold too: a reader that ignores this computes another network."
)


@dataclass(frozen=True, eq=False)
class NIRExport:
    """A converted network as a NIR graph.

    Attributes
    ----------
    graph : nir.NIRGraph
        The graph.
    drift : Drift
        How its spikes differ from the network's, on the example input.
    """

    graph: Any
    drift: Drift

    def __str__(self) -> str:
        kinds = Counter(type(node).__name__ for node in self.graph.nodes.values())
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return f"NIR graph of {len(self.graph.nodes)} nodes: {counts}\n{self.drift}"


def to_nir(
    snn: SpikingModel, example_input: Tensor, path: str | PathLike[str] | None = None, *, pooling: str = "average"
) -> NIRExport:
    """Write a converted network as a NIR graph, and compare the two.

    Nodes have the names of the network's layers. The graph's metadata say how to run it: how many steps, the image as a
    constant current in each, and that the mean of the outputs is the readout. Each neuron's metadata say that it resets
    by subtraction and where it starts: a reader that ignores this computes another network.

    Parameters
    ----------
    snn : SpikingModel
        A converted network of integrate-and-fire neurons with direct input.
    example_input : Tensor
        Images ``[N, ...]`` on which the graph is compared with the network.
    path : path, optional
        The file to write, which appears whole or not at all. It is what is compared.
    pooling : {"average", "sum"}
        Write average pooling as ``nir.AvgPool2d``; or, for readers and chips without it, as ``nir.SumPool2d`` with the
        pool's size in the weights behind it.

    Returns
    -------
    NIRExport
        The graph, and its drift from the network.

    Raises
    ------
    ConversionError
        If NIR can't express the network; the message names every layer and the reason.
    ValueError
        If the images have another shape than those the network was converted with, there is no such pooling, or the
        path is empty.
    OSError
        If the path is a folder, or the file can't be written, as on a full disk; what was there before is unchanged.
    """
    snn = checks.spiking_model("snn", snn)
    checks.one_of("pooling", pooling, ("average", "sum"))
    checks.images("example_input", example_input, snn.provenance.input_shape)
    if snn.encoder != "direct":
        raise ConversionError(
            f"NIR can't express the input coding {snn.encoder!r}: a graph holds no random numbers. Convert the network "
            "with encoder='direct'."
        )
    form, plan = snn.normal_form()
    dtype = next((value.dtype for value in form.parameters()), example_input.dtype)
    example_input = example_input.to(dtype)
    # NumPy, and so NIR, has no such numbers; single precision holds them all.
    form = form.float() if dtype == torch.bfloat16 else form
    network = Writer(form.cpu(), plan, snn.provenance.input_shape).write()
    fold(network, sum_pools=pooling == "sum")
    graph = nir.NIRGraph(network.nodes, network.edges(), metadata=_metadata(snn, dtype))
    if path is None:
        return NIRExport(graph, _drift(snn, graph, example_input))
    # HDF5 does not survive a disk that is full.
    buffer = io.BytesIO()
    nir.write(buffer, graph)
    export = NIRExport(graph, _drift(snn, nir.read(buffer), example_input))
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return export


def from_nir(
    graph: Any,
    backend: str = "spikingjelly",
    timesteps: int | None = None,
    *,
    reset: str | None = None,
    dt: float | None = None,
) -> SpikingModel:
    """Build a spiking network from a NIR graph of integrate-and-fire neurons.

    A graph that :func:`to_nir` wrote gives the network that it was written from. Others are read as far as they consist
    of ``Conv2d``, ``Affine``, ``Linear``, ``Scale``, ``AvgPool2d``, ``SumPool2d``, ``Flatten`` and ``IF`` nodes; the
    readout is the mean of their outputs over the steps.

    Parameters
    ----------
    graph : nir.NIRGraph or path
        The graph, or the file that holds it.
    backend : str
        The host library, one of :data:`snn_lowlat.hosts.BACKENDS`.
    timesteps : int, optional
        The number of steps to run for; by default what the graph says.
    reset : {"subtract"}, optional
        How neurons reset that do not say so. A reset to ``v_reset``, which is what ``nir.IF`` means by itself, is not
        run by any host of this package.
    dt : float, optional
        The length of a step, if neurons have a resistance ``r`` that is not 1: in a step, a current counts ``r * dt``
        times.

    Returns
    -------
    SpikingModel
        The network; ``snn(images)`` gives logits.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file holds no NIR graph, a damaged one, or one that takes anything from other files.
    ConversionError
        If a node can't be run, or does not say how it resets; the message names the node.
    ValueError
        If there is no such backend or reset, nobody says for how many steps to run, or ``timesteps`` or ``dt`` is no
        such number.
    """
    return _model(graph, backend, timesteps, reset, dt, amplitudes=True)


def _drift(snn: SpikingModel, graph: Any, images: Tensor) -> Drift:
    read, folded = (
        _model(graph, snn.backend, snn.timesteps, None, None, amplitudes=amplitudes) for amplitudes in (True, False)
    )
    return measure(snn, read, folded, images)


def _metadata(snn: SpikingModel, dtype: torch.dtype) -> dict[str, Any]:
    made = snn.provenance
    return {
        "producer": f"{_PRODUCER} {current_versions()[_PRODUCER]}",
        "note": _NOTE,
        "timesteps": snn.timesteps,
        "dt": 1.0,
        "dtype": str(dtype).removeprefix("torch."),
        "encoder": snn.encoder,
        "input": "the image, as a constant current in every step",
        "readout": "mean of the outputs over the steps",
        "strategy": made.strategy,
        "options": json.dumps(made.options),
        "refinements": json.dumps(made.refinements),
        "versions": json.dumps(made.versions),
    }


def _model(
    graph: Any, backend: str, timesteps: int | None, reset: str | None, dt: float | None, *, amplitudes: bool
) -> SpikingModel:
    """Build a network; ``amplitudes`` says whether they are taken out of the weights again."""
    host = get_backend(backend)
    if reset is not None:
        checks.one_of("reset", reset, ("subtract",))
    if timesteps is not None:
        timesteps = checks.count("timesteps", timesteps)
    if dt is not None:
        dt = checks.positive("dt", dt)
    if isinstance(graph, str | PathLike):
        graph = read_graph(Path(graph).expanduser())
    if not isinstance(graph, nir.NIRGraph):
        raise ConversionError(f"this is neither a nir.NIRGraph nor a path, but a {type(graph).__name__}.")
    metadata = graph.metadata if isinstance(graph.metadata, Mapping) else {}
    if timesteps is None and "timesteps" not in metadata:
        raise ValueError("this NIR graph does not say for how many steps to run: give timesteps.")
    with _conversion_errors():
        if timesteps is None:
            timesteps = checks.count("timesteps of the metadata", _plain(metadata["timesteps"]), maximum=MOST_STEPS)
        if dt is None and "dt" in metadata:
            dt = checks.positive("dt of the metadata", _plain(metadata["dt"]))
        network = Network.of(graph)
        reader = Reader(
            network,
            reset=reset,
            dt=dt,
            amplitudes=amplitudes and unfold(network),
            dtype=torch.bfloat16 if metadata.get("dtype") == "bfloat16" else None,
        )
        form = reader.read()
        if not reader.plan:
            raise ConversionError("this NIR graph has no IF node: there is nothing that spikes.")
        return SpikingModel(
            host.build(form, reader.plan, reader.input_shape),
            reader.plan,
            timesteps=timesteps,
            backend=backend,
            encoder="direct",
            seed=0,
            depth=depth(form),
            structure=describe(form),
            provenance=Provenance(**_made(metadata), input_shape=reader.input_shape, signature=signature(form)),
        )


@contextmanager
def _conversion_errors() -> Iterator[None]:
    try:
        yield
    except SnnLowlatError:
        raise
    # A graph comes from anywhere: what no check has found fails in numpy, in torch or in the host.
    except Exception as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ConversionError(f"this NIR graph can't be run: {reason}") from error


def _plain(value: Any) -> Any:
    """Return what an array of one number holds; files may keep whole numbers as floating-point ones."""
    value = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _made(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a graph says of the conversion that it comes from."""
    if not str(metadata.get("producer", "")).startswith(_PRODUCER):
        return {"strategy": "nir", "options": {}, "refinements": [], "versions": current_versions()}
    kinds = {"options": dict, "refinements": list, "versions": dict}
    try:
        texts = {key: json.loads(metadata[key]) for key in kinds}
        wrong = [key for key, kind in kinds.items() if not isinstance(texts[key], kind)]
        if wrong:
            raise TypeError(f"{wrong[0]} is no {kinds[wrong[0]].__name__}")
        return {"strategy": str(metadata["strategy"]), **texts}
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ConversionError(f"the NIR graph's metadata are incomplete or were changed: {error!r}.") from error
