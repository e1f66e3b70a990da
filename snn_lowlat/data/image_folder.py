"""A user's own pictures, one folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from snn_lowlat import checks
from snn_lowlat.data.module import ImageDataModule
from snn_lowlat.data.sources import ImageSource, PictureFiles

__all__ = ["ImageFolder"]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageFolder(ImageDataModule):
    """Pictures in ``root/train/CLASS/`` and ``root/test/CLASS/``.

    The classes are the folders in ``train``, in alphabetical order. The centre of each picture is cropped to a
    square and scaled. Files are decoded when a batch needs them, so memory does not grow with their number.

    Parameters
    ----------
    root : path
        The folder that holds ``train`` and ``test``; ``~`` stands for the home folder.
    image_size : int
        Edge of the pictures given to the network, in pixels.
    channels : int
        3 for colour, 1 for grey.
    **options
        Those of :class:`ImageDataModule`.
    """

    name: str = "image_folder"
    default_mean: ClassVar[tuple[float, ...] | None] = (0.5,)
    default_std: ClassVar[tuple[float, ...] | None] = (0.25,)

    def __init__(self, root: str | Path, *, image_size: int = 32, channels: int = 3, **options: Any) -> None:
        super().__init__(**options)
        image_size = checks.count("image_size", image_size)
        if checks.count("channels", channels) not in (1, 3):
            raise ValueError(f"channels must be 1, for grey, or 3, for colour, not {channels}.")
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.channels = channels

    @property
    def classes(self) -> tuple[str, ...]:
        """The folders in ``root/train``, in alphabetical order.

        Raises
        ------
        FileNotFoundError
            If there are none.
        """
        return self._folders("train")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width as configured."""
        return (self.channels, self.image_size, self.image_size)

    def read(self, train: bool) -> ImageSource:
        """List the files of a split.

        Raises
        ------
        FileNotFoundError
            If the split or the pictures of one of its classes are missing.
        ValueError
            If the test split has a class that the training split has not.
        """
        split = "train" if train else "test"
        classes = self.classes
        unknown = sorted(set(self._folders(split)) - set(classes))
        if unknown:
            raise ValueError(f"{self.root / split} has the classes {', '.join(unknown)}, which 'train' has not.")
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            folder = self.root / split / name
            files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
            if train and not files:
                raise FileNotFoundError(f"{folder} has no pictures ({', '.join(sorted(_SUFFIXES))}).")
            paths += files
            labels += [label] * len(files)
        return PictureFiles(paths, torch.tensor(labels, dtype=torch.int64), self.image_size, self.channels)

    def _folders(self, split: str) -> tuple[str, ...]:
        folder = self.root / split
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        names = [name for name in names if not name.startswith(".")]
        if not names:
            raise FileNotFoundError(
                f"{folder} holds no folders with pictures. Pictures are looked for in {self.root}/train/CLASS/ and "
                f"{self.root}/test/CLASS/; name another folder with data.root=DIR."
            )
        return tuple(names)
