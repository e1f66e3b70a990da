"""The names of the config that others import; the config itself is in :mod:`snn_lowlat.cli.schema`."""

from __future__ import annotations

from snn_lowlat.cli.schema import CONFIG_FOLDER, Config, ConfigError, build, checked

__all__ = ["CONFIG_FOLDER", "Config", "ConfigError", "build", "checked"]
