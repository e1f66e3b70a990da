"""Activations to train a network with, so that it converts well."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snn_lowlat.errors import unknown_name

__all__ = ["ACTIVATIONS", "Activation", "CeilingReLU", "make_activation"]

ACTIVATIONS = ("relu", "ceiling", "channel_ceiling")
"""The activations that have a name: a plain ReLU, one trainable ceiling a layer, one trainable ceiling a channel."""

Activation = str | Callable[[], nn.Module]
"""One of :data:`ACTIVATIONS`, or a class or function that makes a new activation when called without arguments."""


class CeilingReLU(nn.Module):
    r"""A ReLU with a trainable ceiling.

    .. math:: y = \min(\max(z, 0), \mu), \qquad
              \frac{\partial y}{\partial z} = [0 < z < \mu], \quad \frac{\partial y}{\partial \mu} = [z \ge \mu]

    The ceiling :math:`\mu` becomes the threshold of the spiking neuron that takes the activation's place
    (Datta & Beerel, arXiv 2112.12133; Ho & Chang, DAC 2021, call it TCL).

    An optimizer may push a ceiling below zero; :meth:`keep_positive` after each of its steps prevents that, as
    :class:`snn_lowlat.training.Classifier` does.

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

    smallest: float = 1e-3
    """No ceiling falls below this, in units of the pre-activation."""

    def __init__(self, initial: float = 4.0, channels: int | None = None) -> None:
        super().__init__()
        if not initial > 0:
            raise ValueError(f"a ceiling must be positive, not {initial}.")
        self.ceiling = nn.Parameter(torch.full(() if channels is None else (channels,), float(initial)))

    def forward(self, values: Tensor) -> Tensor:
        """Clip values ``[N, ...]`` (``[N, C, ...]`` with one ceiling a channel) to between zero and the ceiling."""
        # Under mixed precision the values have fewer bits than the ceiling, and would be widened to its type.
        ceiling = self.ceiling.to(values.dtype)
        if ceiling.dim():
            ceiling = ceiling.view(-1, *[1] * (values.dim() - 2))
        # minimum() would share the gradient between equal values; the definition gives it to the ceiling alone.
        return torch.where(values >= ceiling, ceiling, values.relu())

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Raise ceilings that have fallen below :attr:`smallest` to it."""
        self.ceiling.clamp_(min=self.smallest)

    def extra_repr(self) -> str:
        """Show the ceiling, or how many there are."""
        return f"ceiling={self.ceiling.item():.4g}" if self.ceiling.dim() == 0 else f"channels={self.ceiling.numel()}"


def make_activation(activation: Activation = "relu", channels: int | None = None) -> nn.Module:
    """Make a new activation module for one place in a network.

    Parameters
    ----------
    activation : {"relu", "ceiling", "channel_ceiling"} or callable
        Its name, or a class or function that makes it when called without arguments.
    channels : int, optional
        Channels at that place, which ``channel_ceiling`` needs.

    Raises
    ------
    ValueError
        If there is no activation of that name, or the number of channels is needed and missing.
    TypeError
        If what was called made something else than a module.
    """
    if activation == "relu":
        return nn.ReLU()
    if activation == "ceiling":
        return CeilingReLU()
    if activation == "channel_ceiling":
        if channels is None:
            raise ValueError("channel_ceiling needs the number of channels.")
        return CeilingReLU(channels=channels)
    if isinstance(activation, str) or not callable(activation):
        raise unknown_name("activation", activation, ACTIVATIONS)
    made = activation()
    if not isinstance(made, nn.Module):
        raise TypeError(f"the activation {activation!r} must make a torch module, not {type(made).__name__}.")
    return made
