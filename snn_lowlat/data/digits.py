"""The handwritten digits that come with scikit-learn: no download."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits

from snn_lowlat import checks
from snn_lowlat.data.module import ImageDataModule
from snn_lowlat.data.sampling import stratified_split
from snn_lowlat.data.sources import ImageSource, TensorImages

__all__ = ["Digits"]


class Digits(ImageDataModule):
    """Scikit-learn's embedded digits: 1,797 pictures of 8 x 8 grey pixels in 17 levels, ten classes.

    The data set has no test split of its own; a fifth of every class is held out by the seed. Pixels are in
    ``[0, 1]`` unless a mean and a standard deviation are given.

    Parameters
    ----------
    test_fraction : float
        Share of the pictures held out for the test, in ``(0, 1)``.
    **options
        Those of :class:`ImageDataModule`.
    """

    name: str = "digits"

    def __init__(self, *, test_fraction: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        test_fraction = checks.number("test_fraction", test_fraction, above=0, below=1)
        self.test_fraction = test_fraction

    def state_dict(self) -> dict[str, Any]:
        """Return what decides which pictures are trained on and how; see :class:`ImageDataModule`."""
        return {"test_fraction": self.test_fraction, **super().state_dict()}

    @property
    def classes(self) -> tuple[str, ...]:
        """The ten digits."""
        return tuple(str(digit) for digit in range(10))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """One channel of 8 x 8 pixels."""
        return (1, 8, 8)

    def read(self, train: bool) -> ImageSource:
        """Read the embedded pictures and split them by the seed."""
        bunch = load_digits()
        pixels = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
        labels = torch.from_numpy(bunch.target).to(torch.int64)
        kept, held_out = stratified_split(labels, self.test_fraction, self.seed)
        chosen = kept if train else held_out
        return TensorImages(pixels[chosen], labels[chosen], maximum=16.0)
