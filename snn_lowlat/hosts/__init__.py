"""From a network in normal form and its plan to a network of a host library."""

from snn_lowlat.hosts.base import BACKENDS, Backend, get_backend, register_host

__all__ = ["BACKENDS", "Backend", "get_backend", "register_host"]
