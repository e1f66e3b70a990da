"""Random changes of training pictures, on a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["crop_and_flip"]


def crop_and_flip(images: Tensor, padding: int = 4) -> Tensor:
    """Shift every picture by up to ``padding`` pixels and mirror every other one, at random.

    The augmentation of He et al., "Deep residual learning for image recognition" (CVPR 2016), section 4.2: zeros are
    padded on each side, a crop of the old size is taken, and half of the pictures are mirrored left to right.

    Parameters
    ----------
    images : Tensor
        Shape ``[N, C, H, W]``, any dtype; zero is black.
    padding : int
        Pixels padded on each side.

    Returns
    -------
    Tensor
        Shape ``[N, C, H, W]``. Drawn from torch's global random state.
    """
    number, channels, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    top = torch.randint(0, 2 * padding + 1, (number, 1))
    left = torch.randint(0, 2 * padding + 1, (number, 1))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(torch.rand(number, 1) < 0.5, columns.flip(1), columns)
    return padded[
        torch.arange(number)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
