"""The file of a converted network: plain tensors and values, with a version and a digest."""

from __future__ import annotations

import hashlib
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snn_lowlat.errors import FileFormatError
from snn_lowlat.tensor_files import read_tensors, write_tensors

__all__ = ["digest_of", "read_contents", "write_contents"]

_FORMAT = "snn_lowlat.SpikingModel"
_VERSION = 3


def write_contents(contents: dict[str, Any], path: str | PathLike[str]) -> None:
    """Write what a network consists of to a file, which appears whole or not at all.

    Raises
    ------
    ValueError
        If the path is empty.
    OSError
        If it is a folder, or can't be written, as on a full disk; what was there before is unchanged.
    """
    contents = {"format": _FORMAT, "version": _VERSION, **contents}
    contents["digest"] = digest_of(contents)
    write_tensors(contents, path)


def read_contents(path: Path) -> dict[str, Any]:
    """Read what :func:`write_contents` has written.

    Raises
    ------
    FileFormatError
        If the file is damaged, no such file, was changed, or comes from a newer version of this package.
    """
    contents = read_tensors(path, "a saved network", plain=True)
    if not isinstance(contents, dict) or contents.get("format") != _FORMAT:
        raise FileFormatError(f"{path} is a torch file, but no network saved by snn_lowlat: use SpikingModel.save().")
    version = contents.get("version")
    if type(version) is not int or not 1 <= version <= _VERSION:
        raise FileFormatError(
            f"{path} was saved in format version {version}, this package reads up to {_VERSION}: install a newer "
            "snn_lowlat."
        )
    if version > 1 and contents.get("digest") != digest_of(contents):
        raise FileFormatError(f"{path} is incomplete or was changed after it was saved: save the network again.")
    return contents


def digest_of(contents: dict[str, Any]) -> str:
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
