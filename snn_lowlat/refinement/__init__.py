"""Corrections made by running the spiking network beside the original one; any of them can follow any strategy."""

from snn_lowlat.refinement.base import Refinement
from snn_lowlat.refinement.bias_correction import BiasCorrection
from snn_lowlat.refinement.channel_thresholds import ChannelThresholds
from snn_lowlat.refinement.registry import make_refinement, refinements, register_refinement

__all__ = ["BiasCorrection", "ChannelThresholds", "Refinement", "make_refinement", "refinements", "register_refinement"]
