"""Still diffraction patterns: which reflections hit the detector, and what its pixels count."""

import math

import numpy as np
from numba import njit

from .generators import INTENSITY, Array, generator, next_integer, normal, poisson, uniform


@njit(cache=True, nogil=True)
def intensity(seed: int, h: int, k: int, l: int) -> float:  # noqa: E741
    """Intensity of a reflection of P43212 (Laue group 4/mmm), of mean 1; 0 where it is absent."""
    h, k, l = abs(h), abs(k), abs(l)  # noqa: E741
    if h < k:
        h, k = k, h
    if (k == 0 and l == 0 and h % 2) or (h == 0 and k == 0 and l % 4):
        return 0.0
    state = generator(seed, (h << 20) | (k << 10) | l, INTENSITY)
    if k == 0 or l == 0 or h == k:
        return normal(state) ** 2  # centric
    return -math.log(uniform(state))


@njit(cache=True, nogil=True)
def rotation(state: Array) -> Array:
    """An evenly distributed rotation matrix (Shoemake's quaternion)."""
    u, v, w = uniform(state), 2 * math.pi * uniform(state), 2 * math.pi * uniform(state)
    a, b = math.sqrt(1 - u), math.sqrt(u)
    x, y, z, s = a * math.sin(v), a * math.cos(v), b * math.sin(w), b * math.cos(w)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * s), 2 * (x * z + y * s)],
            [2 * (x * y + z * s), 1 - 2 * (x * x + z * z), 2 * (y * z - x * s)],
            [2 * (x * z - y * s), 2 * (y * z + x * s), 1 - 2 * (x * x + y * y)],
        ]
    )


@njit(cache=True, nogil=True)
def predict(
    seed: int,
    reciprocal: Array,
    wavelength: float,
    radius: float,
    b_factor: float,
    scale: float,
    limit: float,
    panels: Array,
    inverse: Array,
    distance: float,
    place: Array,
    hkl: Array,
) -> int:
    """Reflections of a still that hit the detector.

    A reflection whose node misses the Ewald sphere by s diffracts with the partiality ``1 - (s / radius)**2``.

    Parameters
    ----------
    reciprocal : (3, 3) float64
        a*, b*, c* as columns [1/A], in the laboratory: the beam runs along z.
    limit : float
        Largest 1/d [1/A].
    panels : (panels, 6) float64
        Corner x, y [pixel], first row, first column, rows, columns.
    inverse : (panels, 2, 2) float64
        From laboratory x, y to (row, column) of the panel.
    distance : float
        Crystal to detector [pixel].
    place : (capacity, 5) float64
        Out: segment, row, column (pixel centres at whole numbers), photons, partiality.
    hkl : (capacity, 3) int16
        Out.

    Returns
    -------
    int
        Number of reflections.
    """
    count = 0
    k0 = 1.0 / wavelength
    most = np.empty(3, np.int64)
    for i in range(3):
        # |h| is at most limit * |a|, and a* is orthogonal to the others in this cell
        most[i] = int(limit / math.sqrt((reciprocal[:, i] ** 2).sum()))
    for h in range(-most[0], most[0] + 1):
        for k in range(-most[1], most[1] + 1):
            x0 = h * reciprocal[0, 0] + k * reciprocal[0, 1]
            y0 = h * reciprocal[1, 0] + k * reciprocal[1, 1]
            z0 = h * reciprocal[2, 0] + k * reciprocal[2, 1]
            for l in range(-most[2], most[2] + 1):  # noqa: E741
                x = x0 + l * reciprocal[0, 2]
                y = y0 + l * reciprocal[1, 2]
                z = z0 + l * reciprocal[2, 2] + k0
                length = math.sqrt(x * x + y * y + z * z)
                miss = length - k0
                if abs(miss) >= radius or z <= 0.0:
                    continue
                q2 = x * x + y * y + (z - k0) ** 2
                if q2 > limit * limit or q2 == 0.0:
                    continue
                partial = 1.0 - (miss / radius) ** 2
                photons = scale * partial * math.exp(-0.5 * b_factor * q2) * intensity(seed, h, k, l)
                if photons < 0.5 or count == len(place):
                    continue
                u, v = distance * x / z, distance * y / z
                for p in range(len(panels)):
                    dx, dy = u - panels[p, 0], v - panels[p, 1]
                    # corners are where pixels begin, centres half a pixel on
                    row = inverse[p, 0, 0] * dx + inverse[p, 0, 1] * dy - 0.5
                    column = inverse[p, 1, 0] * dx + inverse[p, 1, 1] * dy - 0.5
                    if -0.5 <= row < panels[p, 4] - 0.5 and -0.5 <= column < panels[p, 5] - 0.5:
                        place[count, 0] = panels[p, 2] // 512
                        place[count, 1] = panels[p, 2] % 512 + row
                        place[count, 2] = panels[p, 3] + column
                        place[count, 3], place[count, 4] = photons, partial
                        hkl[count, 0], hkl[count, 1], hkl[count, 2] = h, k, l
                        count += 1
                        break
    return count


@njit(cache=True, nogil=True)
def expose(state: Array, level: Array, shift: int, table: Array, pedestal: Array, frames: Array, i: int) -> None:
    """Fill frame i with pedestal, electronic noise and background photons.

    Poisson numbers are not drawn for each pixel: `table` has, for each level of the mean, numbers drawn
    beforehand, and each row of pixels begins at a random place in it. Pixels are Poisson-distributed and
    independent within a row; what is lost is that two rows of one level may repeat the same stretch.

    Parameters
    ----------
    level : (segments, rows, columns) uint8
        Level of the mean, in logarithmic steps.
    shift : int
        Added to the level: brightness of this shot.
    table : (levels, 2**k) int16
    pedestal : (segments, rows, columns) uint16
    frames : (segments, frames, 1, rows, columns) uint16
    """
    segments, rows, columns = level.shape
    levels, size = table.shape
    mask = size - 1
    flat = table.reshape(-1)
    start = np.empty(levels, np.int64)
    for k in range(levels):
        start[k] = min(max(k + shift, 0), levels - 1) * size
    for s in range(segments):
        for r in range(rows):
            phase = int(next_integer(state) & np.uint64(mask))
            for c in range(columns):
                frames[s, i, 0, r, c] = pedestal[s, r, c] + flat[start[level[s, r, c]] + ((phase + c) & mask)]


@njit(cache=True, nogil=True)
def add_spots(
    state: Array, place: Array, count: int, sigma: float, gain: float, most: int, frames: Array, i: int
) -> None:
    """Add the photons of each reflection, Poisson-distributed about a Gaussian; pixels saturate at `most`."""
    rows, columns = frames.shape[3:]
    reach = int(4 * sigma + 1)
    for j in range(count):
        s, row, column = int(place[j, 0]), place[j, 1], place[j, 2]
        for r in range(max(0, round(row) - reach), min(rows, round(row) + reach + 1)):
            share = 0.5 * (
                math.erf((r + 0.5 - row) / (math.sqrt(2.0) * sigma))
                - math.erf((r - 0.5 - row) / (math.sqrt(2.0) * sigma))
            )
            for c in range(max(0, round(column) - reach), min(columns, round(column) + reach + 1)):
                part = 0.5 * (
                    math.erf((c + 0.5 - column) / (math.sqrt(2.0) * sigma))
                    - math.erf((c - 0.5 - column) / (math.sqrt(2.0) * sigma))
                )
                photons = poisson(state, place[j, 3] * share * part)
                frames[s, i, 0, r, c] = min(frames[s, i, 0, r, c] + int(photons * gain), most)
