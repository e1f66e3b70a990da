"""Going on with a training that was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer

from snn_lowlat.errors import FileFormatError
from snn_lowlat.models import load_weights
from snn_lowlat.tensor_files import read_tensors
from snn_lowlat.training.resuming import TRAINER_KEY, changes, trainer_options

__all__ = ["check_checkpoint", "find_checkpoint"]


def find_checkpoint(place: str | Path, folder: str | Path) -> Path | None:
    """Return the checkpoint at which a training goes on; None where it is still to begin.

    Parameters
    ----------
    place : path
        A checkpoint, or the folder of a run, which holds ``checkpoints/last.ckpt``; ``~`` stands for the home folder.
    folder : path
        The folder of the run that asks. If it is ``place`` and holds no checkpoint yet, the training begins, so that
        one command can be repeated until the training is done.

    Raises
    ------
    FileNotFoundError
        If there is no checkpoint.
    """
    place = Path(place).expanduser().resolve()
    file = place / "checkpoints" / "last.ckpt" if place.is_dir() else place
    if file.is_file():
        return file
    if place == Path(folder).expanduser().resolve():
        return None
    raise FileNotFoundError(f"there is no checkpoint {file}; name a run's folder, or a checkpoint.")


def check_checkpoint(file: Path, classifier: LightningModule, data: LightningDataModule, trainer: Trainer) -> None:
    """Check that a checkpoint is one of the same network, the same data and the same training.

    Parameters
    ----------
    file : Path
        A checkpoint that Lightning wrote. It is read as data, never as code.
    classifier : LightningModule
        Its options are ``hparams``; the network, if it is held as ``model``, gets the checkpoint's weights.
    data : LightningDataModule
        What its ``state_dict`` returns must be what it was: with another split, test images would have been trained on.
    trainer : Trainer
        It may be given more epochs than the training began with, but not fewer.

    Raises
    ------
    FileFormatError
        If the file is damaged or no checkpoint, or the network or an option is another.
    """
    network = getattr(classifier, "model", None)
    if isinstance(network, torch.nn.Module):
        load_weights(network, file)
    content = read_tensors(file, "a checkpoint")
    if not isinstance(content, dict) or "optimizer_states" not in content:
        raise FileFormatError(f"{file} holds weights but no state of a training; model.weights=PATH takes weights.")
    changed = changes(_mapping(content.get("hyper_parameters")), dict(classifier.hparams))
    # Checkpoints of older versions do not say these.
    if type(data).__qualname__ in content:
        changed += changes(_mapping(content[type(data).__qualname__]), data.state_dict(), "data.")
    elif _data_of(content):
        changed.append(f"data was {_data_of(content)}, not {type(data).__qualname__}")
    begun = dict(_mapping(content.get(TRAINER_KEY)))
    epochs, wanted = begun.pop("max_epochs", None), trainer.max_epochs
    changed += changes(begun, trainer_options(trainer), "trainer.")
    done = content.get("epoch", -1) + 1
    fewest = max(done, epochs or 0)
    if wanted is not None and 0 <= wanted < fewest:
        changed.append(f"max_epochs was {fewest}, not {wanted}, and a training can be made longer but not shorter")
    if changed:
        raise FileFormatError(f"the training in {file} was begun with other options: {'; '.join(changed)}.")


def _data_of(content: Mapping[str, Any]) -> str | None:
    """Return the name of the data module that a checkpoint's training read."""
    kept = {name: value for name, value in content.items() if isinstance(value, dict)}
    return next((name for name, value in kept.items() if "training_images" in value), None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
