"""Loops over steps and neurons, compiled by Numba; import this where :func:`snn_lowlat.neurons.loops.usable` says so.

All have the same shape. Neurons are a row ``[M]`` as they lie in memory, steps are rows of ``[T, M]``. A block of
neurons goes through all steps before the next, so that its state never leaves the cache; within a block the inner loop
runs over neighbours in memory, which a processor's vector units take at once. Parameters are rows ``[P]``: those of
neuron ``m`` are at ``m % P``. A call does neurons ``start`` to ``stop``, of which ``start`` is a multiple of ``P``.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import numba
import numpy as np

__all__ = ["scan", "scan_in_place", "window_backward", "window_forward"]

_BLOCK = 512


@numba.njit(nogil=True, cache=True, error_model="numpy")
def scan(currents, sent, other, threshold, offset, factor, amplitude, leak, start, stop):
    """Run integrate-and-fire neurons; the rounding is that of ``integrate_and_fire_sequence``.

    Parameters
    ----------
    currents : ndarray
        ``[T, M]``, or ``[1, M]`` if the same in every step.
    sent : ndarray
        Filled with the amplitudes of the neurons that fire and 0, ``[T, M]``.
    other : ndarray or None
        What is added to the currents, times the factor; of their shape.
    threshold, offset, factor, amplitude : ndarray
        ``[P]``.
    leak : float
        What stays of the potential from one step to the next, in the currents' type.
    start, stop : int
        Which neurons.
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


@numba.njit(nogil=True, cache=True, error_model="numpy")
def scan_in_place(currents, other, threshold, offset, factor, amplitude, leak, start, stop):
    """Do what :func:`scan` does, and put what is sent where the currents were: half as much memory to pass.

    A loop of its own, because the compiler leaves the vector units alone where two rows might overlap.
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
            for t in range(len(currents)):
                row = currents[t, here : here + size]
                if other is not None:
                    second = other[t, here : here + size]
                    for j in range(size):
                        charged = leak * potential[j] + (row[j] + kind(second[j]) * scale[j])
                        fires = charged + shift[j] >= theta[j]
                        row[j] = worth[j] if fires else silence
                        potential[j] = charged - theta[j] if fires else charged
                else:
                    for j in range(size):
                        charged = leak * potential[j] + row[j]
                        fires = charged + shift[j] >= theta[j]
                        row[j] = worth[j] if fires else silence
                        potential[j] = charged - theta[j] if fires else charged


@numba.njit(nogil=True, cache=True, error_model="numpy")
def window_forward(currents, charged, outputs, threshold, offset, worth, leak, start, stop):
    """Run integrate-and-fire neurons and keep the potentials that are compared with the threshold.

    Parameters
    ----------
    currents : ndarray
        ``[T, M]``, or ``[1, M]`` if the same in every step.
    charged, outputs : ndarray
        Filled with these potentials, and with what spikes are worth, ``[T, M]``.
    threshold, offset, worth : ndarray
        ``[P]``.
    leak : float
        What stays of the potential from one step to the next, in the currents' type.
    start, stop : int
        Which neurons.
    """
    period = len(threshold)
    potential = np.empty(_BLOCK, currents.dtype)
    silence = worth.dtype.type(0)
    for base in range(start, stop, period):
        for low in range(0, min(period, stop - base), _BLOCK):
            size = min(_BLOCK, period - low, stop - base - low)
            theta = threshold[low : low + size]
            shift = offset[low : low + size]
            value = worth[low : low + size]
            here = base + low
            for j in range(size):
                potential[j] = 0
            for t in range(len(outputs)):
                current = currents[t if len(currents) > 1 else 0, here : here + size]
                compared = charged[t, here : here + size]
                out = outputs[t, here : here + size]
                for j in range(size):
                    before = leak * potential[j] + current[j]
                    level = before + shift[j]
                    fires = level >= theta[j]
                    compared[j] = level
                    out[j] = value[j] if fires else silence
                    potential[j] = before - theta[j] if fires else before


@numba.njit(nogil=True, cache=True, error_model="numpy")
def window_backward(
    charged,
    gradient,
    of_currents,
    threshold,
    fraction,
    height,
    leak,
    surrogate,
    option,
    scale,
    detach_reset,
    paper_code,
    wants_threshold,
    wants_fraction,
    wants_leak,
    start,
    stop,
):
    """Run the equations of ``surrogate_integrate_and_fire`` from the last step to the first.

    Parameters
    ----------
    charged, gradient : ndarray
        The potentials that were compared with the threshold, and the gradient of the outputs, ``[T, M]``.
    of_currents : ndarray
        Filled with the gradient of the currents, ``[T, M]``, or ``[1, M]`` if they are the same in every step.
    threshold, fraction, height : ndarray
        ``[P]``.
    leak : float
        What stays of the potential from one step to the next, in the currents' type.
    surrogate : int
        The place of the surrogate in ``snn_lowlat.neurons.surrogate.COMPILED``.
    option, scale : float
        Its width or slope, and its height, in the currents' type.
    detach_reset, paper_code : bool
        See ``SpikeOptions``.
    wants_threshold, wants_fraction, wants_leak : bool
        Which sums are wanted; the others stay zero.
    start, stop : int
        Which neurons.

    Returns
    -------
    ndarray
        The sums over all places and steps that gradients of threshold, initial fraction and leak are made of,
        ``[3, P]``, in double precision.
    """
    period = len(threshold)
    sums = np.zeros((3, period), np.float64)
    after, through = np.empty(_BLOCK, charged.dtype), np.empty(_BLOCK, charged.dtype)
    kind = charged.dtype.type
    zero, one = kind(0), kind(1)
    steps = len(charged)
    for base in range(start, stop, period):
        for low in range(0, min(period, stop - base), _BLOCK):
            size = min(_BLOCK, period - low, stop - base - low)
            theta = threshold[low : low + size]
            begun = fraction[low : low + size]
            ratio = height[low : low + size]
            of_threshold = sums[0, low : low + size]
            of_fraction = sums[1, low : low + size]
            of_leak = sums[2, low : low + size]
            here = base + low
            for j in range(size):
                after[j] = 0
            for t in range(steps - 1, -1, -1):
                compared = charged[t, here : here + size]
                last = charged[max(t - 1, 0), here : here + size]
                given = gradient[t, here : here + size]
                row = t if len(of_currents) > 1 else 0
                first = len(of_currents) > 1 or t == steps - 1
                found = of_currents[row, here : here + size]
                # One loop for each result: with more rows at once the compiler does not find out that none of them
                # overlap, and gives up the vector units.
                for j in range(size):
                    distance = compared[j] / theta[j] - one
                    far = abs(distance)
                    if surrogate == 0:
                        slope = scale if far < option else zero
                    elif surrogate == 1:
                        slope = max(zero, scale * (one - far / option))
                    elif surrogate == 2:
                        slope = scale / (one + (option * distance) * (option * distance))
                    else:
                        slope = scale / ((one + option * far) * (one + option * far))
                    reset = zero if detach_reset else after[j]
                    through[j] = slope * (given[j] * ratio[j] - reset)
                if wants_threshold:
                    for j in range(size):
                        fired = one if compared[j] >= theta[j] else zero
                        rise = given[j] if paper_code else fired * (given[j] * ratio[j])
                        change = rise - fired * after[j]
                        of_threshold[j] += change - (compared[j] / theta[j] - begun[j]) * through[j]
                if wants_fraction:
                    for j in range(size):
                        of_fraction[j] += through[j]
                if wants_leak and t > 0:
                    for j in range(size):
                        left = last[j] - begun[j] * theta[j]
                        stayed = left - theta[j] if last[j] >= theta[j] else left
                        of_leak[j] += stayed * (through[j] + after[j])
                if first:
                    for j in range(size):
                        found[j] = through[j] + after[j]
                else:
                    for j in range(size):
                        found[j] += through[j] + after[j]
                for j in range(size):
                    after[j] = (through[j] + after[j]) * leak
    return sums
