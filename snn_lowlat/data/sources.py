"""Where pictures come from: tensors in memory, or files read when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from snn_lowlat.errors import FileFormatError

__all__ = ["ImageSource", "PictureFiles", "TensorImages"]


class ImageSource(Protocol):
    """Labelled pictures that can be had by index, many at a time."""

    @property
    def labels(self) -> Tensor:
        """Class of each picture, int64 of shape ``[N]``."""

    @property
    def maximum(self) -> float:
        """Pixel value that stands for full brightness."""

    def images(self, indices: Tensor) -> Tensor:
        """Return the pictures at ``indices`` as uint8 of shape ``[len(indices), C, H, W]``."""


@dataclass(frozen=True, eq=False)
class TensorImages:
    """Pictures held in memory.

    Parameters
    ----------
    pixels : Tensor
        uint8 of shape ``[N, C, H, W]``.
    labels : Tensor
        int64 of shape ``[N]``.
    maximum : float
        Pixel value that stands for full brightness.
    """

    pixels: Tensor
    labels: Tensor
    maximum: float = 255.0

    def images(self, indices: Tensor) -> Tensor:
        """Return the pictures at ``indices`` as uint8 of shape ``[len(indices), C, H, W]``."""
        return self.pixels[indices]


@dataclass(frozen=True, eq=False)
class PictureFiles:
    """Picture files, decoded when they are needed and cropped and scaled to a square.

    Parameters
    ----------
    paths : sequence of Path
        The files, in any format that Pillow reads.
    labels : Tensor
        int64 of shape ``[N]``.
    size : int
        Edge of the square in pixels: the centre is cropped to a square, then scaled.
    channels : int
        3 for colour, 1 for grey.
    maximum : float
        Pixel value that stands for full brightness.
    """

    paths: Sequence[Path]
    labels: Tensor
    size: int
    channels: int = 3
    maximum: float = 255.0

    def images(self, indices: Tensor) -> Tensor:
        """Return the pictures at ``indices`` as uint8 of shape ``[len(indices), C, size, size]``.

        Raises
        ------
        FileFormatError
            If a file is damaged or no picture.
        """
        return torch.stack([self._read(self.paths[index]) for index in indices.tolist()])

    def _read(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as picture:
                square = ImageOps.fit(
                    picture.convert("RGB" if self.channels == 3 else "L"),
                    (self.size, self.size),
                    Image.Resampling.BILINEAR,
                )
        except Image.DecompressionBombError as error:
            raise FileFormatError(
                f"{path} is too large a picture ({error}): scale it down, or take it out of its folder."
            ) from error
        except MemoryError:
            raise
        # Pillow's readers raise all kinds of errors where a file is damaged.
        except Exception as error:
            raise FileFormatError(f"{path} can't be read as a picture: {str(error) or type(error).__name__}") from error
        pixels = torch.from_numpy(np.array(square, dtype=np.uint8))
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
