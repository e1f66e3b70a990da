"""Parameters of a layer of neurons beside its currents."""

from __future__ import annotations

from torch import Tensor

__all__ = ["per_channel"]


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Shape one value, or one a channel, so that it broadcasts over ``like``, ``[N, C, ...]``, in its type."""
    values = values.to(device=like.device, dtype=like.dtype)
    return values.reshape(-1, *[1] * (like.dim() - 2)) if values.dim() else values
