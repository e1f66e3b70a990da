"""The former place of :mod:`snn_lowlat.hosts.spikingjelly`, and of the recipes in :mod:`snn_lowlat.spikingjelly`."""

from typing import Any

from snn_lowlat import spikingjelly as recipes
from snn_lowlat.hosts import spikingjelly as host


def __getattr__(name: str) -> Any:
    return getattr(host if hasattr(host, name) else recipes, name)
