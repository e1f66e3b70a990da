"""snnTorch's idiom: converted networks as modules alone, to step in your own time loop and to train.

::

    from snn_lowlat import snntorch

    net = snntorch.convert(model, calibration, timesteps=8)
    snntorch.reset(net)
    out = sum(net(images) for _ in range(8))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from snn_lowlat.convert import convert as _convert
from snn_lowlat.hosts.snntorch import (
    AccumulateThenFire,
    IntegrateAndFire,
    OnlineTemporalSwitch,
    Surrogate,
    TemporalSwitch,
    make_learnable,
    reset,
)

__all__ = [
    "AccumulateThenFire",
    "IntegrateAndFire",
    "OnlineTemporalSwitch",
    "Surrogate",
    "TemporalSwitch",
    "convert",
    "make_learnable",
    "reset",
]


def convert(
    model: nn.Module,
    calibration: Iterable[object],
    *,
    learn_threshold: bool = False,
    learn_beta: bool = False,
    learn_graded_spikes_factor: bool = False,
    spike_grad: str | Surrogate | Callable[[Tensor], Tensor] = "atan",
    **options: Any,
) -> nn.Module:
    """Convert a trained ReLU network into a module of ``snn.Leaky`` neurons that is stepped in a time loop.

    Parameters
    ----------
    model : Module
        The trained network: one input ``[N, ...]``, one output ``[N, classes]``. It is not changed.
    calibration : iterable
        Batches of training images: tensors, ``(x, y)`` tuples or dicts.
    learn_threshold, learn_beta, learn_graded_spikes_factor : bool
        Make these values of the neurons trainable, as in ``snn.Leaky``.
    spike_grad : str, Surrogate or callable
        The surrogate gradient, by its name in ``snntorch.surrogate`` or as an object.
    **options
        The other options of :func:`snn_lowlat.convert`: ``strategy``, ``timesteps``, ``refinements``, ...

    Returns
    -------
    Module
        Maps ``[N, ...]`` to the output of one step; the readout is the sum or mean over the steps. :func:`reset` it
        before each batch. To save it, or for readouts after every step, use :func:`snn_lowlat.convert` with
        ``backend="snntorch"``, whose ``network`` is this module.

    Raises
    ------
    ConversionError, CalibrationError, ValueError
        As :func:`snn_lowlat.convert` does.
    """
    network = _convert(model, calibration, backend="snntorch", **options).network
    return make_learnable(
        network,
        threshold=learn_threshold,
        beta=learn_beta,
        graded_spikes_factor=learn_graded_spikes_factor,
        spike_grad=spike_grad,
    )
