"""Training networks before and after they are converted: activations made for conversion, and Lightning modules."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from snn_lowlat.training.activations import ACTIVATIONS, Activation, CeilingReLU, ValueRangeReLU, make_activation
from snn_lowlat.training.replacement import replace_activations

if TYPE_CHECKING:
    from snn_lowlat.training.classifier import Classifier
    from snn_lowlat.training.fine_tuning import FineTuning
    from snn_lowlat.training.rounding import RoundLater

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "CeilingReLU",
    "Classifier",
    "FineTuning",
    "RoundLater",
    "ValueRangeReLU",
    "make_activation",
    "replace_activations",
]


_LIGHTNING_MODULES = {"Classifier": "classifier", "FineTuning": "fine_tuning", "RoundLater": "rounding"}


def __getattr__(name: str) -> Any:
    # Whoever only converts networks need not wait for Lightning to be imported.
    if name in _LIGHTNING_MODULES:
        return getattr(import_module(f"{__name__}.{_LIGHTNING_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
