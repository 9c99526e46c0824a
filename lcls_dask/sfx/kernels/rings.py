"""Mean and spread of the pixels on each ring about the beam, without those that stand out.

Five times, pixels beyond ``mean +- min_snr * sigma`` of their ring are left out and mean and sigma taken anew. Few
pixels ever change side, so only those near or beyond a threshold are looked at again: one pass over the frame adds up
all pixels of each ring and lists the candidates beyond provisional limits, which a small sample gives; the iterations
then work on the list. Pixels that are not listed lie inside all thresholds, which is verified, so that the result is
that of five passes.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

#: Pixels of a block, of which the extremes are compared with the limits of all its rings at once.
BLOCK = 64

#: Pixels that are taken in together, so that they are still in the cache for what comes next.
STRETCH = 128 * BLOCK

#: How often mean and sigma are taken.
ITERATIONS = np.int64(5)

#: And how often for provisional limits.
FIRST = np.int64(3)

#: Provisional limits are this part of the threshold's distance from the mean.
NEAR = 0.75

#: How often provisional limits are moved inwards before all pixels of a ring are listed.
RETRIES = 3

#: All pixels of a ring of fewer than these are listed: what a sample of others says of them is not worth much.
FEW = 64

#: Rings that share provisional limits.
GROUP = 8

#: Typed, as numbers in calls of compiled functions are: of a literal 0 each function would be compiled once more.
NONE = np.int64(0)

#: A sum of squares this many times that of the pixels that matter would take too many of its digits.
DIGITS = 1e8

Array = np.ndarray[Any, np.dtype[Any]]


class Rings(NamedTuple):
    """Which ring each pixel is on.

    Attributes
    ----------
    ring : (n,) uint16
        Pixels that do not count have the number of rings.
    number : (rings,) int64
        Pixels of each ring.
    block_first, block_last : (blocks,) int32
        Least and greatest ring of each block of pixels; last before first where none counts.
    block_level : (blocks,) int32
        Greatest power of two that the number of rings from first to last holds.
    sample, sample_edge : (k,) int32, (rings + 1,) int64
        Some pixels of each ring.
    coarse, coarse_edge : (k,) int32, (groups + 1,) int64
        Some pixels of each group of rings.
    """

    ring: Array
    number: Array
    block_first: Array
    block_last: Array
    block_level: Array
    sample: Array
    sample_edge: Array
    coarse: Array
    coarse_edge: Array


class Statistics(NamedTuple):
    """Of each ring (rings,) float64: mean, sigma, and the thresholds below and above."""

    mean: Array
    sigma: Array
    low: Array
    high: Array


class Scratch(NamedTuple):
    """Room that all frames share."""

    values: Array
    sums: Array
    number: Array
    inside: Array
    moments: Array
    least: Array
    done: Array
    low: Array
    high: Array
    moved: Array
    moved_low: Array
    moved_high: Array
    lowest: Array
    highest: Array
    pixels: Array
    group: Statistics


def room(rings: Rings) -> tuple[Statistics, Scratch]:
    """Make what the statistics of frames need."""
    n, groups = rings.number.size, rings.coarse_edge.size - 1
    levels = n.bit_length()
    found = Statistics(np.empty(n), np.empty(n), np.empty(n), np.empty(n))
    group = Statistics(np.empty(groups), np.empty(groups), np.empty(groups), np.empty(groups))
    scratch = Scratch(
        np.empty(max(rings.sample.size, rings.coarse.size), np.float32),
        np.empty((2, n + 1), np.complex128),
        np.empty(n + 1, np.int64),
        np.empty((n, 3)),
        np.empty((n, 3)),
        np.empty((2, n)),
        np.empty(n, np.bool_),
        np.empty(n, np.float32),
        np.empty(n, np.float32),
        np.empty(n, np.bool_),
        np.empty(n, np.float32),
        np.empty(n, np.float32),
        np.empty((levels, n), np.float32),
        np.empty((levels, n), np.float32),
        np.empty(rings.ring.size, np.int32),
        group,
    )
    return found, scratch


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _moments(values, first, last, low, high):
    """Number, sum and sum of squares, above `low` and below `high`."""
    count, total, square = np.int64(0), 0.0, 0.0
    for k in range(first, last):
        value = np.float64(values[np.uint64(k)])
        inside = (value > low) & (value < high)
        kept = value if inside else 0.0
        count += np.int64(inside)
        total += kept
        square += kept * kept
    return count, total, square


@njit(cache=True, nogil=True)
def _limits(count, total, square, min_snr, threshold):
    """Mean, sigma, and the thresholds below and above."""
    mean = total / count
    sigma = math.sqrt(max(square / count - mean * mean, 0.0))
    return mean, sigma, mean - min_snr * sigma, max(mean + min_snr * sigma, threshold)


@njit(cache=True, nogil=True)
def sampled(frame, sample, edge, min_snr, threshold, iterations, values, mean, sigma, low, high):
    """Statistics of each group of pixels.

    Parameters
    ----------
    frame : (n,) float32
    sample : (k,) int32
        Pixels of all groups.
    edge : (groups + 1,) int64
    min_snr, threshold : float
    iterations : int
    values : (k,) float32
        Scratch.
    mean, sigma, low, high : (groups,) float64
        Out. A group without pixels has limits that nothing is beyond.
    """
    for k in range(sample.size):
        values[k] = frame[np.uint64(sample[k])]
    for group in range(edge.size - 1):
        mean[group], sigma[group], low[group], high[group] = 0.0, 0.0, -math.inf, math.inf
        # limits that NaN and infinities are beyond
        below, above = -math.inf, math.inf
        for _ in range(iterations):
            count, total, square = _moments(values, edge[group], edge[group + 1], below, above)
            if count == 0:
                break
            mean[group], sigma[group], below, above = _limits(float(count), total, square, min_snr, threshold)
            low[group], high[group] = below, above
            if sigma[group] == 0.0:
                break


@njit(cache=True, nogil=True)
def accumulate(frame, ring, first, last, sums):
    """Add pixels to the sums of their rings.

    Two copies of the sums take turns, so that neighbours on one ring do not wait for each other.

    Parameters
    ----------
    frame : (n,) float32
    ring : (n,) uint16
        The last ring is that of pixels that do not count.
    first, last : int
        Half open; the first is even.
    sums : (2, rings + 1) complex128
        Added to: sum and sum of squares; pixels that are no finite number go to the last ring.
    """
    none = np.uint64(sums.shape[1] - 1)
    for k in range(first // 2, last // 2):
        for j in range(2):
            i = np.uint64(2 * k + j)
            value = np.float64(frame[i])
            r = np.uint64(ring[i]) if value - value == 0.0 else none
            sums[j, r] += complex(value, value * value)
    if last % 2:
        value = np.float64(frame[last - 1])
        r = np.uint64(ring[last - 1]) if value - value == 0.0 else none
        sums[0, r] += complex(value, value * value)


@njit(cache=True, nogil=True)
def _not_numbers(frame, ring, count):
    """Take pixels that are no finite numbers off the count of each ring."""
    for i in range(frame.size):
        if not frame[i] - frame[i] == 0.0:
            count[ring[i]] -= 1


@njit(cache=True, nogil=True)
def spread(low, high, scratch):
    """Prepare limits for `collect`: for each power of two the innermost limits of that many rings from each one on."""
    lowest, highest, rings = scratch.lowest, scratch.highest, low.size
    for r in range(rings):
        lowest[0, r], highest[0, r] = low[r], high[r]
    for level in range(1, lowest.shape[0]):
        half = 1 << (level - 1)
        for r in range(rings):
            other = min(r + half, rings - 1)
            lowest[level, r] = max(lowest[level - 1, r], lowest[level - 1, other])
            highest[level, r] = min(highest[level - 1, r], highest[level - 1, other])


@njit(cache=True, nogil=True)
def _beyond(frame, first, low, high):
    """How many pixels of a block are beyond limits. (A fixed number, so that they are compared in vectors.)"""
    count = np.int32(0)
    for j in range(BLOCK):
        value = frame[np.uint64(first + j)]
        count += np.int32((value > high) | (value < low))
    return count


@njit(cache=True, nogil=True)
def collect(frame, rings, low, high, first_block, last_block, scratch, count):
    """List the pixels of some blocks that are beyond the limits of their ring.

    Parameters
    ----------
    frame : (n,) float32
    rings : Rings
    low, high : (rings,) float32
        Of which `spread` was told.
    first_block, last_block : int
        Half open.
    scratch : Scratch
        The list is in its `pixels`.
    count : int
        Pixels that are in the list already.

    Returns
    -------
    int
        How many are.
    """
    ring, lowest, highest, pixels = rings.ring, scratch.lowest, scratch.highest, scratch.pixels
    for block in range(first_block, last_block):
        a, b = rings.block_first[block], rings.block_last[block]
        if b < a:
            continue
        level = rings.block_level[block]
        other = b + 1 - (1 << level)
        lower = max(lowest[level, a], lowest[level, other])
        upper = min(highest[level, a], highest[level, other])
        first = block * BLOCK
        last = min(first + BLOCK, frame.size)
        if last - first == BLOCK and _beyond(frame, first, lower, upper) == 0:
            continue
        for i in range(first, last):
            value, r = frame[np.uint64(i)], ring[np.uint64(i)]
            if (value > upper or value < lower) and r < low.size:
                if (value > high[r] or value < low[r]) and value - value == 0.0:
                    pixels[count] = i
                    count += 1
    return count


@njit(cache=True, nogil=True)
def _within(frame, ring, low, high, scratch):
    """Sums of each ring of what lies within limits, one by one: where pixels are so high that others are lost."""
    for r in range(low.size):
        scratch.inside[r, 0] = scratch.inside[r, 1] = scratch.inside[r, 2] = 0.0
    for i in range(frame.size):
        value, r = np.float64(frame[i]), ring[i]
        if r < low.size and value <= high[r] and value >= low[r]:
            scratch.inside[r, 0] += 1.0
            scratch.inside[r, 1] += value
            scratch.inside[r, 2] += value * value


@njit(cache=True, nogil=True)
def _without(frame, ring, low, high, count, scratch):
    """Number, sum and sum of squares of what is not listed, for each ring."""
    inside, lost = scratch.inside, False
    for r in range(low.size):
        both = scratch.sums[0, r] + scratch.sums[1, r]
        inside[r, 0], inside[r, 1], inside[r, 2] = scratch.number[r], both.real, both.imag
    for k in range(count):
        i = scratch.pixels[k]
        value, r = np.float64(frame[i]), ring[i]
        inside[r, 0] -= 1.0
        inside[r, 1] -= value
        inside[r, 2] -= value * value
    for r in range(low.size):
        whole = scratch.sums[0, r].imag + scratch.sums[1, r].imag
        lost = lost or (inside[r, 0] > 0.0 and whole > DIGITS * inside[r, 2] and whole > 0.0)
    if lost:
        _within(frame, ring, low, high, scratch)


@njit(cache=True, nogil=True)
def _iterate(frame, ring, count, min_snr, threshold, found, scratch):
    """Mean, sigma and thresholds of each ring, and the innermost thresholds on the way."""
    inside, moments, least, done = scratch.inside, scratch.moments, scratch.least, scratch.done
    rings = done.size
    for r in range(rings):
        done[r] = False
        found.mean[r], found.sigma[r], found.low[r], found.high[r] = 0.0, 0.0, -math.inf, math.inf
        least[0, r], least[1, r] = -math.inf, math.inf
    for _ in range(ITERATIONS):
        for r in range(rings):
            moments[r, 0], moments[r, 1], moments[r, 2] = inside[r, 0], inside[r, 1], inside[r, 2]
        for k in range(count):
            i = scratch.pixels[k]
            value, r = np.float64(frame[i]), ring[i]
            if value > found.low[r] and value < found.high[r]:
                moments[r, 0] += 1.0
                moments[r, 1] += value
                moments[r, 2] += value * value
        for r in range(rings):
            if done[r] or moments[r, 0] == 0.0:
                continue
            found.mean[r], found.sigma[r], found.low[r], found.high[r] = _limits(
                moments[r, 0], moments[r, 1], moments[r, 2], min_snr, threshold
            )
            done[r] = found.sigma[r] == 0.0  # all alike
            if inside[r, 0] > 0.0 and not done[r]:
                least[0, r], least[1, r] = max(least[0, r], found.low[r]), min(least[1, r], found.high[r])


@njit(cache=True, nogil=True)
def _drop_moved(ring, count, scratch):
    """Mark the rings whose provisional limits were not inside of the thresholds, and take their pixels off the list.

    Whether there were such rings, and how many pixels are left in the list.
    """
    some, kept = False, 0
    for r in range(scratch.low.size):
        scratch.moved[r] = scratch.least[0, r] >= scratch.low[r] or scratch.least[1, r] <= scratch.high[r]
        some |= scratch.moved[r]
    for k in range(count):
        if not scratch.moved[ring[scratch.pixels[k]]]:
            scratch.pixels[kept] = scratch.pixels[k]
            kept += 1
    return some, kept


@njit(cache=True, nogil=True)
def _move(mean, scratch, everything):
    """Move the limits of marked rings inwards; only of these are pixels collected anew."""
    for r in range(mean.size):
        scratch.moved_low[r], scratch.moved_high[r] = -math.inf, math.inf
        if scratch.moved[r]:
            if everything:
                scratch.low[r], scratch.high[r] = math.inf, -math.inf
            else:
                scratch.low[r] = mean[r] - 0.9 * max(mean[r] - scratch.least[0, r], 0.0)
                scratch.high[r] = mean[r] + 0.9 * max(scratch.least[1, r] - mean[r], 0.0)
            scratch.moved_low[r], scratch.moved_high[r] = scratch.low[r], scratch.high[r]


@njit(cache=True, nogil=True)
def _provisional(frame, rings, min_snr, threshold, scratch):
    """Limits of each ring from the sample of its group."""
    sampled(
        frame, rings.coarse, rings.coarse_edge, min_snr, threshold, FIRST, scratch.values,
        scratch.group.mean, scratch.group.sigma, scratch.group.low, scratch.group.high,
    )  # fmt: skip
    for r in range(scratch.low.size):
        if rings.number[r] < FEW:
            scratch.low[r], scratch.high[r] = math.inf, -math.inf
            continue
        group = r // GROUP
        mean, away = scratch.group.mean[group], NEAR * min_snr * scratch.group.sigma[group]
        scratch.low[r], scratch.high[r] = mean - away, max(mean + away, NEAR * threshold)


@njit(cache=True, nogil=True)
def take_in(frame, rings, min_snr, threshold, scratch):
    """Add up the pixels of each ring, and list those that may be beyond its thresholds; how many are listed."""
    _provisional(frame, rings, min_snr, threshold, scratch)
    spread(scratch.low, scratch.high, scratch)
    for r in range(scratch.sums.shape[1]):
        scratch.sums[0, r] = scratch.sums[1, r] = 0.0
    count = NONE
    for first in range(0, frame.size, STRETCH):
        last = min(first + STRETCH, frame.size)
        accumulate(frame, rings.ring, first, last, scratch.sums)
        count = collect(frame, rings, scratch.low, scratch.high, first // BLOCK, -(-last // BLOCK), scratch, count)
    return count


@njit(cache=True, nogil=True)
def _above(frame, ring, count, high, pixels):
    """Keep the listed pixels that are above the threshold of their ring."""
    kept = 0
    for k in range(count):
        i = pixels[k]
        if frame[i] > high[ring[i]]:
            pixels[kept] = i
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def finish(frame, rings, min_snr, threshold, count, found, scratch):
    """Statistics of all pixels of each ring, after `take_in`.

    Parameters
    ----------
    frame : (n,) float32
    rings : Rings
    min_snr, threshold : float
    count : int
        Listed pixels.
    found : Statistics
        Out.
    scratch : Scratch
        Its first `pixels` are those above the threshold of their ring.

    Returns
    -------
    int
        How many pixels are.
    """
    ring, low, high = rings.ring, scratch.low, scratch.high
    for r in range(rings.number.size):
        scratch.number[r] = rings.number[r]
    last = scratch.sums[0, -1].real + scratch.sums[1, -1].real
    if not last - last == 0.0:
        _not_numbers(frame, ring, scratch.number)
    for attempt in range(RETRIES + 1):
        _without(frame, ring, low, high, count, scratch)
        _iterate(frame, ring, count, min_snr, threshold, found, scratch)
        some, kept = _drop_moved(ring, count, scratch)
        if not some:
            break
        _move(found.mean, scratch, attempt == RETRIES - 1)
        spread(scratch.moved_low, scratch.moved_high, scratch)
        blocks = rings.block_first.size
        count = collect(frame, rings, scratch.moved_low, scratch.moved_high, NONE, blocks, scratch, kept)
    return _above(frame, ring, count, found.high, scratch.pixels)


@njit(cache=True, nogil=True)
def _of_samples(frame, rings, min_snr, threshold, found, scratch):
    """Statistics of a sample of each ring, and the pixels above its threshold; as `finish`."""
    sampled(
        frame, rings.sample, rings.sample_edge, min_snr, threshold, ITERATIONS, scratch.values,
        found.mean, found.sigma, found.low, found.high,
    )  # fmt: skip
    for r in range(scratch.low.size):
        high = found.high[r]
        scratch.low[r] = -math.inf
        scratch.high[r] = high - 1e-6 * abs(high) if high < math.inf else math.inf  # not above it by rounding
    spread(scratch.low, scratch.high, scratch)
    count = collect(frame, rings, scratch.low, scratch.high, NONE, rings.block_first.size, scratch, NONE)
    return _above(frame, rings.ring, count, found.high, scratch.pixels)


def full(frame: Array, rings: Rings, min_snr: float, threshold: float, found: Statistics, scratch: Scratch) -> int:
    """Statistics of all pixels of each ring, and the pixels above their thresholds.

    Parameters
    ----------
    frame : (n,) float32
    rings : Rings
    min_snr, threshold : float
        Of whole numbers everything would be compiled once more.
    found : Statistics
        Out.
    scratch : Scratch
        Out: its first `pixels` are those above the threshold of their ring, ascending.

    Returns
    -------
    int
        How many pixels are.
    """
    listed = take_in(frame, rings, min_snr, threshold, scratch)
    above: int = finish(frame, rings, min_snr, threshold, listed, found, scratch)
    scratch.pixels[:above].sort()
    return above


def of_samples(
    frame: Array, rings: Rings, min_snr: float, threshold: float, found: Statistics, scratch: Scratch
) -> int:
    """Statistics of a sample of each ring; as `full`."""
    above: int = _of_samples(frame, rings, min_snr, threshold, found, scratch)
    return above
