"""Where a converted network comes from: how it was made, of which network, with which versions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import fx

from snn_lowlat.registry import Registered

__all__ = ["Provenance", "current_versions", "signature"]


@dataclass(frozen=True)
class Provenance:
    """Where a converted network comes from: enough to rebuild it and to say how it was made.

    Attributes
    ----------
    strategy : str
        The strategy's name.
    options : dict
        The strategy's options.
    refinements : list of dict
        The refinements that followed, each with its ``name`` and options.
    input_shape : tuple of int
        The shape of one input image.
    signature : str
        A digest of the network's normal form, weights aside.
    versions : dict of str to str
        The versions of this package, the host libraries, torch and Python at the time of conversion.
    precision : str
        What it was converted to: ``"fp32"``, or ``"int8"`` for a network in whole numbers. What it is now says
        :attr:`SpikingModel.precision`.
    """

    strategy: str
    options: dict[str, Any]
    refinements: list[dict[str, Any]]
    input_shape: tuple[int, ...]
    signature: str
    versions: dict[str, str] = field(default_factory=dict)
    precision: str = "fp32"

    @classmethod
    def of(
        cls,
        graph: fx.GraphModule,
        strategy: Registered,
        refinements: Sequence[Registered],
        input_shape: tuple[int, ...],
        precision: str = "fp32",
    ) -> Provenance:
        """Describe a conversion that has just been made."""
        names = [{"name": refinement.name, **refinement.options()} for refinement in refinements]
        made = strategy.name, strategy.options(), names, input_shape, signature(graph), current_versions(), precision
        return cls(*made)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self) | {"input_shape": list(self.input_shape)}


def signature(graph: fx.GraphModule) -> str:
    """Digest what a network in normal form computes, weights aside: two networks with one signature share a plan."""
    shapes = {name: tuple(value.shape) for name, value in graph.state_dict().items()}
    lines = [f"{node.op} {node.name} {_target(node.target)} {node.args}" for node in graph.graph.nodes]
    return hashlib.sha256("\n".join([*lines, str(shapes)]).encode()).hexdigest()


def current_versions() -> dict[str, str]:
    """Return the versions of this package, the host libraries, torch and Python."""
    versions = {"python": platform.python_version()}
    for package in ("snn_lowlat", "torch", "spikingjelly", "snntorch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _target(target: object) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
