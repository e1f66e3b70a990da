"""Loops over steps and neurons, compiled by Numba; import this where :func:`snn_lowlat.kernels.loops.usable` says so.

All have the same shape. Neurons are a row ``[M]`` as they lie in memory, steps are rows of ``[T, M]``. A block of
neurons goes through all steps before the next, so that its state never leaves the cache; within a block the inner loop
runs over neighbours in memory, which a processor's vector units take at once. Parameters are rows ``[P]``: those of
neuron ``m`` are at ``m % P``. A call does neurons ``start`` to ``stop``, of which ``start`` is a multiple of ``P``.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import numba
import numpy as np

__all__ = [
    "checksum",
    "cumulative_max_pool",
    "fire_again",
    "scan",
    "scan_in_place",
    "window_backward",
    "window_forward",
]

# The rows of a block of so many neurons stay in the nearest cache; windows have more rows.
_BLOCK, _WINDOW_BLOCK = 256, 128


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
def window_forward(currents, other, charged, outputs, threshold, offset, worth, leak, start, stop):
    """Run integrate-and-fire neurons and keep the potentials that are compared with the threshold.

    Parameters
    ----------
    currents : ndarray or None
        ``[T, M]``, or ``[1, M]`` if the same in every step; None if they are where the potentials will be.
    other : ndarray or None
        What is added to the currents; of their shape.
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
    potential = np.empty(_WINDOW_BLOCK, charged.dtype)
    silence = worth.dtype.type(0)
    for base in range(start, stop, period):
        for low in range(0, min(period, stop - base), _WINDOW_BLOCK):
            size = min(_WINDOW_BLOCK, period - low, stop - base - low)
            theta = threshold[low : low + size]
            shift = offset[low : low + size]
            value = worth[low : low + size]
            here = base + low
            for j in range(size):
                potential[j] = 0
            for t in range(len(outputs)):
                compared = charged[t, here : here + size]
                out = outputs[t, here : here + size]
                if currents is not None:
                    current = currents[t if len(currents) > 1 else 0, here : here + size]
                    for j in range(size):
                        compared[j] = current[j]
                if other is not None:
                    second = other[t if len(other) > 1 else 0, here : here + size]
                    for j in range(size):
                        compared[j] = leak * potential[j] + (compared[j] + second[j])
                else:
                    for j in range(size):
                        compared[j] = leak * potential[j] + compared[j]
                for j in range(size):
                    before = compared[j]
                    level = before + shift[j]
                    fires = level >= theta[j]
                    compared[j] = level
                    out[j] = value[j] if fires else silence
                    potential[j] = before - theta[j] if fires else before


@numba.njit(nogil=True, cache=True, error_model="numpy")
def fire_again(charged, outputs, threshold, worth, start, stop):
    """Fill in what spikes are worth from the potentials that are compared with the threshold; see `window_forward`."""
    period = len(threshold)
    silence = worth.dtype.type(0)
    for t in range(len(charged)):
        for base in range(start, stop, period):
            size = min(period, stop - base)
            compared = charged[t, base : base + size]
            out = outputs[t, base : base + size]
            for j in range(size):
                out[j] = worth[j] if compared[j] >= threshold[j] else silence


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _slope(distance, surrogate, option, scale, zero, one):
    """Return what stands for the derivative of a spike."""
    far = abs(distance)
    if surrogate == 0:
        return scale if far < option else zero
    if surrogate == 1:
        return max(zero, scale * (one - far / option))
    if surrogate == 2:
        return scale / (one + (option * distance) * (option * distance))
    return scale / ((one + option * far) * (one + option * far))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def window_backward(
    charged,
    gradient,
    of_currents,
    threshold,
    offset,
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
    threshold, offset, height : ndarray
        ``[P]``.
    leak : float
        What stays of the potential from one step to the next, in the currents' type.
    surrogate : int
        The place of the surrogate in ``snn_lowlat.kernels.surrogate.COMPILED``.
    option, scale : float
        Its width or slope, and its height, in the currents' type.
    detach_reset, paper_code : bool
        See ``SpikeOptions``.
    wants_threshold, wants_fraction, wants_leak : bool
        Which sums are wanted; the others need not be right.
    start, stop : int
        Which neurons.

    Returns
    -------
    ndarray
        The sums over all places and steps that gradients of the threshold (times the threshold), of the initial
        fraction and of the leak are made of, ``[3, P]``, in double precision.
    """
    period = len(threshold)
    sums = np.zeros((3, period), np.float64)
    kind = charged.dtype.type
    zero, one = kind(0), kind(1)
    steps, constant_in_time = len(charged), len(of_currents) < len(charged)
    passes = leak * (zero if detach_reset else one)
    slope, after = np.empty(_WINDOW_BLOCK, charged.dtype), np.empty(_WINDOW_BLOCK, charged.dtype)
    of_threshold, of_leak = np.empty(_WINDOW_BLOCK, charged.dtype), np.empty(_WINDOW_BLOCK, charged.dtype)
    all_steps = np.empty(_WINDOW_BLOCK, charged.dtype)
    for base in range(start, stop, period):
        for low in range(0, min(period, stop - base), _WINDOW_BLOCK):
            size = min(_WINDOW_BLOCK, period - low, stop - base - low)
            theta = threshold[low : low + size]
            shift = offset[low : low + size]
            ratio = height[low : low + size]
            for j in range(size):
                after[j] = zero  # the gradient of the next step's potential
                all_steps[j] = zero
                of_threshold[j] = zero
                of_leak[j] = zero
            for t in range(steps - 1, -1, -1):
                compared = charged[t, base + low : base + low + size]
                given = gradient[t, base + low : base + low + size]
                found = of_currents[0 if constant_in_time else t, base + low : base + low + size]
                # A short loop of its own: in a longer one the compiler gives up the vector units.
                for j in range(size):
                    slope[j] = _slope(compared[j] / theta[j] - one, surrogate, option, scale, zero, one)
                if wants_fraction:
                    of_fraction = sums[1, low : low + size]
                    for j in range(size):
                        of_fraction[j] += slope[j] * (given[j] * ratio[j] - passes * after[j])
                if wants_threshold and paper_code:
                    for j in range(size):
                        of_threshold[j] += given[j] * theta[j] * (one - (ratio[j] if compared[j] >= theta[j] else zero))
                if wants_threshold or wants_leak:
                    for j in range(size):
                        back = leak * after[j]
                        worth = given[j] * ratio[j]
                        through = slope[j] * (worth - passes * after[j])
                        left = compared[j] - shift[j]
                        fires = compared[j] >= theta[j]
                        of_threshold[j] += ((worth - back) * theta[j] if fires else zero) - left * through
                        of_leak[j] += (left - theta[j] if fires else left) * after[j]
                        after[j] = back + through
                        found[j] = back + through
                else:
                    for j in range(size):
                        before = slope[j] * (given[j] * ratio[j] - passes * after[j]) + leak * after[j]
                        after[j] = before
                        found[j] = before
                if constant_in_time:
                    for j in range(size):
                        all_steps[j] += after[j]
                        found[j] = all_steps[j]
            if wants_threshold or wants_leak:
                sum_of_threshold, sum_of_leak = sums[0, low : low + size], sums[2, low : low + size]
                for j in range(size):
                    sum_of_threshold[j] += of_threshold[j]
                    sum_of_leak[j] += of_leak[j]
    return sums


@numba.njit(nogil=True, cache=True, error_model="numpy")
def checksum(words):
    """Add up unsigned words of 64 bits, ``[M]``, mixed with their places: any one that changes changes the sum."""
    total, half, third = np.uint64(len(words)), np.uint64(32), np.uint64(29)
    for place in range(len(words)):
        odd = (np.uint64(place) * np.uint64(2) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (words[place] ^ (words[place] >> half)) * odd
        total += mixed ^ (mixed >> third)
    return total


@numba.njit(nogil=True, cache=True, error_model="numpy")
def cumulative_max_pool(currents, pooled, window, start, stop):
    """Pool the running sums of currents, with the rounding of ``neurons.max_pool.cumulative_max_pool_step``.

    Parameters
    ----------
    currents : ndarray
        ``[T, N, H, W, C]``.
    pooled : ndarray
        Filled with by how much the maxima change in each step, ``[T, N, H', W', C]``.
    window : tuple of int
        Size, stride, padding and dilation, each of rows and columns.
    start, stop : int
        Which rows of outputs, of ``N * H'``.
    """
    timesteps, _, height, width, channels = currents.shape
    rows, columns = pooled.shape[2:4]
    high, wide, row_stride, column_stride, row_padding, column_padding, row_dilation, column_dilation = window
    sums = np.empty((high * wide, _BLOCK), currents.dtype)
    best, value = np.empty(_BLOCK, currents.dtype), np.empty(_BLOCK, currents.dtype)
    before, maxima = np.empty(_BLOCK, currents.dtype), np.empty(_BLOCK, currents.dtype)
    for place in range(start, stop):
        image, row = place // rows, place % rows
        for column in range(columns):
            for low in range(0, channels, _BLOCK):
                size = min(_BLOCK, channels - low)
                sums[:] = 0
                for t in range(timesteps):
                    first = True
                    for position in range(high * wide):
                        y = row * row_stride - row_padding + (position // wide) * row_dilation
                        x = column * column_stride - column_padding + (position % wide) * column_dilation
                        if y < 0 or y >= height or x < 0 or x >= width:
                            continue
                        current = currents[t, image, y, x, low : low + size]
                        total = sums[position]
                        if first:
                            for j in range(size):
                                value[j] = current[j]
                                before[j] = total[j]
                                total[j] += current[j]
                                best[j] = total[j]
                            first = False
                        else:
                            for j in range(size):
                                after = total[j] + current[j]
                                larger = after > best[j]
                                value[j] = current[j] if larger else value[j]
                                before[j] = total[j] if larger else before[j]
                                best[j] = after if larger else best[j]
                                total[j] = after
                    out = pooled[t, image, row, column, low : low + size]
                    if t == 0:
                        for j in range(size):
                            out[j] = value[j]
                            maxima[j] = best[j]
                    else:
                        for j in range(size):
                            out[j] = value[j] + (before[j] - maxima[j])
                            maxima[j] = best[j]
