"""The integrate-and-fire neuron with a gradient: spikes are steps forwards and a surrogate backwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from snn_lowlat.errors import unknown_name
from snn_lowlat.kernels.loops import in_threads, memory_order, of_channels, pattern, usable
from snn_lowlat.neurons.parameters import per_channel

__all__ = [
    "SURROGATES",
    "THRESHOLD_GRADIENTS",
    "Recompute",
    "SpikeOptions",
    "Surrogate",
    "atan",
    "fast_sigmoid",
    "fire_with_recompute",
    "rectangular",
    "sigmoid",
    "straight_through",
    "surrogate_integrate_and_fire",
    "triangle",
]

Recompute = Callable[[], Tensor]
"""Returns the outputs of a window once more."""

Surrogate = Callable[[Tensor], Tensor]
"""What stands for the derivative of a spike, as a function of the distance ``u = potential / threshold - 1``."""

THRESHOLD_GRADIENTS = ("proper", "paper_code")
"""How the height of spikes enters a threshold's gradient."""

# Where these stand among the arguments of _Window.
_THRESHOLD, _FRACTION, _LEAK = 2, 3, 5
# So many elements of a tensor at a time, for all steps, stay in the processor's cache.
_ELEMENTS_AT_ONCE = 2**16


def rectangular(distance: Tensor, width: float = 1.0) -> Tensor:
    """1 where the distance is less than the width, else 0: the surrogate of Datta & Beerel (DATE 2022)."""
    return torch.lt(distance.abs(), width, out=torch.empty_like(distance))


def straight_through(distance: Tensor) -> Tensor:
    """1 where the distance is less than one half, else 0.

    Its area is the height of the step, that of the wider :func:`rectangular` is twice as large. For neurons that start
    at half their threshold, a constant current and one step it is the derivative of the activation clipped at the
    threshold.
    """
    return rectangular(distance, 0.5)


def triangle(distance: Tensor, height: float = 0.3, width: float = 1.0) -> Tensor:
    """``height * max(0, 1 - |u| / width)``: the surrogate of DIET-SNN (Rathi & Roy, TNNLS 2021), with its height."""
    return distance.abs().mul_(-height / width).add_(height).clamp_(min=0)


def atan(distance: Tensor, alpha: float = 2.0) -> Tensor:
    """``alpha / 2 / (1 + (pi / 2 * alpha * u)^2)`` (Fang et al., ICCV 2021)."""
    return (distance * (math.pi / 2 * alpha)).square_().add_(1).reciprocal_().mul_(alpha / 2)


def fast_sigmoid(distance: Tensor, slope: float = 5.0) -> Tensor:
    """``1 / (1 + slope * |u|)^2`` (Zenke & Ganguli, Neural Computation 2018)."""
    return distance.abs().mul_(slope).add_(1).square_().reciprocal_()


def sigmoid(distance: Tensor, slope: float = 4.0) -> Tensor:
    """The derivative of the logistic function of ``slope * u``."""
    rising = torch.sigmoid(slope * distance)
    return rising.mul(1 - rising).mul_(slope)


SURROGATES: dict[str, Callable[..., Tensor]] = {
    function.__name__: function for function in (rectangular, straight_through, triangle, atan, fast_sigmoid, sigmoid)
}
"""This package's own surrogates by name: what stands for the derivative of a spike, with options."""


COMPILED: dict[Callable[..., Tensor], Callable[..., tuple[float, float]]] = {
    rectangular: lambda width=1.0: (width, 1.0),
    triangle: lambda height=0.3, width=1.0: (width, height),
    atan: lambda alpha=2.0: (math.pi / 2 * alpha, alpha / 2),
    fast_sigmoid: lambda slope=5.0: (slope, 1.0),
}
"""The surrogates that the compiled loop knows, in its order, and the numbers it needs: a width or slope, a height."""


@dataclass(frozen=True)
class SpikeOptions:
    r"""How gradients pass spikes.

    Parameters
    ----------
    surrogate : callable
        The derivative :math:`h(u)` that stands for that of the step.
    detach_reset : bool
        Let no gradient pass from the reset to the spike that caused it.
    threshold_gradient : str
        ``"proper"``: a spike that is worth :math:`r\theta` moves by :math:`r\,d\theta`, so the threshold's gradient
        has the term :math:`\sum_t r\, s(t)\, g(t)` with the gradient :math:`g` of the output; ``"paper_code"``: the
        term is :math:`\sum_t g(t)`, whether there is a spike or not, as in the released code of Datta & Beerel.
    smooth : callable, optional
        Put in the place of the step: :math:`s = f(u)` with :math:`f' = h`, for checking gradients against numbers.

    Raises
    ------
    ValueError
        If there is no threshold gradient of that name.
    """

    surrogate: Surrogate = rectangular
    detach_reset: bool = False
    threshold_gradient: str = "proper"
    smooth: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.threshold_gradient not in THRESHOLD_GRADIENTS:
            raise unknown_name("threshold gradient", self.threshold_gradient, THRESHOLD_GRADIENTS)


def surrogate_integrate_and_fire(
    currents: Tensor,
    threshold: Tensor,
    initial_fraction: Tensor,
    height: Tensor,
    leak: Tensor,
    timesteps: int,
    options: SpikeOptions | None = None,
    other: Tensor | None = None,
) -> Tensor:
    r"""Integrate-and-fire neurons with gradients: the output for a whole window of currents.

    .. math::

        p(t) = \lambda\, v(t-1) + z(t), \quad c(t) = p(t) + f\theta, \quad s(t) = [c(t) \ge \theta], \quad
        v(t) = p(t) - \theta\, s(t), \quad x(t) = r\,\theta\, s(t)

    with :math:`v(0) = 0`; the spikes are those of :func:`~snn_lowlat.neurons.integrate_and_fire` to the last bit.
    Backwards, from the last step to the first, with :math:`u = c / \theta - 1`, the surrogate derivative :math:`h(u)`
    and the gradient of a value written as :math:`\partial` of it

    .. math::

        \partial s = r\,\theta\,\partial x - \theta\,\partial v, \quad
        \partial c = \frac{h}{\theta}\,\partial s, \quad \partial z = \partial p = \partial v + \partial c, \quad
        \partial v(t-1) = \lambda\,\partial p(t)

    .. math::

        \partial\theta = \sum_t r\,s\,\partial x - s\,\partial v - \frac{h\,c}{\theta^2}\,\partial s + f\,\partial c,
        \quad \partial\lambda = \sum_t v(t-1)\,\partial p(t), \quad \partial f = \sum_t \theta\,\partial c

    (Datta & Beerel, arXiv 2112.12133, whose neurons start at zero). One tensor is kept for the way back, the
    potentials :math:`c`: memory grows in proportion to the number of steps.

    Parameters
    ----------
    currents : Tensor
        Of shape ``[T, N, C, ...]``, or ``[1, N, C, ...]`` if they are the same in every step; in units of the
        pre-activation.
    threshold : Tensor
        :math:`\theta`, of shape ``[]`` or ``[C]``, positive.
    initial_fraction : Tensor
        :math:`f`, the initial potential as a fraction of the threshold, of shape ``[]`` or ``[C]``.
    height : Tensor
        :math:`r`, what a spike is worth in units of the threshold, of shape ``[]`` or ``[C]``; it gets no gradient.
    leak : Tensor
        :math:`\lambda`, of shape ``[]``: what stays of the membrane potential from one step to the next.
    timesteps : int
        The number of steps :math:`T`.
    options : SpikeOptions, optional
        How gradients pass spikes.
    other : Tensor, optional
        What is added to the currents, of their shape; quicker than a sum of its own, as in a residual network.

    Returns
    -------
    Tensor
        Of shape ``[T, N, C, ...]``: spikes times their height and threshold.
    """
    parameters = threshold, initial_fraction, height, leak
    outputs, _ = fire_with_recompute(currents, *parameters, timesteps, options or SpikeOptions(), other)
    return outputs


def fire_with_recompute(
    currents: Tensor,
    threshold: Tensor,
    initial_fraction: Tensor,
    height: Tensor,
    leak: Tensor,
    timesteps: int,
    options: SpikeOptions,
    other: Tensor | None = None,
    overwrite: bool = False,
) -> tuple[Tensor, Recompute | None]:
    """Do what :func:`surrogate_integrate_and_fire` does, and say how to get the outputs again, with less memory.

    Who needs the outputs on the way back can drop them until then: they follow from the potentials, which are kept
    there anyhow.

    Parameters
    ----------
    currents, threshold, initial_fraction, height, leak, timesteps, options, other
        See there.
    overwrite : bool
        The potentials may take the currents' place in memory. Nobody may read those afterwards, on the way back
        neither; autograd is not told.

    Returns
    -------
    Tensor
        The outputs, ``[T, N, C, ...]``.
    callable or None
        Returns them once more, to the last bit, without gradients; None if they don't follow from the potentials.

    Raises
    ------
    ValueError
        If the two currents differ in shape.
    """
    if other is not None and other.shape != currents.shape:
        raise ValueError(
            f"the currents have shape {tuple(currents.shape)}, what is added to them has shape {tuple(other.shape)}."
        )
    parameters = threshold, initial_fraction, height, leak
    outputs, repeat = _Window.apply(currents, other, *parameters, timesteps, options, overwrite)
    return outputs, repeat


class _Window(torch.autograd.Function):
    """The equations of :func:`surrogate_integrate_and_fire`, in compiled loops or a few images at a time by torch."""

    @staticmethod
    def forward(
        ctx: Any,
        currents: Tensor,
        other: Tensor | None,
        threshold: Tensor,
        initial_fraction: Tensor,
        height: Tensor,
        leak: Tensor,
        timesteps: int,
        options: SpikeOptions,
        overwrite: bool,
    ) -> tuple[Tensor, Recompute | None]:
        """Return what :func:`fire_with_recompute` does."""
        ctx.constant, ctx.options, ctx.rows = len(currents) == 1, options, None
        one_step, parameters = currents[0], (threshold, initial_fraction, height, leak)
        if options.smooth is None and usable(currents):
            ctx.rows = _Rows(one_step, *parameters)
            charged, outputs = _forward_loop(currents, other, ctx.rows, timesteps, overwrite)
            ctx.save_for_backward(charged, *parameters)
            return outputs, partial(_repeat_loop, charged, ctx.rows)
        if other is not None:
            currents = currents + other
        level, worth = per_channel(threshold, one_step), per_channel(height * threshold, one_step)
        offset, stays = per_channel(initial_fraction * threshold, one_step), _leaking(leak)
        charged, outputs = _window_like(one_step, timesteps), _window_like(one_step, timesteps)
        for part in _parts(one_step):
            potential = currents[0, part]
            for step in range(timesteps):
                compared, fired = charged[step, part], outputs[step, part]
                # In this order the rounding is that of integrate_and_fire_sequence.
                if step > 0:
                    if stays is not None:
                        potential.mul_(stays)
                    potential.add_(currents[step % len(currents), part])
                torch.add(potential, offset, out=compared)
                if options.smooth is None:
                    torch.ge(compared, level, out=fired)
                else:
                    fired.copy_(options.smooth(compared / level - 1))
                if step + 1 < timesteps:
                    potential = torch.addcmul(potential, fired, level, value=-1)
                fired.mul_(worth)
        ctx.save_for_backward(charged, *parameters)
        return outputs, None if options.smooth else partial(_repeat, charged, level, worth, options)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the forward pass's arguments from that of the outputs."""
        charged, threshold, initial_fraction, height, leak = saved = ctx.saved_tensors
        options: SpikeOptions = ctx.options
        surrogate = _compiled_surrogate(options)
        if ctx.rows is not None and surrogate is not None and usable(gradient):
            return _of_arguments(ctx, *_backward_loop(ctx, saved, gradient, surrogate))
        one_step, timesteps = charged[0], len(charged)
        level, fraction = per_channel(threshold, one_step), per_channel(initial_fraction, one_step)
        ratio, stays = per_channel(height, one_step), _leaking(leak)
        wants_threshold, wants_fraction, wants_leak = _wanted(ctx)
        along_channels = [0, *range(2, one_step.dim())]
        of_currents = _window_like(one_step, 1 if ctx.constant else timesteps)
        of_threshold, of_fraction = one_step.new_zeros((2, one_step.shape[1]), dtype=torch.float64)
        of_leak = one_step.new_zeros((), dtype=torch.float64)
        for part in _parts(one_step):
            after: Tensor | None = None  # the gradient of the potential after the step
            for step in reversed(range(timesteps)):
                compared, output = charged[step, part], gradient[step, part]
                distance = (compared / level).sub_(1)
                # The gradient of the spike, then that of the potential before the reset that passes through the spike,
                # both in units of the threshold.
                spike = output * ratio
                if after is not None and not options.detach_reset:
                    spike -= after
                through = options.surrogate(distance) * spike
                if wants_fraction:
                    of_fraction += through.sum(along_channels)
                if wants_threshold:
                    fired = _fired(compared, level, options)
                    if options.threshold_gradient == "paper_code":
                        change = output if after is None else output - fired * after
                    elif options.detach_reset and after is not None:
                        change = fired * (spike - after)
                    else:
                        change = fired.mul_(spike)
                    passed = distance.add_(1 - fraction).mul_(through)
                    of_threshold += (change - passed).sum(along_channels)
                before = through if after is None else through.add_(after)
                if ctx.constant and after is not None:
                    of_currents[0, part] += before
                else:
                    of_currents[0 if ctx.constant else step, part] = before
                if step > 0:
                    if wants_leak:
                        last = charged[step - 1, part]
                        stayed = torch.addcmul(last - fraction * level, _fired(last, level, options), level, value=-1)
                        of_leak += stayed.mul_(before).sum()
                    after = before if stays is None else before * stays
        return _of_arguments(
            ctx,
            of_currents,
            _like(of_threshold, threshold),
            _like(of_fraction * threshold, initial_fraction),
            of_leak.to(leak),
        )


def _wanted(ctx: Any) -> list[bool]:
    """Say whether threshold, initial fraction and leak want gradients."""
    return [ctx.needs_input_grad[place] for place in (_THRESHOLD, _FRACTION, _LEAK)]


def _of_arguments(
    ctx: Any, of_currents: Tensor, of_threshold: Tensor, of_fraction: Tensor, of_leak: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of :class:`_Window`, as far as they are wanted."""
    found = of_currents, of_currents, of_threshold, of_fraction, None, of_leak, None, None, None
    return tuple(value if needed else None for value, needed in zip(found, ctx.needs_input_grad, strict=True))


def _compiled_surrogate(options: SpikeOptions) -> tuple[int, float, float] | None:
    """Return the number of a surrogate in :data:`COMPILED` and its numbers; None if it is another."""
    function: Any = options.surrogate
    arguments: dict[str, Any] = {}
    if isinstance(function, partial) and not function.args:
        function, arguments = function.func, function.keywords
    if function is straight_through and not arguments:
        function, arguments = rectangular, {"width": 0.5}
    if function not in COMPILED or options.smooth is not None:
        return None
    return list(COMPILED).index(function), *COMPILED[function](**arguments)


class _Rows:
    """Parameters of neurons as they repeat in memory, ``[P]``; see :mod:`snn_lowlat.kernels.compiled`.

    They lie as one step of a window does.
    """

    def __init__(
        self, one_step: Tensor, threshold: Tensor, initial_fraction: Tensor, height: Tensor, leak: Tensor
    ) -> None:
        channels = np.empty((4, one_step.shape[1]), one_step.numpy().dtype)
        for row, value in zip(channels, (threshold, initial_fraction, height, height), strict=True):
            row[:] = value.detach().numpy()
        self.by_channel = channels[0]
        channels[1] *= self.by_channel
        channels[3] *= self.by_channel
        self.order = memory_order(one_step) if one_step.dim() == 4 else tuple(range(one_step.dim()))
        self.threshold, self.offset, self.height, self.worth = pattern(channels, one_step, self.order)
        self.leak = channels.dtype.type(float(leak.detach()))

    def view(self, values: Tensor) -> NDArray[Any]:
        """Return ``[T, N, C, ...]`` as rows in memory, ``[T, M]``; a copy if it lies there in another way."""
        steps = values.detach().permute(0, *(dim + 1 for dim in self.order))
        rows: NDArray[Any] = steps.contiguous().view(len(steps), -1).numpy()
        return rows

    def run(self, loop: Callable[[int, int], Any], window: NDArray[Any]) -> list[Any]:
        """Run a loop over the neurons of a window ``[T, M]``."""
        return in_threads(loop, window.shape[1], len(window), len(self.threshold))


def _forward_loop(
    currents: Tensor, other: Tensor | None, rows: _Rows, timesteps: int, overwrite: bool
) -> tuple[Tensor, Tensor]:
    from snn_lowlat.kernels import compiled

    loop: Any = compiled.window_forward
    outputs = _window_like(currents[0], timesteps)
    overwrite = overwrite and currents.stride() == outputs.stride() and len(currents) == timesteps
    charged = currents.detach() if overwrite else _window_like(currents[0], timesteps)
    first = None if overwrite else rows.view(currents)
    second = None if other is None else rows.view(other)
    windows = rows.view(charged), rows.view(outputs)
    arguments = first, second, *windows, rows.threshold, rows.offset, rows.worth, rows.leak
    rows.run(lambda *part: loop(*arguments, *part), windows[0])
    return charged, outputs


def _repeat_loop(charged: Tensor, rows: _Rows) -> Tensor:
    from snn_lowlat.kernels import compiled

    loop: Any = compiled.fire_again
    outputs = _window_like(charged[0], len(charged))
    windows = rows.view(charged), rows.view(outputs)
    rows.run(lambda *part: loop(*windows, rows.threshold, rows.worth, *part), windows[0])
    return outputs


def _repeat(charged: Tensor, level: Tensor, worth: Tensor, options: SpikeOptions) -> Tensor:
    return _fired(charged, level, options).mul_(worth)


def _backward_loop(
    ctx: Any, saved: tuple[Tensor, ...], gradient: Tensor, surrogate: tuple[int, float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of currents, threshold, initial fraction and leak."""
    from snn_lowlat.kernels import compiled

    loop: Any = compiled.window_backward
    charged, threshold, initial_fraction, _, leak = saved
    options: SpikeOptions = ctx.options
    rows: _Rows = ctx.rows
    of_currents = _window_like(charged[0], 1 if ctx.constant else len(charged))
    windows = [rows.view(values) for values in (charged, gradient, of_currents)]
    number, *shape = surrogate
    settings: list[Any] = [number, *map(type(rows.leak), shape)]
    settings += [options.detach_reset, options.threshold_gradient == "paper_code", *_wanted(ctx)]
    arguments = *windows, rows.threshold, rows.offset, rows.height, rows.leak, *settings
    parts = rows.run(lambda *part: loop(*arguments, *part), windows[0])
    sums = of_channels(sum(parts), charged[0], rows.order)
    sums[0] /= rows.by_channel
    sums[1] *= rows.by_channel
    found = zip(torch.from_numpy(sums), (threshold, initial_fraction, leak), strict=True)
    of_threshold, of_fraction, of_leak = (_like(channels, parameter) for channels, parameter in found)
    return of_currents, of_threshold, of_fraction, of_leak


def _leaking(leak: Tensor) -> Tensor | None:
    """Return None where nothing leaks; an accelerator is not made to wait for the answer."""
    return None if leak.device.type == "cpu" and float(leak) == 1 else leak.detach()


def _fired(compared: Tensor, level: Tensor, options: SpikeOptions) -> Tensor:
    if options.smooth is not None:
        return options.smooth(compared / level - 1)
    return torch.ge(compared, level, out=torch.empty_like(compared))


def _window_like(one_step: Tensor, timesteps: int) -> Tensor:
    """Return an empty ``[T, N, C, ...]`` whose steps lie in memory as ``[N, C, ...]`` does."""
    last = one_step.dim() == 4 and one_step.is_contiguous(memory_format=torch.channels_last)
    shape = (timesteps * len(one_step), *one_step.shape[1:])
    layout = torch.channels_last if last and not one_step.is_contiguous() else torch.contiguous_format
    empty = torch.empty(shape, dtype=one_step.dtype, device=one_step.device, memory_format=layout)
    return empty.view(timesteps, *one_step.shape)


def _parts(one_step: Tensor) -> Iterator[slice]:
    """Split a batch so that the tensors of one part stay in a processor's cache."""
    size = len(one_step)
    if one_step.device.type == "cpu":
        size = max(1, _ELEMENTS_AT_ONCE * size // max(1, one_step.numel()))
    for start in range(0, len(one_step), size):
        yield slice(start, start + size)


def _like(channels: Tensor, parameter: Tensor) -> Tensor:
    """Bring a gradient for each channel, ``[C]``, to the shape and type of its parameter."""
    return (channels if parameter.dim() else channels.sum()).to(parameter)
