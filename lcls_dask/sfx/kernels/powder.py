"""Sums over frames, a tile of pixels at a time, so that each frame is read once and the sums stay in the cache."""

import numpy as np
from numba import njit

#: Pixels of a tile: their sums fit the second level of the cache, and each frame is read in long stretches.
TILE = 2048

#: Adding this to a real number, and taking it off again, rounds to a multiple of 1/4096, so that sums are exact, in any
#: order: of 53 bits, none are left for what is smaller.
ROUND = 1.5 * 2.0**40


@njit(cache=True, nogil=True)
def _not_numbers(values, first, last):
    """How many are NaN or infinite."""
    found = np.int32(0)
    for i in range(first, last):
        value = values[np.uint64(i)]
        found += np.int32(not (value - value == 0))
    return found


@njit(cache=True, nogil=True)
def _add_real(values, first, last, total, square, most):
    """Add finite real numbers."""
    for i in range(first, last):
        k = np.uint64(i)
        value = values[k]
        exact = (np.float64(value) + ROUND) - ROUND
        total[k] += exact
        square[k] += exact * exact
        most[k] = value if value > most[k] else most[k]


@njit(cache=True, nogil=True)
def _add_four(one, two, three, four, total, square, most):
    """Add four frames of finite real numbers, so that the sums are fetched and put back once."""
    for i in range(total.size):
        a, b = (np.float64(one[i]) + ROUND) - ROUND, (np.float64(two[i]) + ROUND) - ROUND
        c, d = (np.float64(three[i]) + ROUND) - ROUND, (np.float64(four[i]) + ROUND) - ROUND
        total[i] += (a + b) + (c + d)
        square[i] += (a * a + b * b) + (c * c + d * d)
        most[i] = max(max(max(one[i], two[i]), max(three[i], four[i])), most[i])


@njit(cache=True, nogil=True)
def _add_whole(values, first, last, total, square, most):
    """Add whole numbers."""
    for i in range(first, last):
        k = np.uint64(i)
        exact = np.float64(values[k])
        total[k] += exact
        square[k] += exact * exact
        most[k] = max(most[k], np.float32(exact))


@njit(cache=True, nogil=True)
def _add_some(values, first, last, count, total, square, most):
    """Add those real numbers that are finite, and count them."""
    for i in range(first, last):
        value = values[i]
        if value - value == 0:
            exact = (np.float64(value) + ROUND) - ROUND
            count[i] += np.uint32(1)
            total[i] += exact
            square[i] += exact * exact
            most[i] = max(most[i], value)


@njit(cache=True, nogil=True)
def add_frames(frames, group, count, total, square, most):
    """Add real numbers to the sums of their groups.

    Parameters
    ----------
    frames : (events, n) float32
        What is no finite number does not count.
    group : (events,) int64
        -1 for none.
    count : (groups, n) uint32
        Added to, as the others.
    total, square : (groups, n) float64
    most : (groups, n) float32
    """
    events, n = frames.shape
    chosen = np.empty(events, np.int64)
    for first in range(0, n, TILE):
        last = min(first + TILE, n)
        for g in range(count.shape[0]):
            finite = 0
            for event in range(events):
                if group[event] != g:
                    continue
                if _not_numbers(frames[event], first, last) == 0:
                    chosen[finite] = event
                    finite += 1
                else:
                    _add_some(frames[event], first, last, count[g], total[g], square[g], most[g])
            done = finite - finite % 4
            for k in range(0, done, 4):
                _add_four(
                    frames[chosen[k], first:last], frames[chosen[k + 1], first:last],
                    frames[chosen[k + 2], first:last], frames[chosen[k + 3], first:last],
                    total[g, first:last], square[g, first:last], most[g, first:last],
                )  # fmt: skip
            for k in range(done, finite):
                _add_real(frames[chosen[k]], first, last, total[g], square[g], most[g])
            count[g, first:last] += np.uint32(finite)


@njit(cache=True, nogil=True)
def add_whole_frames(frames, group, count, total, square, most):
    """Add whole numbers to the sums of their groups; as `add_frames`.

    Parameters
    ----------
    frames : (events, n) integers
    group, count, total, square, most
        See `add_frames`.
    """
    events, n = frames.shape
    for first in range(0, n, TILE):
        last = min(first + TILE, n)
        for event in range(events):
            g = group[event]
            if g >= 0:
                _add_whole(frames[event], first, last, total[g], square[g], most[g])
    for event in range(events):
        if group[event] >= 0:
            count[group[event]] += np.uint32(1)
