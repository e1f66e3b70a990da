"""Going on with a training that was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning import LightningModule

from snn_lowlat.errors import FileFormatError
from snn_lowlat.models import load_weights
from snn_lowlat.tensor_files import read_tensors

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


def check_checkpoint(file: Path, classifier: LightningModule) -> None:
    """Check that a checkpoint is one of the same network and the same training.

    Parameters
    ----------
    file : Path
        A checkpoint that Lightning wrote. It is read as data, never as code.
    classifier : LightningModule
        Its options are ``hparams``; the network, if it is held as ``model``, gets the checkpoint's weights.

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
    begun = content.get("hyper_parameters")
    begun = begun if isinstance(begun, Mapping) else {}
    changed = [
        f"{name} was {begun.get(name)!r}, not {value!r}"
        for name, value in classifier.hparams.items()
        if begun.get(name) != value
    ]
    if changed:
        raise FileFormatError(f"the training in {file} was begun with other options: {'; '.join(changed)}.")
