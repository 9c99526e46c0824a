"""One pass from samples to hits: baseline, gate and timing of each record, fused.

A record is a stretch of consecutive samples: a whole waveform, or one FEX window. Nearly all samples lie below the
threshold, and what is done for those decides the speed: they are compared in blocks, without a branch, in the form that
compilers turn into vector instructions.
"""

import math

import numpy as np
from numba import njit

from .pulses import measure, next_pulse

#: Samples that the gate counts at a time.
BLOCK = 64

#: Samples of signal on both sides of a stretch above the threshold, at least: the foot of a pulse.
MARGIN = 8

#: Of the threshold: a sample this high in the pre-trigger window says that a pulse lies in it.
SUSPECT = 0.75

#: Samples further than this many standard deviations from the median are of a pulse, as in `samples.subtract_baseline`.
CLIP = 4.0


@njit(cache=True, nogil=True)
def _below(samples, first, limit):
    """How many samples of a block are at or below the limit. (Signed indices would cost a fifth of the speed.)"""
    count = np.int16(0)
    for j in range(BLOCK):
        count = np.int16(count + np.int16(samples[np.uint64(first + j)] <= limit))
    return count


@njit(cache=True, nogil=True)
def _above(samples, first, limit):
    """How many samples of a block are at or above the limit."""
    count = np.int16(0)
    for j in range(BLOCK):
        count = np.int16(count + np.int16(samples[np.uint64(first + j)] >= limit))
    return count


@njit(cache=True, nogil=True)
def _gate(samples, limit, falling, counts):
    """How many samples of each block are beyond the limit; the last block may overlap the one before it."""
    n = samples.size
    if n < BLOCK:
        counts[0] = 1  # few enough to look at each
        return
    if falling:
        for b in range(n // BLOCK):
            counts[b] = _below(samples, b * BLOCK, limit)
        if n % BLOCK:
            counts[n // BLOCK] = _below(samples, n - BLOCK, limit)
    else:
        for b in range(n // BLOCK):
            counts[b] = _above(samples, b * BLOCK, limit)
        if n % BLOCK:
            counts[n // BLOCK] = _above(samples, n - BLOCK, limit)


@njit(cache=True, nogil=True)
def _next_beyond(samples, i, limit, falling, counts):
    """The first sample from `i` on that is beyond the limit, by the counts of the blocks; the end without one."""
    n, b = samples.size, i // BLOCK
    while i < n:
        while i < n and counts[b] == 0:
            b += 1
            i = b * BLOCK
        b += 1
        last = min(b * BLOCK, n)
        if falling:
            while i < last and samples[np.uint64(i)] > limit:
                i += 1
        else:
            while i < last and samples[np.uint64(i)] < limit:
                i += 1
        if i < last:
            return i
    return n


@njit(cache=True, nogil=True)
def _set_limit(limit, base, polarity, level, rails):
    """Put the last value that is `level` beyond any core's baseline into ``limit[0]``; False where there is none."""
    furthest = base[0]
    for k in range(1, base.size):
        furthest = max(furthest, base[k]) if polarity < 0 else min(furthest, base[k])
    value = furthest + polarity * level
    if rails[2] != 0.0:  # whole numbers
        value = math.floor(value) if polarity < 0 else math.ceil(value)
    if value < rails[0] or value > rails[1]:
        # no sample lies beyond a limit outside the dtype, or every one does
        if (value < rails[0]) == (polarity < 0):
            return False
        value = rails[0] if value < rails[0] else rails[1]
    limit[0] = value
    return True


@njit(cache=True, nogil=True)
def _median(values, count):
    """Median of the first few values, which are sorted: by insertion, as they are few."""
    for i in range(1, count):
        value, j = values[i], i
        while j > 0 and values[j - 1] > value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value
    return 0.5 * (values[(count - 1) // 2] + values[count // 2])


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _signal(samples, first, pattern, phase, cores, factor, x, at):
    """Put the signal of a block of samples behind `at`: zero where the record has none."""
    begin, end = max(first, 0), min(first + BLOCK, samples.size)
    if begin > first or end < first + BLOCK:
        x[at : at + BLOCK] = 0.0
    k, at = (phase + begin) % cores, at + begin - first
    for j in range(end - begin):  # unsigned indices, so that this is done in vectors
        x[np.uint64(at + j)] = factor * (samples[np.uint64(begin + j)] - pattern[np.uint64(k + j)])


@njit(cache=True, nogil=True)
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
    falling, reach = polarity < 0, max(MARGIN, delay + 3, template.size // 2 + 2)
    longest = 0
    for r in range(start.size):
        longest = max(longest, sample_edge[r + 1] - sample_edge[r])
    x, pattern = np.empty(longest + 2 * reach + 2 * BLOCK), np.empty((-(-BLOCK // cores) + 1) * cores)
    counts = np.empty(longest // BLOCK + 1, np.int16)
    scratch = np.empty(max(1, pretrigger))
    base = np.empty(cores)
    limit = np.empty(1, samples.dtype)
    found, told = np.empty(3, np.int64), np.empty(3)
    factor = polarity * scale
    hits, channel = 0, first % channels
    for row in range(first, rows):
        before, last_time = hits, -1e300
        for k in range(cores):
            base[k] = baseline[channel, k]
        channel = channel + 1 if channel + 1 < channels else 0
        for r in range(record_edge[row], record_edge[row + 1]):
            record = samples[sample_edge[r] : sample_edge[r + 1]]
            n, phase = record.size, start[r]
            if pretrigger > 0:
                if n < pretrigger:
                    continue
                estimate_baseline(record, pretrigger, SUSPECT * threshold / scale, base, polarity, scratch)
                phase = 0
            if not _set_limit(limit, base, polarity, threshold / scale, rails):
                continue
            if period == 0.0:
                _gate(record, limit[0], falling, counts)
            i, tiled = 0, False
            while i < n:
                if period != 0.0:
                    i, end = 0, reach + n  # samples that have run over may lie anywhere
                    _unwrapped(record, reach, base, phase, factor, period, x)
                else:
                    i = _next_beyond(record, i, limit[0], falling, counts)
                    if i == n:
                        break
                    if not tiled:
                        for k in range(pattern.size // cores):
                            for core in range(cores):
                                pattern[k * cores + core] = base[core]
                        tiled = True
                    j, end, filled = reach, reach, 0
                    while j <= end + reach:
                        while filled <= j:
                            _signal(record, i - reach + filled, pattern, phase, cores, factor, x, filled)
                            filled += BLOCK
                        if x[np.uint64(j)] >= threshold:
                            end = j
                        j += 1
                    end += 1
                low = i - reach
                stretch = x[: end + reach]
                at = 0
                while at < stretch.size and next_pulse(stretch, at, stretch.size, threshold, found):
                    measure(stretch, found, method, threshold, fraction, delay, template, slope, told)
                    at = found[2]
                    when = start[r] + low + told[0]
                    if when - last_time < dead_time:
                        continue
                    if hits == time.size:
                        return row, before
                    last_time = when
                    top = float(record[min(max(low + found[1], 0), n - 1)])
                    time[hits], height[hits], width[hits] = when, told[1], told[2]
                    saturated[hits] = top <= rails[3] or top >= rails[4]
                    hits += 1
                i = low + end + reach
        count[row] = hits - before
    return rows, hits
