"""One pass over frames: each pixel is calibrated, added to the sums of its ring, and listed where it stands out.

What is looked at is in blocks of 64 pixels. Nearly all blocks lie within the innermost limits of all their rings, which
one comparison of vectors tells; then nothing is listed, all are numbers, and they are added without a branch.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from ...reduce.kernels.loops import compiled
from ...reduce.kernels.masks import BLOCK, first_bit, outside
from .frames import calibrate

Array = np.ndarray[Any, np.dtype[Any]]

#: Pixels of one frame that are taken in before those of the next, while the constants of these are in the cache.
STRETCH = 128 * BLOCK

#: Pixels that are added at once.
TOGETHER = 4

#: Typed, as numbers in calls of compiled functions are: of a literal 0 each function would be compiled once more.
NONE = np.int64(0)


class Sample(NamedTuple):
    """Some pixels of each of some groups.

    Attributes
    ----------
    pixel : (k,) int32
        Ascending, so that memory is read forwards.
    place : (k,) int32
        Where each is, group by group.
    edge : (groups + 1,) int64
        First place of each group.
    """

    pixel: Array
    place: Array
    edge: Array

    def of(self, pixels: Array) -> Array:
        """Of an array whose last axis is that of pixels: the sample, group by group."""
        taken = np.empty((*pixels.shape[:-1], self.place.size), pixels.dtype)
        taken[..., self.place] = pixels[..., self.pixel]
        return taken


class Rings(NamedTuple):
    """Which ring each pixel is on.

    Attributes
    ----------
    ring : (n,) uint16
        Pixels that do not count have the number of rings.
    number : (rings,) int64
        Pixels of each ring.
    first, last : (blocks,) int32
        Least and greatest ring of each block of pixels; last before first where none counts.
    level : (blocks,) int32
        Greatest power of two that the number of rings from first to last holds.
    sample, coarse : Sample
        Of each ring, and of each group of rings.
    """

    ring: Array
    number: Array
    first: Array
    last: Array
    level: Array
    sample: Sample
    coarse: Sample


class Limits(NamedTuple):
    """What pixels are listed beyond, by ring.

    Attributes
    ----------
    low, high : (rings,) float32
    lowest, highest : (levels, rings) float32
        The innermost ones of so many rings from each one on: 1, 2, 4, ...; what `spread` makes.
    """

    low: Array
    high: Array
    lowest: Array
    highest: Array


class Taken(NamedTuple):
    """What was taken in of a frame.

    Attributes
    ----------
    sums : (2, rings + 1, 2) float64
        Sum, and sum of squares, of each ring; the last is that of what does not count. Two copies take turns, so that
        neighbours on one ring do not wait for each other.
    pixels : (n,) int32
        First those that are listed.
    """

    sums: Array
    pixels: Array


@intrinsic
def _add_together(_: Any, frame: Any, ring: Any, at: Any, sums: Any, copy: Any) -> Any:
    """Add four pixels and their squares to the sums of their rings, in turn to one copy and to that `copy` behind it.

    Sum and sum of squares lie side by side and are added as one vector, where numba would do one after the other.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        make: Any = make_array
        frame, ring, sums = (make(signature.args[k])(context, builder, arguments[k]).data for k in (0, 1, 3))
        at, copy = arguments[2], arguments[4]
        word, pair, four = ir.IntType(64), ir.VectorType(ir.DoubleType(), 2), ir.VectorType(ir.FloatType(), TOGETHER)
        values = builder.load(builder.bitcast(builder.gep(frame, [at]), four.as_pointer()), align=4)
        values = builder.fpext(values, ir.VectorType(ir.DoubleType(), TOGETHER))
        squares = builder.fmul(values, values)
        for k in range(TOGETHER):
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), 2), [k, TOGETHER + k])
            number = builder.load(builder.gep(ring, [builder.add(at, ir.Constant(word, k))]))
            place = builder.shl(builder.zext(number, word), ir.Constant(word, 1))
            place = builder.add(place, copy) if k % 2 else place
            pointer = builder.bitcast(builder.gep(sums, [place]), pair.as_pointer())
            added = builder.fadd(builder.load(pointer, align=8), builder.shuffle_vector(values, squares, lanes))
            builder.store(added, pointer, align=8)
        return context.get_dummy_value()

    return types.void(frame, ring, types.intp, sums, types.intp), generate


@compiled
def _add_block(frame, ring, first, sums):
    """Add a whole block of numbers."""
    for i in range(first, first + BLOCK, TOGETHER):
        _add_together(frame, ring, i, sums, 2 * sums.shape[1])


@compiled
def _add_some(frame, ring, first, last, sums):
    """Add pixels of which some may be no finite numbers; those go to the last ring."""
    none = sums.shape[1] - 1
    for i in range(first, last):
        value = np.float64(frame[i])
        r = np.int64(ring[i]) if value - value == 0.0 else none
        sums[i % 2, r, 0] += value
        sums[i % 2, r, 1] += value * value


@compiled
def spread(limits):
    """Make the innermost limits of 1, 2, 4, ... rings of those of each ring."""
    low, high, lowest, highest = limits
    rings = low.size
    for r in range(rings):
        lowest[0, r], highest[0, r] = low[r], high[r]
    for level in range(1, lowest.shape[0]):
        half = 1 << (level - 1)
        for r in range(rings):
            other = min(r + half, rings - 1)
            lowest[level, r] = max(lowest[level - 1, r], lowest[level - 1, other])
            highest[level, r] = min(highest[level - 1, r], highest[level - 1, other])


@compiled
def _beyond(frame, ring, low, high, i):
    """Whether a pixel counts, is a number, and beyond the limits of its ring."""
    value, r = frame[np.uint64(i)], np.uint64(ring[np.uint64(i)])
    return r < low.size and (value > high[r] or value < low[r]) and value - value == 0.0


@compiled
def _take_blocks(frame, rings, limits, first_block, last_block, adding, taken, count):
    ring, low, high, lowest, highest = rings.ring, limits.low, limits.high, limits.lowest, limits.highest
    sums, pixels = taken
    for block in range(first_block, last_block):
        a, b = rings.first[block], rings.last[block]
        if b < a:
            continue
        first = block * BLOCK
        if first + BLOCK > frame.size:
            if adding:
                _add_some(frame, ring, first, frame.size, sums)
            for i in range(first, frame.size):
                if _beyond(frame, ring, low, high, i):
                    pixels[count] = i
                    count += 1
            continue
        level = rings.level[block]
        other = b + 1 - (1 << level)
        lower = max(lowest[level, a], lowest[level, other])
        upper = min(highest[level, a], highest[level, other])
        mask, numbers = outside(frame, first, lower, upper), True
        while mask:
            i = first + first_bit(mask)
            mask &= mask - np.uint64(1)
            numbers &= frame[i] - frame[i] == 0.0
            if _beyond(frame, ring, low, high, i):
                pixels[count] = i
                count += 1
        if adding:
            if numbers:
                _add_block(frame, ring, first, sums)
            else:
                _add_some(frame, ring, first, first + BLOCK, sums)
    return count


@compiled
def take_in(frame, rings, limits, adding, taken, count):
    """Add up the pixels of each ring, and list those beyond its limits.

    Parameters
    ----------
    frame : (n,) float32
    rings : Rings
    limits : Limits
    adding : bool
        Whether sums are wanted; they are added to.
    taken : Taken
        Out.
    count : int
        Pixels that are in the list already.

    Returns
    -------
    int
        How many are.
    """
    return _take_blocks(frame, rings, limits, NONE, rings.first.size, adding, taken, count)


@compiled
def take_in_raw(raw, stages, rings, limits, adding, frames, taken, count):
    """Calibrate some frames and take them in, together: constants go through memory once for all.

    Parameters
    ----------
    raw : (frames, n) uint16
    stages : Stages
    rings : Rings
    limits : tuple of Limits
        One for each frame, or more.
    adding : bool
    frames : (frames, n) float32
        Out: calibrated.
    taken : tuple of Taken
        Out; one for each frame, or more.
    count : (frames,) int64
        In and out: listed pixels.
    """
    pixels = raw.shape[1]
    for first in range(0, pixels, STRETCH):
        last = min(first + STRETCH, pixels)
        for k in range(raw.shape[0]):
            calibrate(raw[k], stages, first, last, frames[k])
            count[k] = _take_blocks(
                frames[k], rings, limits[k], first // BLOCK, -(-last // BLOCK), adding, taken[k], count[k]
            )
