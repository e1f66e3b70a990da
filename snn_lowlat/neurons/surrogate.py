"""The former place of :mod:`snn_lowlat.kernels.surrogate`."""

import sys

from snn_lowlat.kernels import surrogate

sys.modules[__name__] = surrogate
