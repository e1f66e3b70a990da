"""MNIST: handwritten digits."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from snn_lowlat.data.arrays import ArchivedImages

__all__ = ["MNIST"]


class MNIST(ArchivedImages):
    """MNIST (LeCun et al. 1998): 60,000 training and 10,000 test pictures of 28 x 28 grey pixels, ten classes.

    Read from ``mnist.npz``, else torchvision's ``MNIST/raw``; parameters as in :class:`ArchivedImages`.
    """

    name: str = "mnist"
    default_mean: ClassVar[tuple[float, ...] | None] = (0.1307,)
    default_std: ClassVar[tuple[float, ...] | None] = (0.3081,)
    torchvision_files: ClassVar[str] = "folder MNIST/raw"

    @property
    def classes(self) -> tuple[str, ...]:
        """The ten digits."""
        return tuple(str(digit) for digit in range(10))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """One channel of 28 x 28 pixels."""
        return (1, 28, 28)

    def torchvision_arrays(self, train: bool, download: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Read a split with torchvision."""
        from torchvision import datasets

        data = datasets.MNIST(self.root, train=train, download=download)
        return data.data.numpy(), data.targets.numpy()
