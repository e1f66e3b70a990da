"""The note in a run's folder that says of which config its files are, and whether the run came to its end."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from snn_lowlat.files import whole_file
from snn_lowlat.model import current_versions

__all__ = ["RunRecord", "is_unfinished"]

_FILE = "run.json"


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
        text = OmegaConf.to_yaml(config, resolve=True, sort_keys=True) + json.dumps(current_versions(), sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        self._folder = folder

    def returned(self) -> float | None:
        """Return what a finished run of this config returned; None if the folder holds none."""
        note = _read(self._folder)
        if note.get("run") != self._digest or not note.get("finished"):
            return None
        return math.nan if note["returned"] is None else float(note["returned"])

    def begin(self) -> None:
        """Note that the run has begun."""
        self._write({"run": self._digest, "finished": False})

    def finish(self, returned: float) -> None:
        """Note that the run has come to its end, and what it returns."""
        self._write({"run": self._digest, "finished": True, "returned": None if math.isnan(returned) else returned})

    def _write(self, note: dict[str, Any]) -> None:
        with whole_file(self._folder / _FILE) as temporary:
            temporary.write_text(json.dumps(note), encoding="utf-8")


def is_unfinished(folder: Path) -> bool:
    """Say whether a folder holds the files of a run that has begun and not come to its end."""
    return not _read(folder).get("finished", True)


def _read(folder: Path) -> dict[str, Any]:
    try:
        note: dict[str, Any] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return note
