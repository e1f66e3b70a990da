"""The command itself: what it is given, what it answers where a run fails, and its exit status.

The status is 0 where all runs have come to their end, 1 where one has failed, and 130 or 143 where the process was told
to stop by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig
from rich.console import Console

from snn_lowlat.cli.building import ConfigError
from snn_lowlat.cli.choices import CONFIG_FOLDER, store_choices
from snn_lowlat.cli.hints import hint, null_group, without_effect
from snn_lowlat.cli.interruptions import Interrupted, interruptible
from snn_lowlat.cli.limits import is_full_disk
from snn_lowlat.cli.pipeline import run
from snn_lowlat.cli.schema import check_sweep
from snn_lowlat.cli.training import is_first
from snn_lowlat.errors import SnnLowlatError

__all__ = ["command_line", "main"]

logger = logging.getLogger("snn_lowlat.run")


@hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
def main(config: DictConfig) -> float:
    """Run what the command line asks for; return the main strategy's accuracy after T steps, for sweepers.

    Choose among many settings by validation accuracy: ``objective=validation``.
    """
    for name in ("lightning.pytorch", "lightning.fabric", *([] if is_first() else ["snn_lowlat"])):
        logging.getLogger(name).setLevel(logging.WARNING)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if is_first():
        for sentence in without_effect(config, list(HydraConfig.get().overrides.task)):
            logger.warning(sentence)
    try:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            check_sweep(config)
        with interruptible():
            return run(config, folder)
    # Hydra prints errors of its own kind without a traceback; HYDRA_FULL_ERROR=1 shows it.
    except ConfigError:
        raise
    except (SnnLowlatError, FileNotFoundError) as error:
        raise CompactHydraException(str(error)) from error
    except (OSError, RuntimeError) as error:
        if is_full_disk(error):
            raise CompactHydraException(
                f"the disk that {folder} is on is full, or a file may not be larger ({error}): make room and start the "
                "same command again, or choose another folder with hydra.run.dir=DIR. What was finished before is kept."
            ) from error
        if isinstance(error, PermissionError):
            raise CompactHydraException(f"{error.filename or folder}: {error.strerror}.") from error
        raise
    except (Interrupted, SIGTERMException) as error:
        interrupted = error if isinstance(error, Interrupted) else Interrupted(signal.SIGTERM)
        interrupted.message = _kept(folder)
        raise interrupted from None


def command_line() -> None:
    """Run :func:`main`; where Hydra refuses a name that does not exist, add which there are."""
    store_choices()
    # Hydra would have a plus where there is no choice by default.
    sys.argv[1:] = [f"+{each}" if each.startswith("experiment=") else each for each in sys.argv[1:]]
    problem = null_group(sys.argv[1:])
    if problem is not None:
        _say(problem)
        raise SystemExit(1)
    try:
        with interruptible():
            main()
    except Interrupted as interrupted:
        if not is_first():
            # Lightning kills the first process, which has yet to say what is kept, where another one fails.
            raise SystemExit(0) from None
        _say(f"Stopped by {interrupted.name}. {interrupted.message}".strip())
        raise SystemExit(interrupted.status) from None
    except SystemExit as end:
        sentence = hint(sys.argv[1:]) if end.code else None
        if sentence is not None:
            _say(sentence)
        raise


def _say(sentence: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(sentence)


def _kept(folder: Path) -> str:
    """Say what an interrupted run leaves, and how it goes on."""
    places = ("checkpoints/last.ckpt", "fine_tuning/checkpoints/last.ckpt")
    checkpoints = [place for place in places if (folder / place).exists()]
    parts = [f"the training up to its last whole epoch ({place})" for place in checkpoints[-1:]]
    parts += [f"the {what} ({name})" for name, what in _RESULTS.items() if (folder / name).exists()]
    kept = f"Kept in {folder}: {', '.join(parts)}." if parts else f"The run in {folder} had finished nothing yet."
    key, place = "hydra.run.dir", folder
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        key, place = "hydra.sweep.dir", Path(HydraConfig.get().sweep.dir).absolute()
    options = f"{key}={place}" + (" 'resume=${folder}'" if checkpoints else "")
    rest = " with this run; those that are finished are not done again" if key == "hydra.sweep.dir" else ""
    return f"{kept} The same command with {options} goes on{rest}."


_RESULTS = {"ann.pt": "trained network", "snn.pt": "spiking network", "results.csv": "results so far"}
