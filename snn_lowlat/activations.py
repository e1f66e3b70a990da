"""Activations to train a network with, so that it converts well."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snn_lowlat import checks
from snn_lowlat.errors import unknown_name
from snn_lowlat.neurons import MARGIN, per_channel

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "CeilingReLU",
    "ChannelsElsewhere",
    "QuantisedReLU",
    "ValueRangeReLU",
    "make_activation",
    "needs_channels",
]

ACTIVATIONS = ("relu", "ceiling", "channel_ceiling")
"""The activations that have a name: a plain ReLU, one trainable ceiling a layer, one trainable ceiling a channel."""

Activation = str | Callable[..., nn.Module]
"""One of :data:`ACTIVATIONS`, or a class or function that makes a new activation; see :func:`make_activation`."""


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
        initial = checks.positive("initial", initial)
        if channels is not None:
            channels = checks.count("channels", channels)
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


class QuantisedReLU(CeilingReLU):
    r"""A ReLU with a trainable ceiling, rounded to the values that the spikes of a window can have.

    .. math:: y = \frac{\mu}{T} \left\lfloor \frac{T}{\mu}\, \mathrm{clip}(z, 0, \mu) + \varphi + \epsilon \right\rfloor

    with the ceiling :math:`\mu`, the shift :math:`\varphi` and :data:`snn_lowlat.neurons.MARGIN` :math:`\epsilon`:
    quantisation by clip, floor and shift (Bu et al., "Optimal ANN-SNN conversion for high-accuracy and
    ultra-low-latency spiking neural networks", ICLR 2022). Half a level of shift suits networks that were trained as
    ReLU networks, whose mean activation it keeps. Converted by the strategy ``value_range`` for :math:`T` steps, the
    spiking network equals the network with these activations.

    The gradient passes the rounding as if it were not there:

    .. math:: \frac{\partial y}{\partial z} = [0 < z < \mu], \qquad
              \frac{\partial y}{\partial \mu} = [z \ge \mu] + [0 < z < \mu]\, \frac{y - z}{\mu}

    (the paper's equation 19 is wrong, as its authors say).

    Parameters
    ----------
    timesteps : int
        The window :math:`T`, in steps; the number of levels above zero.
    channels : int or None
        Train one ceiling for each of so many channels (dimension 1 of the input); None: one for the layer.
    initial : float
        The ceiling before training, in units of the pre-activation; positive. For a network that has trained weights
        already, :func:`snn_lowlat.training.fit_ceilings` finds better ones.
    shift : float
        :math:`\varphi`, in levels, in ``[0, 1)``.
    rounds : bool
        Whether it rounds; without, it only clips.

    Raises
    ------
    ValueError
        If ``timesteps`` or ``initial`` is not positive, or the shift not in its range.
    """

    def __init__(
        self, timesteps: int, channels: int | None, *, initial: float = 4.0, shift: float = 0.5, rounds: bool = True
    ) -> None:
        super().__init__(initial, channels)
        self.timesteps = checks.count("timesteps", timesteps)
        self.shift = checks.share("shift", shift)
        self.rounds = rounds

    def forward(self, values: Tensor) -> Tensor:
        """Clip values ``[N, ...]`` (``[N, C, ...]`` with one ceiling a channel), and round them."""
        if not self.rounds:
            return super().forward(values)
        rounded: Tensor = _Quantised.apply(values, self.ceiling, self.timesteps, self.shift)  # type: ignore[no-untyped-call]
        return rounded

    def extra_repr(self) -> str:
        """Show the options."""
        return f"timesteps={self.timesteps}, {super().extra_repr()}, shift={self.shift:g}, rounds={self.rounds}"


class _Quantised(torch.autograd.Function):
    """The equations of :class:`QuantisedReLU`; only the values are kept for the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ceiling: Tensor, levels: int, shift: float) -> Tensor:
        ctx.save_for_backward(values, ceiling)
        ctx.levels, ctx.shift = levels, shift
        return _levels_of(values, ceiling, levels, shift)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        values, ceiling = ctx.saved_tensors
        limit = per_channel(ceiling, values).to(values.dtype)
        inside = (values > 0) & (values < limit)
        of_values = gradient * inside
        of_ceiling = None
        if ctx.needs_input_grad[1]:
            rounded = _levels_of(values, ceiling, ctx.levels, ctx.shift)
            slope = torch.where(inside, rounded.sub_(values).div_(limit), (values >= limit).to(values.dtype))
            along = [0, *range(2, values.dim())] if ceiling.dim() else list(range(values.dim()))
            of_ceiling = slope.mul_(gradient).sum(along, dtype=ceiling.dtype)
        return of_values, of_ceiling, None, None


def _levels_of(values: Tensor, ceiling: Tensor, levels: int, shift: float) -> Tensor:
    """Round values as :class:`QuantisedReLU` does."""
    step = per_channel(ceiling / levels, values).to(values.dtype)
    # A margin of 2**-12 needs more bits than bfloat16 has; its rounding is coarser anyway.
    rounded = (values / step).add_(shift + MARGIN).floor_().clamp_(0, levels)
    return rounded.mul_(step)


class ChannelsElsewhere(nn.Module):
    """An activation with parameters for each channel, where the channels are not in dimension 1.

    A linear layer over tokens, ``[N, L, C]``, has them in the last one.

    Parameters
    ----------
    activation : Module
        Takes values with their channels in dimension 1.
    dimension : int
        Where they are.
    rank : int
        How many dimensions the values have.
    """

    def __init__(self, activation: nn.Module, dimension: int, rank: int) -> None:
        super().__init__()
        self.activation = activation
        self.order = (0, dimension, *(d for d in range(1, rank) if d != dimension))
        self.inverse = tuple(self.order.index(d) for d in range(rank))

    def forward(self, values: Tensor) -> Tensor:
        """Apply the activation channel by channel."""
        return self.activation(values.permute(*self.order)).permute(*self.inverse)  # type: ignore[no-any-return]


class ValueRangeReLU(nn.Module):
    r"""A ReLU with a fixed ceiling, rounded down to the values that the spikes of a window can have.

    .. math:: y = \frac{1}{N} \left\lfloor N\, \mathrm{clip}(z, 0, M) + \epsilon \right\rfloor, \qquad M = T / N

    Trained activations rarely reach 1, so :math:`T` spikes that are worth :math:`M < 1` in all resolve what is there
    better than :math:`T` levels up to 1: value-range encoding (Yan, Zhou & Wong, 2022, arXiv 2211.08410). Converted by
    the strategy ``value_range`` for :math:`T` steps, the spiking network equals the network with these activations.
    :math:`\epsilon` is :data:`snn_lowlat.neurons.MARGIN`.

    The gradient passes the rounding as if it were not there, :math:`\partial y / \partial z = [0 < z < M]`.

    Parameters
    ----------
    timesteps : int
        The window :math:`T`, in steps; the number of levels above zero.
    resolution : float
        The levels :math:`N` in a unit of the pre-activation. The authors use N = 10, 20, 40 for T = 8, 16, 32, and
        N = 3, 2.5, 4 for T = 2, 1 (CIFAR) and 1 (MNIST).
    rounds : bool
        Whether it rounds; without, it only clips. Networks are trained to clip first, then to round.
    bounded_gradient : bool
        Whether the gradient that arrives is clipped to [-1, 1] first, as in the authors' code. With a loss that is
        summed over many values this resembles the descent by signs.

    Raises
    ------
    ValueError
        If ``timesteps`` or ``resolution`` is not positive.
    """

    def __init__(
        self, timesteps: int, resolution: float, *, rounds: bool = True, bounded_gradient: bool = False
    ) -> None:
        super().__init__()
        self.timesteps = checks.count("timesteps", timesteps)
        self.resolution = checks.positive("resolution", resolution)
        self.rounds = rounds
        self.bounded_gradient = bounded_gradient

    @property
    def ceiling(self) -> float:
        """The largest value, :math:`M`."""
        return self.timesteps / self.resolution

    def forward(self, values: Tensor) -> Tensor:
        """Clip values ``[N, ...]`` to between zero and the ceiling, and round them down."""
        if self.bounded_gradient and values.requires_grad:
            values = _BoundedGradient.apply(values)  # type: ignore[no-untyped-call]
        clipped = values.clamp(0, self.ceiling)
        if not self.rounds:
            return clipped
        rounded = (clipped.detach() * self.resolution + MARGIN).floor() / self.resolution
        return rounded + (clipped - clipped.detach())

    def extra_repr(self) -> str:
        """Show the options."""
        return f"timesteps={self.timesteps}, resolution={self.resolution:g}, rounds={self.rounds}"


class _BoundedGradient(torch.autograd.Function):
    """Does nothing forwards, and clips the gradient to [-1, 1] backwards."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp(-1, 1)


def make_activation(activation: Activation = "relu", channels: int | None = None) -> nn.Module:
    """Make a new activation module for one place in a network.

    Parameters
    ----------
    activation : {"relu", "ceiling", "channel_ceiling"} or callable
        Its name, or a class or function that makes it when called without arguments, or with ``channels`` if it needs
        that.
    channels : int, optional
        Channels at that place, which ``channel_ceiling`` and some others need.

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
    if needs_channels(activation) and channels is None:
        raise ValueError(f"{activation} needs the number of channels.")
    if activation == "channel_ceiling":
        return CeilingReLU(channels=channels)
    if isinstance(activation, str) or not callable(activation):
        raise unknown_name("activation", activation, ACTIVATIONS)
    made = activation(channels=channels) if needs_channels(activation) else activation()
    if not isinstance(made, nn.Module):
        raise TypeError(f"the activation {activation!r} must make a torch module, not {type(made).__name__}.")
    return made


def needs_channels(activation: Activation) -> bool:
    """Say whether an activation can't be made without the number of channels."""
    if isinstance(activation, str) or not callable(activation):
        return activation == "channel_ceiling"
    try:
        parameter = inspect.signature(activation).parameters.get("channels")
    except ValueError:  # built in, without a signature
        return False
    return parameter is not None and parameter.default is parameter.empty
