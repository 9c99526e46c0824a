"""Sums over frames, a tile of pixels at a time, so that each frame is read once and the sums stay in the cache."""

import numpy as np
from numba import njit

#: Pixels of a strip, which stays in the first level of the cache, and of a tile, whose sums stay in the second; of a
#: tile each frame is read in one stretch.
STRIP, TILE = 512, 4096

#: Real numbers are summed in whole parts of their unit, so that sums are exact, in any order; and adding this to one
#: and taking it off again rounds it to a whole one: of 53 bits, none are left for what is smaller.
PARTS, ROUND = 4096.0, 1.5 * 2.0**52


@njit(cache=True, nogil=True)
def _exact(value):
    """Whole parts of a value; 0 for what is no finite number."""
    finite = value if value - value == 0 else np.float32(0)
    return (np.float64(finite) * PARTS + ROUND) - ROUND


@njit(cache=True, nogil=True)
def _one(value):
    """Whether a number is finite, as a number."""
    return np.float32(1) if value - value == 0 else np.float32(0)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _all_finite(one, two, three, four):
    """Whether values of four frames are finite; now and then not said of very large ones."""
    none = np.float32(0)
    for i in range(one.size):
        none += ((one[i] + two[i]) + (three[i] + four[i])) * np.float32(0)  # NaN, of what is not finite
    return none == 0


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_finite(one, two, three, four, sums):
    """As `_add_sums`, of values that are all finite."""
    for i in range(one.size):
        a, b = (np.float64(one[i]) * PARTS + ROUND) - ROUND, (np.float64(two[i]) * PARTS + ROUND) - ROUND
        c, d = (np.float64(three[i]) * PARTS + ROUND) - ROUND, (np.float64(four[i]) * PARTS + ROUND) - ROUND
        sums[i] += (a + b) + (c + d)
        sums[STRIP + i] += (a * a + b * b) + (c * c + d * d)


@njit(cache=True, nogil=True)
def _most_finite(one, two, three, four, most):
    """As `_add_most`, of values that are all finite, which are not counted here."""
    for i in range(one.size):
        a, b, c, d = one[i], two[i], three[i], four[i]
        highest = most[i]
        highest = a if a > highest else highest
        highest = b if b > highest else highest
        highest = c if c > highest else highest
        most[i] = d if d > highest else highest


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_sums(one, two, three, four, sums):
    """Add strips of four frames: sums, and a strip behind them those of squares.

    Sums and squares are one array, and each loop has but one that is written: so the compiler can check that arrays do
    not overlap, without which it makes no vector code.
    """
    for i in range(one.size):
        a, b, c, d = _exact(one[i]), _exact(two[i]), _exact(three[i]), _exact(four[i])
        sums[i] += (a + b) + (c + d)
        sums[STRIP + i] += (a * a + b * b) + (c * c + d * d)


@njit(cache=True, nogil=True)
def _add_most(one, two, three, four, most):
    """Take in strips of four frames: highest values, and a strip behind them how many are finite."""
    for i in range(one.size):
        a, b, c, d = one[i], two[i], three[i], four[i]
        highest = most[i]
        highest = a if (a > highest) & (a - a == 0) else highest
        highest = b if (b > highest) & (b - b == 0) else highest
        highest = c if (c > highest) & (c - c == 0) else highest
        highest = d if (d > highest) & (d - d == 0) else highest
        most[i] = highest
        most[STRIP + i] += (_one(a) + _one(b)) + (_one(c) + _one(d))


@njit(cache=True, nogil=True)
def _put(sums, real, finite, count, total, square, most):
    """Add the sums of a strip to those of all frames, of which so many are not counted yet."""
    for i in range(total.size):
        total[i] += sums[i] * (1.0 / PARTS)
    for i in range(total.size):
        square[i] += sums[STRIP + i] * (1.0 / PARTS**2)
    for i in range(total.size):
        most[i] = max(most[i], real[i])
    for i in range(total.size):
        count[i] += np.uint32(real[STRIP + i]) + finite


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
def add_frames(frames, chosen, count, total, square, most):
    """Add some frames of real numbers to the sums of a group.

    Parameters
    ----------
    frames : (events, n) float32
        What is no finite number does not count. At most 2^24 events, since they are counted in float32.
    chosen : (k,) int64
        Which of them.
    count : (n,) uint32
        Added to, as the others.
    total, square : (n,) float64
    most : (n,) float32
    """
    n, last = frames.shape[1], chosen.size - 1
    none = np.empty(STRIP, np.float32)
    for i in range(STRIP):
        none[i] = np.nan
    sums, real = np.empty((TILE // STRIP, 2 * STRIP)), np.empty((TILE // STRIP, 2 * STRIP), np.float32)
    finite = np.empty(TILE // STRIP, np.uint32)
    for first in range(0, n, TILE):
        strips = (min(TILE, n - first) + STRIP - 1) // STRIP
        for strip in range(strips):
            finite[strip] = 0
            for i in range(STRIP):
                sums[strip, i] = sums[strip, STRIP + i] = 0.0
                real[strip, i], real[strip, STRIP + i] = -np.inf, 0.0
        for k in range(0, chosen.size, 4):
            for strip in range(strips):
                a = first + strip * STRIP
                b = min(a + STRIP, n)
                one = frames[chosen[k], a:b]
                two = frames[chosen[k + 1], a:b] if k + 1 <= last else none[: b - a]
                three = frames[chosen[k + 2], a:b] if k + 2 <= last else none[: b - a]
                four = frames[chosen[k + 3], a:b] if k + 3 <= last else none[: b - a]
                if _all_finite(one, two, three, four):
                    _most_finite(one, two, three, four, real[strip])
                    _add_finite(one, two, three, four, sums[strip])
                    finite[strip] += 4
                else:
                    _add_most(one, two, three, four, real[strip])
                    _add_sums(one, two, three, four, sums[strip])
        for strip in range(strips):
            a = first + strip * STRIP
            b = min(a + STRIP, n)
            _put(sums[strip], real[strip], finite[strip], count[a:b], total[a:b], square[a:b], most[a:b])


@njit(cache=True, nogil=True)
def add_whole_frames(frames, chosen, count, total, square, most):
    """Add some frames of whole numbers to the sums of a group; as `add_frames`.

    Parameters
    ----------
    frames : (events, n) integers
    chosen, count, total, square, most
        See `add_frames`.
    """
    n = frames.shape[1]
    for first in range(0, n, TILE):
        last = min(first + TILE, n)
        for k in range(chosen.size):
            _add_whole(frames[chosen[k]], first, last, total, square, most)
    for i in range(n):
        count[i] += np.uint32(chosen.size)
