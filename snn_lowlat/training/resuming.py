"""What a training says of itself in its checkpoints, and what is no longer so where it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning import Trainer

__all__ = ["TRAINER_KEY", "changes", "trainer_options"]

TRAINER_KEY = "snn_lowlat.trainer"
"""Where a checkpoint holds the trainer's options."""


def trainer_options(trainer: Trainer) -> dict[str, Any]:
    """Return those of a trainer's options that decide what a step of training is."""
    return {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "devices": trainer.world_size,
    }


def changes(begun: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say which options are no longer what they were."""
    return [
        f"{prefix}{name} was {begun.get(name)!r}, not {value!r}"
        for name, value in now.items()
        if (name in begun or not prefix) and begun.get(name) != value
    ]
