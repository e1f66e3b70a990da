"""The names of the config that others import; it is at home in :mod:`snn_lowlat.cli`."""

from __future__ import annotations

from snn_lowlat.cli.building import ConfigError, build
from snn_lowlat.cli.choices import CONFIG_FOLDER
from snn_lowlat.cli.schema import Config, checked

__all__ = ["CONFIG_FOLDER", "Config", "ConfigError", "build", "checked"]
