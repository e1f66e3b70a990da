"""Files that are whole or not there, and files that are files."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from snn_lowlat.errors import FileFormatError

try:
    import fcntl
except ImportError:  # Windows; what a killed process left there stays.
    fcntl = None  # type: ignore[assignment]

__all__ = ["MOST_STEPS", "MOST_VALUES", "atomic_write", "open_regular"]

MOST_STEPS = 10**6
"""The longest window that a file may ask for, far beyond any that is of use."""

MOST_VALUES = 2**28
"""The most values that one layer of a network in a file may put out for one image."""

_PREFIX = ".snn_lowlat-"
_TEMPORARY = re.compile(re.escape(_PREFIX) + r".*-[a-z0-9_]{8}(\.[^.]*)?")


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and move it there once the writing has succeeded.

    A reader sees the old file or the new one, never half of it. Folders that are missing are made. What processes that
    were killed while they wrote have left in the folder is removed.

    Parameters
    ----------
    path : path
        The file to write; replaced if it exists.

    Raises
    ------
    ValueError
        If the path is empty.
    IsADirectoryError
        If it is a folder.
    OSError
        If it can't be written, as on a full disk; what was there before is unchanged.
    """
    target = Path(path).expanduser()
    if not os.fspath(path) or not target.name:
        raise ValueError(f"{os.fspath(path)!r} names no file: give the path of the file to write.")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the path of a file, such as {target / 'name'}.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        handle, temporary = _temporary(target)
    except OSError as error:
        raise _not_written(target, error) from error
    try:
        yield temporary
        # A temporary file is private; the result is as readable as any file the user writes.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text that is whole or not there; see :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; anything else of that name, from which reading might never end, is refused.

    Parameters
    ----------
    path : path
        The file; ``~`` stands for the home folder.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is a folder, a pipe or a device.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise FileFormatError(f"{file} is a folder, not a file.")
    # Without this flag, opening a pipe waits for somebody who writes to it.
    handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileFormatError(f"{file} is a pipe or a device, not a file.")
    return os.fdopen(handle, "rb")


def _not_written(target: Path, error: OSError) -> OSError:
    before = "the file that was there is unchanged" if target.exists() else "nothing was left behind"
    message = f"{target} could not be written, {before}: {error.strerror or error}"
    return OSError(message) if error.errno is None else OSError(error.errno, message)


def _temporary(target: Path) -> tuple[int, Path]:
    """Make a temporary file, held by a lock that ends with this process, however it ends."""
    prefix = f"{_PREFIX}{target.stem[:100]}-"
    while True:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=target.suffix[:100])
        # Until it is locked, it looks abandoned to others.
        if _locked(handle, wait=True) is not False and _is_at(handle, name):
            return handle, Path(name)
        os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    for name in os.listdir(folder):
        if not _TEMPORARY.fullmatch(name):
            continue
        file = folder / name
        with suppress(OSError):
            handle = os.open(file, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW) if fcntl else -1
            if handle >= 0:
                try:
                    regular = stat.S_ISREG(os.fstat(handle).st_mode)
                    if regular and _locked(handle, wait=False) and _is_at(handle, file):
                        file.unlink()
                finally:
                    os.close(handle)


def _locked(handle: int, *, wait: bool) -> bool | None:
    """Lock an open file; False if another process holds it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(handle: int, path: str | Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
