"""The door to the command line: ``python -m snn_lowlat.run +experiment=quickstart``; see :mod:`snn_lowlat.cli`."""

from __future__ import annotations

from snn_lowlat.cli.main import command_line, main
from snn_lowlat.cli.pipeline import run

__all__ = ["command_line", "main", "run"]

if __name__ == "__main__":
    command_line()
