"""Which reflections of a crystal lie on the detector, and what its pixels say of them."""

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def predict(star, most, wavelength, radius, spread, limit, inverse, bounds, hkl, place, excitation):
    """Reflections of a still that meet the detector, as far as the Ewald sphere is from their nodes.

    Parameters
    ----------
    star : (3, 3) float64
        a*, b*, c* as rows [1/Angstrom], in the laboratory.
    most : (int, int, int)
        Largest indices within the limit.
    wavelength : float
        [Angstrom].
    radius, spread : float
        A node is ``radius + spread |q|`` in radius [1/Angstrom].
    limit : float
        Largest 1/d [1/Angstrom].
    inverse : (panels, 3, 3) float64
        Of the matrices of rows fs, ss and the place of pixel (0, 0) of the segment [m].
    bounds : (panels, 5) int64
        Segment, first and last row, first and last column, half open.
    hkl : (capacity, 3) int32
        Out.
    place : (capacity, 3) float64
        Out: segment, row, column.
    excitation : (capacity,) float64
        Out: distance of the node from the sphere [1/Angstrom].

    Returns
    -------
    int
        How many; more than `capacity` if they had no room.
    """
    k0 = 1.0 / wavelength
    count = 0
    for h in range(-most[0], most[0] + 1):
        for k in range(-most[1], most[1] + 1):
            x0 = h * star[0, 0] + k * star[1, 0]
            y0 = h * star[0, 1] + k * star[1, 1]
            z0 = h * star[0, 2] + k * star[1, 2]
            for l in range(-most[2], most[2] + 1):  # noqa: E741
                x, y, z = x0 + l * star[2, 0], y0 + l * star[2, 1], z0 + l * star[2, 2]
                square = x * x + y * y + z * z
                if square == 0.0 or square > limit * limit:
                    continue
                miss = math.sqrt(square + 2 * z * k0 + k0 * k0) - k0
                if abs(miss) > radius + spread * math.sqrt(square):
                    continue
                z += k0
                for p in range(len(inverse)):
                    away = x * inverse[p, 0, 2] + y * inverse[p, 1, 2] + z * inverse[p, 2, 2]
                    if away <= 0.0:
                        continue
                    column = (x * inverse[p, 0, 0] + y * inverse[p, 1, 0] + z * inverse[p, 2, 0]) / away
                    row = (x * inverse[p, 0, 1] + y * inverse[p, 1, 1] + z * inverse[p, 2, 1]) / away
                    if (
                        bounds[p, 1] - 0.5 <= row < bounds[p, 2] - 0.5
                        and bounds[p, 3] - 0.5 <= column < bounds[p, 4] - 0.5
                    ):
                        if count < len(hkl):
                            hkl[count, 0], hkl[count, 1], hkl[count, 2] = h, k, l
                            place[count, 0], place[count, 1], place[count, 2] = bounds[p, 0], row, column
                            excitation[count] = miss
                        count += 1
                        break
    return count


@njit(cache=True, nogil=True)
def _mark(place, panel, bounds, radius, step, near):
    """Count for each pixel the spots that it is within `radius` of."""
    reach = int(radius) + 1
    for i in range(len(place)):
        s, row, column, p = int(place[i, 0]), place[i, 1], place[i, 2], panel[i]
        for r in range(max(bounds[p, 1], round(row) - reach), min(bounds[p, 2], round(row) + reach + 1)):
            for c in range(max(bounds[p, 3], round(column) - reach), min(bounds[p, 4], round(column) + reach + 1)):
                if (r - row) ** 2 + (c - column) ** 2 <= radius * radius:
                    near[s, r, c] += step


@njit(cache=True, nogil=True)
def three_rings(frame, bad, place, panel, bounds, radii, gain, near, out):
    """Integrate spots: pixels in the inner ring, less the mean of those between the middle and the outer one.

    Parameters
    ----------
    frame : (segments, rows, columns) float32
        NaN where there is nothing.
    bad : (segments, rows, columns) bool
        Pixels that do not count; of shape (0, 0, 0) for none.
    place : (spots, 3) float64
        Segment, row, column.
    panel : (spots,) int64
    bounds : (panels, 5) int64
        See `predict`.
    radii : (3,) float64
        [pixel].
    gain : float
        What one photon counts.
    near : (segments, rows, columns) int8
        Zeros; as it was afterwards.
    out : (spots, 4) float32
        Out: intensity, its standard deviation, background of a pixel, highest pixel; NaN where a pixel within the inner
        ring is bad, beyond the panel, or shared with another spot, or less than 5 are left for the background.
    """
    _mark(place, panel, bounds, radii[0], np.int64(1), near)
    reach = int(radii[2]) + 1
    inner, middle, outer = radii[0] ** 2, radii[1] ** 2, radii[2] ** 2
    for i in range(len(place)):
        s, row, column, p = int(place[i, 0]), place[i, 1], place[i, 2], panel[i]
        own = around = 0
        total = mean = scatter = 0.0
        highest = -np.inf
        fine = True
        for r in range(round(row) - reach, round(row) + reach + 1):
            for c in range(round(column) - reach, round(column) + reach + 1):
                away = (r - row) ** 2 + (c - column) ** 2
                if away > outer:
                    continue
                inside = bounds[p, 1] <= r < bounds[p, 2] and bounds[p, 3] <= c < bounds[p, 4]
                there = inside and not (bad.size and bad[s, r, c]) and not math.isnan(frame[s, r, c])
                if away <= inner:
                    if not there or near[s, r, c] > 1:
                        fine = False
                        break
                    own += 1
                    total += frame[s, r, c]
                    highest = max(highest, frame[s, r, c])
                elif away > middle and there and near[s, r, c] == 0:
                    around += 1
                    step = frame[s, r, c] - mean
                    mean += step / around
                    scatter += step * (frame[s, r, c] - mean)
            if not fine:
                break
        if not fine or around < 5 or own == 0:
            out[i, 0] = out[i, 1] = out[i, 2] = out[i, 3] = np.nan
            continue
        variance = scatter / (around - 1)
        intensity = total - own * mean
        # scatter of the background under the spot, the error of its mean, and the photons of the spot itself
        square = own * variance * (1.0 + own / around) + gain * max(intensity, 0.0)
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = intensity, math.sqrt(square), mean, highest
    _mark(place, panel, bounds, radii[0], np.int64(-1), near)
