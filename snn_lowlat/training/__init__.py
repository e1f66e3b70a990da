"""Training networks before they are converted: activations made for conversion, and a Lightning module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snn_lowlat.training.activations import ACTIVATIONS, Activation, CeilingReLU, ValueRangeReLU, make_activation
from snn_lowlat.training.replacement import replace_activations

if TYPE_CHECKING:
    from snn_lowlat.training.classifier import Classifier

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "CeilingReLU",
    "Classifier",
    "ValueRangeReLU",
    "make_activation",
    "replace_activations",
]


def __getattr__(name: str) -> Any:
    # Whoever only converts networks need not wait for Lightning to be imported.
    if name == "Classifier":
        from snn_lowlat.training.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
