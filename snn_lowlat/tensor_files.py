"""Torch's files: read as data, so that no code in them is run and no more memory is taken than they could fill."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from os import PathLike
from typing import Any, BinaryIO

import torch
from torch import Tensor

from snn_lowlat.errors import FileFormatError
from snn_lowlat.files import atomic_write, open_regular

__all__ = ["read_tensors", "write_tensors"]

_DEEPEST = 100
_MOST_VALUES = 1_000_000
# Tensors may share what is stored, as tied weights do; a file that says much more than it holds is none of ours.
_MOST_SHARED = 100

_PLAIN = (str, int, float, bool, type(None))
_GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")


def write_tensors(contents: object, path: str | PathLike[str]) -> None:
    """Write what ``torch.save`` takes to a file, which appears whole or not at all; see ``files.atomic_write``."""
    # torch's own writer says nothing of use about a full disk.
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_tensors(path: str | PathLike[str], kind: str, *, plain: bool = False) -> Any:
    """Read what ``torch.save`` has written: tensors and plain values in dicts, lists and tuples.

    Parameters
    ----------
    path : path
        The file; ``~`` stands for the home folder.
    kind : str
        What it should be, for the error, as in "a saved network".
    plain : bool
        Take nothing but tensors, numbers, strings, dicts, lists and tuples, in torch's present format. Otherwise
        whatever ``torch.load`` takes for data.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is a folder, a pipe or a device; damaged or something else; nested too deeply, or in itself; or its
        tensors are larger than the file could be.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            if plain or zipfile.is_zipfile(file):
                _check_archive(file, size, plain)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
            _check_values(content, size, plain)
        # A damaged file can fail in any way.
        except Exception as error:
            raise FileFormatError(
                f"{path} is damaged, something else than {kind}, or holds more than tensors and plain values: "
                f"{_reason(error)}"
            ) from error
    return content


def _check_archive(file: BinaryIO, size: int, plain: bool) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which torch's files are not")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("it declares more than it holds")
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")] if plain else []
        for entry in pickles:
            for code, argument, _ in pickletools.genops(archive.read(entry)):
                if code.name in ("GLOBAL", "STACK_GLOBAL") and not _GLOBALS.fullmatch(str(argument)):
                    raise ValueError(f"it names {argument!r}, which is neither a tensor nor a plain value")


def _check_values(content: Any, size: int, plain: bool) -> None:
    waiting, count, held = [(content, 0)], 0, 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_VALUES:
            raise ValueError("its values are nested too deeply, or are too many")
        if isinstance(value, Mapping):
            waiting += [(entry, depth + 1) for pair in value.items() for entry in pair]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(entry, depth + 1) for entry in value]
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                raise ValueError(
                    f"it holds a tensor of layout {value.layout} on {value.device}, only dense ones are read"
                )
            held += value.numel() * value.element_size()
            if held > _MOST_SHARED * size:
                raise ValueError(f"its tensors are larger than the file: one is of shape {tuple(value.shape)}")
        elif plain and type(value) not in _PLAIN:
            raise ValueError(f"it holds a {type(value).__name__}, which is neither a tensor nor a plain value")


def _reason(error: Exception) -> str:
    text = str(error).strip()
    # What else torch says of files that it refuses is how to run the code in them.
    refused = re.search(r"GLOBAL ([\w.]+)", text)
    if refused:
        return f"it names {refused[1]}, which is code"
    cause = re.search(r"WeightsUnpickler error: (.*)", text)
    return cause[1] if cause else text.splitlines()[0] if text else type(error).__name__
