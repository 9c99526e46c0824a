"""Sums over frames, a tile of pixels at a time, so that each frame is read once and the sums stay in the cache."""

import numpy as np
from numba import njit

#: Pixels of a tile: their sums fit the first level of the cache.
TILE = 512

#: Values of real numbers are rounded to multiples of this, so that their sums are exact, in any order.
QUANTUM = 1.0 / 4096.0


@njit(cache=True, nogil=True)
def _add_tile(values, weight, first, last, whole, count, total, square, most):
    """One frame's pixels of a tile."""
    for i in range(first, last):
        k = np.uint64(i)
        value = np.float64(values[k])
        there = value - value == 0.0
        exact = value if whole else np.rint(value * 4096.0) * QUANTUM
        exact = exact if there else 0.0
        count[k] += np.uint32(there)
        total[k] += exact
        square[k] += exact * exact
        most[k] = max(most[k], np.float32(value)) if there else most[k]


@njit(cache=True, nogil=True)
def add_frames(frames, group, whole, count, total, square, most):
    """Add frames to the sums of their groups.

    Parameters
    ----------
    frames : (events, n)
        Real numbers or integers; what is no finite number does not count.
    group : (events,) int64
        -1 for none.
    whole : bool
        Whether all values are whole numbers.
    count : (groups, n) uint32
        Added to, as the others.
    total, square : (groups, n) float64
    most : (groups, n) float32
    """
    events, n = frames.shape
    for first in range(0, n, TILE):
        last = min(first + TILE, n)
        for event in range(events):
            g = group[event]
            if g >= 0:
                _add_tile(frames[event], g, first, last, whole, count[g], total[g], square[g], most[g])
