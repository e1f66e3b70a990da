"""Writing converted networks as NIR graphs, and building networks from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import nir
from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.adapters import get_backend
from snn_lowlat.adapters.nir.amplitudes import fold, unfold
from snn_lowlat.adapters.nir.drift import Drift, measure
from snn_lowlat.adapters.nir.network import Network
from snn_lowlat.adapters.nir.reader import Reader
from snn_lowlat.adapters.nir.writer import Writer
from snn_lowlat.errors import ConversionError, FileFormatError
from snn_lowlat.files import whole_file
from snn_lowlat.graph import depth, describe
from snn_lowlat.model import Provenance, SpikingModel, current_versions, signature

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
        If the images have another shape than those the network was converted with, or there is no such pooling.
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
    network = Writer(form.cpu(), plan, snn.provenance.input_shape).write()
    fold(network, sum_pools=pooling == "sum")
    graph = nir.NIRGraph(network.nodes, network.edges(), metadata=_metadata(snn))
    if path is None:
        return NIRExport(graph, _drift(snn, graph, example_input))
    with whole_file(Path(path)) as temporary:
        nir.write(temporary, graph)
        return NIRExport(graph, _drift(snn, nir.read(temporary), example_input))


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
        The host library, one of :data:`snn_lowlat.adapters.BACKENDS`.
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
        If the file holds no NIR graph, or a damaged one.
    ConversionError
        If a node can't be run, or does not say how it resets; the message names the node.
    ValueError
        If there is no such backend or reset, or nobody says for how many steps to run.
    """
    return _model(graph, backend, timesteps, reset, dt, amplitudes=True)


def _drift(snn: SpikingModel, graph: Any, images: Tensor) -> Drift:
    read, folded = (
        _model(graph, snn.backend, snn.timesteps, None, None, amplitudes=amplitudes) for amplitudes in (True, False)
    )
    return measure(snn, read, folded, images)


def _metadata(snn: SpikingModel) -> dict[str, Any]:
    made = snn.provenance
    return {
        "producer": f"{_PRODUCER} {current_versions()[_PRODUCER]}",
        "note": _NOTE,
        "timesteps": snn.timesteps,
        "dt": 1.0,
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
        graph = _read(Path(graph).expanduser())
    if not isinstance(graph, nir.NIRGraph):
        raise ConversionError(f"this is neither a nir.NIRGraph nor a path, but a {type(graph).__name__}.")
    metadata = graph.metadata if isinstance(graph.metadata, Mapping) else {}
    if timesteps is None and "timesteps" not in metadata:
        raise ValueError("this NIR graph does not say for how many steps to run: give timesteps.")
    network = Network.of(graph)
    reader = Reader(
        network,
        reset=reset,
        dt=metadata.get("dt") if dt is None else dt,
        amplitudes=amplitudes and unfold(network),
    )
    form = reader.read()
    if not reader.plan:
        raise ConversionError("this NIR graph has no IF node: there is nothing that spikes.")
    return SpikingModel(
        host.build(form, reader.plan, reader.input_shape),
        reader.plan,
        timesteps=_said_timesteps(metadata) if timesteps is None else timesteps,
        backend=backend,
        encoder="direct",
        seed=0,
        depth=depth(form),
        structure=describe(form),
        provenance=Provenance(**_made(metadata), input_shape=reader.input_shape, signature=signature(form)),
    )


def _said_timesteps(metadata: Mapping[str, Any]) -> int:
    """Return how many steps a graph says to run for."""
    said = metadata["timesteps"]
    # Files may hold any number as an array or a float.
    said = said.item() if hasattr(said, "item") else said
    try:
        return checks.count("timesteps", int(said) if isinstance(said, float) and said.is_integer() else said)
    except ValueError as error:
        raise ConversionError(f"the NIR graph's metadata are wrong: {error}") from error


def _made(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a graph says of the conversion that it comes from."""
    if not str(metadata.get("producer", "")).startswith(_PRODUCER):
        return {"strategy": "nir", "options": {}, "refinements": [], "versions": current_versions()}
    try:
        texts = {key: json.loads(metadata[key]) for key in ("options", "refinements", "versions")}
        return {"strategy": str(metadata["strategy"]), **texts}
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"the NIR graph's metadata are incomplete or were changed: {error!r}.") from error


def _read(path: Path) -> Any:
    try:
        return nir.read(path, type_check=False)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise FileFormatError(
            f"{path} can't be read as a NIR graph, it is damaged or something else: {_damage(path, error)}"
        ) from error


def _damage(path: Path, error: Exception) -> str:
    """Say what is wrong with a file, with the name of the node where there is one."""
    try:
        with h5py.File(path) as file:
            nodes = nir.serialization.hdf2dict(file["node"])["nodes"]
    except Exception:
        return _reason(error)
    for name, node in nodes.items():
        try:
            nir.dict2NIRNode(node)
        except Exception as cause:
            return f"node {name!r} of type {node.get('type', 'unknown')!r}: {_reason(cause)}"
    return _reason(error)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
