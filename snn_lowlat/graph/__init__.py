"""From a network as people write it to the normal form: traced, folded, its activation sites found."""

from snn_lowlat.graph.check import ConvertibilityReport, check_convertible
from snn_lowlat.graph.normal_form import normalise
from snn_lowlat.graph.obstacles import Obstacle
from snn_lowlat.graph.sites import Site, bias_carrier, depth, find_sites, output_bias_carrier

__all__ = [
    "ConvertibilityReport",
    "Obstacle",
    "Site",
    "bias_carrier",
    "check_convertible",
    "depth",
    "find_sites",
    "normalise",
    "output_bias_carrier",
]
