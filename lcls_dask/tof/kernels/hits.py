"""One pass from samples to hits: baseline, gate and timing of each record, fused.

A record is a stretch of consecutive samples: a whole waveform, or one FEX window. Nearly all samples lie below the
threshold, and what is done for those decides the speed: the least of 512 at a time is found without a branch, and
masks of 64 where it is beyond. What is done for a hit comes next.
"""

import math

import numpy as np
from numba import njit

from ...reduce.kernels.loops import compiled, inlined
from ...reduce.kernels.masks import BLOCK, WIDE, at_most, first_bit, greatest, least
from .pulses import measure, next_pulse

#: Samples of signal on both sides of a stretch above the threshold, at least: the foot of a pulse.
MARGIN = 8

#: Of the threshold: a sample this high in the pre-trigger window says that a pulse lies in it.
SUSPECT = 0.75

#: Samples further than this many standard deviations from the median are of a pulse, as in `samples.subtract_baseline`.
CLIP = 4.0

NONE, ALL = np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF)


@inlined
def _nothing(samples, at, limit, flip):
    """Whether none of `WIDE` samples is beyond the limit."""
    return least(samples, at) > limit if flip == NONE else greatest(samples, at) <= limit


@inlined
def _next_beyond(samples, at, end, limit, flip):
    """The first sample from `at` on that is beyond the limit; `end` without one."""
    while at + WIDE <= end and _nothing(samples, at, limit, flip):
        at += WIDE
    # what is left over is looked at with samples before it, which may be beyond: then it is not known
    if 2 * BLOCK < end - at < WIDE <= end and _nothing(samples, end - WIDE, limit, flip):
        return end
    while at + BLOCK <= end:
        mask = at_most(samples, at, limit) ^ flip
        if mask:
            return at + first_bit(mask)
        at += BLOCK
    if at >= end:
        return end
    if end >= BLOCK:  # the 64 samples that end there, less those before
        mask = (at_most(samples, end - BLOCK, limit) ^ flip) >> np.uint64(at + BLOCK - end)
        return at + first_bit(mask) if mask else end
    while at < end and (samples[at] <= limit) == (flip != NONE):
        at += 1
    return at


@inlined
def _set_limit(limit, base, polarity, level, rails):
    """Put into ``limit[0]`` what tells samples apart that are `level` beyond any core's baseline.

    Returns
    -------
    (can_be, flip)
        Whether any sample of the dtype is beyond; what turns the mask of those at most the limit into that of
        those beyond.
    """
    furthest = base[0]
    for k in range(1, base.size):
        furthest = max(furthest, base[k]) if polarity < 0 else min(furthest, base[k])
    value, whole = furthest + polarity * level, rails[2] != 0.0
    if polarity < 0:
        value = math.floor(value) if whole else value
        limit[0] = min(max(value, rails[0]), rails[1])
        return value >= rails[0], NONE
    value = math.ceil(value) if whole else value
    if value <= rails[0]:
        limit[0] = rails[1]
        return True, NONE
    limit[0] = min(value - 1.0, rails[1]) if whole else np.nextafter(value, -np.inf)
    return value <= rails[1], ALL


@compiled
def _median(values, count):
    """Median of the first few values, which are sorted: by insertion, as they are few."""
    for i in range(1, count):
        value, j = values[i], i
        while j > 0 and values[j - 1] > value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value
    return 0.5 * (values[(count - 1) // 2] + values[count // 2])


@compiled
def estimate_baseline(samples, pretrigger, level, base, polarity, scratch):
    """Baseline of each interleaved core over the first samples of a waveform.

    The mean; or, where a sample lies `level` above it, so that a pulse is in the window, the mean of the samples within
    four standard deviations of the median, as the median absolute deviation tells them.

    Parameters
    ----------
    samples : (n,)
    pretrigger : int
    level : float
    base : (cores,) float64
        Out.
    polarity : int
        1 or -1.
    scratch : (pretrigger,) float64

    Returns
    -------
    bool
        Whether there was a pulse.
    """
    cores = base.size
    pulse = False
    for k in range(cores):
        total, count, furthest = 0.0, 0, polarity * float(samples[k])
        for i in range(k, pretrigger, cores):
            value = float(samples[i])
            total += value
            count += 1
            furthest = max(furthest, polarity * value)
        base[k] = total / count
        pulse = pulse or furthest - polarity * base[k] >= level
    if not pulse:
        return False
    for k in range(cores):
        count = 0
        for i in range(k, pretrigger, cores):
            scratch[count] = float(samples[i])
            count += 1
        median = _median(scratch, count)
        for j in range(count):
            scratch[j] = abs(scratch[j] - median)
        most = max(CLIP * 1.4826 * _median(scratch, count), 1.0)
        total, kept = 0.0, 0
        for i in range(k, pretrigger, cores):
            if abs(float(samples[i]) - median) <= most:
                total += float(samples[i])
                kept += 1
        base[k] = total / kept
    return True


@inlined
def _quick_baseline(samples, begin, pretrigger, base):
    """Means of four interleaved cores, which is what digitizers have, in one loop."""
    one, two, three, four = samples[begin] * 0, samples[begin] * 0, samples[begin] * 0, samples[begin] * 0
    for i in range(0, pretrigger, 4):
        at = np.uint64(begin + i)
        one += samples[at]
        two += samples[at + np.uint64(1)]
        three += samples[at + np.uint64(2)]
        four += samples[at + np.uint64(3)]
    each = pretrigger // 4
    base[0], base[1], base[2], base[3] = one / each, two / each, three / each, four / each


@inlined
def _tile(base, pattern):
    """Put the cores' baselines behind one another, as often as there is room."""
    if base.size == 4:
        one, two, three, four = base[0], base[1], base[2], base[3]
        for i in range(0, pattern.size, 4):
            at = np.uint64(i)
            pattern[at] = one
            pattern[at + np.uint64(1)] = two
            pattern[at + np.uint64(2)] = three
            pattern[at + np.uint64(3)] = four
        return
    for i in range(0, pattern.size, base.size):
        for k in range(base.size):
            pattern[i + k] = base[k]


@inlined
def _signal(samples, begin, n, first, pattern, phase, cores, factor, x, at):
    """Put the signal of the samples `first` to ``first + BLOCK`` of a record behind `at`: zero where it has none."""
    low, high = max(first, 0), min(first + BLOCK, n)
    if low > first or high < first + BLOCK:
        for j in range(BLOCK):
            x[np.uint64(at + j)] = 0.0
    k, at, begin = (phase + low) % cores, at + low - first, begin + low
    for j in range(high - low):  # unsigned indices, so that this is done in vectors
        x[np.uint64(at + j)] = factor * (samples[np.uint64(begin + j)] - pattern[np.uint64(k + j)])


@inlined
def _stretch(samples, begin, n, i, pattern, phase, cores, factor, reach, under, x):
    """Signal about sample `i` of a record, from `reach` before it to `reach` behind the last one of the threshold.

    It ends where `reach` samples in a row are at most `under`, the greatest number below the threshold.

    Returns
    -------
    int
        Where it ends in `x`; it begins at `BLOCK`.
    """
    block, last = BLOCK, BLOCK + reach
    while True:
        _signal(samples, begin, n, i - reach + block - BLOCK, pattern, phase, cores, factor, x, block)
        mask = ~at_most(x, block, under)
        while mask:
            at = block + first_bit(mask)
            if at > last + reach:
                return last + 1 + reach
            last = at + first_bit(~(mask >> np.uint64(at - block))) - 1
            if last + 1 - block >= BLOCK:
                break
            mask &= ALL << np.uint64(last + 1 - block)
        block += BLOCK
        if last + reach < block:
            return last + 1 + reach


@compiled
def _unwrapped(samples, reach, base, phase, factor, period, x):
    """Signal of a record whose samples have run over: each is taken to lie next to the one before it."""
    n, cores = samples.size, base.size
    before = base[phase % cores]
    x[:reach] = 0.0
    x[reach + n : n + 2 * reach] = 0.0
    for i in range(n):
        value = float(samples[i])
        value -= period * math.floor((value - before) / period + 0.5)
        x[reach + i] = factor * (value - base[(phase + i) % cores])
        before = value


@njit(cache=True, nogil=True)
def find_hits(
    samples, sample_edge, start, record_edge, first, channels, baseline, pretrigger, polarity, threshold, scale, period,
    rails, method, fraction, delay, dead_time, template, slope, count, time, height, width, saturated,
):  # fmt: skip
    """Find the pulses of many records.

    Parameters
    ----------
    samples : (n,) int16, uint16, float32, ...
        Of all records, one behind the other.
    sample_edge : (records + 1,) int64
    start : (records,) int32
        Number of each record's first sample within its waveform.
    record_edge : (rows + 1,) int64
        Records of each row; rows are (event, channel) in C order.
    first : int
        Row to begin at.
    channels : int
    baseline : (channels, cores) float64
        What the samples are without a pulse, for the interleaved cores of the digitizer; used where `pretrigger` is 0.
    pretrigger : int
        Samples at the start of each record to take its baseline from.
    polarity : int
        1 or -1.
    threshold : float
        Least height of a pulse, in units of the signal.
    scale : float
        Signal of one unit of the samples.
    period : float
        By which samples that run over are wrapped; 0 where they are not.
    rails : (5,) float64
        Least and greatest value of the dtype, 1 for whole numbers, least and greatest value of the digitizer.
    method, fraction, delay, template, slope
        See `pulses.measure`; delay in samples.
    dead_time : float
        Samples after a hit in which there is no other.
    count : (rows,) int32
        Out: hits of each row.
    time, height, width, saturated : (capacity,)
        Out: in samples, in units of the signal, in samples, and whether the maximum is at the digitizer's limit.

    Returns
    -------
    (row, hits)
        The row to begin at again, with hits of all rows before it, where the capacity was too small; else all rows.
    """
    rows, cores = record_edge.size - 1, baseline.shape[1]
    reach = max(MARGIN, delay + 3, template.size // 2 + 2)
    longest = 0
    for r in range(start.size):
        longest = max(longest, sample_edge[r + 1] - sample_edge[r])
    x = np.zeros(longest + 2 * reach + 4 * BLOCK)
    pattern = np.empty((-(-BLOCK // cores) + 1) * cores)
    scratch, base, limit = np.empty(max(1, pretrigger)), np.empty(cores), np.empty(1, samples.dtype)
    found, told = np.empty(3, np.int64), np.empty(3)
    factor, level, under = polarity * scale, threshold / scale, np.nextafter(threshold, -np.inf)
    quick = cores == 4 and pretrigger % 4 == 0
    hits, channel = 0, first % channels
    for row in range(first, rows):
        before, last_time = hits, -1e300
        for k in range(cores):
            base[k] = baseline[channel, k]
        channel = channel + 1 if channel + 1 < channels else 0
        for r in range(record_edge[row], record_edge[row + 1]):
            begin = sample_edge[r]
            n, phase = sample_edge[r + 1] - begin, start[r]
            if pretrigger > 0:
                if n < pretrigger:
                    continue
                phase, doubt = 0, True
                if quick:
                    _quick_baseline(samples, begin, pretrigger, base)
                    can_be, flip = _set_limit(limit, base, polarity, SUSPECT * level, rails)
                    until = begin + pretrigger
                    doubt = can_be and _next_beyond(samples, begin, until, limit[0], flip) < until
                if doubt:
                    record = samples[begin : begin + n]
                    estimate_baseline(record, pretrigger, SUSPECT * level, base, polarity, scratch)
            can_be, flip = _set_limit(limit, base, polarity, level, rails)
            if not can_be:
                continue
            i, tiled = 0, False
            while i < n:
                if period != 0.0:
                    i, end = 0, BLOCK + n + 2 * reach  # samples that have run over may lie anywhere
                    _unwrapped(samples[begin : begin + n], reach, base, phase, factor, period, x[BLOCK:])
                else:
                    i = _next_beyond(samples, begin + i, begin + n, limit[0], flip) - begin
                    if i == n:
                        break
                    if not tiled:
                        _tile(base, pattern)
                        tiled = True
                    end = _stretch(samples, begin, n, i, pattern, phase, cores, factor, reach, under, x)
                at, low = BLOCK, i - reach - BLOCK
                while at < end and next_pulse(x, at, end, threshold, found):
                    measure(x, BLOCK, end, found, method, threshold, fraction, delay, template, slope, told)
                    at = found[2]
                    when = start[r] + low + told[0]
                    if when - last_time < dead_time:
                        continue
                    if hits == time.size:
                        return row, before
                    last_time = when
                    top = float(samples[begin + min(max(low + found[1], 0), n - 1)])
                    time[hits], height[hits], width[hits] = when, told[1], told[2]
                    saturated[hits] = top <= rails[3] or top >= rails[4]
                    hits += 1
                i = low + end
        count[row] = hits - before
    return rows, hits
