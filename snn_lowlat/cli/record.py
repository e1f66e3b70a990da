"""The notes in a run's folder: of which config its files are, whether the run came to its end, and who works there."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # only Unix has it
    fcntl = None  # type: ignore[assignment]

from omegaconf import DictConfig, OmegaConf

from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.evaluation.leaderboard import RUN_FILE, read_note
from snn_lowlat.files import write_text
from snn_lowlat.provenance import current_versions

__all__ = ["RunRecord", "alone_in"]

_LOCK = "run.lock"


class RunRecord:
    """The note for one config and the versions that are installed.

    Parameters
    ----------
    config : DictConfig
        The run's whole config, checked.
    folder : Path
        The run's folder.
    """

    def __init__(self, config: DictConfig, folder: Path) -> None:
        if config.get("resume") is not None and Path(config.resume).expanduser().resolve() == folder.resolve():
            # A training that goes on in its own folder is the one that was begun there.
            config = config.copy()
            config.resume = None
        text = OmegaConf.to_yaml(config, resolve=True, sort_keys=True) + json.dumps(current_versions(), sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        self._folder = folder

    def returned(self) -> float | None:
        """Return what a finished run of this config returned; None if the folder holds none."""
        note = read_note(self._folder)
        if note.get("run") != self._digest or not note.get("finished"):
            return None
        return math.nan if note.get("returned") is None else float(note["returned"])

    def begin(self) -> None:
        """Note that the run has begun."""
        self._write({"run": self._digest, "finished": False})

    def finish(self, returned: float) -> None:
        """Note that the run has come to its end, and what it returns."""
        self._write({"run": self._digest, "finished": True, "returned": None if math.isnan(returned) else returned})

    def _write(self, note: dict[str, Any]) -> None:
        write_text(self._folder / RUN_FILE, json.dumps(note))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder. The system lets go of it when the process ends, however it ends.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Raises
    ------
    SnnLowlatError
        If another process works there; the message names it.
    """
    if fcntl is None:
        yield
        return
    place = folder / _LOCK
    while True:
        file = place.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                # A file system that has no locks.
                break
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise SnnLowlatError(
                f"another run works in {folder}, process {owner}: wait until it has ended or stop it, or choose "
                "another folder with hydra.run.dir=DIR (hydra.sweep.dir=DIR for --multirun)."
            ) from None
        # The run that had it before may have removed the file since it was opened.
        if place.exists() and os.path.samestat(os.fstat(file.fileno()), place.stat()):
            break
        file.close()
    try:
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
    finally:
        place.unlink(missing_ok=True)
        file.close()
