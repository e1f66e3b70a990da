"""Training networks before and after they are converted: activations made for conversion, and Lightning modules."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from snn_lowlat.activations import (
    ACTIVATIONS,
    Activation,
    CeilingReLU,
    QuantisedReLU,
    ValueRangeReLU,
    make_activation,
)
from snn_lowlat.training.ceilings import fit_ceilings
from snn_lowlat.training.input_spikes import InputSpikes, expand_input
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
    "InputSpikes",
    "QuantisedReLU",
    "RoundLater",
    "ValueRangeReLU",
    "expand_input",
    "fit_ceilings",
    "make_activation",
    "replace_activations",
]

_LATER = {"Classifier": "classifier", "FineTuning": "fine_tuning", "RoundLater": "rounding"}


def __getattr__(name: str) -> Any:
    # Whoever only converts networks need not wait for Lightning to be imported.
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
