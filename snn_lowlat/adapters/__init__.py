"""The former place of :mod:`snn_lowlat.hosts` and :mod:`snn_lowlat.nir`, for programs and pickles that name it."""

from snn_lowlat.hosts import *  # noqa: F403
