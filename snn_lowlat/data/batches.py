"""Batches as tensors: pictures stay uint8 and a whole batch is converted at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from snn_lowlat.data.sources import ImageSource

__all__ = ["ImageBatches", "identity_collate"]

Batch = TypeVar("Batch")


def identity_collate(batch: Batch) -> Batch:
    """Collate a batch that is one already."""
    return batch


class ImageBatches(Dataset[tuple[Tensor, Tensor]]):
    """Part of an image source as ``(images, labels)``, converted to float and normalised.

    A loader asks it for all indices of a batch at once, so conversion, normalisation and augmentation run on
    tensors ``[N, C, H, W]`` and never picture by picture. Indices from ``M`` on stand for the same ``M`` pictures
    again, changed at random in another way.

    Parameters
    ----------
    source : ImageSource
        The pictures.
    indices : Tensor
        Those that belong to this part, int64 of shape ``[M]``.
    mean, std : sequence of float or None
        For each channel (or one for all), in pixel values scaled to ``[0, 1]``; ``None`` leaves them there.
    augment : callable, optional
        Maps uint8 ``[N, C, H, W]`` and a generator of random numbers to uint8 ``[N, C, H, W]``.
    seed : int
        What the random changes of a batch depend on, besides the batch's first index.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: Tensor,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.indices = indices
        self.augment = augment
        self.seed = seed
        offset = torch.tensor([0.0] if mean is None else list(mean))
        scale = torch.tensor([1.0] if std is None else list(std))
        # (pixel / maximum - mean) / std as one multiplication and one subtraction.
        self._factor = (1.0 / (source.maximum * scale)).view(-1, 1, 1)
        self._offset = (offset / scale).view(-1, 1, 1)

    @property
    def labels(self) -> Tensor:
        """Class of each picture of this part, int64 of shape ``[M]``."""
        return self.source.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one picture ``[C, H, W]`` and its label ``[]``."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return pictures ``[N, C, H, W]`` as float and their labels ``[N]``."""
        chosen = self.indices[torch.as_tensor(indices) % len(self)]
        images = self.source.images(chosen)
        if self.augment is not None:
            # No two batches of a training begin with the same index, whichever process prepares them.
            sequence = np.random.SeedSequence([self.seed, int(indices[0])])
            images = self.augment(images, torch.Generator().manual_seed(int(sequence.generate_state(1)[0])))
        return images.to(self._factor.dtype).mul_(self._factor).sub_(self._offset), self.source.labels[chosen]
