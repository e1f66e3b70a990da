"""Whether images can be given to a network: checked in one place, whoever takes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from snn_lowlat import checks

__all__ = ["floating_type", "usable_images"]


def floating_type(network: nn.Module) -> torch.dtype:
    """Return the type that a network computes in: that of its first floating-point weights; torch's default if none."""
    values = chain(network.parameters(), network.buffers())
    return next((value.dtype for value in values if value.is_floating_point()), torch.get_default_dtype())


def usable_images(images: Tensor, dtype: torch.dtype, shape: Sequence[int] | None = None) -> Tensor:
    """Return images in the type of a network's weights.

    Parameters
    ----------
    images : Tensor
        A batch ``[N, ...]`` of any floating-point type.
    dtype : torch.dtype
        The network's; see :func:`floating_type`.
    shape : sequence of int, optional
        The shape of one image, where it is known.

    Raises
    ------
    ValueError
        If they are no batch of images of that shape, are whole numbers, as pictures in files are, or hold NaN or
        infinite numbers.
    """
    images = checks.images("images", images, shape)
    if not images.is_floating_point():
        raise ValueError(
            f"the images are of type {images.dtype}, and the network takes floating-point numbers in the range that it "
            "was trained on: convert and normalise them as in training, for instance images.float() / 255."
        )
    usable = images.to(dtype)
    # One sum says nearly always that all is well.
    if usable.numel() and not bool(torch.isfinite(usable.sum())):
        bad = (~torch.isfinite(usable)).reshape(len(usable), -1).any(1)
        if bool(bad.any()):
            given = "NaN or infinite numbers" if dtype == images.dtype else f"numbers that {dtype} does not have"
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"{int(bad.sum())} of {len(bad)} images hold {given} (the first is image {first}): clean the data."
            )
    return usable
