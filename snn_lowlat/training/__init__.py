"""Training networks with Lightning, before they are converted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snn_lowlat.training.activations import CeilingReLU

if TYPE_CHECKING:
    from snn_lowlat.training.classifier import Classifier

__all__ = ["CeilingReLU", "Classifier"]


def __getattr__(name: str) -> Any:
    # Whoever only converts networks need not wait for Lightning to be imported.
    if name == "Classifier":
        from snn_lowlat.training.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
