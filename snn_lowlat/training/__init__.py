"""Training networks with Lightning, before they are converted."""

from __future__ import annotations

from snn_lowlat.training.activations import CeilingReLU
from snn_lowlat.training.classifier import Classifier

__all__ = ["CeilingReLU", "Classifier"]
