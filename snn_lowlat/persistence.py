"""Keeping a converted network: one file of plain tensors and values, read without running any code in it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat.adapters import get_backend
from snn_lowlat.errors import FileFormatError
from snn_lowlat.files import whole_file
from snn_lowlat.graph import normalise
from snn_lowlat.model import Provenance, SpikingModel, signature
from snn_lowlat.plan import SitePlan

__all__ = ["load", "save"]

_FORMAT = "snn_lowlat.SpikingModel"
_VERSION = 1


def save(snn: SpikingModel, path: str | PathLike[str]) -> None:
    """Write a converted network to a file, which appears whole or not at all.

    Parameters
    ----------
    snn : SpikingModel
        The network.
    path : path
        The file to write.
    """
    contents = {
        "format": _FORMAT,
        "version": _VERSION,
        "weights": {k: v.detach().cpu() for k, v in get_backend(snn.backend).weights(snn.network).items()},
        "plan": {
            name: {
                "threshold": site.threshold,
                "initial_potential": site.initial_potential,
                "amplitude": site.amplitude,
                "neuron": site.neuron,
                "parameters": dict(site.parameters),
            }
            for name, site in snn.plan.items()
        },
        "timesteps": snn.timesteps,
        "backend": snn.backend,
        "encoder": snn.encoder,
        "seed": snn.seed,
        "depth": snn.depth,
        "ann_accuracy": snn.ann_accuracy,
        "provenance": snn.provenance.as_dict(),
    }
    with whole_file(Path(path)) as temporary:
        torch.save(contents, temporary)


def load(path: str | PathLike[str], *, model: nn.Module, backend: str | None = None) -> SpikingModel:
    """Rebuild a converted network from its file and the network it was made from.

    Parameters
    ----------
    path : path
        A file written by :meth:`SpikingModel.save`.
    model : Module
        The original network, with any weights: the file holds those that count.
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
        If it is damaged, no such file, from a newer version of this package, or belongs to another network.
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
    graph = normalise(model, torch.zeros(2, *provenance.input_shape))
    with _format_errors(path):
        _fill(graph, contents["weights"], provenance, path)
        snn = SpikingModel(
            host.build(graph, plan),
            plan,
            backend=name,
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
    if not isinstance(contents.get("version"), int) or contents["version"] > _VERSION:
        raise FileFormatError(
            f"{path} was saved in format version {contents.get('version')}, this package reads up to {_VERSION}: "
            "install a newer snn_lowlat."
        )
    return contents


def _fill(graph: fx.GraphModule, weights: dict[str, Tensor], provenance: Provenance, path: Path) -> None:
    if signature(graph) != provenance.signature:
        expected = {name: tuple(value.shape) for name, value in graph.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        differing = [n for n in found if n in expected and found[n] != expected[n]] + sorted(
            found.keys() - expected.keys()
        )
        detail = f" They differ first in {differing[0]!r}." if differing else ""
        raise FileFormatError(f"{path} belongs to another network than the one given as model.{detail}")
    missing = graph.load_state_dict(weights, strict=False).missing_keys
    missing = [key for key in missing if not key.endswith("_ceiling")]
    if missing:
        raise FileFormatError(f"{path} lacks the weights {', '.join(missing[:3])}: it is incomplete.")
