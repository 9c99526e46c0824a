"""Mean and spread of the pixels on each ring about the beam, without those that stand out.

Five times, pixels beyond ``mean +- min_snr * sigma`` of their ring are left out and mean and sigma taken anew. Few
pixels ever change side, so only those near or beyond a threshold are looked at again: one pass over the frame adds up
all pixels of each ring and lists the candidates beyond provisional limits, which a small sample gives; the iterations
then work on the list. Pixels that are not listed lie inside all thresholds, which is verified, so that the result is
that of five passes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .frames import Stages, calibrate
from .sweep import NONE, Limits, Rings, Sample, Taken, spread, take_in, take_in_raw

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

#: A sum of squares this many times that of the pixels that matter would take too many of its digits.
DIGITS = 1e8

#: Typed, as what compiled functions are called with is.
YES, NO = np.bool_(True), np.bool_(False)

Array = np.ndarray[Any, np.dtype[Any]]


class Statistics(NamedTuple):
    """Of each ring (rings,) float64: mean, sigma, and the thresholds below and above."""

    mean: Array
    sigma: Array
    low: Array
    high: Array


class Scratch(NamedTuple):
    """Room for one frame at a time.

    Attributes
    ----------
    values, raw : (k,) float32, (k,) uint16
        A sample.
    group : Statistics
        Of it.
    limits, moved_limits : Limits
    taken : Taken
    number : (rings,) int64
        Pixels of each ring that are numbers.
    inside, moments : (rings, 3) float64
        Number, sum and sum of squares: of what is not listed, and of what is within thresholds.
    least : (2, rings) float64
        The innermost thresholds.
    done, moved : (rings,) bool
        Whether more iterations change nothing; whether provisional limits were too far out.
    """

    values: Array
    raw: Array
    group: Statistics
    limits: Limits
    moved_limits: Limits
    taken: Taken
    number: Array
    inside: Array
    moments: Array
    least: Array
    done: Array
    moved: Array


def room(rings: Rings) -> tuple[Statistics, Scratch]:
    """Make what the statistics of a frame need."""
    n, groups, most = (
        rings.number.size,
        rings.coarse.edge.size - 1,
        max(rings.sample.pixel.size, rings.coarse.pixel.size),
    )
    levels = n.bit_length()
    found, group = (Statistics(np.empty(k), np.empty(k), np.empty(k), np.empty(k)) for k in (n, groups))
    limits, moved = (
        Limits(*(np.empty(shape, np.float32) for shape in (n, n, (levels, n), (levels, n)))) for _ in range(2)
    )
    scratch = Scratch(
        np.empty(most, np.float32),
        np.empty(most, np.uint16),
        group,
        limits,
        moved,
        Taken(np.empty((2, n + 1, 2)), np.empty(rings.ring.size, np.int32)),
        np.empty(n + 1, np.int64),
        np.empty((n, 3)),
        np.empty((n, 3)),
        np.empty((2, n)),
        np.empty(n, np.bool_),
        np.empty(n, np.bool_),
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
def _of_groups(values, edge, min_snr, threshold, iterations, found):
    """Statistics of each group of numbers. A group without any has limits that nothing is beyond."""
    mean, sigma, low, high = found
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
def _not_numbers(frame, ring, count):
    """Take pixels that are no finite numbers off the count of each ring."""
    for i in range(frame.size):
        if not frame[i] - frame[i] == 0.0:
            count[ring[i]] -= 1


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
def _without(frame, ring, limits, count, scratch):
    """Number, sum and sum of squares of what is not listed, for each ring."""
    inside, sums, lost = scratch.inside, scratch.taken.sums, False
    rings = scratch.done.size
    for r in range(rings):
        inside[r, 0] = scratch.number[r]
        inside[r, 1], inside[r, 2] = sums[0, r, 0] + sums[1, r, 0], sums[0, r, 1] + sums[1, r, 1]
    for k in range(count):
        i = scratch.taken.pixels[k]
        value, r = np.float64(frame[i]), ring[i]
        inside[r, 0] -= 1.0
        inside[r, 1] -= value
        inside[r, 2] -= value * value
    for r in range(rings):
        whole = sums[0, r, 1] + sums[1, r, 1]
        lost = lost or (inside[r, 0] > 0.0 and whole > DIGITS * inside[r, 2] and whole > 0.0)
    if lost:
        _within(frame, ring, limits.low, limits.high, scratch)


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
            i = scratch.taken.pixels[k]
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
    limits, moved, pixels, some, kept = scratch.limits, scratch.moved, scratch.taken.pixels, False, 0
    for r in range(moved.size):
        moved[r] = scratch.least[0, r] >= limits.low[r] or scratch.least[1, r] <= limits.high[r]
        some |= moved[r]
    for k in range(count):
        if not moved[ring[pixels[k]]]:
            pixels[kept] = pixels[k]
            kept += 1
    return some, kept


@njit(cache=True, nogil=True)
def _move(mean, scratch, everything):
    """Move the limits of marked rings inwards; only of these are pixels listed anew."""
    limits, moved = scratch.limits, scratch.moved_limits
    for r in range(mean.size):
        moved.low[r], moved.high[r] = -math.inf, math.inf
        if scratch.moved[r]:
            if everything:
                limits.low[r], limits.high[r] = math.inf, -math.inf
            else:
                limits.low[r] = mean[r] - 0.9 * max(mean[r] - scratch.least[0, r], 0.0)
                limits.high[r] = mean[r] + 0.9 * max(scratch.least[1, r] - mean[r], 0.0)
            moved.low[r], moved.high[r] = limits.low[r], limits.high[r]
    spread(moved)


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
def _begin_full(rings, min_snr, threshold, found, scratch):
    """Provisional limits of each ring from the sample of its group."""
    group, limits = scratch.group, scratch.limits
    _of_groups(scratch.values, rings.coarse.edge, min_snr, threshold, FIRST, group)
    for r in range(limits.low.size):
        if rings.number[r] < FEW:
            limits.low[r], limits.high[r] = math.inf, -math.inf
            continue
        mean, away = group.mean[r // GROUP], NEAR * min_snr * group.sigma[r // GROUP]
        limits.low[r], limits.high[r] = mean - away, max(mean + away, NEAR * threshold)
    spread(limits)
    scratch.taken.sums[:] = 0.0


@njit(cache=True, nogil=True)
def _finish_full(frame, rings, min_snr, threshold, count, found, scratch):
    """Statistics of all pixels of each ring, and the pixels above its threshold."""
    ring, taken = rings.ring, scratch.taken
    for r in range(rings.number.size):
        scratch.number[r] = rings.number[r]
    last = taken.sums[0, -1, 0] + taken.sums[1, -1, 0]
    if not last - last == 0.0:
        _not_numbers(frame, ring, scratch.number)
    for attempt in range(RETRIES + 1):
        _without(frame, ring, scratch.limits, count, scratch)
        _iterate(frame, ring, count, min_snr, threshold, found, scratch)
        some, kept = _drop_moved(ring, count, scratch)
        if not some:
            break
        _move(found.mean, scratch, attempt == RETRIES - 1)
        count = take_in(frame, rings, scratch.moved_limits, NO, taken, kept)
    return _above(frame, ring, count, found.high, taken.pixels)


@njit(cache=True, nogil=True)
def _begin_sampled(rings, min_snr, threshold, found, scratch):
    """Statistics of a sample of each ring, and limits from its threshold."""
    limits = scratch.limits
    _of_groups(scratch.values, rings.sample.edge, min_snr, threshold, ITERATIONS, found)
    for r in range(limits.low.size):
        high = found.high[r]
        limits.low[r] = -math.inf
        limits.high[r] = high - 1e-6 * abs(high) if high < math.inf else math.inf  # not above it by rounding
    spread(limits)


@njit(cache=True, nogil=True)
def _finish_sampled(frame, rings, min_snr, threshold, count, found, scratch):
    """The pixels above the threshold of their ring."""
    return _above(frame, rings.ring, count, found.high, scratch.taken.pixels)


class Method(NamedTuple):
    """How the statistics are taken: of which sample limits are made, whether all pixels are added up, what follows."""

    sample: str
    begin: Callable[..., None]
    adding: np.bool_
    finish: Callable[..., int]


#: Of all pixels of each ring, or of a sample.
METHODS = {
    "full": Method("coarse", _begin_full, YES, _finish_full),
    "sampled": Method("sample", _begin_sampled, NO, _finish_sampled),
}


def sample_of(rings: Rings, method: str) -> Sample:
    """The sample that a method makes limits of."""
    sample: Sample = getattr(rings, METHODS[method].sample)
    return sample


@njit(cache=True, nogil=True)
def _gather(pixels, sample, values):
    """The sample of a frame, group by group."""
    for k in range(sample.pixel.size):
        values[np.uint64(sample.place[k])] = pixels[np.uint64(sample.pixel[k])]


def strong(
    method: str, frame: Array, rings: Rings, min_snr: float, threshold: float, found: Statistics, scratch: Scratch
) -> int:
    """Statistics of the rings of a frame, and the pixels above their thresholds.

    Parameters
    ----------
    method : {"full", "sampled"}
    frame : (n,) float32
    rings : Rings
    min_snr, threshold : float
        Of whole numbers everything would be compiled once more.
    found : Statistics
        Out.
    scratch : Scratch
        Out: its first `taken.pixels` are those above the threshold of their ring, ascending.

    Returns
    -------
    int
        How many pixels are.
    """
    _, begin, adding, finish = METHODS[method]
    _gather(frame, sample_of(rings, method), scratch.values)
    begin(rings, min_snr, threshold, found, scratch)
    listed = take_in(frame, rings, scratch.limits, adding, scratch.taken, NONE)
    return _ascending(finish(frame, rings, min_snr, threshold, listed, found, scratch), scratch)


def strong_of_raw(
    method: str,
    raw: Array,
    stages: Stages,
    stages_of_sample: Stages,
    rings: Rings,
    min_snr: float,
    threshold: float,
    frames: Array,
    rooms: tuple[tuple[Statistics, Scratch], ...],
) -> list[int]:
    """Calibrate some raw frames, which have no common mode to take off, and find strong pixels, in one pass.

    Parameters
    ----------
    method : {"full", "sampled"}
    raw : (frames, n) uint16
    stages, stages_of_sample : Stages
        Of all pixels, and of `Method.sample`.
    rings : Rings
    min_snr, threshold : float
    frames : (>= frames, n) float32
        Out: calibrated.
    rooms : tuple of (Statistics, Scratch)
        Out; always as many, as for another number everything would be compiled once more.

    Returns
    -------
    list of int
        How many pixels are above their thresholds, for each frame.
    """
    _, begin, adding, finish = METHODS[method]
    sample = sample_of(rings, method)
    for one, (found, scratch) in zip(raw, rooms, strict=False):
        _gather(one, sample, scratch.raw)
        calibrate(scratch.raw, stages_of_sample, NONE, np.int64(sample.pixel.size), scratch.values)
        begin(rings, min_snr, threshold, found, scratch)
    listed, limits = np.zeros(len(raw), np.int64), tuple(scratch.limits for _, scratch in rooms)
    take_in_raw(raw, stages, rings, limits, adding, frames, tuple(scratch.taken for _, scratch in rooms), listed)
    return [
        _ascending(finish(frame, rings, min_snr, threshold, count, found, scratch), scratch)
        for frame, count, (found, scratch) in zip(frames, listed, rooms, strict=False)
    ]


def _ascending(above: int, scratch: Scratch) -> int:
    scratch.taken.pixels[:above].sort()
    return above
