"""Surrogate gradients by name: this package's own and the hosts'."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.errors import unknown_name
from snn_lowlat.kernels.surrogate import SURROGATES, Surrogate

__all__ = ["HostSurrogate", "make_surrogate"]

_MODULES = {"spikingjelly": "spikingjelly.activation_based.surrogate", "snntorch": "snntorch.surrogate"}


class HostSurrogate:
    """The derivative that a host library's surrogate uses for a spike, found by differentiating it.

    Parameters
    ----------
    host : {"spikingjelly", "snntorch"}
        The library.
    name : str
        The surrogate there: a class such as ``ATan`` of SpikingJelly, a function such as ``fast_sigmoid`` of snnTorch.
    **options
        Its arguments.

    Raises
    ------
    ValueError
        If there is no such host or surrogate.
    """

    def __init__(self, host: str, name: str, **options: Any) -> None:
        makers = _makers(checks.one_of("host of surrogates", host, _MODULES))
        checks.one_of(f"surrogate of {host}", name, makers)
        self.host, self.name, self.options = host, name, options
        self._spike: Callable[[Tensor], Tensor] = makers[name](**options)

    def __call__(self, distance: Tensor) -> Tensor:
        """Map distances from the threshold, in units of the threshold, to the derivative of a spike there."""
        with torch.enable_grad():
            distance = distance.detach().requires_grad_()
            spikes = self._spike(distance)
            (derivative,) = torch.autograd.grad(spikes, distance, torch.ones_like(spikes))
        return derivative

    def __reduce__(self) -> tuple[Any, ...]:
        # snnTorch's surrogates are closures, which can't be pickled.
        return partial(HostSurrogate, self.host, self.name, **self.options), ()

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"HostSurrogate({self.host!r}, {self.name!r}{options})"


def make_surrogate(surrogate: str | Surrogate = "rectangular", **options: Any) -> Surrogate:
    """Return what stands for the derivative of a spike.

    Parameters
    ----------
    surrogate : str or callable
        The name of one in :data:`snn_lowlat.kernels.surrogate.SURROGATES`; one of a host's such as
        ``"spikingjelly.ATan"`` or ``"snntorch.fast_sigmoid"``; or a function that maps distances from the threshold,
        in units of the threshold, to the derivative. The hosts' own neurons give them the distance itself, so their
        widths and slopes are those of a threshold of 1.
    **options
        The arguments of the named one.

    Raises
    ------
    ValueError
        If there is no surrogate of that name, or it takes no such options.
    """
    derivative = _named(surrogate, **options) if isinstance(surrogate, str) else partial(surrogate, **options)
    distances = torch.linspace(-2, 2, 5)
    try:
        values = derivative(distances)
    except Exception as error:  # a user's function, or a host's
        raise ValueError(f"the surrogate {surrogate!r} with options {options} fails: {error}") from error
    if values.shape != distances.shape or not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"the surrogate {surrogate!r} with options {options} must map distances to finite derivatives of the same "
            f"shape; it maps {distances.tolist()} to {values.tolist()}."
        )
    return derivative


def _named(name: str, **options: Any) -> Surrogate:
    host, _, kind = name.rpartition(".")
    if not host and kind not in SURROGATES:
        hosts = [f"{host}.{maker}" for host in _MODULES for maker in _makers(host)]
        raise unknown_name("surrogate", name, [*SURROGATES, *hosts])
    if not host:
        return partial(SURROGATES[kind], **options)
    try:
        return HostSurrogate(host, kind, **options)
    except TypeError as error:
        raise ValueError(f"the surrogate {name!r} does not take the options {options}: {error}") from error


def _makers(host: str) -> dict[str, Callable[..., Any]]:
    module = import_module(_MODULES[host])
    if host == "spikingjelly":
        base = module.SurrogateFunctionBase
        return {
            name: kind
            for name, kind in vars(module).items()
            if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
        }
    # snnTorch's are functions that return the surrogate; those that begin with a capital too.
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }
