"""From raw pixels to photons, and peaks of them, in one pass."""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

Array = np.ndarray[Any, np.dtype[Any]]

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


class Stages(NamedTuple):
    """What calibrating needs.

    Attributes
    ----------
    pedestal, factor : (stages, n) float32
        What is subtracted, and what the difference is multiplied by: NaN for pixels that do not count.
    states : (4,) int64
        Stage of gain that the two uppermost bits tell; -1 for none.
    value_bits : int
        Bits of the value.
    bank : (int, int)
        Rows and columns that share an amplifier, and so a common mode.
    step : (int, int)
        Rows and columns that it is taken of, within a bank.
    limit : float
        Pixels further from their pedestal than this do not count for it, nor does a larger one [ADU]; 0 for none.
    """

    pedestal: Array
    factor: Array
    states: Array
    value_bits: int
    bank: tuple[int, int]
    step: tuple[int, int]
    limit: float


@njit(cache=True, nogil=True)
def value_of(raw, stages, k):
    """Value of one pixel; NaN where there is none."""
    stage = stages.states[raw[k] >> SHIFT]
    if stage < 0:
        return np.float32(math.nan)
    return (np.float32(raw[k] & stages.value_bits) - stages.pedestal[stage, k]) * stages.factor[stage, k]


@njit(cache=True, nogil=True)
def calibrate(raw, stages, first, last, out):
    """Values of some pixels of a frame.

    Parameters
    ----------
    raw : (n,) uint16
    stages : Stages
    first, last : int
        Half open.
    out : (n,) float32
        Out; NaN where there is no value.
    """
    pedestal, factor = stages.pedestal[0], stages.factor[0]
    for begin in range(first, last, BLOCK):
        end = min(begin + BLOCK, last)
        if end - begin == BLOCK and (stages.value_bits > VALUE or _first_stage(raw, begin)):
            for j in range(BLOCK):
                k = np.uint64(begin + j)
                out[k] = (np.float32(raw[k]) - pedestal[k]) * factor[k]
            continue
        for k in range(begin, end):
            out[k] = value_of(raw, stages, k)


@njit(cache=True, nogil=True)
def subtract_common_mode(raw, shape, stages, scratch, out):
    """Take the median of small values off every stretch of pixels that share an amplifier.

    Parameters
    ----------
    raw : (n,) uint16
    shape : (int, int, int)
        Segments, rows, columns.
    stages : Stages
    scratch : (step rows * columns,) float32
    out : (n,) float32
        Calibrated; corrected in place.
    """
    pedestal, factor, states, limit = stages.pedestal, stages.factor, stages.states, stages.limit
    bank, step = stages.bank, stages.step
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


def calibrate_frame(raw: Array, stages: Stages, scratch: Array, out: Array) -> None:
    """Values of a frame, without its common mode where there is a limit for it; see `subtract_common_mode`.

    Parameters
    ----------
    raw : (segments, rows, columns) uint16
    stages : Stages
    scratch : (k,) float32
        Such as `room` makes.
    out : (n,) float32
        Out.
    """
    flat = raw.reshape(-1)
    calibrate(flat, stages, 0, raw.size, out)
    if stages.limit > 0.0:
        subtract_common_mode(flat, raw.shape, stages, scratch, out)


def room(stages: Stages) -> Array:
    """Scratch of `calibrate_frame`."""
    return np.empty(stages.step[0] * stages.step[1] if stages.limit > 0.0 else 1, np.float32)
