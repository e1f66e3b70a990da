"""The former place of :mod:`snn_lowlat.activations`, which pickled networks still name."""

from snn_lowlat.activations import *  # noqa: F403
