"""Asking whether a network can be converted, before converting it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from snn_lowlat.graph.normal_form import try_normalise
from snn_lowlat.graph.obstacles import Obstacle
from snn_lowlat.graph.sites import find_sites

__all__ = ["ConvertibilityReport", "check_convertible"]


@dataclass(frozen=True)
class ConvertibilityReport:
    """Which activations of a network become neurons, and what stands in the way.

    Attributes
    ----------
    sites : tuple of str
        The names of the activation sites, in order; empty where an obstacle hides them.
    obstacles : tuple of Obstacle
        Everything that can't be converted.
    """

    sites: tuple[str, ...]
    obstacles: tuple[Obstacle, ...]

    @property
    def convertible(self) -> bool:
        """Whether the network can be converted."""
        return not self.obstacles

    def __bool__(self) -> bool:
        return self.convertible

    def __str__(self) -> str:
        if self.convertible:
            return f"convertible, layers of neurons ({len(self.sites)}): {', '.join(self.sites)}"
        return f"not convertible, obstacles ({len(self.obstacles)}):" + "".join(f"\n  - {o}" for o in self.obstacles)


def check_convertible(model: nn.Module, example_input: Tensor) -> ConvertibilityReport:
    """Say what a conversion would do with a network, without data and without converting it.

    Parameters
    ----------
    model : Module
        The network; it is not changed.
    example_input : Tensor
        A batch for it, ``[N, ...]``.

    Returns
    -------
    ConvertibilityReport
        The activation sites, and every obstacle with its node and what to do about it.
    """
    graph, obstacles = try_normalise(model, example_input)
    sites = tuple(find_sites(graph)) if graph is not None and not obstacles else ()
    if not obstacles and not sites:
        obstacles = [Obstacle("output", "the whole network", "it has no ReLU: there is nothing to convert")]
    return ConvertibilityReport(sites, tuple(obstacles))
