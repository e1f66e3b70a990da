"""The trainings of a run, with the config's trainer: of the original network, and of the converted one."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import distributed, nn

from snn_lowlat.cli.building import ConfigError, build, config_errors
from snn_lowlat.cli.interruptions import StopsAtOnce
from snn_lowlat.cli.parts import make_teacher
from snn_lowlat.cli.resuming import check_checkpoint, find_checkpoint
from snn_lowlat.data import ImageDataModule
from snn_lowlat.model import SpikingModel
from snn_lowlat.training import FineTuning
from snn_lowlat.training.checkpointing import WholeCheckpoints

__all__ = ["is_first", "train_further", "train_network"]

logger = logging.getLogger("snn_lowlat.run")


def train_network(config: DictConfig, network: nn.Module, data: ImageDataModule, folder: Path) -> bool:
    """Train the network in place; say whether this process is the one that goes on."""
    teacher = {"teacher": make_teacher(config, data)} if config.training.get("distillation") else {}
    classifier = build(config.training, "training", model=network, num_classes=data.num_classes, **teacher)
    if not isinstance(classifier, LightningModule):
        raise ConfigError(f"training._target_ must be a LightningModule, not {type(classifier).__name__}.")
    return _fit(config, classifier, data, folder)


def train_further(
    config: DictConfig, snn: SpikingModel, ann: nn.Module, data: ImageDataModule, folder: Path
) -> SpikingModel | None:
    """Train a converted network on; None in a process that only helped to train."""
    own = ("max_epochs", "start")
    options = OmegaConf.masked_copy(config.fine_tuning, [str(key) for key in config.fine_tuning if key not in own])
    teacher = {"teacher": ann} if config.fine_tuning.get("distillation") else {}
    known = {"snn": snn, "num_classes": data.num_classes, "timesteps": config.timesteps}
    tuning = build(options, "fine_tuning", **known, **teacher)
    if not isinstance(tuning, FineTuning):
        raise ConfigError(f"fine_tuning._target_ must be a FineTuning, not {type(tuning).__name__}.")
    # The same trainer as for the original network, for other epochs, and with the paths in its options moved.
    config = config.copy()
    config.trainer = OmegaConf.create(OmegaConf.to_yaml(config.trainer).replace(str(config.folder), str(folder)))
    config.trainer.max_epochs = config.fine_tuning.get("max_epochs", config.trainer.max_epochs)
    if config.resume is not None:
        place = Path(config.resume).expanduser()
        begun = place.is_dir() and (place / folder.name).is_dir()
        config.resume = str(place / folder.name) if begun else None
    return tuning.to_spiking_model() if _fit(config, tuning, data, folder) else None


def _fit(config: DictConfig, module: LightningModule, data: ImageDataModule, folder: Path) -> bool:
    """Train with the config's trainer; say whether this process is the one that goes on."""
    entries = config.trainer.get("callbacks") or {}
    callbacks = [build(entry, f"trainer.callbacks.{name}") for name, entry in entries.items() if entry is not None]
    # Lightning adds a checkpoint of its own where there is none.
    checkpoints = any(isinstance(callback, Checkpoint) for callback in callbacks)
    plugins = {} if "plugins" in config.trainer else {"plugins": [WholeCheckpoints()]}
    trainer: Trainer = build(
        config.trainer,
        "trainer",
        callbacks=[*callbacks, StopsAtOnce()],
        enable_checkpointing=checkpoints,
        default_root_dir=str(folder),
        **plugins,
    )
    checkpoint = None
    if config.resume is not None:
        with config_errors("resume"):
            checkpoint = find_checkpoint(config.resume, folder)
            if checkpoint is not None:
                check_checkpoint(checkpoint, module, data, trainer)
    with warnings.catch_warnings():
        # Advice on workers and logging intervals for large clusters.
        warnings.simplefilter("ignore", PossibleUserWarning)
        # Lightning's own use of torch.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # A resumed training writes into its own folder.
        warnings.filterwarnings("ignore", message=".*dirpath has changed.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        except MisconfigurationException as error:
            raise ConfigError(f"trainer: {error}") from error
    metrics = {name: f"{float(value):.4f}" for name, value in trainer.callback_metrics.items()}
    logger.info("Trained for %d epochs: %s", trainer.current_epoch, ", ".join(f"{k} {v}" for k, v in metrics.items()))
    if distributed.is_available() and distributed.is_initialized():
        # What follows is done by one process, which must not wait for the others.
        trainer.strategy.barrier()
        distributed.destroy_process_group()
    return trainer.is_global_zero


def is_first() -> bool:
    """Say whether this is the first of the processes that train together, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0
