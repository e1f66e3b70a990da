"""Runs of the command line's functions in a test: configurations, what makes them fast, and whole commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from snn_lowlat.cli.choices import CONFIG_FOLDER

FAST = ("threads=1", "trainer.max_epochs=1", "model.width=4", "trainer.accelerator=cpu", "device=cpu")
"""One epoch of a small network on one thread."""


def composed(*overrides: str) -> DictConfig:
    """Return the configuration that a command with these overrides gets."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in a folder, with this package in front of an installed one."""
    package = str(Path(__file__).resolve().parents[1])
    code = f"import sys; sys.path.insert(0, {package!r}); from snn_lowlat.run import command_line; command_line()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
