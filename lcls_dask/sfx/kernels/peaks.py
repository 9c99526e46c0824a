"""Peaks of a frame: connected pixels above the threshold of their ring, against the background about them."""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

Array = np.ndarray[Any, np.dtype[Any]]

#: Standard deviation of a background without pixels, or of pixels that are all alike.
LEAST_SIGMA = 0.01


@njit(cache=True, nogil=True)
def _panel_of(panels, first, segment, row, column):
    """Number of the panel that a pixel belongs to."""
    for p in range(first[segment], first[segment + 1]):
        if panels[p, 1] <= row < panels[p, 2] and panels[p, 3] <= column < panels[p, 4]:
            return p
    return -1


@njit(cache=True, nogil=True)
def _root(parent, k):
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


@njit(cache=True, nogil=True)
def _join(pixels, panel, parent, columns, k, other):
    """Make two pixels one peak, if they touch."""
    apart = pixels[k] % columns - pixels[other] % columns
    if panel[k] == panel[other] and -1 <= apart <= 1:
        one, two = _root(parent, k), _root(parent, other)
        parent[max(one, two)] = min(one, two)


@njit(cache=True, nogil=True)
def connect(pixels, many, panel, columns, parent, behind, last):
    """Put pixels that touch, by edges or corners, within one panel, into one list.

    Parameters
    ----------
    pixels : (n,) int32
        Ascending.
    many : int
        How many.
    panel : (n,) int32
    columns : int
        Of a segment.
    parent : (n,) int32
        Out: the first pixel of the list that each is in.
    behind : (n,) int32
        Out: the next pixel of the list, -1 behind the last.
    last : (n,) int32
        Scratch.
    """
    above = 0
    for k in range(many):
        parent[k] = k
        if k > 0 and pixels[k] - pixels[k - 1] == 1:
            _join(pixels, panel, parent, columns, k, k - 1)
        while pixels[above] < pixels[k] - columns - 1:
            above += 1
        other = above
        while pixels[other] <= pixels[k] - columns + 1:
            _join(pixels, panel, parent, columns, k, other)
            other += 1
    for k in range(many):
        first = _root(parent, k)
        parent[k], behind[k], last[k] = first, -1, k
        if first != k:
            behind[last[first]] = k
            last[first] = k


@njit(cache=True, nogil=True)
def _background(frame, rings, high, bounds, shape, row, column, reach, told):
    """Mean, sigma and maximum of the background in a disc about a pixel, within its panel."""
    rows, columns = shape
    first = bounds[0] * rows * columns
    count, total, square, most = 0, 0.0, 0.0, -math.inf
    for r in range(max(row - reach, bounds[1]), min(row + reach, bounds[2])):
        for c in range(max(column - reach, bounds[3]), min(column + reach, bounds[4])):
            if (r - row) ** 2 + (c - column) ** 2 > reach * reach:
                continue
            j = first + r * columns + c
            value, ring = np.float64(frame[j]), rings.ring[j]
            # NaN is not below
            if ring < rings.number.size and value < high[ring] and value > -math.inf:
                count += 1
                total += value
                square += value * value
                most = max(most, value)
    if count == 0:
        told[0], told[1], told[2] = 0.0, LEAST_SIGMA, 0.0
        return
    mean = total / count
    sigma = math.sqrt(max(square / count - mean * mean, 0.0))
    told[0], told[1], told[2] = mean, sigma if sigma > 0.0 else LEAST_SIGMA, most


@njit(cache=True, nogil=True)
def _measure(frame, rings, found, bounds, shape, members, size, reach, told):
    """Intensity, signal to noise and place of a peak: whether it stands out of its surroundings.

    ``told``: column, row, intensity, signal to noise.
    """
    rows, columns = shape
    first = bounds[0] * rows * columns
    weight, across, down, raw, raw_across, raw_down = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for m in range(size):
        i = members[m]
        row, column = (i - first) // columns, (i - first) % columns
        value = np.float64(frame[i])
        above = value - found.mean[rings.ring[i]]
        weight += above
        across += above * column
        down += above * row
        raw += value
        raw_across += value * column
        raw_down += value * row
    if not weight > 0.0:
        return False
    across, down = across / weight, down / weight
    _background(frame, rings, found.high, bounds, shape, round(down), round(across), reach, told)
    mean, sigma, most = told[0], told[1], told[2]
    total, top = 0.0, -math.inf
    for m in range(size):
        value = np.float64(frame[members[m]]) - mean
        total += value
        top = max(top, value)
    # values below zero, of frames whose offset is wrong, are no weights
    told[0], told[1] = (raw_across / raw, raw_down / raw) if raw > 0.0 else (across, down)
    told[2], told[3] = total, total / sigma
    return top >= most - mean


@njit(cache=True, nogil=True)
def _gather(k, behind, pixels, bounds, shape, most, members):
    """Pixels of the peak that begins with number k: how many, 0 where all lie at the edge of their panel."""
    rows, columns = shape
    count, inner = 0, False
    while k >= 0:
        i = pixels[k]
        row, column = i // columns % rows, i % columns
        inner = inner or (bounds[1] < row < bounds[2] - 1 and bounds[3] < column < bounds[4] - 1)
        if count < most:
            members[count] = i
        count += 1
        k = behind[k]
    return count if inner else 0


class Panels(NamedTuple):
    """Panels, by segment.

    Attributes
    ----------
    bounds : (panels, 5) int64
        Segment, first row and the one behind the last, first column and the one behind the last.
    first : (segments + 1,) int64
    """

    bounds: Array
    first: Array


class Peaks(NamedTuple):
    """Columns of peaks: float32, and int32 for pixels."""

    fs: Array
    ss: Array
    intensity: Array
    snr: Array
    pixels: Array


@njit(cache=True, nogil=True)
def find_peaks(frame, shape, rings, panels, told, above, found, pixels, room, measured, count, out):
    """Find the peaks of a frame.

    Parameters
    ----------
    frame : (n,) float32
        Pixels that are no finite numbers do not count.
    shape : (int, int, int)
        Segments, rows, columns.
    rings : Rings
    panels : Panels
    told : (float, int, int, int)
        Least signal to noise, fewest and most pixels of a peak, radius of the disc of background.
    above : int
        Strong pixels.
    found : Statistics
        Of the frame's rings.
    pixels : (>= above,) int32
        The strong pixels, ascending.
    room : (5, >= above) int32
        Scratch.
    measured : (4,) float64
        Scratch.
    count : (segments,) int32
        Out: peaks of each segment.
    out : Peaks
        Out, with room for one of each ``told[1]`` strong pixels.

    Returns
    -------
    int
        How many there are.
    """
    _, rows, columns = shape
    min_snr, min_pixels, max_pixels, reach = told
    panel, parent, behind, last, members = room[0], room[1], room[2], room[3], room[4]
    for k in range(above):
        i = pixels[k]
        panel[k] = _panel_of(panels.bounds, panels.first, i // (rows * columns), i // columns % rows, i % columns)
    connect(pixels, above, panel, columns, parent, behind, last)
    peaks = 0
    for k in range(above):
        if parent[k] != k:
            continue
        bounds = panels.bounds[panel[k]]
        size = _gather(k, behind, pixels, bounds, (rows, columns), max_pixels, members)
        if size < min_pixels or size > max_pixels:
            continue
        stands_out = _measure(frame, rings, found, bounds, (rows, columns), members, size, reach, measured)
        if not stands_out or measured[3] < min_snr:
            continue
        out.fs[peaks], out.ss[peaks] = measured[0], measured[1]
        out.intensity[peaks], out.snr[peaks], out.pixels[peaks] = measured[2], measured[3], size
        count[bounds[0]] += 1
        peaks += 1
    return peaks
