"""Keeping a converted network: one file of plain tensors and values, read without running any code in it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat import checks
from snn_lowlat.adapters import get_backend
from snn_lowlat.errors import FileFormatError
from snn_lowlat.files import whole_file
from snn_lowlat.graph import describe, fill, normalise, rebuild
from snn_lowlat.model import Provenance, SpikingModel, signature
from snn_lowlat.plan import SitePlan

__all__ = ["load", "save"]

_FORMAT = "snn_lowlat.SpikingModel"
_VERSION = 2


def save(snn: SpikingModel, path: str | PathLike[str]) -> None:
    """Write a converted network, as it is now, to a file, which appears whole or not at all.

    Parameters
    ----------
    snn : SpikingModel
        The network.
    path : path
        The file to write.
    """
    snn = checks.spiking_model("snn", snn)
    graph, plan = snn.normal_form()
    contents = {
        "format": _FORMAT,
        "version": _VERSION,
        "structure": snn.structure,
        "weights": {name: value.cpu() for name, value in graph.state_dict().items()},
        "plan": {
            name: {
                "threshold": site.threshold,
                "initial_potential": site.initial_potential,
                "amplitude": site.amplitude,
                "neuron": site.neuron,
                "parameters": dict(site.parameters),
            }
            for name, site in plan.items()
        },
        "timesteps": snn.timesteps,
        "backend": snn.backend,
        "encoder": snn.encoder,
        "seed": snn.seed,
        "depth": snn.depth,
        "ann_accuracy": snn.ann_accuracy,
        "provenance": snn.provenance.as_dict(),
    }
    contents["digest"] = _digest(contents)
    with whole_file(Path(path)) as temporary:
        torch.save(contents, temporary)


def load(path: str | PathLike[str], *, model: nn.Module | None = None, backend: str | None = None) -> SpikingModel:
    """Rebuild a converted network from its file; no code in the file is run, and none of the network's is needed.

    The file describes the network in the terms of torch's own layers. An exported program of ``torch.export`` would do
    so too, but ``torch.export.load`` unpickles parts of it without restrictions (torch 2.15), and what it holds could
    not be put into either host again.

    Parameters
    ----------
    path : path
        A file written by :meth:`SpikingModel.save`.
    model : Module, optional
        The original network, with any weights, to make sure that the file belongs to it. Files of format version 1,
        which hold no structure, need it.
    backend : str, optional
        The host library; by default the one it was saved from.

    Returns
    -------
    SpikingModel
        The spiking network, which gives the same logits as the one that was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is damaged, no such file, was changed, comes from a newer version of this package, or belongs to another
        network.
    """
    path = Path(path).expanduser()
    contents = _read(path)
    with _format_errors(path):
        provenance = Provenance(
            **contents["provenance"] | {"input_shape": tuple(contents["provenance"]["input_shape"])}
        )
        plan = {name: SitePlan(**values) for name, values in contents["plan"].items()}
        name = backend or contents["backend"]
        host = get_backend(name)
        weights = contents["weights"]
    if model is None:
        if "structure" not in contents:
            raise FileFormatError(
                f"{path} is of format version 1, without the network's structure: give the original network as model, "
                "and save again."
            )
        with _format_errors(path):
            graph = rebuild(contents["structure"], weights)
    else:
        graph = normalise(model, torch.zeros(2, *provenance.input_shape))
        with _format_errors(path):
            _check_model(graph, weights, provenance, path)
            # In whole numbers the network is another one than the model.
            if provenance.precision == "fp32":
                fill(graph, weights)
            else:
                graph = rebuild(contents["structure"], weights)
    with _format_errors(path):
        snn = SpikingModel(
            host.build(graph, plan, provenance.input_shape),
            plan,
            backend=name,
            structure=describe(graph),
            provenance=provenance,
            **{key: contents[key] for key in ("timesteps", "encoder", "seed", "depth")},
        )
        snn.ann_accuracy = contents["ann_accuracy"]
    return snn


@contextmanager
def _format_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileFormatError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is incomplete or was changed ({error}): save the network again.") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileFormatError(
            f"{path} can't be read as a saved network, it is damaged or something else: {reason}"
        ) from error
    if not isinstance(contents, dict) or contents.get("format") != _FORMAT:
        raise FileFormatError(f"{path} is a torch file, but no network saved by snn_lowlat: use SpikingModel.save().")
    version = contents.get("version")
    if not isinstance(version, int) or version > _VERSION:
        raise FileFormatError(
            f"{path} was saved in format version {version}, this package reads up to {_VERSION}: install a newer "
            "snn_lowlat."
        )
    if version > 1 and contents.get("digest") != _digest(contents):
        raise FileFormatError(f"{path} is incomplete or was changed after it was saved: save the network again.")
    return contents


def _digest(contents: dict[str, Any]) -> str:
    """Digest everything in a file but the digest itself, so that a change is noticed; it proves no origin."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(f"{key!r}:".encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            digest.update(f"[{len(value)}]".encode())
            for entry in value:
                add(entry)
        elif isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{value!r};".encode())

    add({key: value for key, value in contents.items() if key != "digest"})
    return digest.hexdigest()


def _check_model(graph: fx.GraphModule, weights: dict[str, Tensor], provenance: Provenance, path: Path) -> None:
    if signature(graph) == provenance.signature:
        return
    expected = {name: tuple(value.shape) for name, value in graph.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    differing = [n for n in found if n in expected and found[n] != expected[n]]
    differing += sorted(found.keys() - expected.keys())
    detail = f" They differ first in {differing[0]!r}." if differing else ""
    raise FileFormatError(f"{path} belongs to another network than the one given as model.{detail}")
