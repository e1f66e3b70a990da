"""Reading NIR files: what a file may hold is checked before any of it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nir

from snn_lowlat.errors import FileFormatError
from snn_lowlat.files import open_regular

__all__ = ["read_graph"]

_DEEPEST = 10
_MOST_OBJECTS = 100_000
# zlib makes nothing smaller than this; what claims to be is not stored at all.
_MOST_COMPRESSED = 1100
_BUILT_IN_FILTERS = {1, 2, 3, 4, 5, 6, 32000}


def read_graph(path: Path) -> Any:
    """Read a NIR graph; only what the file itself holds.

    HDF5 files can name other files, to link to or to take data from, and declare sizes that they do not hold. Such
    files are refused.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    nir.NIRGraph
        The graph, whose types are not checked.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it holds no NIR graph, a damaged one, or one that is not all in it.
    """
    with open_regular(path) as regular:
        size = regular.seek(0, 2)
    try:
        with h5py.File(path, "r") as file:
            _check(file, size)
            content = nir.serialization.hdf2dict(file["node"])
        content["nodes"] = dict(_flat(content["nodes"]))
    # A damaged file can fail in any way.
    except Exception as error:
        raise _unreadable(path, error) from error
    for name, node in content["nodes"].items():
        try:
            nir.dict2NIRNode(dict(node))
        except Exception as error:
            kind = node.get("type", "unknown")
            raise _unreadable(path, error, f"node {name!r} of type {kind!r}: ") from error
    try:
        return nir.dict2NIRNode({**content, "type_check": False})
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception, where: str = "") -> FileFormatError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return FileFormatError(f"{path} can't be read as a NIR graph, it is damaged or something else: {where}{reason}")


def _flat(nodes: dict[str, Any], prefix: str = "") -> Any:
    """Yield nodes by their names: HDF5 takes a slash in a name for a group."""
    for name, node in nodes.items():
        if not isinstance(node, dict):
            raise ValueError(f"{prefix}{name} is no node")
        if "type" not in node:
            yield from _flat(node, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", node


def _check(file: Any, size: int) -> None:
    """Check that a file holds all that it shows, and shows no more than it can hold."""
    waiting, count, declared = [(file, 0)], 0, 0
    while waiting:
        item, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_OBJECTS:
            raise ValueError("its groups are nested too deeply, or are too many")
        if isinstance(item, h5py.Group):
            for name in item:
                link = item.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise ValueError(f"{item.name}/{name} is a link to {getattr(link, 'filename', link.path)!r}")
                waiting.append((item[name], depth + 1))
        elif isinstance(item, h5py.Dataset):
            _check_storage(item)
            declared += item.nbytes if item.size else 0
            if declared > _MOST_COMPRESSED * size:
                raise ValueError(f"{item.name} of shape {item.shape} is larger than the file")
        else:
            raise ValueError(f"{item.name} is neither a group nor an array")


def _check_storage(item: Any) -> None:
    stored = item.id.get_create_plist()
    if stored.get_external_count() or stored.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(f"{item.name} takes its values from other files")
    filters = {stored.get_filter(index)[0] for index in range(stored.get_nfilters())}
    text = h5py.check_string_dtype(item.dtype) is not None
    if not (text or item.dtype.kind in "biuf") or filters - _BUILT_IN_FILTERS:
        raise ValueError(f"{item.name} holds neither numbers nor text")
    if text and item.size and item.id.get_storage_size() < item.size:
        raise ValueError(f"{item.name} declares more text than it holds")
