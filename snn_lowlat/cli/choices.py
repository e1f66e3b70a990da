"""What there is to choose from on the command line."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CONFIG_FOLDER"]

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_FOLDER = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The config: inside an installed package, or beside the package in its repository."""
