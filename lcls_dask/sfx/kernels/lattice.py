"""How well a lattice explains spots, and what it must be to explain them best.

A lattice is ``star``, the reciprocal axes a*, b*, c* as rows, so that a spot of indices h lies at ``h @ star`` but for
its error: sharp across the beam that it scatters, by `across`, and wide along it, by `along`, since a still does not
tell how far a node was from the Ewald sphere.
"""

import math

import numpy as np
from numba import njit

from .order import by_size

#: Errors of a spot across its beam [1/Angstrom], and shares of spots in the lattice, that are tried.
ACROSS = (0.25e-3, 0.4e-3, 0.65e-3, 1.0e-3, 1.6e-3)
SHARES = (0.3, 0.6, 0.85)
#: Errors along the beam [1/Angstrom] that are tried, and the one that is taken before.
ALONGS, ALONG = (0.5e-3, 2.0e-3), 1.0e-3

#: Half the width of a powder ring, and of what it is compared with [1/Angstrom].
RING, ABOUT = 2.0e-3, 25.0e-3

#: Before the spots are seen: standard deviations of the strain of the cell and of the centre's shift [1/Angstrom].
STRAIN, SHIFT = 0.005, 1.0e-3

#: Parameters of `refine`: three of a rotation, six of a strain, two of a shift.
_FREE = 11


@njit(cache=True, nogil=True)
def inverse(matrix, out):
    """Inverse of a (3, 3) matrix; its determinant."""
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        for a in range(3):
            b, c = (a + 1) % 3, (a + 2) % 3
            out[a, i] = matrix[j, b] * matrix[k, c] - matrix[j, c] * matrix[k, b]
    det = matrix[0, 0] * out[0, 0] + matrix[0, 1] * out[1, 0] + matrix[0, 2] * out[2, 0]
    for i in range(3):
        for a in range(3):
            out[i, a] /= det
    return det


@njit(cache=True, nogil=True)
def rotate(star, x, y, z):
    """Turn a lattice by the rotation vector (x, y, z), in place."""
    angle = math.sqrt(x * x + y * y + z * z)
    if angle == 0.0:
        return
    x, y, z = x / angle, y / angle, z / angle
    c, s = math.cos(angle), math.sin(angle)
    for i in range(3):
        a, b, d = star[i, 0], star[i, 1], star[i, 2]
        dot = (1 - c) * (x * a + y * b + z * d)
        star[i, 0] = c * a + s * (y * d - z * b) + dot * x
        star[i, 1] = c * b + s * (z * a - x * d) + dot * y
        star[i, 2] = c * d + s * (x * b - y * a) + dot * z


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
def turn(spots, n, star, work, width):
    """One Gauss-Newton step of the rotation alone, by the first `n` spots, in place; the score before it.

    Weights fall from 1 to 0 as the indices are up to `width` from whole numbers.
    """
    inverse(star, work)
    within = 1.0 / (width * width)
    score = 0.0
    xx = xy = xz = yy = yz = zz = rx = ry = rz = 0.0
    for i in range(n):
        x, y, z = spots[i, 0], spots[i, 1], spots[i, 2]
        # work holds a, b, c as columns
        h = x * work[0, 0] + y * work[1, 0] + z * work[2, 0]
        k = x * work[0, 1] + y * work[1, 1] + z * work[2, 1]
        m = x * work[0, 2] + y * work[1, 2] + z * work[2, 2]
        fh, fk, fm = math.floor(h + 0.5), math.floor(k + 0.5), math.floor(m + 0.5)
        w = 1.0 - ((h - fh) ** 2 + (k - fk) ** 2 + (m - fm) ** 2) * within
        if w <= 0.0 or (fh == 0 and fk == 0 and fm == 0):
            continue
        score += w
        px = fh * star[0, 0] + fk * star[1, 0] + fm * star[2, 0]
        py = fh * star[0, 1] + fk * star[1, 1] + fm * star[2, 1]
        pz = fh * star[0, 2] + fk * star[1, 2] + fm * star[2, 2]
        xx += w * (py * py + pz * pz)
        yy += w * (px * px + pz * pz)
        zz += w * (px * px + py * py)
        xy -= w * px * py
        xz -= w * px * pz
        yz -= w * py * pz
        rx += w * (py * z - pz * y)
        ry += w * (pz * x - px * z)
        rz += w * (px * y - py * x)
    ridge = 1e-6 * (xx + yy + zz) + 1e-12
    xx, yy, zz = xx + ridge, yy + ridge, zz + ridge
    a, b, c = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    det = xx * a + xy * b + xz * c
    d, e, f = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    rotate(star, (a * rx + b * ry + c * rz) / det, (b * rx + d * ry + e * rz) / det, (c * rx + e * ry + f * rz) / det)
    return score


@njit(cache=True, nogil=True)
def assign(spots, beams, n, star, shift, work, hkl, misses):
    """Indices of spots, and how far each is from its node: squared across its beam, and along it.

    Parameters
    ----------
    spots, beams : (>= n, 3) float64
        Scattering vectors, and directions of the scattered beams.
    star : (3, 3) float64
    shift : (2,) float64
        How far the centre is off, as `refine` tells.
    work : (3, 3) float64
    hkl : (>= n, 3) int64
        Out.
    misses : (>= n, 2) float64
        Out; without end where indices are those of another, nearer spot, or all 0.
    """
    inverse(star, work)
    for i in range(n):
        sx, sy, sz = beams[i]
        # the part of a shift of the detector that is across the beam
        along = sx * shift[0] + sy * shift[1]
        x = spots[i, 0] - sz * (shift[0] - along * sx)
        y = spots[i, 1] - sz * (shift[1] - along * sy)
        z = spots[i, 2] + sz * along * sz
        none = True
        rx, ry, rz = x, y, z
        for j in range(3):
            whole = math.floor(x * work[0, j] + y * work[1, j] + z * work[2, j] + 0.5)
            hkl[i, j] = int(whole)
            none &= whole == 0
            rx -= whole * star[j, 0]
            ry -= whole * star[j, 1]
            rz -= whole * star[j, 2]
        if none:
            misses[i, 0] = misses[i, 1] = np.inf
            continue
        off = rx * sx + ry * sy + rz * sz
        misses[i, 0] = max(0.0, rx * rx + ry * ry + rz * rz - off * off)
        misses[i, 1] = off


@njit(cache=True, nogil=True)
def once_each(n, hkl, misses, keys):
    """Leave of spots with the same indices the nearest one."""
    order = np.empty(n, np.int64)
    for i in range(n):
        keys[i] = ((hkl[i, 0] + 2048) << 24) | ((hkl[i, 1] + 2048) << 12) | (hkl[i, 2] + 2048)
    by_size(keys, n, order)
    first = 0
    for at in range(1, n + 1):
        if at < n and keys[order[at]] == keys[order[first]]:
            continue
        if at - first > 1:
            best = order[first]
            for k in range(first, at):
                if misses[order[k], 0] + misses[order[k], 1] ** 2 < misses[best, 0] + misses[best, 1] ** 2:
                    best = order[k]
            for k in range(first, at):
                if order[k] != best:
                    misses[order[k], 0] = misses[order[k], 1] = np.inf
        first = at


@njit(cache=True, nogil=True)
def crowding(size, n, crowd):
    """How much denser spots are at the resolution of each one than about it: on a powder ring they come by chance.

    Parameters
    ----------
    size : (>= n,) float64
        Lengths of the scattering vectors, rising.
    crowd : (>= n,) float64
        Out, 1 or more.
    """
    near_first = near_last = wide_first = wide_last = 0
    for i in range(n):
        while size[near_first] < size[i] - RING:
            near_first += 1
        while near_last < n and size[near_last] <= size[i] + RING:
            near_last += 1
        while size[wide_first] < size[i] - ABOUT:
            wide_first += 1
        while wide_last < n and size[wide_last] <= size[i] + ABOUT:
            wide_last += 1
        near = near_last - near_first - 1
        expected = (wide_last - wide_first - 1 - near) * RING / (ABOUT - RING)
        crowd[i] = max(1.0, (1.0 + near) / (1.0 + expected))


@njit(cache=True, nogil=True)
def ratio(square, off, across, along, cell):
    """Density of a spot's miss if it is in the lattice over that if it is anywhere, evenly."""
    away = square / (across * across) + (off / along) ** 2
    if away > 60.0:
        return 0.0
    return cell * math.exp(-0.5 * away) / (15.749609945722419 * across * across * along)  # (2 pi)^(3/2)


@njit(cache=True, nogil=True)
def _evidence_of(n, misses, crowd, cell, across, along, most, best):
    """See `evidence`: of one pair of errors, where it is more than `most`."""
    totals, products = np.zeros(3), np.ones(3)
    for i in range(n):
        r = ratio(misses[i, 0], misses[i, 1], across, along, cell) / crowd[i]
        for s in range(3):
            products[s] *= 1.0 + SHARES[s] * (r - 1.0)
            # a logarithm now and then is much less than one of each
            if not 1e-200 < products[s] < 1e200:
                totals[s] += math.log(products[s])
                products[s] = 1.0
    for s in range(3):
        total = totals[s] + math.log(products[s])
        if total > most:
            most, best[0], best[1], best[2] = total, across, SHARES[s], along
    return most


@njit(cache=True, nogil=True)
def evidence(n, misses, crowd, cell, best):
    """Logarithm of the likelihood ratio, lattice to chance, at its largest over errors and shares; into `best` these.

    Parameters
    ----------
    n : int
    misses : (>= n, 2) float64
    crowd : (>= n,) float64
        See `crowding`.
    cell : float
        Volume of the reciprocal cell [1/Angstrom^3].
    best : (3,) float64
        Out: error across the beam, share of spots in the lattice, error along the beam.
    """
    most = -np.inf
    for across in ACROSS:
        most = _evidence_of(n, misses, crowd, cell, across, max(ALONG, across), most, best)
    across = best[0]
    for along in ALONGS:
        most = _evidence_of(n, misses, crowd, cell, across, max(along, across), most, best)
    return most


@njit(cache=True, nogil=True)
def penalty(strain, shift):
    """What the logarithm of the likelihood loses by a strain and a shift, which are unlikely before spots are seen."""
    square = 0.0
    for j in range(6):
        square += (1.0 if j < 3 else 2.0) * strain[j] ** 2
    return 0.5 * square / STRAIN**2 + 0.5 * (shift[0] ** 2 + shift[1] ** 2) / SHIFT**2


@njit(cache=True, nogil=True)
def _solve(matrix, vector):
    """Solve a symmetric positive definite system by Cholesky, in place; False where it is not definite."""
    for i in range(_FREE):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i == j:
                if total <= 0.0:
                    return False
                matrix[i, i] = math.sqrt(total)
            else:
                matrix[i, j] = total / matrix[j, j]
    for i in range(_FREE):
        for k in range(i):
            vector[i] -= matrix[i, k] * vector[k]
        vector[i] /= matrix[i, i]
    for i in range(_FREE - 1, -1, -1):
        for k in range(i + 1, _FREE):
            vector[i] -= matrix[k, i] * vector[k]
        vector[i] /= matrix[i, i]
    return True


@njit(cache=True, nogil=True)
def refine(spots, beams, n, star, shift, strain, across, share, along, cell, work, hkl, misses):
    """One step of rotation, strain and shift, in place, with each spot weighed by its chance to be in the lattice.

    Strain and shift are held to 0 as far as the spots do not tell (`STRAIN`, `SHIFT`), so that few spots do not make
    another cell of noise, and many find their own.

    Parameters
    ----------
    strain : (6,) float64
        xx, yy, zz, yz, xz, xy since the known cell; in and out.
    across, share, along, cell : float
        See `evidence`.

    Returns
    -------
    bool
        Whether it could be done.
    """
    assign(spots, beams, n, star, shift, work, hkl, misses)
    matrix, vector, columns, dots = np.zeros((_FREE, _FREE)), np.zeros(_FREE), np.zeros((_FREE, 3)), np.zeros(_FREE)
    sharp, wide = 1.0 / across**2, 1.0 / along**2
    for i in range(n):
        r = ratio(misses[i, 0], misses[i, 1], across, along, cell)
        if r <= 0.0:
            continue
        weight = share * r / (1.0 + share * (r - 1.0))
        sx, sy, sz = beams[i]
        p0 = p1 = p2 = 0.0
        for j in range(3):
            p0 += hkl[i, j] * star[j, 0]
            p1 += hkl[i, j] * star[j, 1]
            p2 += hkl[i, j] * star[j, 2]
        columns[0, 1], columns[0, 2] = -p2, p1
        columns[1, 0], columns[1, 2] = p2, -p0
        columns[2, 0], columns[2, 1] = -p1, p0
        columns[3, 0], columns[4, 1], columns[5, 2] = p0, p1, p2
        columns[6, 1], columns[6, 2] = p2, p1
        columns[7, 0], columns[7, 2] = p2, p0
        columns[8, 0], columns[8, 1] = p1, p0
        columns[9, 0], columns[9, 1], columns[9, 2] = sz * (1 - sx * sx), -sz * sx * sy, -sz * sx * sz
        columns[10, 0], columns[10, 1], columns[10, 2] = -sz * sx * sy, sz * (1 - sy * sy), -sz * sy * sz
        r0 = spots[i, 0] - p0 - columns[9, 0] * shift[0] - columns[10, 0] * shift[1]
        r1 = spots[i, 1] - p1 - columns[9, 1] * shift[0] - columns[10, 1] * shift[1]
        r2 = spots[i, 2] - p2 - columns[9, 2] * shift[0] - columns[10, 2] * shift[1]
        off = r0 * sx + r1 * sy + r2 * sz
        for j in range(_FREE):
            dots[j] = columns[j, 0] * sx + columns[j, 1] * sy + columns[j, 2] * sz
        for j in range(_FREE):
            a0, a1, a2 = weight * sharp * columns[j, 0], weight * sharp * columns[j, 1], weight * sharp * columns[j, 2]
            b = weight * (wide - sharp) * dots[j]
            vector[j] += a0 * r0 + a1 * r1 + a2 * r2 + b * off
            for k in range(j + 1):
                matrix[j, k] += a0 * columns[k, 0] + a1 * columns[k, 1] + a2 * columns[k, 2] + b * dots[k]
    for j in range(3):
        matrix[j, j] += 1e-3
    for j in range(6):
        held = 1.0 / STRAIN**2 if j < 3 else 2.0 / STRAIN**2
        matrix[3 + j, 3 + j] += held
        vector[3 + j] -= held * strain[j]
    for j in range(2):
        matrix[9 + j, 9 + j] += 1.0 / SHIFT**2
        vector[9 + j] -= shift[j] / SHIFT**2
    if not _solve(matrix, vector):
        return False
    step = vector
    for i in range(3):
        x, y, z = star[i, 0], star[i, 1], star[i, 2]
        star[i, 0] += step[3] * x + step[8] * y + step[7] * z
        star[i, 1] += step[8] * x + step[4] * y + step[6] * z
        star[i, 2] += step[7] * x + step[6] * y + step[5] * z
    rotate(star, step[0], step[1], step[2])
    for j in range(6):
        strain[j] += step[3 + j]
    shift[0] += step[9]
    shift[1] += step[10]
    return True


@njit(cache=True, nogil=True)
def same_metric(star, metric, tolerance, work):
    """Whether the direct axes have the lengths and angles they must have."""
    inverse(star, work)
    for i in range(3):
        for j in range(i + 1):
            dot = work[0, i] * work[0, j] + work[1, i] * work[1, j] + work[2, i] * work[2, j]
            if abs(dot - metric[i, j]) > tolerance * math.sqrt(metric[i, i] * metric[j, j]) * (2.0 if i == j else 1.0):
                return False
    return True


@njit(cache=True, nogil=True)
def _gcd(a, b):
    while b:
        a, b = b, a % b
    return a


@njit(cache=True, nogil=True)
def without_rows(n, hkl, gains, rows, sums):
    """The evidence that is left without the rows of the lattice that give most of it.

    Spots at equal distances along a line, as a detector's fault or ice makes, are a row of very many lattices; in a
    crystal's pattern no row has much of the spots.

    Parameters
    ----------
    hkl : (>= n, 3) int64
    gains : (>= n,) float64
        Evidence of each spot; out: 0 of those in the rows.
    rows : int
        How many rows are taken away.
    sums : (>= n,) float64
        Scratch.

    Returns
    -------
    float
    """
    members, order = np.empty(n, np.int64), np.empty(n, np.int64)
    total = 0.0
    for i in range(n):
        total += gains[i]
    for _ in range(rows):
        m = np.int64(0)
        for i in range(n):
            if gains[i] > 1.0:
                members[m] = i
                m += 1
        if m < 3:
            break
        best, best_from, best_key = 0.0, -1, 0.0
        for start in range(0, m, max(1, m // 24)):
            i = members[start]
            for t in range(m):
                j = members[t]
                a, b, c = hkl[j, 0] - hkl[i, 0], hkl[j, 1] - hkl[i, 1], hkl[j, 2] - hkl[i, 2]
                g = _gcd(_gcd(abs(a), abs(b)), abs(c))
                if g == 0:
                    sums[t] = -1.0
                    continue
                a, b, c = a // g, b // g, c // g
                if a < 0 or (a == 0 and (b < 0 or (b == 0 and c < 0))):
                    a, b, c = -a, -b, -c
                sums[t] = ((a + 4096) << 26) | ((b + 4096) << 13) | (c + 4096)
            by_size(sums, m, order)
            run, length = 0.0, 0
            for at in range(m):
                t = order[at]
                if sums[t] < 0:
                    continue
                if length and sums[t] == sums[order[at - 1]]:
                    run, length = run + gains[members[t]], length + 1
                else:
                    run, length = gains[members[t]] + gains[i], 2
                if length >= 3 and run > best:
                    best, best_from, best_key = run, i, sums[t]
        if best_from < 0:
            break
        key = int(best_key)
        a, b, c = (key >> 26) - 4096, ((key >> 13) & 8191) - 4096, (key & 8191) - 4096
        for t in range(m):
            j = members[t]
            d, e, f = hkl[j, 0] - hkl[best_from, 0], hkl[j, 1] - hkl[best_from, 1], hkl[j, 2] - hkl[best_from, 2]
            if b * f == c * e and c * d == a * f and a * e == b * d:
                total -= gains[j]
                gains[j] = 0.0
    return total
