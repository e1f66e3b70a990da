"""CIFAR-10 and CIFAR-100: small colour pictures."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from snn_lowlat.data.arrays import ArchivedImages

__all__ = ["CIFAR10", "CIFAR100"]


class CIFAR10(ArchivedImages):
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test pictures of 32 x 32 colour pixels, ten classes.

    Read from ``cifar10.npz``, else torchvision's ``cifar-10-batches-py``; parameters as in :class:`ArchivedImages`.
    """

    name: str = "cifar10"
    default_mean: ClassVar[tuple[float, ...] | None] = (0.4914, 0.4822, 0.4465)
    default_std: ClassVar[tuple[float, ...] | None] = (0.2470, 0.2435, 0.2616)
    torchvision_files: ClassVar[str] = "folder cifar-10-batches-py"

    @property
    def classes(self) -> tuple[str, ...]:
        """The ten classes, in the order of their labels."""
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Three channels of 32 x 32 pixels."""
        return (3, 32, 32)

    def torchvision_arrays(self, train: bool, download: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Read a split with torchvision."""
        from torchvision import datasets

        data = datasets.CIFAR10(self.root, train=train, download=download)
        return data.data, np.asarray(data.targets)


class CIFAR100(ArchivedImages):
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test pictures of 32 x 32 colour pixels, 100 classes.

    Read from ``cifar100.npz``, else torchvision's ``cifar-100-python``; parameters as in :class:`ArchivedImages`.
    """

    name: str = "cifar100"
    default_mean: ClassVar[tuple[float, ...] | None] = (0.5071, 0.4865, 0.4409)
    default_std: ClassVar[tuple[float, ...] | None] = (0.2673, 0.2564, 0.2762)
    torchvision_files: ClassVar[str] = "folder cifar-100-python"

    @property
    def classes(self) -> tuple[str, ...]:
        """The hundred classes, in the order of their labels."""
        return tuple(_CIFAR100_CLASSES.split())

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Three channels of 32 x 32 pixels."""
        return (3, 32, 32)

    def torchvision_arrays(self, train: bool, download: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Read a split with torchvision."""
        from torchvision import datasets

        data = datasets.CIFAR100(self.root, train=train, download=download)
        return data.data, np.asarray(data.targets)


_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
