"""Integrate-and-fire neurons over all steps in one pass of the memory, with the sum in front of them.

Two implementations fire the same spikes, bit for bit:

- ``"numba"``: a loop compiled by Numba, for CPUs;
- ``"eager"``: :func:`snn_lowlat.neurons.integrate_and_fire_sequence`, for whatever is left.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from snn_lowlat.errors import unknown_name
from snn_lowlat.neurons import integrate_and_fire_sequence, per_channel
from snn_lowlat.plan import SitePlan

__all__ = ["SCANS", "FusedNeurons"]

SCANS = ("numba", "eager")
"""How the steps can be run through."""

# So many neurons at a time: their potentials and parameters stay in the first-level cache.
_BLOCK = 512
# Fewer element-steps than this are not worth another thread.
_SHARE = 2**17


class FusedNeurons:
    r"""One site's integrate-and-fire neurons: from currents to what is sent on, all steps at once.

    .. math:: a\,s(t) \quad\text{for the current}\quad z(t) = x(t) + f\,y(t)

    The spikes :math:`s` are those of :func:`snn_lowlat.neurons.integrate_and_fire`; no gradients pass.

    Parameters
    ----------
    plan : SitePlan
        Threshold, initial potential and amplitude, of shape ``[]`` or ``[C]``, and the ``leak`` as a parameter if there
        is one.
    factor : Tensor, optional
        What the second current is multiplied by, :math:`f`, of shape ``[]`` or ``[C]``; 1 by default.
    dtype : torch.dtype, optional
        The type of what is sent; that of the currents by default.
    scan : str, optional
        One of :data:`SCANS`; by default the fastest that the currents' device and type allow.

    Raises
    ------
    ValueError
        If there is no such scan.
    """

    def __init__(
        self,
        plan: SitePlan,
        factor: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        scan: str | None = None,
    ) -> None:
        if scan is not None and scan not in SCANS:
            raise unknown_name("scan", scan, SCANS)
        self.plan = plan
        self.factor = torch.ones(()) if factor is None else factor
        self.dtype = dtype
        self.scan = scan
        self.leak = float(plan.parameters.get("leak", 1.0))
        self._patterns: dict[tuple[Any, ...], tuple[NDArray[Any], ...]] = {}

    def __call__(self, currents: Tensor, timesteps: int, other: Tensor | None = None, *, still: bool = False) -> Tensor:
        """Fire.

        Parameters
        ----------
        currents : Tensor
            The first current, ``[T * N, C, ...]``; ``[N, C, ...]`` if it is ``still``.
        timesteps : int
            The number of steps, T.
        other : Tensor, optional
            The second current, of the same shape and of any type.
        still : bool
            The currents are the same in every step.

        Returns
        -------
        Tensor
            The amplitude where a neuron fires and 0 elsewhere, ``[T * N, C, ...]``.
        """
        steps = 1 if still else timesteps
        if (self.scan or _fastest(currents)) == "numba":
            return self._by_numba(currents, other, timesteps, steps)
        if other is not None:
            currents = currents + other.to(currents.dtype) * per_channel(self.factor, currents)
        each_step = currents.reshape(steps, -1, *currents.shape[1:])
        return self._by_torch(each_step.expand(timesteps, *each_step.shape[1:]))

    def _by_torch(self, currents: Tensor) -> Tensor:
        rest, plan = torch.zeros_like(currents[0]), self.plan
        spikes, _ = integrate_and_fire_sequence(currents, rest, plan.threshold, plan.initial_potential, self.leak)
        sent = spikes.flatten(0, 1) * per_channel(self.plan.amplitude, rest)
        return sent if self.dtype is None else sent.to(self.dtype)

    def _by_numba(self, currents: Tensor, other: Tensor | None, timesteps: int, steps: int) -> Tensor:
        # The order of elements in memory, whatever the order of dimensions.
        order = _memory_order(currents)
        flat = currents.permute(order).contiguous()
        shape = (flat.shape[0] // steps * timesteps, *flat.shape[1:])
        sent = torch.empty(shape, dtype=self.dtype or currents.dtype)
        arrays = [flat.view(steps, -1).numpy()]
        if other is not None:
            arrays.append(other.permute(order).contiguous().view(steps, -1).numpy())
        pattern = self._pattern(currents, channels_last=order[-1] == 1, dtype=sent.dtype)
        _run_numba(arrays, sent.view(timesteps, -1).numpy(), pattern, self.leak)
        return sent.permute(_inverse(order))

    def _pattern(self, currents: Tensor, *, channels_last: bool, dtype: torch.dtype) -> tuple[NDArray[Any], ...]:
        """Repeat the parameters as channels repeat in memory: threshold, initial potential, factor, amplitude."""
        channels = currents.shape[1]
        places = 1 if channels_last else currents[0, 0].numel()
        key = channels, places, currents.dtype, dtype
        if key not in self._patterns:
            plan, kinds = self.plan, (*[currents.dtype] * 3, dtype)
            rows = [
                values.detach().to("cpu", kind).expand(channels).repeat_interleave(places)
                for values, kind in zip(
                    (plan.threshold, plan.initial_potential, self.factor, plan.amplitude), kinds, strict=True
                )
            ]
            repeats = max(1, _BLOCK // (channels * places))
            self._patterns[key] = tuple(row.repeat(repeats).numpy() for row in rows)
        return self._patterns[key]


def _fastest(currents: Tensor) -> str:
    usable = currents.device.type == "cpu" and currents.dtype in (torch.float32, torch.float64)
    return "numba" if usable and _has_numba() else "eager"


@lru_cache
def _has_numba() -> bool:
    return find_spec("numba") is not None


def _memory_order(values: Tensor) -> tuple[int, ...]:
    """Return the dimensions as they lie in memory: channels second, or last."""
    dims = tuple(range(values.dim()))
    last = (0, *dims[2:], 1)
    return last if not values.is_contiguous() and values.permute(last).is_contiguous() else dims


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(dim) for dim in range(len(order)))


def _run_numba(
    currents: list[NDArray[Any]], sent: NDArray[Any], pattern: tuple[NDArray[Any], ...], leak: float
) -> None:
    """Run through the steps of ``[T, M]``, with as many threads as torch has."""
    from snn_lowlat.simulation import numba_scan

    scan: Any = numba_scan.scan
    first, other = currents[0], currents[1] if len(currents) > 1 else None
    period, neurons = len(pattern[0]), sent.shape[1]
    arguments = first, other, sent, *pattern, first.dtype.type(leak)
    threads = min(torch.get_num_threads(), max(1, sent.size // _SHARE))
    share = -(-neurons // (threads * period)) * period
    parts = [(start, min(start + share, neurons)) for start in range(0, neurons, share)]
    if len(parts) == 1:
        scan(*arguments, *parts[0])
    else:
        list(_threads(len(parts)).map(lambda part: scan(*arguments, *part), parts))


@lru_cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, "scan")
