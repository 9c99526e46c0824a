"""Pulses in a stretch of signal: where they are, and four ways to tell their times.

The signal is positive, free of its baseline, and zero beyond the record. Times are in samples. Innermost indices are
unsigned, as signed ones are first looked at for a sign. What is looked for lies a few samples off the maximum, so one
mask of 64 samples mostly tells it. What is no number is not at a level, nor below. Arrays of signal have `BLOCK` values
before the first one that counts and behind the last.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from ...reduce.kernels.loops import compiled, inlined
from ...reduce.kernels.masks import ALL, BLOCK, NONE, ONE, at_least, at_most, first_bit, last_bit
from .lanes import at_most_later, greatest_of, variation

LEADING_EDGE, DYNAMIC_LEADING_EDGE, CFD, MATCHED = range(4)

#: What `only_pulse` tells.
NO_PULSE, ONE_PULSE, UNSURE = range(3)


class Method(NamedTuple):
    """How times are told.

    Attributes
    ----------
    number : int
        `LEADING_EDGE`, `DYNAMIC_LEADING_EDGE`, `CFD` or `MATCHED`.
    threshold : float
        Least height of a pulse, and of a rise or fall that makes one.
    fraction : float
    delay : int
    template, slope : (2 k + 1,) float64
        Pulse of height one about its maximum, and minus its derivative... of `MATCHED` alone.
    """

    number: Any
    threshold: Any
    fraction: Any
    delay: Any
    template: Any
    slope: Any


@inlined
def next_pulse(x, begin, end, threshold):
    """Find the next pulse: a maximum that stands out by `threshold` on both sides.

    Parameters
    ----------
    x : (n,) float32
    begin, end : int
        Where to look.
    threshold : float
        Least height, and least rise and fall.

    Returns
    -------
    (there, begin, at, fallen)
        Whether there is one, where it begins (the minimum before it), its maximum, and where it is known to have
        fallen.
    """
    i = begin
    while i < end:
        low, at_low = x[np.uint64(i)], i
        while i < end and x[np.uint64(i)] < low + threshold:
            if x[np.uint64(i)] < low:
                low, at_low = x[np.uint64(i)], i
            i += 1
        if i == end:
            return False, end, end, end
        top, at = x[np.uint64(i)], i
        i += 1  # even where the threshold is nothing beside the top
        while i < end and x[np.uint64(i)] > top - threshold:
            if x[np.uint64(i)] > top:
                top, at = x[np.uint64(i)], i
            i += 1
        if top >= threshold:  # where the stretch ends, what follows is below the threshold
            return True, at_low, at, i
    return False, end, end, end


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
    while at > begin:
        at -= BLOCK
        mask = at_most(x, at, level)
        if mask:
            return max(at + last_bit(mask), begin - 1)
    return begin - 1


@inlined
def first_at_most(x, at, end, level):
    """The first sample behind `at` that is `level` or less; `end` where there is none before."""
    at += 1
    while at < end:
        mask = at_most(x, at, level)
        if mask:
            return min(at + first_bit(mask), end)
        at += BLOCK
    return end


@inlined
def _last_crossing(x, begin, at, fraction, delay):
    """The last sample before `at` that is at most `fraction` of the one `delay` behind, as the next one is not.

    Returns
    -------
    int
        ``begin - 1`` where there is none from `begin` on.
    """
    at -= BLOCK - 1
    fraction = np.float32(fraction)
    below = at_most_later(x, at, fraction, delay)
    while below == ALL and at > begin:
        at -= BLOCK
        below = at_most_later(x, at, fraction, delay)
    if below == ALL:
        return begin - 1
    below &= (ONE << np.uint64(last_bit(~below))) - ONE
    while below == NONE and at > begin:
        at -= BLOCK
        below = at_most_later(x, at, fraction, delay)
    return max(at + last_bit(below), begin - 1) if below else begin - 1


@inlined
def _part(x, i, level):
    """How far from sample `i` to the next the signal is at a level, by a straight line."""
    here = x[np.uint64(i)]
    return (level - here) / (x[np.uint64(i + 1)] - here)


@inlined
def _crossing(x, low, i, fraction, delay):
    """How far behind `i` ``x(t) - fraction * x(t + delay)`` is zero: by the straight line through four samples of it.

    Through two the noise of the time is 1.4 times as large; a cubic through four follows the noise, and is worse.
    """
    first = x[np.uint64(i - 1)] - fraction * x[np.uint64(i - 1 + delay)]
    before = x[np.uint64(i)] - fraction * x[np.uint64(i + delay)]
    after = x[np.uint64(i + 1)] - fraction * x[np.uint64(i + 1 + delay)]
    last = x[np.uint64(i + 2)] - fraction * x[np.uint64(i + 2 + delay)]
    slope = 0.3 * (last - first) + 0.1 * (after - before)
    if slope <= 0 or i == low:
        return before / (before - after) if before < after else 0.5
    return min(max(0.5 - 0.25 * (first + before + after + last) / slope, -1.0), 2.0)


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
    """Where the correlation with the template's derivative falls through zero next to the maximum `at`.

    Returns
    -------
    (i, part)
        The sample before, and how far behind it; ``begin - 1`` where there is none.
    """
    here = _correlate(x, low, high, slope, at)
    # the correlation falls through zero at the pulse: a positive one says that it lies ahead
    step = 1 if here > 0 else -1
    i = at
    while begin <= i + step < end:
        there = _correlate(x, low, high, slope, i + step)
        if (there > 0) != (here > 0):
            k = i if step > 0 else i - 1
            b, c = (here, there) if step > 0 else (there, here)
            return k, _zero(_correlate(x, low, high, slope, k - 1), b, c, _correlate(x, low, high, slope, k + 2))
        i, here = i + step, there
    return begin - 1, 0.0


@inlined
def measure(x, low, high, begin, at, end, method):
    """Time, height and width of a pulse.

    Parameters
    ----------
    x : (n,) float32
    low, high : int
        Where the stretch of signal begins and ends.
    begin, at, end : int
        Where the pulse begins, its maximum, and where it is known to have fallen: see `next_pulse`.
    method : Method

    Returns
    -------
    (i, time, height, width)
        The sample that the time was told behind; ``begin - 1`` where there is none, and the time is that of `begin`, or
        of the maximum for `MATCHED`. Time behind the maximum, height, full width at half of the height.
    """
    top = x[np.uint64(at)]
    height = float(top)
    before, after = x[np.uint64(at - 1)], x[np.uint64(at + 1)]
    bend = before - 2.0 * top + after
    if bend < 0:
        height = top - 0.125 * (after - before) * (after - before) / bend
    if method.number == MATCHED:
        i, part = _matched(x, low, high, begin, end, at, method.slope)
        time = i - at + part if i >= begin else 0.0
        if i >= begin:
            near = int(np.floor(time + 0.5))
            here = _correlate(x, low, high, method.template, at + near)
            height = here + 0.5 * (time - near) * _correlate(x, low, high, method.slope, at + near)
    elif method.number == CFD:
        i = _last_crossing(x, begin, at, method.fraction, method.delay)
        time = i - at + (_crossing(x, low, i, method.fraction, method.delay) if i >= begin else 1.0)
    else:
        level = np.float32(method.threshold if method.number == LEADING_EDGE else method.fraction * height)
        i = _last_at_most(x, begin, at, level)
        time = i - at + (_part(x, i, level) if i >= begin else 1.0)
    half = np.float32(0.5 * top)
    rises, falls = _last_at_most(x, low, at, half), first_at_most(x, at, high, half)
    # what lies beyond the stretch is not known
    left = _part(x, rises, half) if rises >= low else 1.0
    right = _part(x, falls - 1, half) if falls < high else 0.0
    return i, time, height, falls - 1 - rises + right - left


@inlined
def only_pulse(x, low, reach, threshold):
    """Find the pulse of a stretch that certainly has but one, without going through its samples.

    The samples at the threshold or above lie together; and they rise to their maximum and fall from it but for what is
    too little to make two pulses of them.

    Parameters
    ----------
    x : (n,) float32
    low : int
        Where 64 samples of signal begin, of which the stretch must end before the last.
    reach : int
        First sample that may be at the threshold; as many samples below it end the stretch.
    threshold : float

    Returns
    -------
    (pulses, first, at, size)
        `ONE_PULSE`, `NO_PULSE` or `UNSURE`; the first sample at the threshold, the maximum, and how many samples the
        stretch has.
    """
    above = at_least(x, low, np.float32(threshold)) & (ALL << np.uint64(reach))
    first = first_bit(above)
    if first > 2 * reach:
        return NO_PULSE, low, low, 2 * reach + 1
    behind = first + first_bit(~(above >> np.uint64(first)))
    while behind < BLOCK:
        gap = first_bit(above >> np.uint64(behind))
        if gap >= reach:
            break
        behind += gap
        behind += first_bit(~(above >> np.uint64(behind)))
    if behind + reach > BLOCK:
        return UNSURE, low, low, BLOCK
    run = (ALL >> np.uint64(BLOCK - behind + first)) << np.uint64(first)
    top = greatest_of(x, low, run)
    at = first_bit(at_least(x, low, top) & run)
    # what it falls before the maximum and rises behind it, twice
    back = variation(x, low, run & (run >> ONE)) - 2.0 * top
    back += x[np.uint64(low + first)] + x[np.uint64(low + behind - 1)]
    foot = min(min(x[np.uint64(low)], x[np.uint64(low + 1)]), min(x[np.uint64(low + 2)], x[np.uint64(low + 3)]))
    # sums of numbers that are beyond all measure higher are too coarse
    sure = top - foot >= threshold and back < 1.9 * threshold and top < 1e5 * threshold
    return ONE_PULSE if sure else UNSURE, low + first, low + at, behind + reach


@inlined
def surely_behind(x, edge, first):
    """Whether the minimum before a pulse cannot lie behind a sample of its edge, before the first at the threshold."""
    if edge >= first - 1:
        return True
    level = x[np.uint64(edge)]
    lower = level < 0.0
    for k in range(edge + 1, first):
        lower = lower or x[np.uint64(k)] < level
    return not lower
