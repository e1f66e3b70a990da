"""The integrate-and-fire neuron with a gradient: spikes are steps forwards and a surrogate backwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snn_lowlat.errors import unknown_name
from snn_lowlat.neurons.loops import in_threads, memory_order, of_channels, pattern, usable
from snn_lowlat.neurons.parameters import per_channel

__all__ = [
    "SURROGATES",
    "THRESHOLD_GRADIENTS",
    "SpikeOptions",
    "Surrogate",
    "atan",
    "fast_sigmoid",
    "rectangular",
    "sigmoid",
    "straight_through",
    "surrogate_integrate_and_fire",
    "triangle",
]

Surrogate = Callable[[Tensor], Tensor]
"""What stands for the derivative of a spike, as a function of the distance ``u = potential / threshold - 1``."""

THRESHOLD_GRADIENTS = ("proper", "paper_code")
"""How the height of spikes enters a threshold's gradient."""

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

    Returns
    -------
    Tensor
        Of shape ``[T, N, C, ...]``: spikes times their height and threshold.
    """
    options = options or SpikeOptions()
    outputs: Tensor = _Window.apply(currents, threshold, initial_fraction, height, leak, timesteps, options)
    return outputs


class _Window(torch.autograd.Function):
    """The equations of :func:`surrogate_integrate_and_fire`, in compiled loops or a few images at a time by torch."""

    @staticmethod
    def forward(
        ctx: Any,
        currents: Tensor,
        threshold: Tensor,
        initial_fraction: Tensor,
        height: Tensor,
        leak: Tensor,
        timesteps: int,
        options: SpikeOptions,
    ) -> Tensor:
        """Return the outputs; the arguments are those of :func:`surrogate_integrate_and_fire`."""
        ctx.constant, ctx.options = len(currents) == 1, options
        one_step = currents[0]
        if options.smooth is None and usable(currents):
            charged, outputs = _forward_loop(currents, threshold, initial_fraction, height, leak, timesteps)
            ctx.save_for_backward(charged, threshold, initial_fraction, height, leak)
            return outputs
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
        ctx.save_for_backward(charged, threshold, initial_fraction, height, leak)
        return outputs

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the forward pass's arguments."""
        charged, threshold, initial_fraction, height, leak = ctx.saved_tensors
        options: SpikeOptions = ctx.options
        surrogate = _compiled_surrogate(options)
        if surrogate is not None and usable(charged) and usable(gradient):
            found = _backward_loop(ctx, (charged, threshold, initial_fraction, height, leak), gradient, surrogate)
            wanted = zip(found, ctx.needs_input_grad[:5], strict=True)
            return *(part if needed else None for part, needed in wanted), None, None
        one_step, timesteps = charged[0], len(charged)
        level, fraction = per_channel(threshold, one_step), per_channel(initial_fraction, one_step)
        ratio, stays = per_channel(height, one_step), _leaking(leak)
        wants_threshold, wants_fraction, _, wants_leak = ctx.needs_input_grad[1:5]
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
        return (
            of_currents,
            _like(of_threshold, threshold) if wants_threshold else None,
            _like(of_fraction * threshold, initial_fraction) if wants_fraction else None,
            None,
            of_leak.to(leak) if wants_leak else None,
            None,
            None,
        )


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


def _forward_loop(
    currents: Tensor, threshold: Tensor, initial_fraction: Tensor, height: Tensor, leak: Tensor, timesteps: int
) -> tuple[Tensor, Tensor]:
    from snn_lowlat.neurons import compiled

    loop: Any = compiled.window_forward
    one_step = currents[0]
    charged, outputs = _window_like(one_step, timesteps), _window_like(one_step, timesteps)
    order = memory_order(charged[0])
    parameters = [pattern(value, one_step, order) for value in (threshold, initial_fraction * threshold)]
    parameters.append(pattern(height * threshold, one_step, order))
    rows = [_rows(values, order) for values in (currents, charged, outputs)]
    stays = rows[0].dtype.type(float(leak))
    in_threads(lambda *part: loop(*rows, *parameters, stays, *part), rows[0].shape[1], timesteps, len(parameters[0]))
    return charged, outputs


def _backward_loop(
    ctx: Any, saved: tuple[Tensor, ...], gradient: Tensor, surrogate: tuple[int, float, float]
) -> list[Tensor | None]:
    """Return the gradients of currents, threshold, initial fraction, height and leak."""
    from snn_lowlat.neurons import compiled

    loop: Any = compiled.window_backward
    charged, threshold, initial_fraction, height, leak = saved
    options: SpikeOptions = ctx.options
    one_step = charged[0]
    order = memory_order(one_step)
    of_currents = _window_like(one_step, 1 if ctx.constant else len(charged))
    parameters = [pattern(value, one_step, order) for value in (threshold, initial_fraction, height)]
    rows = [_rows(values, order) for values in (charged, gradient, of_currents)]
    kind, (number, option, scale) = rows[0].dtype.type, surrogate
    settings: list[Any] = [kind(float(leak)), number, kind(option), kind(scale)]
    wanted = ctx.needs_input_grad[1], ctx.needs_input_grad[2], ctx.needs_input_grad[4]
    settings += [options.detach_reset, options.threshold_gradient == "paper_code", *wanted]
    parts = in_threads(
        lambda *part: torch.from_numpy(loop(*rows, *parameters, *settings, *part)),
        rows[0].shape[1],
        len(charged),
        len(parameters[0]),
    )
    sums = of_channels(torch.stack(parts).sum(0), one_step, order)
    return [
        of_currents,
        _like(sums[0], threshold),
        _like(sums[1] * threshold, initial_fraction),
        None,
        sums[2].sum().to(leak),
    ]


def _rows(values: Tensor, order: Sequence[int]) -> Any:
    """Return ``[T, N, C, ...]`` as rows in memory, ``[T, M]``: a view if that is how it lies there."""
    steps = values.detach().permute(0, *(dim + 1 for dim in order))
    return steps.contiguous().view(len(steps), -1).numpy()


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
