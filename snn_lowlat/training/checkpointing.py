"""Checkpoints of trainings that are whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from snn_lowlat.tensor_files import write_tensors

__all__ = ["WholeCheckpoints"]


class WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints beside the old ones and then put them in their place: ``Trainer(plugins=WholeCheckpoints())``.

    Lightning itself writes into the folder for temporary files; where that is on another disk, what it then does is to
    copy, and a process that is killed meanwhile leaves neither the old checkpoint nor the new one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; see ``lightning.fabric.plugins.CheckpointIO``."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_tensors(checkpoint, path)
