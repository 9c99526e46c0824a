"""From raw pixels to photons, and peaks of them, in one pass."""

import math

import numpy as np
from numba import njit

#: Pixels that are calibrated together, where all are in the highest gain.
BLOCK = 64

#: Lower bits are the value, the two uppermost the stage of gain.
VALUE, SHIFT = 0x3FFF, 14


@njit(cache=True, nogil=True)
def _first_stage(raw, first):
    """Whether all pixels of a block are in the first stage of gain."""
    together = np.uint16(0)
    for j in range(BLOCK):
        together |= raw[np.uint64(first + j)]
    return together <= VALUE


@njit(cache=True, nogil=True)
def calibrate(raw, pedestal, factor, states, mask_bits, first, last, out):
    """Values of some pixels of a frame.

    Parameters
    ----------
    raw : (n,) uint16
    pedestal, factor : (stages, n) float32
        What is subtracted, and what the difference is multiplied by: NaN for pixels that do not count.
    states : (4,) int64
        Stage of gain that the two uppermost bits tell; -1 for none.
    mask_bits : int
        Bits of the value.
    first, last : int
        Half open.
    out : (n,) float32
        Out; NaN where there is no value.
    """
    zero, one = pedestal[0], factor[0]
    i = first
    while i < last:
        if i + BLOCK <= last and (mask_bits > VALUE or _first_stage(raw, i)):
            for j in range(BLOCK):
                k = np.uint64(i + j)
                out[k] = (np.float32(raw[k]) - zero[k]) * one[k]
            i += BLOCK
            continue
        for k in range(i, min(i + BLOCK, last)):
            stage = states[raw[k] >> SHIFT]
            if stage < 0:
                out[k] = np.float32(math.nan)
            else:
                out[k] = (np.float32(raw[k] & mask_bits) - pedestal[stage, k]) * factor[stage, k]
        i += BLOCK


@njit(cache=True, nogil=True)
def subtract_common_mode(raw, out, pedestal, factor, states, shape, bank, step, limit, scratch):
    """Take the median of small values off every stretch of pixels that share an amplifier.

    Parameters
    ----------
    raw : (n,) uint16
    out : (n,) float32
        Calibrated; corrected in place.
    pedestal, factor, states
        See `calibrate`.
    shape : (int, int, int)
        Segments, rows, columns.
    bank : (int, int)
        Rows and columns that share one.
    step : (int, int)
        Rows and columns of a stretch, within a bank.
    limit : float
        Pixels further from their pedestal than this do not count, nor does a median [ADU].
    scratch : (bank rows * columns,) float32
    """
    segments, rows, columns = shape
    for segment in range(segments):
        for row0 in range(0, rows, step[0]):
            for column0 in range(0, columns, step[1]):
                row1 = min(row0 + step[0], rows, (row0 // bank[0] + 1) * bank[0])
                column1 = min(column0 + step[1], columns, (column0 // bank[1] + 1) * bank[1])
                count = 0
                for row in range(row0, row1):
                    for column in range(column0, column1):
                        k = (segment * rows + row) * columns + column
                        value = np.float32(raw[k] & VALUE) - pedestal[0, k]
                        # what is not a number is not small; a pixel that does not count has no value
                        if states[raw[k] >> SHIFT] == 0 and abs(value) < limit and out[k] == out[k]:
                            scratch[count] = value
                            count += 1
                if count < 10:
                    continue
                median = np.median(scratch[:count])
                if abs(median) > limit:
                    continue
                for row in range(row0, row1):
                    for column in range(column0, column1):
                        k = (segment * rows + row) * columns + column
                        if states[raw[k] >> SHIFT] == 0:
                            out[k] -= np.float32(median) * factor[0, k]


@njit(cache=True, nogil=True)
def calibrate_frames(raw, pedestal, factor, states, mask_bits, bank, step, limit, out):
    """Values of many frames.

    Parameters
    ----------
    raw : (events, segments, rows, columns) uint16
    pedestal, factor, states, mask_bits
        See `calibrate`.
    bank, step, limit
        See `subtract_common_mode`; no common mode where `limit` is 0.
    out : (events, segments, rows, columns) float32
        Out.
    """
    events, segments, rows, columns = raw.shape
    scratch = np.empty(step[0] * step[1] if limit > 0.0 else 1, np.float32)
    for event in range(events):
        frame, values = raw[event].reshape(-1), out[event].reshape(-1)
        calibrate(frame, pedestal, factor, states, mask_bits, 0, frame.size, values)
        if limit > 0.0:
            subtract_common_mode(
                frame, values, pedestal, factor, states, (segments, rows, columns), bank, step, limit, scratch
            )
