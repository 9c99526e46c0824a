"""Sums of dark frames."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def add_dark(raw, states, value_bits, stage, count, total, square):
    """Add the pixels of a frame that are in one stage of gain.

    Parameters
    ----------
    raw : (n,) uint16
    states : (4,) int64
        Stage that the two uppermost bits tell.
    value_bits : int
        Bits of the value.
    stage : int
    count : (n,) uint32
        Added to, as the others.
    total, square : (n,) uint64
    """
    for i in range(raw.size):
        k = np.uint64(i)
        there = np.uint64(states[raw[k] >> 14] == stage)
        value = np.uint64(raw[k] & value_bits) * there
        count[k] += np.uint32(there)
        total[k] += value
        square[k] += value * value


@njit(cache=True, nogil=True)
def stages_seen(raw, states, seen):
    """Mark the stages of gain that any pixel is in."""
    bits = np.zeros(4, np.int64)
    for i in range(raw.size):
        bits[raw[np.uint64(i)] >> 14] += 1
    for k in range(4):
        if bits[k] > 0 and states[k] >= 0:
            seen[states[k]] = True
