"""Integer-only networks, "int8": rewritten so, read from their numbers, and computed by kernels for eight bits."""

from __future__ import annotations

from snn_lowlat.int8.kernels import IntegerConvolution, has_integer_kernels, use_integer_kernels
from snn_lowlat.int8.reading import LEVELS, WholeNumbers, whole_numbers
from snn_lowlat.int8.rewriting import original_of, to_integers, with_rounded_weights

__all__ = [
    "LEVELS",
    "IntegerConvolution",
    "WholeNumbers",
    "has_integer_kernels",
    "original_of",
    "to_integers",
    "use_integer_kernels",
    "whole_numbers",
    "with_rounded_weights",
]
