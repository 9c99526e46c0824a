"""Pulses in a stretch of signal: where they are, and four ways to tell their times.

The signal is positive, free of its baseline, and zero beyond the record. Times are in samples. Innermost indices are
unsigned, as signed ones are first looked at for a sign.
"""

import numpy as np
from numba import njit

LEADING_EDGE, DYNAMIC_LEADING_EDGE, CFD, MATCHED = range(4)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _edge(x, begin, at, level):
    """Where the signal rises through `level` before the maximum `at`; `begin` where it does not."""
    i = at
    while i > begin:
        if x[i - 1] < level:
            return i - (x[i] - level) / (x[i] - x[i - 1])
        i -= 1
    return float(begin)


@njit(cache=True, nogil=True)
def _crossing(x, i, before, after, fraction, delay):
    """Where between samples i and i + 1 the difference is zero: by the straight line through four samples of it.

    Through two the noise of the time is 1.4 times as large; a cubic through four follows the noise, and is worse.
    """
    n = x.size
    line = before / (before - after)
    if i < 1 or i + 2 + delay >= n:
        return line
    first = x[i - 1] - fraction * x[i - 1 + delay]
    last = x[i + 2] - fraction * x[i + 2 + delay]
    slope = 0.3 * (last - first) + 0.1 * (after - before)
    if slope <= 0:
        return line
    return min(max(0.5 - 0.25 * (first + before + after + last) / slope, -1.0), 2.0)


@njit(cache=True, nogil=True)
def _constant_fraction(x, begin, at, fraction, delay):
    """Where ``x(t) - fraction * x(t + delay)`` rises through zero, nearest before the maximum `at`."""
    n = x.size
    after = x[at] - fraction * x[at + delay] if at + delay < n else x[at]
    i = at
    while i > begin:
        before = x[i - 1] - fraction * (x[i - 1 + delay] if i - 1 + delay < n else 0.0)
        if before <= 0 < after:
            return i - 1 + _crossing(x, i - 1, before, after, fraction, delay)
        i, after = i - 1, before
    return float(begin)


@njit(cache=True, nogil=True)
def _correlate(x, kernel, at):
    """Sum of ``x[at - half + j] * kernel[j]``, with zeros beyond the ends of `x`."""
    first = at - kernel.size // 2
    total = 0.0
    for j in range(max(0, -first), min(kernel.size, x.size - first)):
        total += x[first + j] * kernel[j]
    return total


@njit(cache=True, nogil=True)
def _matched(x, begin, end, at, slope):
    """Zero of the correlation with the template's derivative next to the maximum `at`: (time, whether there is one)."""
    here = _correlate(x, slope, at)
    # the correlation falls through zero at the pulse: a positive one says that it lies ahead
    step = 1 if here > 0 else -1
    i = at
    while begin <= i + step < end:
        there = _correlate(x, slope, i + step)
        if (there > 0) != (here > 0):
            k = i if step > 0 else i - 1
            b, c = (here, there) if step > 0 else (there, here)
            return k + _zero(_correlate(x, slope, k - 1), b, c, _correlate(x, slope, k + 2)), True
        i, here = i + step, there
    return float(at), False


@njit(cache=True, nogil=True)
def _half(x, at, level, step):
    """Distance from the maximum to where the signal has fallen to `level` on one side."""
    i = at
    while 0 <= i + step < x.size:
        if x[i + step] <= level:
            return abs(i - at) + (x[i] - level) / (x[i] - x[i + step])
        i += step
    return float(abs(i - at))


@njit(cache=True, nogil=True)
def measure(x, found, method, threshold, fraction, delay, template, slope, told):
    """Time, height and width of a pulse.

    Parameters
    ----------
    x : (n,) float64
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
    if 0 < at < x.size - 1:
        before, after = x[at - 1], x[at + 1]
        bend = before - 2 * top + after
        if bend < 0:
            height = top - 0.125 * (after - before) * (after - before) / bend
    if method == LEADING_EDGE:
        time = _edge(x, begin, at, threshold)
    elif method == DYNAMIC_LEADING_EDGE:
        time = _edge(x, begin, at, fraction * height)
    elif method == CFD:
        time = _constant_fraction(x, begin, at, fraction, delay)
    else:
        time, fitted = _matched(x, begin, end, at, slope)
        if fitted:
            near = int(np.floor(time + 0.5))
            moved = time - near
            here, first = _correlate(x, template, near), _correlate(x, slope, near)
            height = here + 0.5 * moved * first
    told[0], told[1] = time, height
    told[2] = _half(x, at, 0.5 * top, -1) + _half(x, at, 0.5 * top, 1)
