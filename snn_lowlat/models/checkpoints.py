"""Reading trained weights, whoever saved them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snn_lowlat.errors import FileFormatError
from snn_lowlat.tensor_files import read_tensors

__all__ = ["load_weights"]

_PREFIXES = ("module.", "model.", "_orig_mod.")
_SHOWN = 6


def load_weights(model: nn.Module, path: str | Path, *, optional: Collection[str] = ()) -> set[str]:
    """Load trained weights into a network.

    Reads a plain ``state_dict`` or a checkpoint that holds one under the key ``state_dict`` or ``model``; prefixes
    that data-parallel training (``module.``), Lightning (``model.``) and compilation (``_orig_mod.``) put before every
    name are taken off. The file is read as data, never as code.

    Parameters
    ----------
    model : nn.Module
        The network; every weight of its must be in the file, and no other. Unchanged if they do not match.
    path : path
        The file; ``~`` stands for the home folder.
    optional : collection of str
        Weights that the file may lack, such as the ceilings of activations that its network does not have.

    Returns
    -------
    set of str
        Those of the optional weights that it lacks: they are as they were.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If the file is damaged, holds no weights, or some that are not finite, or those of another network.
    """
    file = Path(path).expanduser()
    weights = _without_prefixes(_read(file), set(model.state_dict()))
    expected = model.state_dict()
    # Batch norm's counter of batches is no weight, and old checkpoints lack it.
    absent = {name for name in expected.keys() - weights.keys() if not name.endswith("num_batches_tracked")}
    missing = sorted(absent - set(optional))
    unexpected = sorted(weights.keys() - expected.keys())
    shapes = sorted(
        f"{name} is {list(weights[name].shape)}, not {list(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    )
    broken = sorted(
        name for name, value in weights.items() if value.is_complex() or not bool(torch.isfinite(value).all())
    )
    if broken:
        raise FileFormatError(
            f"{file} holds NaN, infinite or complex values in {_some(broken)}: the training it comes from failed."
        )
    problems = [
        f"{kind}: {_some(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise FileFormatError(
            f"{file} holds the weights of another network than {type(model).__name__}: {'; '.join(problems)}."
        )
    model.load_state_dict({**expected, **weights})
    return absent


def _read(file: Path) -> dict[str, Tensor]:
    try:
        content = read_tensors(file, "a file of weights")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file of weights {file}; name another with model.weights=PATH.") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise FileFormatError(
            f"{file} holds no weights: neither a state_dict nor a checkpoint with the key 'state_dict'."
        )
    return {str(name): value for name, value in content.items()}


def _without_prefixes(weights: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    # Only what stands before every name is taken off, and never if the network itself has it.
    while True:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in weights)), None)
        if prefix is None or any(name.startswith(prefix) for name in expected):
            return weights
        weights = {name[len(prefix) :]: value for name, value in weights.items()}


def _some(names: list[Any]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
