"""The former place of :mod:`snn_lowlat.hosts.watch`."""

import sys

from snn_lowlat.hosts import watch

sys.modules[__name__] = watch
