"""The former place of :mod:`snn_lowlat.nir`."""

import sys

from snn_lowlat import nir

sys.modules[__name__] = nir
