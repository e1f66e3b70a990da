"""What is timed, and who does it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from snn_lowlat.benchmark.contestants import SIMULATION, Contestant
from snn_lowlat.benchmark.fine_tuning import FINE_TUNING

__all__ = ["TASKS", "Task"]


@dataclass(frozen=True)
class Task:
    """Something that contestants do with a batch of images.

    Parameters
    ----------
    title : str
        What it is called in tables and figures.
    contestants : mapping of str to Contestant
        Who does it, by name, in the order in which they take turns.
    has_gradients : bool
        Whether it needs gradients.
    """

    title: str
    contestants: Mapping[str, Contestant]
    has_gradients: bool = False

    def context(self) -> AbstractContextManager[object]:
        """Return the context in which contestants run: with gradients, or in inference mode."""
        return torch.enable_grad() if self.has_gradients else torch.inference_mode()


def _by_name(contestants: tuple[Contestant, ...]) -> dict[str, Contestant]:
    return {contestant.name: contestant for contestant in contestants}


TASKS = {
    "simulation": Task("a batch", _by_name(SIMULATION)),
    "fine_tuning": Task("a batch of fine-tuning", _by_name(FINE_TUNING), has_gradients=True),
}
"""By the name that ``benchmark.task`` has in a config."""
