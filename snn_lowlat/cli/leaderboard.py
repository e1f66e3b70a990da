"""Hydra's callback that compares the runs of a ``--multirun``."""

from __future__ import annotations

import atexit
import json
import logging
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from snn_lowlat.evaluation.leaderboard import ERROR_FILE, JOB_FILE, write_leaderboard
from snn_lowlat.files import write_text

__all__ = ["LeaderboardCallback"]

_LOGGER = logging.getLogger("snn_lowlat.evaluation.leaderboard")


class LeaderboardCallback(Callback):  # type: ignore[misc]
    """Hydra's callback: notes what each run is and why it failed, and compares all runs at the end of the sweep.

    Hydra does not come to the end of a sweep in which a run failed; the comparison is then written when the process
    that started the sweep ends.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember where the sweep is."""
        self._folder = Path(config.hydra.sweep.dir).absolute()
        atexit.register(self._compare)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note what the command line said for a run. Hydra's own note may be empty if the process is killed."""
        if config.hydra.mode == RunMode.MULTIRUN:
            note = {"overrides": [str(override) for override in config.hydra.overrides.task]}
            write_text(Path(config.hydra.runtime.output_dir) / JOB_FILE, json.dumps(note))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note why a run failed, or that it no longer does."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        path = Path(config.hydra.runtime.output_dir) / ERROR_FILE
        if job_return.status == JobStatus.FAILED:
            error = job_return._return_value
            write_text(path, f"{type(error).__name__}: {error}\n")
        else:
            path.unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the runs."""
        self._compare()

    def _compare(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None and write_leaderboard(folder):
            _LOGGER.info("The runs are compared in %s", folder / "leaderboard.md")
