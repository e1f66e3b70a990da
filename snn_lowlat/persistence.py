"""Keeping a converted network: one file of plain tensors and values, read without running any code in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat import checks
from snn_lowlat.checks import count, fraction, number, one_of
from snn_lowlat.convert import PRECISIONS
from snn_lowlat.encoding import ENCODERS
from snn_lowlat.errors import FileFormatError
from snn_lowlat.files import MOST_STEPS, MOST_VALUES
from snn_lowlat.graph import (
    describe,
    fill,
    find_sites,
    normalise,
    rebuild,
    with_per_step_max_pools,
    with_safe_names,
)
from snn_lowlat.hosts import BACKENDS, get_backend
from snn_lowlat.model import SpikingModel
from snn_lowlat.model_file import read_contents
from snn_lowlat.neurons import NEURONS
from snn_lowlat.plan import SitePlan
from snn_lowlat.provenance import Provenance, signature
from snn_lowlat.simulation import is_online

__all__ = ["load", "save"]

_FIRST_WITH_CUMULATIVE_POOLS = 3


def save(snn: SpikingModel, path: str | PathLike[str]) -> None:
    """Write a converted network, as it is now, to a file; see :meth:`SpikingModel.save`."""
    checks.spiking_model("snn", snn).save(path)


def load(path: str | PathLike[str], *, model: nn.Module | None = None, backend: str | None = None) -> SpikingModel:
    """Rebuild a converted network from its file; no code in the file is run, and none of the network's is needed.

    The file describes the network in the terms of torch's own layers. Whatever it says is checked before it is used:
    it can name nothing but those layers and a few functions, its names are made safe before ``torch.fx`` writes them
    into source, and its sizes are worked out before memory is taken. So a file from a stranger can be read; whether it
    holds the network that somebody says it holds is another question, and the digest in it proves nothing.

    An exported program of ``torch.export`` would describe the network too, but ``torch.export.load`` unpickles parts of
    it without restrictions (torch 2.15), and what it holds could not be put into either host again.

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
    ValueError
        If there is no such backend.
    """
    if backend is not None:
        get_backend(backend)
    path = Path(path).expanduser()
    contents = read_contents(path)
    with _format_errors(path):
        weights = _weights(contents["weights"])
        structure: Any = contents.get("structure")
        plans, names = contents["plan"], dict[str, str]()
        if structure is not None:
            structure, names = with_safe_names(structure)
            weights = {_renamed(name, names): value for name, value in weights.items()}
            plans = {names[name]: values for name, values in plans.items()}
        renamed = any(name != new for name, new in names.items())
        plan = {name: _site_plan(name, values) for name, values in plans.items()}
        provenance = _provenance(contents["provenance"])
        options: dict[str, Any] = {
            "timesteps": count("timesteps", contents["timesteps"], maximum=MOST_STEPS),
            "backend": one_of("backend", contents["backend"], BACKENDS) if backend is None else backend,
            "encoder": one_of("encoder", contents["encoder"], ENCODERS),
            "seed": count("seed", contents["seed"], minimum=-(2**63), maximum=2**64 - 1),
            "depth": count("depth", contents["depth"], minimum=0, maximum=len(plan)),
        }
        accuracy = contents["ann_accuracy"]
        accuracy = None if accuracy is None else fraction("ann_accuracy", accuracy)
    if structure is None and model is None:
        raise FileFormatError(
            f"{path} is of format version 1, without the network's structure: give the original network as model, "
            "and save again."
        )
    given = None if model is None else normalise(model, _example(model, provenance.input_shape))
    with _format_errors(path):
        # What was signed are the names before they were made safe.
        if given is not None and not (
            signature(given) == provenance.signature or (renamed and describe(given) == structure)
        ):
            raise _other_model(given, weights, path)
        if given is not None and structure is None:
            fill(given, weights)
            graph = given
        else:
            _check_sizes(structure, weights, plan, provenance.input_shape)
            graph = rebuild(structure, weights)
        if contents["version"] < _FIRST_WITH_CUMULATIVE_POOLS and is_online(plan):
            graph = with_per_step_max_pools(graph)
        if plan.keys() != find_sites(graph).keys():
            raise ValueError(f"neurons {sorted(plan.keys() ^ find_sites(graph).keys())[:3]}")
        snn = SpikingModel(
            get_backend(options["backend"]).build(graph, plan, provenance.input_shape),
            plan,
            structure=describe(graph),
            provenance=provenance,
            **options,
        )
        snn.ann_accuracy = accuracy
    return snn


@contextmanager
def _format_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileFormatError, ImportError, MemoryError):
        raise
    # Whatever a file says that no check has found fails somewhere in here, in torch or in the host.
    except Exception as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise FileFormatError(f"{path} is incomplete or was changed ({reason}): save the network again.") from error


def _weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check that weights are finite numbers of one type."""
    dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
    for name, value in weights.items():
        if not value.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise ValueError(f"{name} is of type {value.dtype}, weights are floating-point numbers")
        if len(dtypes) > 1:
            found = {str(value.dtype): name for name, value in weights.items() if value.is_floating_point()}
            raise ValueError(f"its weights are of different types: {found}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds values that are not finite")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise ValueError(f"{name} holds negative variances")
    return dict(weights)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Name a layer's weight after the layer's new name; a constant is its own."""
    layer, _, weight = name.rpartition(".")
    return names[name] if name in names else f"{names[layer]}.{weight}"


def _site_plan(name: str, values: Mapping[str, Any]) -> SitePlan:
    plan = SitePlan(**values)
    one_of("neuron", plan.neuron, NEURONS)
    for option, value in plan.parameters.items():
        number(f"{option} of {name}", value, maximum=MOST_STEPS)
    return plan


def _provenance(values: Mapping[str, Any]) -> Provenance:
    shape = tuple(count("input_shape", length) for length in values["input_shape"])
    if not shape or math.prod(shape) > MOST_VALUES:
        raise ValueError(f"its images are of shape {shape}")
    provenance = Provenance(**{**values, "input_shape": shape})
    one_of("precision", provenance.precision, PRECISIONS)
    kinds = {"strategy": str, "options": dict, "refinements": list, "signature": str, "versions": dict}
    for name, kind in kinds.items():
        if not isinstance(getattr(provenance, name), kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    return provenance


def _example(model: nn.Module, shape: Sequence[int]) -> Tensor:
    dtype = next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.get_default_dtype())
    return torch.zeros(2, *shape, dtype=dtype)


class _Sizes(fx.Interpreter):
    """Works out what each node of a network without memory puts out."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if value.numel() > 2 * MOST_VALUES:
            raise ValueError(f"{n.name} would put out {tuple(value.shape)}")
        return value


@torch.no_grad()
def _check_sizes(
    structure: Mapping[str, Any], weights: Mapping[str, Tensor], plan: Mapping[str, SitePlan], shape: Sequence[int]
) -> None:
    """Check that a network's layers fit together and take no more memory than networks do, before they take it."""
    meta = {name: value.to("meta") for name, value in weights.items()}
    dtype = next((value.dtype for value in meta.values() if value.is_floating_point()), torch.get_default_dtype())
    graph = rebuild(structure, meta, share=True)
    sizes = _Sizes(graph, garbage_collect_values=False)
    sizes.run(torch.empty(2, *shape, dtype=dtype, device="meta"))
    for name, site in find_sites(graph).items():
        shape = sizes.env[site.current].shape[1:]
        if plan[name].threshold.numel() not in (1, *shape):
            raise ValueError(f"{plan[name].threshold.numel()} thresholds for currents {tuple(shape)} of {name}")


def _other_model(graph: fx.GraphModule, weights: Mapping[str, Tensor], path: Path) -> FileFormatError:
    expected = {name: tuple(value.shape) for name, value in graph.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    differing = [n for n in found if n in expected and found[n] != expected[n]]
    differing += sorted(found.keys() - expected.keys())
    detail = f" They differ first in {differing[0]!r}." if differing else ""
    return FileFormatError(f"{path} belongs to another network than the one given as model.{detail}")
