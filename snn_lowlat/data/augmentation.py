"""Random changes of training pictures, on a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from snn_lowlat import checks

__all__ = ["crop_and_flip"]


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift every picture by up to ``padding`` pixels and mirror every other one, at random.

    The augmentation of He et al., "Deep residual learning for image recognition" (CVPR 2016), section 4.2: zeros are
    padded on each side, a crop of the old size is taken, and half of the pictures are mirrored left to right.

    Parameters
    ----------
    images : Tensor
        Shape ``[N, C, H, W]``, any dtype; zero is black.
    generator : Generator
        Where the random numbers come from.
    padding : int
        Pixels padded on each side.

    Returns
    -------
    Tensor
        Shape ``[N, C, H, W]``.
    """
    padding = checks.count("padding", padding, 0)
    number, _, height, width = images.shape
    windows = functional.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    top, left = torch.randint(0, 2 * padding + 1, (2, number), generator=generator)
    shifted = windows[torch.arange(number), :, top, left]
    mirrored = torch.rand(number, 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, shifted.flip(3), shifted)
