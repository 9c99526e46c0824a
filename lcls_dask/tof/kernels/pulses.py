"""Pulses in a stretch of signal: where they are, and four ways to tell their times.

The signal is positive, free of its baseline, and zero beyond the record. Times are in samples. Innermost indices are
unsigned, as signed ones are first looked at for a sign. What is looked for lies a few samples off the maximum, so it is
gone to one by one, which takes less than masks of many samples; these are for plateaus. What is no number is not at a
level, nor below. Arrays of signal have `BLOCK` values before the first one that counts and behind the last.
"""

import numpy as np
from numba import njit

from ...reduce.kernels.loops import compiled, inlined
from ...reduce.kernels.masks import BLOCK, at_most, first_bit, last_bit

LEADING_EDGE, DYNAMIC_LEADING_EDGE, CFD, MATCHED = range(4)


@inlined
def next_pulse(x, begin, end, threshold, found):
    """Find the next pulse: a maximum that stands out by `threshold` on both sides.

    Parameters
    ----------
    x : (n,) float64
    begin, end : int
        Where to look.
    threshold : float
        Least height, and least rise and fall.
    found : (3,) int64
        Out: where the pulse begins (the minimum before it), its maximum, and where it is known to have fallen.

    Returns
    -------
    bool
        Whether there is one.
    """
    i = begin
    while i < end:
        low, at_low = x[np.uint64(i)], i
        while i < end and x[np.uint64(i)] < low + threshold:
            if x[np.uint64(i)] < low:
                low, at_low = x[np.uint64(i)], i
            i += 1
        if i == end:
            return False
        top, at = x[np.uint64(i)], i
        while i < end and x[np.uint64(i)] > top - threshold:
            if x[np.uint64(i)] > top:
                top, at = x[np.uint64(i)], i
            i += 1
        if top >= threshold:  # where the stretch ends, what follows is below the threshold
            found[0], found[1], found[2] = at_low, at, i
            return True
    return False


@compiled
def _zero(a, b, c, d):
    """Where the cubic through (-1, a), (0, b), (1, c), (2, d) is zero in [0, 1]; b and c differ in sign."""
    c1 = c - a / 3 - b / 2 - d / 6
    c2 = (a + c) / 2 - b
    c3 = (d - a) / 6 + (b - c) / 2
    low, high, falling = 0.0, 1.0, b > c
    t = b / (b - c)
    for _ in range(8):
        value = b + t * (c1 + t * (c2 + t * c3))
        if (value > 0) == falling:
            low = t
        else:
            high = t
        slope = c1 + t * (2 * c2 + t * 3 * c3)
        step = t - value / slope if slope != 0 else -1.0
        new = step if low < step < high else 0.5 * (low + high)
        if abs(new - t) < 1e-9:
            return new
        t = new
    return t


@inlined
def _last_at_most(x, begin, at, level):
    """The last sample before `at` that is `level` or less; ``begin - 1`` where there is none from `begin` on."""
    near = max(begin, at - BLOCK)
    at -= 1
    while at >= near and not x[np.uint64(at)] <= level:
        at -= 1
    if at >= near:
        return at
    at += 1
    while at > begin:
        at -= BLOCK
        mask = at_most(x, at, level)
        if mask:
            return max(at + last_bit(mask), begin - 1)
    return begin - 1


@inlined
def _first_at_most(x, at, end, level):
    """The first sample behind `at` that is `level` or less; `end` where there is none before."""
    at += 1
    near = min(end, at + BLOCK)
    while at < near and not x[np.uint64(at)] <= level:
        at += 1
    if at < near:
        return at
    while at < end:
        mask = at_most(x, at, level)
        if mask:
            return min(at + first_bit(mask), end)
        at += BLOCK
    return end


@inlined
def _edge(x, begin, at, level):
    """Where the signal rises through `level` before the maximum `at`; `begin` where it does not."""
    i = _last_at_most(x, begin, at, level)
    return i + (level - x[i]) / (x[i + 1] - x[i]) if i >= begin else float(begin)


@inlined
def _crossing(x, low, i, fraction, delay):
    """Where ``x(t) - fraction * x(t + delay)`` is zero about i + 0.5: by the straight line through four samples of it.

    Through two the noise of the time is 1.4 times as large; a cubic through four follows the noise, and is worse.
    """
    first = x[i - 1] - fraction * x[i - 1 + delay]
    before = x[i] - fraction * x[i + delay]
    after = x[i + 1] - fraction * x[i + 1 + delay]
    last = x[i + 2] - fraction * x[i + 2 + delay]
    slope = 0.3 * (last - first) + 0.1 * (after - before)
    if slope <= 0 or i == low:
        return before / (before - after)
    return min(max(0.5 - 0.25 * (first + before + after + last) / slope, -1.0), 2.0)


@inlined
def _constant_fraction(x, low, begin, at, fraction, delay):
    """Where ``x(t) - fraction * x(t + delay)`` rises through zero, nearest before the maximum `at`."""
    i = at
    while i >= begin and x[np.uint64(i)] - fraction * x[np.uint64(i + delay)] <= 0.0:
        i -= 1
    while i >= begin and not x[np.uint64(i)] - fraction * x[np.uint64(i + delay)] <= 0.0:
        i -= 1
    return i + _crossing(x, low, i, fraction, delay) if i >= begin else float(begin)


@njit(cache=True, nogil=True, fastmath={"reassoc"})  # so that it is done in vectors
def _correlate(x, low, high, kernel, at):
    """Sum of ``x[at - half + j] * kernel[j]``, with zeros beyond `low` and `high`."""
    first = at - kernel.size // 2
    total = 0.0
    for j in range(max(0, low - first), min(kernel.size, high - first)):
        total += x[np.uint64(first + j)] * kernel[np.uint64(j)]
    return total


@compiled
def _matched(x, low, high, begin, end, at, slope):
    """Zero of the correlation with the template's derivative next to the maximum `at`: (time, whether there is one)."""
    here = _correlate(x, low, high, slope, at)
    # the correlation falls through zero at the pulse: a positive one says that it lies ahead
    step = 1 if here > 0 else -1
    i = at
    while begin <= i + step < end:
        there = _correlate(x, low, high, slope, i + step)
        if (there > 0) != (here > 0):
            k = i if step > 0 else i - 1
            b, c = (here, there) if step > 0 else (there, here)
            return k + _zero(_correlate(x, low, high, slope, k - 1), b, c, _correlate(x, low, high, slope, k + 2)), True
        i, here = i + step, there
    return float(at), False


@inlined
def _width(x, at, low, end, level):
    """Distance between where the signal rises through a level before the maximum `at` and falls through it behind."""
    i, j = _last_at_most(x, low, at, level), _first_at_most(x, at, end, level)
    left = i + (level - x[i]) / (x[i + 1] - x[i]) if i >= low else float(low)
    right = j - (level - x[j]) / (x[j - 1] - x[j]) if j < end else float(end - 1)
    return right - left


@inlined
def measure(x, low, high, found, method, threshold, fraction, delay, template, slope, told):
    """Time, height and width of a pulse.

    Parameters
    ----------
    x : (n,) float64
    low, high : int
        Where the stretch of signal begins and ends.
    found : (3,) int64
        See `next_pulse`.
    method : int
        `LEADING_EDGE`, `DYNAMIC_LEADING_EDGE`, `CFD` or `MATCHED`.
    threshold, fraction : float
    delay : int
    template, slope : (2 k + 1,) float64
        Pulse of height one about its maximum, and minus its derivative... of `MATCHED` alone.
    told : (3,) float64
        Out: time, height, full width at half of the height.
    """
    begin, at, end = found[0], found[1], found[2]
    top = x[at]
    height = top
    before, after = x[at - 1], x[at + 1]
    bend = before - 2 * top + after
    if bend < 0:
        height = top - 0.125 * (after - before) * (after - before) / bend
    if method == LEADING_EDGE:
        time = _edge(x, begin, at, threshold)
    elif method == DYNAMIC_LEADING_EDGE:
        time = _edge(x, begin, at, fraction * height)
    elif method == CFD:
        time = _constant_fraction(x, low, begin, at, fraction, delay)
    else:
        time, fitted = _matched(x, low, high, begin, end, at, slope)
        if fitted:
            near = int(np.floor(time + 0.5))
            moved = time - near
            here, first = _correlate(x, low, high, template, near), _correlate(x, low, high, slope, near)
            height = here + 0.5 * moved * first
    told[0], told[1] = time, height
    told[2] = _width(x, at, low, high, 0.5 * top)
