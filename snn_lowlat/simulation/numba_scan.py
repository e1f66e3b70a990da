"""The loop over steps and neurons, compiled by Numba; imported where Numba is installed."""

from __future__ import annotations

import numba
import numpy as np

__all__ = ["scan"]

_BLOCK = 512


@numba.njit(nogil=True, cache=True)
def scan(currents, other, sent, threshold, offset, factor, amplitude, leak, start, stop):  # type: ignore[no-untyped-def]
    """Run integrate-and-fire neurons ``start`` to ``stop`` through all steps.

    A block of neurons goes through all steps before the next, so that potentials never leave the cache; within a block
    the inner loop runs over neighbours in memory, which a processor's vector units take at once.

    Parameters
    ----------
    currents : ndarray
        ``[T, M]``, or ``[1, M]`` if the same in every step.
    other : ndarray or None
        What is added, times the factor; of the same shape.
    sent : ndarray
        Filled with the amplitudes of the neurons that fire and 0, ``[T, M]``.
    threshold, offset, factor, amplitude : ndarray
        ``[P]``: those of neuron ``m`` are at ``m % P``.
    leak : float
        What stays of the potential from one step to the next, in the currents' type.
    start, stop : int
        ``start`` is a multiple of ``P``.
    """
    period = len(threshold)
    potential = np.empty(_BLOCK, currents.dtype)
    silence, kind = amplitude.dtype.type(0), currents.dtype.type
    for base in range(start, stop, period):
        for low in range(0, min(period, stop - base), _BLOCK):
            size = min(_BLOCK, period - low, stop - base - low)
            theta = threshold[low : low + size]
            shift = offset[low : low + size]
            worth = amplitude[low : low + size]
            scale = factor[low : low + size]
            here = base + low
            for j in range(size):
                potential[j] = 0
            for t in range(len(sent)):
                row = t if len(currents) > 1 else 0
                current = currents[row, here : here + size]
                out = sent[t, here : here + size]
                if other is not None:
                    second = other[row, here : here + size]
                    for j in range(size):
                        charged = leak * potential[j] + (current[j] + kind(second[j]) * scale[j])
                        fires = charged + shift[j] >= theta[j]
                        out[j] = worth[j] if fires else silence
                        potential[j] = charged - theta[j] if fires else charged
                else:
                    for j in range(size):
                        charged = leak * potential[j] + current[j]
                        fires = charged + shift[j] >= theta[j]
                        out[j] = worth[j] if fires else silence
                        potential[j] = charged - theta[j] if fires else charged
