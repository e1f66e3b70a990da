"""Checks of what users give: each kind is checked in one place, and says the same everywhere."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from snn_lowlat.errors import unknown_name

__all__ = [
    "batches",
    "count",
    "fraction",
    "images",
    "network",
    "number",
    "one_of",
    "positive",
    "seed",
    "share",
    "spiking_model",
    "tensor",
    "values",
]

Value = TypeVar("Value")

_LARGEST_SEED = 2**63 - 1
_SPIKING_MODEL = "snn_lowlat.model.SpikingModel"


def count(name: str, value: Any, minimum: int = 1, maximum: int | None = None) -> int:
    """Return a whole number as an ``int``; Python's, NumPy's and torch's are taken, a bool is none.

    Parameters
    ----------
    name : str
        What the number is, as the user knows it: the argument, option or config key.
    value : object
        What was given.
    minimum, maximum : int
        The smallest and the largest that make sense; without a maximum there is none.

    Raises
    ------
    ValueError
        If it is anything else; the message says what was given.
    """
    given = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if not whole or given < minimum or (maximum is not None and given > maximum):
        bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ValueError(f"{name} must be a whole number {bounds}, not {value!r}.")
    return int(given)


def number(
    name: str,
    value: Any,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return a finite number as a ``float``; a bool is none.

    Parameters
    ----------
    name : str
        What the number is, as the user knows it: the argument, option or config key.
    value : object
        What was given.
    minimum, maximum : float
        The smallest and the largest that are allowed.
    above, below : float, optional
        What it must be greater than, and less than.

    Raises
    ------
    ValueError
        If it is anything else; the message says what was given.
    """
    given = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    real = isinstance(given, Real) and not isinstance(given, bool) and math.isfinite(given)
    inside = real and minimum <= given <= maximum
    if not inside or (above is not None and not given > above) or (below is not None and not given < below):
        low = f"above {above:g}" if above is not None else f"of at least {minimum:g}" if minimum > -math.inf else ""
        high = f"below {below:g}" if below is not None else f"of at most {maximum:g}" if maximum < math.inf else ""
        bounds = " and ".join(bound for bound in (low, high) if bound)
        raise ValueError(f"{name} must be a finite number{' ' if bounds else ''}{bounds}, not {value!r}.")
    return float(given)


def positive(name: str, value: Any) -> float:
    """Return a finite number above 0; see :func:`number`."""
    return number(name, value, above=0)


def fraction(name: str, value: Any) -> float:
    """Return a number from 0 to 1; see :func:`number`."""
    return number(name, value, 0, 1)


def share(name: str, value: Any) -> float:
    """Return a number from 0 to below 1, such as a probability of being left out; see :func:`number`."""
    return number(name, value, 0, below=1)


def values(name: str, value: Any) -> Tensor:
    """Return finite values, one or one for each channel, as a floating-point tensor of its own on the CPU.

    Raises
    ------
    ValueError
        If they are no real numbers, not finite, or of another shape than ``[]`` or ``[C]``.
    """
    try:
        given = torch.as_tensor(value).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be numbers, one or one a channel, not {_described(value)}.") from None
    if given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"{name} must be real numbers, not of the type {given.dtype}.")
    if not given.is_floating_point():
        given = given.to(torch.get_default_dtype())
    if given.dim() > 1 or given.numel() == 0:
        raise ValueError(f"{name} must be one value or one a channel, not of shape {tuple(given.shape)}.")
    if not bool(torch.isfinite(given).all()):
        raise ValueError(f"{name} must be finite.")
    return given


def seed(name: str, value: Any) -> int:
    """Return a seed of random numbers, a whole number from 0 to 2**63 - 1; see :func:`count`."""
    return count(name, value, 0, _LARGEST_SEED)


def one_of(kind: str, value: Any, known: Iterable[str]) -> str:
    """Return a name that exists; ``ValueError`` lists those that do, the nearest first."""
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise unknown_name(kind, value, names)
    return value


def tensor(name: str, value: Any) -> Tensor:
    """Return an ordinary tensor that has values; a ``ValueError`` says what was given and what to give."""
    if isinstance(value, np.ndarray):
        raise ValueError(f"{name} must be a tensor, not a NumPy array: give torch.from_numpy({name}).")
    if not isinstance(value, Tensor):
        advice = f": give torch.stack({name})" if isinstance(value, list | tuple) and value else ""
        raise ValueError(f"{name} must be a batch of images, a tensor [N, ...], not {_described(value)}{advice}.")
    if value.is_meta:
        raise ValueError(f"{name} lie on the device 'meta', where tensors have no values: put real images there.")
    if value.is_nested or value.layout != torch.strided:
        advice = "images of one size, stacked" if value.is_nested else f"{name}.to_dense()"
        raise ValueError(f"{name} must be an ordinary tensor, not one of the layout {value.layout}: give {advice}.")
    if value.is_quantized:
        raise ValueError(f"{name} must be an ordinary tensor, not a quantised one: give {name}.dequantize().")
    return value  # type: ignore[no-any-return]


def images(name: str, value: Any, shape: Sequence[int] | None = None) -> Tensor:
    """Return a batch of images ``[N, ...]``, of at least one image: an ordinary tensor that has values.

    Parameters
    ----------
    name : str
        What they are, as the user knows them: the argument's name.
    value : object
        What was given.
    shape : sequence of int, optional
        The shape of one image, where it is known.

    Raises
    ------
    ValueError
        If it is anything else; the message says what was given and what to give.
    """
    batch = tensor(name, value)
    given = list(batch.shape)
    if batch.dim() < 2 or (shape is not None and given == list(shape)):
        raise ValueError(
            f"{name} must be a batch of shape [N, ...], not {given}: one image needs a batch dimension, "
            f"{name}.unsqueeze(0)."
        )
    if shape is not None and given[1:] != list(shape):
        raise ValueError(
            f"this network was converted for inputs [N, {', '.join(map(str, shape))}], not {given}: convert it again "
            "with calibration images of that size."
        )
    if batch.numel() == 0:
        raise ValueError(f"{name} of shape {given} hold no image: leave out empty batches.")
    return batch


def batches(name: str, value: Any) -> Iterable[object]:
    """Return what yields batches: a loader, a list, a generator; one tensor is one batch.

    Parameters
    ----------
    name : str
        What it is, as the user knows it: the argument's name.
    value : object
        What was given. It is not read.

    Raises
    ------
    ValueError
        If it can't be gone through, or its items are no batches; the message says what to give.
    """
    if isinstance(value, Tensor):
        return [images("images", value)]
    if isinstance(value, nn.Module):
        raise ValueError(
            f"{name} must be batches of images, not the network {type(value).__name__}: the network is "
            "an argument of its own, and comes first."
        )
    if isinstance(value, Dataset):
        raise ValueError(
            f"{name} must yield batches, but the Dataset {type(value).__name__} yields single images: give "
            "DataLoader(dataset, batch_size=128), or batch_size=None if it yields batches itself."
        )
    if isinstance(value, np.ndarray):
        raise ValueError(
            f"{name} must be a tensor or batches of tensors, not a NumPy array: torch.from_numpy() makes one."
        )
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(item, Tensor) for item in value)
    if isinstance(value, Mapping) or (pair and value[0].dim() > 1 >= value[1].dim()):
        raise ValueError(f"{name} must yield batches, but this is one batch: put it into a list, [batch].")
    if value is None or isinstance(value, str | bytes | PathLike | type) or not isinstance(value, Iterable):
        raise ValueError(
            f"{name} must be batches of images, such as a DataLoader or a list of tensors [N, ...], not "
            f"{_described(value)}."
        )
    return value


def network(name: str, value: Any, *, rewritten: bool = False, spiking: bool = False) -> nn.Module:
    """Return a torch network, by default one that is not spiking yet.

    Parameters
    ----------
    name : str
        What it is, as the user knows it: the argument's name.
    value : object
        What was given.
    rewritten : bool
        Whether the network is to be traced: then it is returned free of ``DataParallel``, ``torch.compile`` and the
        like, on a copy if they wrap parts of it, and what is no ordinary torch code or has no values is refused.
    spiking : bool
        Let spiking networks pass too.

    Raises
    ------
    ValueError
        If it is anything else; the message says what was given and what to give.
    """
    _refuse_other_than_network(name, value, spiking)
    if not rewritten:
        return value  # type: ignore[no-any-return]
    model = _unwrapped(value)
    kinds = list(model.modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in kinds):
        raise ValueError(f"{name} was compiled by torch.jit, which hides its code: give the network it was made from.")
    if isinstance(model, fx.GraphModule) and any(
        isinstance(n.target, torch._ops.OpOverload) for n in model.graph.nodes
    ):
        raise ValueError(f"{name} was made by torch.export: give the network that was exported.")
    if any(_is_quantised(module) for module in kinds) or (
        any(isinstance(module, ObserverBase) for module in kinds)
        and not any(isinstance(module, FakeQuantizeBase) for module in kinds)
    ):
        raise ValueError(
            f"{name} is quantised, or prepared for it: give the network in floating point that it was made from; "
            "convert(..., precision='int8') rounds weights to 8 bits itself."
        )
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ValueError(f"{name} has lazy layers: {key!r} has no shape yet. Run a batch through it first.")
        if tensor.is_meta:
            raise ValueError(f"{name} has no values: {key!r} lies on the device 'meta'. Load its weights first.")
    return model


def spiking_model(name: str, value: Value) -> Value:
    """Return a :class:`snn_lowlat.SpikingModel`; anything else is a ``ValueError`` that says what to give."""
    if _SPIKING_MODEL in _classes(value):
        return value
    advice = ""
    if isinstance(value, str | PathLike):
        advice = f": load it first, snn_lowlat.load({str(value)!r})"
    elif isinstance(value, nn.Module):
        ours = any(_is_spiking(module) for module in value.modules())
        advice = (
            ": give what snn_lowlat.convert() returned, whose .network is the host's module"
            if ours
            else ": convert it first, snn_lowlat.convert(model, calibration)"
        )
    elif isinstance(value, Iterable):
        advice = ": the network comes before the data"
    raise ValueError(f"{name} must be a SpikingModel, not {_described(value)}{advice}.")


def _refuse_other_than_network(name: str, value: Any, spiking: bool) -> None:
    if isinstance(value, nn.Module):
        if spiking or not any(_is_spiking(module) for module in value.modules()):
            return
        raise ValueError(f"{name} must be an original network, but this one is spiking: give the trained ReLU network.")
    advice = ""
    if isinstance(value, type) and issubclass(value, nn.Module):
        advice = f": create it first, {value.__name__}(), and load its weights"
    elif isinstance(value, Mapping):
        advice = ": if it is a state_dict, load it into the network first, model.load_state_dict(it)"
    elif isinstance(value, str | PathLike):
        advice = ": create the network and load the file's weights into it first"
    elif isinstance(value, torch.export.ExportedProgram):
        advice = ": give the network that was exported"
    elif isinstance(value, Tensor | DataLoader | Dataset | list | tuple):
        advice = ": the network comes before the data"
    raise ValueError(f"{name} must be a torch.nn.Module, not {_described(value)}{advice}.")


def _classes(value: object) -> list[str]:
    """Name an object's classes: with names, neither the hosts nor what stands on this module need be imported."""
    return [f"{base.__module__}.{base.__name__}" for base in type(value).__mro__]


def _is_spiking(module: nn.Module) -> bool:
    """Say whether a module is a host's neuron, without importing the hosts."""
    hosts = ("spikingjelly.activation_based.neuron", "snntorch._neurons", "snn_lowlat.hosts.")
    classes = _classes(module)
    return _SPIKING_MODEL in classes or any(name.startswith(hosts) for name in classes)


def _is_quantised(module: nn.Module) -> bool:
    """Say whether a module is one of torch's quantised layers."""
    place = type(module).__module__
    return place.startswith("torch.ao.nn.") and ".quantized" in place


def _wrapped(module: nn.Module) -> nn.Module | None:
    """Return what a module merely wraps; None if it computes something itself."""
    if isinstance(module, nn.DataParallel | DistributedDataParallel | AveragedModel):
        return module.module  # type: ignore[no-any-return]
    # Its module is slow to import.
    return module._orig_mod if type(module).__name__ == "OptimizedModule" else None  # type: ignore[return-value]


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return a network without wrappers: itself, what it wraps, or a copy if parts of it are wrapped."""
    while (inner := _wrapped(model)) is not None:
        model = inner
    copies: dict[int, Any] = {}
    # The innermost first, so that a copy finds the copies of its parts.
    for module in reversed(list(model.modules())):
        inner = module
        while (next_inner := _wrapped(inner)) is not None:
            inner = next_inner
        if inner is not module:
            copies[id(module)] = copy.deepcopy(inner, copies)
    return copy.deepcopy(model, copies) if copies else model


def _described(value: Any) -> str:
    """Name what was given, without printing all that it holds."""
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) < 80 else "a text"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__name__}"
