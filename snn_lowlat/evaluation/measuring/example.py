"""What one image makes a network do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Example"]


@dataclass(frozen=True)
class Example:
    """What one image makes a network do, for a raster plot.

    Parameters
    ----------
    inputs : tuple of tuple of float
        The input of some pixels, evenly chosen, in each step; in one step only where it is constant.
    rasters : mapping of str to tuple of str
        The spikes of some neurons of the first and of the last layer, evenly chosen: a text for each neuron, a ``1`` or
        ``0`` for each step.
    outputs : tuple of tuple of float
        The readout of each class after each step, or of some of the values where they are no classes.
    classes : bool
        Whether they are classes, and all of them.
    """

    inputs: tuple[tuple[float, ...], ...]
    rasters: Mapping[str, tuple[str, ...]]
    outputs: tuple[tuple[float, ...], ...]
    classes: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        rasters = {name: list(rows) for name, rows in self.rasters.items()}
        return {
            "inputs": list(map(list, self.inputs)),
            "rasters": rasters,
            "outputs": list(map(list, self.outputs)),
            "classes": self.classes,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Example:
        """Read back what :meth:`to_dict` returned."""
        rasters = {name: tuple(rows) for name, rows in values["rasters"].items()}
        return cls(
            tuple(map(tuple, values["inputs"])),
            rasters,
            tuple(map(tuple, values["outputs"])),
            values.get("classes", True),
        )
