"""The former place of :mod:`snn_lowlat.hosts.snntorch`."""

import sys

from snn_lowlat.hosts import snntorch

sys.modules[__name__] = snntorch
