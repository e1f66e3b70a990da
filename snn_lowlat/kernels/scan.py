"""Integrate-and-fire neurons over all steps in one pass of the memory, with the sum in front of them.

Two implementations fire the same spikes, bit for bit:

- ``"numba"``: a loop compiled by Numba, for CPUs;
- ``"eager"``: :func:`snn_lowlat.neurons.integrate_and_fire_sequence`, for whatever is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snn_lowlat.errors import unknown_name
from snn_lowlat.kernels.loops import in_threads, memory_order, original_order, pattern, usable
from snn_lowlat.neurons import integrate_and_fire_sequence, per_channel
from snn_lowlat.plan import SitePlan

__all__ = ["SCANS", "FusedNeurons"]

SCANS = ("numba", "eager")
"""How the steps can be run through."""


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

    def __call__(
        self,
        currents: Tensor,
        timesteps: int,
        other: Tensor | None = None,
        *,
        constant_in_time: bool = False,
        overwrite: bool = False,
    ) -> Tensor:
        """Fire.

        Parameters
        ----------
        currents : Tensor
            The first current, ``[T * N, C, ...]``; ``[N, C, ...]`` if ``constant_in_time``.
        timesteps : int
            The number of steps, T.
        other : Tensor, optional
            The second current, of the same shape and of any type.
        constant_in_time : bool
            The currents are the same in every step.
        overwrite : bool
            The first current is not needed afterwards, so that what is sent may take its place in memory.

        Returns
        -------
        Tensor
            The amplitude where a neuron fires and 0 elsewhere, ``[T * N, C, ...]``.
        """
        steps = 1 if constant_in_time else timesteps
        if (self.scan or _fastest(currents)) == "numba":
            return self._by_numba(currents, other, timesteps, steps, overwrite)
        if other is not None:
            currents = currents + other.to(currents.dtype) * per_channel(self.factor, currents)
        each_step = currents.reshape(steps, -1, *currents.shape[1:])
        return self._by_torch(each_step.expand(timesteps, *each_step.shape[1:]))

    def _by_torch(self, currents: Tensor) -> Tensor:
        rest, plan = torch.zeros_like(currents[0]), self.plan
        spikes, _ = integrate_and_fire_sequence(currents, rest, plan.threshold, plan.initial_potential, self.leak)
        sent = spikes.flatten(0, 1) * per_channel(self.plan.amplitude, rest)
        return sent if self.dtype is None else sent.to(self.dtype)

    def _by_numba(self, currents: Tensor, other: Tensor | None, timesteps: int, steps: int, overwrite: bool) -> Tensor:
        from snn_lowlat.kernels import compiled

        order, dtype = memory_order(currents), self.dtype or currents.dtype
        flat = currents.permute(order).contiguous()
        rows = [flat.view(steps, -1).numpy()]
        second = None if other is None else other.permute(order).contiguous().view(steps, -1).numpy()
        parameters = self._parameters(currents, order, dtype)
        scan: Any = compiled.scan_in_place
        sent = flat
        if not overwrite or steps < timesteps or dtype != currents.dtype:
            scan = compiled.scan
            sent = torch.empty((len(flat) // steps * timesteps, *flat.shape[1:]), dtype=dtype)
            rows.append(sent.view(timesteps, -1).numpy())
        arguments = *rows, second, *parameters, rows[0].dtype.type(self.leak)
        in_threads(lambda *part: scan(*arguments, *part), rows[0].shape[1], timesteps, len(parameters[0]))
        return sent.permute(original_order(order))

    def _parameters(self, currents: Tensor, order: tuple[int, ...], dtype: torch.dtype) -> tuple[NDArray[Any], ...]:
        """Return threshold, initial potential, factor and amplitude as they repeat in memory."""
        key = currents.shape[1:], order, currents.dtype, dtype
        if key not in self._patterns:
            plan, kind = self.plan, currents.dtype
            values = [
                (plan.threshold, kind),
                (plan.initial_potential, kind),
                (self.factor, kind),
                (plan.amplitude, dtype),
            ]
            rows = [np.atleast_1d(value.detach().to("cpu", kind).numpy()) for value, kind in values]
            self._patterns[key] = tuple(pattern(row, currents, order) for row in rows)
        return self._patterns[key]


def _fastest(currents: Tensor) -> str:
    return "numba" if usable(currents) else "eager"
