"""How an image enters a spiking network: as a constant current, as random spikes, or as two spikes a pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.neurons import MARGIN, switch_events, switch_states

__all__ = [
    "ENCODERS",
    "direct",
    "input_events",
    "make_encoder",
    "poisson",
    "temporal_switch",
    "temporal_switch_events",
    "temporal_switch_values",
]

Encoder = Callable[[Tensor, int, int], Tensor]


def direct(images: Tensor, timesteps: int, seed: int) -> Tensor:
    """Present the image itself, as a constant current, in every step: ``[N, ...]`` to ``[T, N, ...]``."""
    return images.unsqueeze(0).expand(checks.count("timesteps", timesteps), *images.shape)


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
    timesteps = checks.count("timesteps", timesteps)
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    draws = torch.rand((timesteps, *images.shape), generator=generator, dtype=torch.float32)
    return (draws.to(images.device) < images).to(images.dtype)


def temporal_switch_events(images: Tensor, timesteps: int, *, round_down: bool = False) -> Tensor:
    r"""Encode each pixel in two spikes; the time between them is proportional to the intensity.

    .. math::

        e(1) = \mathrm{sgn}(p), \qquad e(d + 1) = -\mathrm{sgn}(p), \qquad
        d = \lfloor |p| (T - 1) + \tfrac{1}{2} \rfloor

    After the encoder of Han & Roy (ECCV 2020), without the spikes that would cancel (:math:`d = 0`). What is decoded is
    off by half a step, :math:`1 / (2 (T - 1))`, at most. Theirs, as others have published it, rounds down: off by less
    than a step, and darker on average. In a window of one step all pixels are silent.

    Parameters
    ----------
    images : Tensor
        Intensities ``[N, ...]`` in [-1, 1].
    timesteps : int
        The window's length.
    round_down : bool
        Round durations down instead of to the nearest.

    Returns
    -------
    Tensor
        1, -1 or 0, ``[T, N, ...]``.

    Raises
    ------
    ValueError
        If a value lies outside [-1, 1].
    """
    return switch_events(_switched(images, timesteps, MARGIN if round_down else 0.5))[:-1]


def temporal_switch_values(events: Tensor) -> Tensor:
    """Return the intensities that two spikes a pixel stand for: the inverse of :func:`temporal_switch_events`.

    Parameters
    ----------
    events : Tensor
        1, -1 or 0, ``[T, N, ...]``.

    Returns
    -------
    Tensor
        Multiples of ``1 / (T - 1)`` in [-1, 1], ``[N, ...]``.
    """
    return events.cumsum(0).sum(0) / max(len(events) - 1, 1)


def temporal_switch(images: Tensor, timesteps: int, seed: int) -> Tensor:
    """Present what synapses' registers hold for two spikes a pixel: a constant current between them.

    Parameters
    ----------
    images : Tensor
        Intensities ``[N, ...]`` in [-1, 1].
    timesteps : int
        The window's length.
    seed : int
        There is nothing random.

    Returns
    -------
    Tensor
        Currents ``[T, N, ...]``, whose mean over the steps is what :func:`temporal_switch_values` decodes.

    Raises
    ------
    ValueError
        If a value lies outside [-1, 1].
    """
    return _switched(images, timesteps, 0.5) * (timesteps / max(timesteps - 1, 1))


def _switched(images: Tensor, timesteps: int, shift: float) -> Tensor:
    """Return 1 or -1 while a pixel is on and 0 while it is off, ``[T, N, ...]``."""
    timesteps = checks.count("timesteps", timesteps)
    if images.numel() and not float(images.abs().max()) <= 1:
        raise ValueError(
            f"two spikes a pixel need intensities in [-1, 1], these lie in [{float(images.min()):.3g}, "
            f"{float(images.max()):.3g}]: put the normalisation into the network, for instance with "
            "snn_lowlat.models.InputNormalisation."
        )
    durations = (images.abs() * (timesteps - 1) + shift).floor()
    return images.sign() * switch_states(durations, timesteps)


ENCODERS: dict[str, Encoder] = {"direct": direct, "poisson": poisson, "temporal_switch": temporal_switch}
"""The input codings, by name."""


def input_events(name: str, images: Tensor, timesteps: int, seed: int) -> Tensor | None:
    """Return the spikes in which an input coding sends images, ``[T, N, ...]``; None if it sends no spikes."""
    if name == "direct":
        return None
    if name == "temporal_switch":
        return temporal_switch_events(images, timesteps)
    return make_encoder(name)(images, timesteps, seed)


def make_encoder(name: str) -> Encoder:
    """Return an input coding by its name; ``ValueError`` names those there are."""
    return ENCODERS[checks.one_of("input coding", name, ENCODERS)]
