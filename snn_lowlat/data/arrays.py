"""Data sets kept as NumPy archives, as Keras lays them out, with torchvision's files as the other way to have them."""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from snn_lowlat.data.module import ImageDataModule
from snn_lowlat.data.sources import ImageSource, TensorImages
from snn_lowlat.errors import FileFormatError

__all__ = ["ArchivedImages"]

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class ArchivedImages(ImageDataModule):
    """A well-known data set in a folder: ``NAME.npz``, else torchvision's own files, else torchvision's download.

    The archive holds ``x_train``, ``y_train``, ``x_test`` and ``y_test``, all uint8, pictures as ``[N, H, W]`` or
    ``[N, H, W, C]``.

    Parameters
    ----------
    root : path
        The folder; ``~`` stands for the home folder.
    download : bool
        Download what is missing into the folder.
    **options
        Those of :class:`ImageDataModule`.
    """

    def __init__(self, root: str | Path, *, download: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root).expanduser()
        self.download = download

    torchvision_files: ClassVar[str]

    @abstractmethod
    def torchvision_arrays(self, train: bool, download: bool) -> Arrays:
        """Read a split with torchvision: pictures ``[N, H, W]`` or ``[N, H, W, C]`` and labels ``[N]``.

        Raises
        ------
        RuntimeError or OSError
            If the files are missing or the download fails.
        """

    @property
    def archive(self) -> Path:
        """The archive that is looked for first."""
        return self.root / f"{self.name}.npz"

    def read(self, train: bool) -> ImageSource:
        """Read a split from the archive, torchvision's files or torchvision's download.

        Raises
        ------
        FileNotFoundError
            If there is none of them.
        FileFormatError
            If the archive is damaged or holds something else.
        """
        if self.archive.is_file():
            return TensorImages(*self._read_archive(train))
        pictures, labels = self._read_torchvision(train)
        return TensorImages(_pixels(pictures), torch.from_numpy(np.asarray(labels, dtype=np.int64)))

    def _read_archive(self, train: bool) -> tuple[Tensor, Tensor]:
        split = "train" if train else "test"
        try:
            with np.load(self.archive, allow_pickle=False) as archive:
                pictures, labels = archive[f"x_{split}"], archive[f"y_{split}"]
        except KeyError as error:
            raise FileFormatError(f"{self.archive} has no arrays x_{split} and y_{split}.") from error
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, AttributeError, TypeError) as error:
            raise FileFormatError(f"{self.archive} is damaged or no NumPy archive: {error}") from error
        labels = labels.reshape(-1)
        if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or len(pictures) != len(labels):
            raise FileFormatError(
                f"{self.archive}: x_{split} must be uint8 of shape [N, H, W] or [N, H, W, C] with a label each, "
                f"not {pictures.dtype} of shape {list(pictures.shape)} with {len(labels)} labels."
            )
        return _pixels(pictures), torch.from_numpy(labels.astype(np.int64))

    def _read_torchvision(self, train: bool) -> Arrays:
        try:
            return self.torchvision_arrays(train, download=False)
        except (RuntimeError, OSError):
            pass
        attempt = "and download=False forbids to download it"
        if self.download:
            try:
                return self.torchvision_arrays(train, download=True)
            # A failed download surfaces as whatever the network stack raises.
            except Exception as error:
                attempt, cause = f"and the download failed ({type(error).__name__}: {error})", error
        else:
            cause = None
        raise FileNotFoundError(
            f"{self.name} is not in the folder {self.root} {attempt}. Put {self.archive.name} (x_train, y_train, "
            f"x_test, y_test) or torchvision's {self.torchvision_files} there, or name another folder with "
            "data.root=DIR."
        ) from cause


def _pixels(pictures: np.ndarray[Any, Any]) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(pictures))
    return pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
