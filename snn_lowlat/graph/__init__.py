"""From a network as people write it to the normal form: traced, folded, its activation sites found."""

from snn_lowlat.graph.channels import channel_dimensions
from snn_lowlat.graph.check import ConvertibilityReport, check_convertible
from snn_lowlat.graph.description import describe, fill, rebuild, with_safe_names
from snn_lowlat.graph.max_pools import with_per_step_max_pools
from snn_lowlat.graph.normal_form import normalise, try_normalise
from snn_lowlat.graph.obstacles import Obstacle
from snn_lowlat.graph.passes import without_ceilings
from snn_lowlat.graph.sites import (
    BATCH_NORMS,
    WEIGHTED,
    Site,
    bias_carrier,
    current_shapes,
    depth,
    find_sites,
    is_sum_for_one_reader,
    output_bias_carrier,
)
from snn_lowlat.graph.walk import Schedule, Walk

__all__ = [
    "BATCH_NORMS",
    "WEIGHTED",
    "ConvertibilityReport",
    "Obstacle",
    "Schedule",
    "Site",
    "Walk",
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
    "output_bias_carrier",
    "rebuild",
    "try_normalise",
    "with_per_step_max_pools",
    "with_safe_names",
    "without_ceilings",
]
