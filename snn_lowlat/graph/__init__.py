"""From a network as people write it to the normal form: traced, folded, its activation sites found."""

from snn_lowlat.graph.channels import channel_dimensions
from snn_lowlat.graph.check import ConvertibilityReport, check_convertible
from snn_lowlat.graph.description import describe, fill, rebuild
from snn_lowlat.graph.integers import original_of, to_integers, with_rounded_weights
from snn_lowlat.graph.normal_form import normalise, try_normalise
from snn_lowlat.graph.obstacles import Obstacle
from snn_lowlat.graph.passes import without_ceilings
from snn_lowlat.graph.sites import (
    BATCH_NORMS,
    MAX_POOLS,
    WEIGHTED,
    Site,
    bias_carrier,
    current_shapes,
    depth,
    find_sites,
    is_sum_for_one_reader,
    output_bias_carrier,
)

__all__ = [
    "BATCH_NORMS",
    "MAX_POOLS",
    "WEIGHTED",
    "ConvertibilityReport",
    "Obstacle",
    "Site",
    "bias_carrier",
    "channel_dimensions",
    "check_convertible",
    "current_shapes",
    "depth",
    "describe",
    "fill",
    "find_sites",
    "is_sum_for_one_reader",
    "normalise",
    "original_of",
    "output_bias_carrier",
    "rebuild",
    "to_integers",
    "try_normalise",
    "with_rounded_weights",
    "without_ceilings",
]
