"""What stands in the way of a conversion, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snn_lowlat.errors import ConversionError

__all__ = ["Obstacle", "conversion_error"]


@dataclass(frozen=True)
class Obstacle:
    """One operation that can't become part of a spiking network.

    Attributes
    ----------
    node : str
        The node's name in the traced graph.
    operation : str
        What it does, with the module's path.
    advice : str
        Why it can't be converted and what to do about it.
    """

    node: str
    operation: str
    advice: str

    def __str__(self) -> str:
        return f"node {self.node!r}, {self.operation}: {self.advice}."


def conversion_error(obstacles: Sequence[Obstacle]) -> ConversionError:
    """Build the one error that lists every obstacle."""
    count = f"{len(obstacles)} obstacle{'s' if len(obstacles) != 1 else ''}"
    lines = "".join(f"\n  - {obstacle}" for obstacle in obstacles)
    return ConversionError(
        f"this network can't be converted, there {'is' if len(obstacles) == 1 else 'are'} {count}:{lines}", obstacles
    )
