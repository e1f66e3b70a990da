"""Activations to train a network with, so that it converts well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CeilingReLU"]


class CeilingReLU(nn.Module):
    r"""A ReLU with a trainable ceiling.

    .. math:: y = \min(\max(z, 0), \mu), \qquad
              \frac{\partial y}{\partial z} = [0 < z < \mu], \quad \frac{\partial y}{\partial \mu} = [z \ge \mu]

    The ceiling :math:`\mu` becomes the threshold of the spiking neuron that takes the activation's place
    (Datta & Beerel, arXiv 2112.12133; Ho & Chang, DAC 2021, call it TCL).

    Parameters
    ----------
    initial : float
        The ceiling before training, in units of the pre-activation; positive.
    channels : int, optional
        Train one ceiling for each of so many channels (dimension 1 of the input) instead of one for the layer.

    Raises
    ------
    ValueError
        If ``initial`` is not positive.
    """

    def __init__(self, initial: float = 4.0, channels: int | None = None) -> None:
        super().__init__()
        if not initial > 0:
            raise ValueError(f"a ceiling must be positive, not {initial}.")
        self.ceiling = nn.Parameter(torch.full(() if channels is None else (channels,), float(initial)))

    def forward(self, values: Tensor) -> Tensor:
        """Clip values ``[N, ...]`` (``[N, C, ...]`` with one ceiling a channel) to between zero and the ceiling."""
        ceiling: Tensor = self.ceiling
        if ceiling.dim():
            ceiling = ceiling.view(-1, *[1] * (values.dim() - 2))
        # minimum() would share the gradient between equal values; the definition gives it to the ceiling alone.
        return torch.where(values >= ceiling, ceiling, values.relu())

    def extra_repr(self) -> str:
        """Show the ceiling, or how many there are."""
        return f"ceiling={self.ceiling.item():.4g}" if self.ceiling.dim() == 0 else f"channels={self.ceiling.numel()}"
