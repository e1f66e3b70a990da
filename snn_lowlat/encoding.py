"""How an image enters a spiking network: as a constant current, or as random spikes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snn_lowlat.errors import unknown_name

__all__ = ["ENCODERS", "direct", "make_encoder", "poisson"]

Encoder = Callable[[Tensor, int, int], Tensor]


def direct(images: Tensor, timesteps: int, seed: int) -> Tensor:
    """Present the image itself, as a constant current, in every step: ``[N, ...]`` to ``[T, N, ...]``."""
    return images.unsqueeze(0).expand(timesteps, *images.shape)


def poisson(images: Tensor, timesteps: int, seed: int) -> Tensor:
    """Present random spikes whose rate is the intensity: in each step a pixel spikes with probability ``image``.

    Parameters
    ----------
    images : Tensor
        Intensities ``[N, ...]`` in [0, 1].
    timesteps : int
        The number of steps.
    seed : int
        Seed of the random numbers: the same images get the same spikes in every call.

    Returns
    -------
    Tensor
        Spikes ``[T, N, ...]``, 0 or 1.

    Raises
    ------
    ValueError
        If a value lies outside [0, 1].
    """
    if images.numel() and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        raise ValueError(
            f"Poisson coding needs intensities in [0, 1], these lie in [{float(images.min()):.3g}, "
            f"{float(images.max()):.3g}]: put the normalisation into the network, for instance with "
            "snn_lowlat.models.InputNormalisation."
        )
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand((timesteps, *images.shape), generator=generator, dtype=torch.float32)
    return (draws.to(images.device) < images).to(images.dtype)


ENCODERS: dict[str, Encoder] = {"direct": direct, "poisson": poisson}
"""The input codings, by name."""


def make_encoder(name: str) -> Encoder:
    """Return an input coding by its name; ``ValueError`` names those there are."""
    if name not in ENCODERS:
        raise unknown_name("input coding", name, ENCODERS)
    return ENCODERS[name]
