"""The Lightning data module that all data sets share."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from snn_lowlat import checks
from snn_lowlat.data.augmentation import crop_and_flip
from snn_lowlat.data.batches import ImageBatches, identity_collate
from snn_lowlat.data.sampling import EpochSampler, balanced_order, stratified_split
from snn_lowlat.data.sources import ImageSource
from snn_lowlat.errors import FileFormatError
from snn_lowlat.training.resuming import changes

__all__ = ["ImageDataModule"]

logger = logging.getLogger(__name__)

Loader = DataLoader[tuple[Tensor, Tensor]]


class ImageDataModule(LightningDataModule, ABC):
    """Labelled pictures in a training, a validation and a test split.

    Batches are ``(images, labels)``: float ``[N, C, H, W]`` and int64 ``[N]``. The validation split is held out of
    the training pictures, class by class, by the seed; calibration pictures come from what is left of them.
    Data are read when they are first needed, so a loader can be asked for without Lightning too.

    Parameters
    ----------
    normalise : bool
        Subtract the mean and divide by the standard deviation of each channel; if not, pixels are in ``[0, 1]``.
    mean, std : sequence of float, optional
        For each channel, or one for all, of pixels in ``[0, 1]``; the data set's own by default. A data set that has
        none is not normalised.
    batch_size : int
        Pictures in a batch.
    num_workers : int
        Processes that prepare batches; 0 prepares them in the main process.
    validation_fraction : float
        Share of the training pictures held out for validation, in ``[0, 1)``.
    seed : int
        For the splits, the order of training batches, their random changes and the choice of calibration pictures.
    limit_test : int, optional
        Use so many test pictures only, evenly of all classes.
    augment : bool
        Shift and mirror training pictures at random (never calibration, validation or test pictures).

    Attributes
    ----------
    name : str
        The data set's name in reports.
    """

    name: str
    default_mean: ClassVar[tuple[float, ...] | None] = None
    default_std: ClassVar[tuple[float, ...] | None] = None

    def __init__(
        self,
        *,
        normalise: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        validation_fraction: float = 0.1,
        seed: int = 0,
        limit_test: int | None = None,
        augment: bool = False,
    ) -> None:
        super().__init__()
        batch_size = checks.count("batch_size", batch_size)
        num_workers = checks.count("num_workers", num_workers, 0)
        validation_fraction = checks.share("validation_fraction", validation_fraction)
        seed = checks.seed("seed", seed)
        if limit_test is not None:
            limit_test = checks.count("limit_test", limit_test)
        if (mean is None) != (std is None):
            raise ValueError("mean and std belong together: give both or neither.")
        self.normalise = normalise
        self.mean = _numbers("mean", mean) if mean is not None else self.default_mean
        self.std = _numbers("std", std) if std is not None else self.default_std
        if self.std is not None:
            for value in self.std:
                checks.positive("each std", value)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.limit_test = limit_test
        self.augment = augment
        self._sources: dict[bool, ImageSource] = {}
        self._split: tuple[Tensor, Tensor] | None = None

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The classes' names; a label is an index of them."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one picture: channels, height, width."""

    @abstractmethod
    def read(self, train: bool) -> ImageSource:
        """Read the training pictures (validation included) or the test pictures."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def source(self, train: bool) -> ImageSource:
        """Return the training (validation included) or test pictures, read once.

        Raises
        ------
        ValueError
            If there are no pictures, their shape is not :attr:`input_shape`, or a label names no class.
        """
        if train not in self._sources:
            source = self.read(train)
            self._check(source, "training" if train else "test")
            self._sources[train] = source
        return self._sources[train]

    def state_dict(self) -> dict[str, Any]:
        """Return what decides which pictures are trained on and how, as plain values; checkpoints hold it."""
        labels = self.source(train=True).labels[self._training_indices()]
        content = hashlib.sha256(self._training_indices().numpy().tobytes() + labels.numpy().tobytes())
        return {
            "seed": self.seed,
            "validation_fraction": self.validation_fraction,
            "batch_size": self.batch_size,
            "augment": self.augment,
            "mean": list(self.mean) if self.normalise and self.mean is not None else None,
            "std": list(self.std) if self.normalise and self.std is not None else None,
            "training_images": len(labels),
            "training_labels": content.hexdigest(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a training goes on with the pictures that it began with.

        Raises
        ------
        FileFormatError
            If an option is another; the message names it.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        changed = changes(state_dict, self.state_dict(), "data.")
        if changed:
            raise FileFormatError(f"the training was begun with other data: {'; '.join(changed)}.")

    def setup(self, stage: str | None = None) -> None:
        """Read the pictures that a stage of Lightning needs."""
        if stage in ("fit", "validate", None):
            self.source(train=True)
        if stage in ("test", "predict", None):
            self.source(train=False)

    def train_dataloader(self) -> Loader:
        """Return the training pictures, shuffled by the seed anew in every epoch.

        Where several processes train, each gets its share of them.
        """
        return self._loader(self._training_indices(), shuffle=True, augment=self.augment)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return the validation pictures; an empty list where ``validation_fraction`` is 0."""
        indices = self._validation_indices()
        return self._loader(indices) if len(indices) else []

    def test_dataloader(self) -> Loader:
        """Return the test pictures, in their own order."""
        labels = self.source(train=False).labels
        indices = torch.arange(len(labels))
        if self.limit_test is not None and self.limit_test < len(labels):
            indices = balanced_order(labels, self.seed)[: self.limit_test].sort().values
        return self._loader(indices, train=False)

    def calibration_dataloader(self, images: int | None = None, batch_size: int | None = None) -> Loader:
        """Return pictures of the training split, without augmentation, evenly of all classes, the same for a seed.

        Parameters
        ----------
        images : int, optional
            How many; all of the training split by default, and if it has fewer.
        batch_size : int, optional
            Pictures in a batch; the data module's own by default.

        Raises
        ------
        ValueError
            If ``images`` or ``batch_size`` is less than 1.
        """
        if images is not None:
            images = checks.count("images", images)
        if batch_size is not None:
            batch_size = checks.count("batch_size", batch_size)
        indices = self._training_indices()
        if images is not None and images > len(indices):
            logger.warning("%s has %d training pictures; %d were asked for.", self.name, len(indices), images)
        chosen = indices[balanced_order(self.source(train=True).labels[indices], self.seed)[:images]]
        return self._loader(chosen, batch_size=batch_size)

    def _training_indices(self) -> Tensor:
        return self._splits()[0]

    def _validation_indices(self) -> Tensor:
        return self._splits()[1]

    def _splits(self) -> tuple[Tensor, Tensor]:
        if self._split is None:
            self._split = stratified_split(self.source(train=True).labels, self.validation_fraction, self.seed)
        return self._split

    def _loader(
        self,
        indices: Tensor,
        *,
        train: bool = True,
        shuffle: bool = False,
        augment: bool = False,
        batch_size: int | None = None,
    ) -> Loader:
        batches = ImageBatches(
            self.source(train),
            indices,
            mean=self.mean if self.normalise else None,
            std=self.std if self.normalise else None,
            augment=crop_and_flip if augment else None,
            seed=self.seed,
        )
        epoch = 0
        if self.trainer is not None:
            # Worker processes ask for indices before Lightning tells the sampler in which epoch a training goes on.
            epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return DataLoader(
            batches,
            batch_size=batch_size or self.batch_size,
            sampler=EpochSampler(batches, self.seed, epoch) if shuffle else None,
            # A loader draws a number when it begins, which must not come from those that dropout uses.
            generator=torch.Generator().manual_seed(self.seed) if shuffle else None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=identity_collate,
        )

    def _check(self, source: ImageSource, split: str) -> None:
        labels = source.labels
        if len(labels) == 0:
            raise ValueError(f"{self.name} has no {split} pictures.")
        if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
            raise ValueError(
                f"{self.name}'s {split} labels go from {int(labels.min())} to {int(labels.max())}; "
                f"there are {self.num_classes} classes, 0 to {self.num_classes - 1}."
            )
        shape = tuple(source.images(torch.zeros(1, dtype=torch.int64)).shape[1:])
        if shape != self.input_shape:
            raise ValueError(f"{self.name}'s {split} pictures have the shape {shape}, not {self.input_shape}.")
        for option, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, shape[0]):
                raise ValueError(f"{option} has {len(values)} values, but {self.name} has {shape[0]} channels.")


def _numbers(name: str, given: Sequence[float]) -> tuple[float, ...]:
    """Return one number for each channel, or one for all."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{name} must be a list of numbers, one for each channel or one for all, not {given!r}.")
    return tuple(checks.number(f"each {name}", value) for value in given)
