"""Index the spots of many frames by a known lattice."""

import math

import numpy as np
from numba import njit

from .lattice import (
    ACROSS,
    ALONG,
    assign,
    crowding,
    evidence,
    inverse,
    once_each,
    penalty,
    ratio,
    refine,
    rotate,
    same_metric,
    turn,
    without_rows,
)
from .search import find_axes, find_turns

#: Spots that the search takes, those of lowest angle, and the angles that are kept of each axis.
SEARCHED, TURNS = 40, 2
#: Directions that are polished, axes that are kept, lattices that are turned to fit, and of those fitted to all spots:
#: first a few, which are enough where many spots agree, then as many as few spots need.
EFFORTS = ((60, 12, 8, 2), (500, 120, 40, 6))
#: Evidence that needs no more search.
SURE = 200.0
#: How far an index may be from a whole number in the searches for an axis and for the angle.
AXIS_WIDTH, TURN_WIDTH = 0.2, 0.3
#: Step of a search, in periods of the highest angle.
STEP = 0.45
#: How far lengths and angles of the cell may be from those known, relatively.
METRIC = 0.05
#: Rotations across the beam [rad] that a lattice of few spots is fitted anew from.
ASIDE = ((0.01, 0.0), (-0.01, 0.0), (0.0, 0.01), (0.0, -0.01))
#: Rows of the lattice that it must be told without.
ROWS = 2


@njit(cache=True, nogil=True)
def nearest_apart(q, keep, apart):
    """Sort spots by angle, and leave one of those that are nearer to each other than `apart`; how many.

    Parameters
    ----------
    q : (n, 3) float64
    keep : (n,) int64
        Out: places in `q`.
    apart : float
    """
    size = np.empty(len(q))
    for i in range(len(q)):
        size[i] = math.sqrt(q[i, 0] ** 2 + q[i, 1] ** 2 + q[i, 2] ** 2)
    order = np.argsort(size)
    found = 0
    for i in order:
        fine = size[i] > 0.0
        for back in range(found - 1, -1, -1):
            j = keep[back]
            if size[i] - size[j] > apart:
                break
            if (q[i, 0] - q[j, 0]) ** 2 + (q[i, 1] - q[j, 1]) ** 2 + (q[i, 2] - q[j, 2]) ** 2 < apart * apart:
                fine = False
                break
        if fine:
            keep[found] = i
            found += 1
    return found


@njit(cache=True, nogil=True)
def _search(spots, some, basis, fold, both, tables, edges, effort):
    """Lattices that may be that of the first `some` spots, best first; see `find_lattice`, and `EFFORTS`."""
    polished, kept, fits, _ = effort
    q = np.empty((3, some), np.float32)
    for i in range(some):
        for k in range(3):
            q[k, i] = spots[i, k]
    reach = math.sqrt((spots[some - 1] ** 2).sum())
    length = math.sqrt((basis[0] ** 2).sum())
    step = STEP / (length * reach)
    level = 0
    # half a sphere of m directions has them sqrt(2 pi / m) apart
    while level < len(edges) - 2 and 2 * math.pi / (edges[level + 1] - edges[level]) > step * step:
        level += 1
    first, many = 3 * edges[level], edges[level + 1] - edges[level]
    x, y, z = (
        tables[first : first + many],
        tables[first + many : first + 2 * many],
        tables[first + 2 * many : first + 3 * many],
    )
    axes = np.empty((kept, 3))
    count = find_axes(x, y, z, q, length, AXIS_WIDTH, step, np.empty(polished, np.int64), np.empty((polished, 4)), axes)

    widest = 0.0
    for k in range(1, 3):
        along = (basis[k] * basis[0]).sum() / length
        widest = max(widest, math.sqrt(max(0.0, (basis[k] ** 2).sum() - along * along)))
    turns = max(8, math.ceil(2 * math.pi / fold * widest * reach / STEP))
    cos, sin = np.empty(turns, np.float32), np.empty(turns, np.float32)
    for k in range(turns):
        cos[k], sin[k] = math.cos(2 * math.pi / fold * k / turns), math.sin(2 * math.pi / fold * k / turns)
    found = np.empty((2 * TURNS * kept, 10))
    turned = find_turns(axes, count, basis, both, cos, sin, q, TURN_WIDTH, np.empty(turns, np.float32), found, TURNS)

    work = np.empty((3, 3))
    inverse(basis, work)
    reciprocal = np.ascontiguousarray(work.T)
    order = np.argsort(found[:turned, 0])[:fits]
    fitted, scores = np.empty((len(order), 3, 3)), np.empty(len(order))
    for c in range(len(order)):
        rotation = found[order[c], 1:].copy().reshape(3, 3)
        fitted[c] = reciprocal @ np.ascontiguousarray(rotation.T)
        turn(spots, some, fitted[c], work, 0.45)
        turn(spots, some, fitted[c], work, 0.35)
        scores[c] = -turn(spots, some, fitted[c], work, 0.25)
    return fitted[np.argsort(scores)]


@njit(cache=True, nogil=True)
def _grow(spots, some, n, star, work):
    """Turn a lattice to fit ever more spots, so that no index of a high angle jumps."""
    part = some
    while True:
        turn(spots, part, star, work, 0.3)
        turn(spots, part, star, work, 0.2)
        if part == n:
            break
        part = min(n, part + part // 2)


@njit(cache=True, nogil=True)
def _fit(spots, beams, crowd, n, star, shift, strain, told, cell, metric, work, hkl, misses, keys):
    """Fit a lattice to all spots, in place; its evidence, without end below 0 where it became another one."""
    for across in (ACROSS[4], ACROSS[2]):
        refine(spots, beams, n, star, shift, strain, across, 0.5, max(ALONG, across), cell, work, hkl, misses)
    if not same_metric(star, metric, METRIC, work):
        return -np.inf
    assign(spots, beams, n, star, shift, work, hkl, misses)
    once_each(n, hkl, misses, keys)
    return evidence(n, misses, crowd, cell, told) - penalty(strain, shift)


@njit(cache=True, nogil=True)
def find_lattice(spots, beams, crowd, n, basis, fold, both, tables, edges, star, shift, told, hkl, misses):
    """The lattice that explains the spots best.

    Parameters
    ----------
    spots, beams : (>= n, 3) float64
        By rising angle.
    crowd : (>= n,) float64
        See `lattice.crowding`.
    basis : (3, 3) float64
        Axes a, b, c of the primitive lattice as rows, the shortest first [Angstrom].
    fold, both : int, bool
        Of the rotations about the first axis, how many leave the lattice as it is, and whether none reverses it.
    tables, edges : (3 total,) float32, (levels + 1,) int64
        Directions of half a sphere, ever more of them: of each level all x, all y, all z.
    star, shift : (3, 3), (2,) float64
        Out: the lattice, and the shift of the centre [1/Angstrom].
    told : (3,) float64
        Out: see `evidence`.
    hkl, misses : (>= n, 3) int64, (>= n, 2) float64
        Out: see `assign`.

    Returns
    -------
    float
        The evidence; without end below 0 where there is none.
    """
    some = min(n, SEARCHED)
    work, one, moved, strain, guess = np.empty((3, 3)), np.empty((3, 3)), np.empty(2), np.empty(6), np.empty(3)
    kept, keys = np.zeros(6), np.empty(n, np.int64)
    cell = abs(1.0 / (basis[0] * np.cross(basis[1], basis[2])).sum())
    metric = basis @ np.ascontiguousarray(basis.T)
    most = -np.inf
    for effort in EFFORTS:
        fitted = _search(spots, some, basis, fold, both, tables, edges, effort)
        for c in range(min(len(fitted), effort[3])):
            one[:] = fitted[c]
            moved[:] = 0.0
            strain[:] = 0.0
            _grow(spots, some, n, one, work)
            value = _fit(spots, beams, crowd, n, one, moved, strain, guess, cell, metric, work, hkl, misses, keys)
            if value > most:
                most, star[:], shift[:], told[:], kept[:] = value, one, moved, guess, strain
            if most > SURE:
                break
        if most > SURE:
            break
    if most == -np.inf:
        return most
    if most < SURE:
        # few spots: with a wrong one more and a right one less, the fit may have ended beside the best
        for aside in ASIDE:
            one[:], moved[:], strain[:] = star, shift, kept
            rotate(one, aside[0], aside[1], 0.0)
            value = _fit(spots, beams, crowd, n, one, moved, strain, guess, cell, metric, work, hkl, misses, keys)
            if value > most:
                most, star[:], shift[:], told[:], kept[:] = value, one, moved, guess, strain
    one[:], moved[:], guess[:] = star, shift, told
    for _ in range(3):
        refine(spots, beams, n, one, moved, kept, told[0], told[1], told[2], cell, work, hkl, misses)
    assign(spots, beams, n, one, moved, work, hkl, misses)
    once_each(n, hkl, misses, keys)
    value = evidence(n, misses, crowd, cell, guess) - penalty(kept, moved)
    if value >= most and same_metric(one, metric, METRIC, work):
        star[:], shift[:], told[:] = one, moved, guess
        return value
    assign(spots, beams, n, star, shift, work, hkl, misses)
    once_each(n, hkl, misses, keys)
    return most


@njit(cache=True, nogil=True)
def index_frames(
    q, offset, wavelength, basis, fold, both, tables, edges, fewest, threshold, rest, apart,
    count, star, shift, score, explained, crystal, error, excitation
):  # fmt: skip
    """Index frames one after the other.

    Parameters
    ----------
    q : (spots, 3) float64
        Scattering vectors [1/Angstrom]; the beam runs along z.
    offset : (frames + 1,) int64
        Spots of each frame.
    wavelength : (frames,) float64
        In Angstrom; 0 for spots that lie on no Ewald sphere.
    basis, fold, both, tables, edges
        See `find_lattice`.
    fewest : int
        Fewest spots that a lattice explains.
    threshold, rest : float
        Least evidence of a lattice, of all spots and without those of its two strongest rows.
    apart : float
        Spots nearer to each other than this are one [1/Angstrom].
    count : (frames,) int32
        Out: lattices of each frame.
    star, shift, score, explained, error, excitation : (frames, most, ...)
        Out: of each lattice; the last is the root mean square distance of its spots' nodes from the Ewald sphere.
    crystal : (spots,) int8
        Out: the lattice that explains each spot, -1 for none.
    """
    most = star.shape[1]
    told = np.empty(3)
    cell = abs(1.0 / (basis[0] * np.cross(basis[1], basis[2])).sum())
    for frame in range(len(count)):
        count[frame] = 0
        first, last = offset[frame], offset[frame + 1]
        crystal[first:last] = -1
        if last - first < fewest:
            continue
        own = q[first:last]
        keep = np.empty(last - first, np.int64)
        n = nearest_apart(own, keep, apart)
        spots, beams = np.empty((n, 3)), np.zeros((n, 3))
        for i in range(n):
            spots[i] = own[keep[i]]
            beams[i, 2] = 1.0
            if wavelength[frame] > 0:
                beams[i] = spots[i]
                beams[i, 2] += 1.0 / wavelength[frame]
                beams[i] /= math.sqrt((beams[i] ** 2).sum())
        crowd, size = np.empty(n), np.sqrt((spots**2).sum(axis=1))
        crowding(size, n, crowd)
        hkl, misses = np.empty((n, 3), np.int64), np.empty((n, 2))
        gains, keys = np.empty(n), np.empty(n, np.int64)
        for lattice in range(most):
            if n < fewest:
                break
            value = find_lattice(
                spots, beams, crowd, n, basis, fold, both, tables, edges,
                star[frame, lattice], shift[frame, lattice], told, hkl, misses,
            )  # fmt: skip
            if value < threshold:
                break
            members = 0
            square = 0.0
            for i in range(n):
                r = ratio(misses[i, 0], misses[i, 1], told[0], told[2], cell) / crowd[i]
                gains[i] = math.log(1.0 + told[1] * (r - 1.0))
                if gains[i] > 0.0:
                    members += 1
                    square += misses[i, 1] ** 2
            left = 0
            kept = gains.copy()
            if members < fewest or without_rows(n, hkl, gains, ROWS, keys) < rest:
                break
            for i in range(n):
                if kept[i] > 0.0:
                    crystal[first + keep[i]] = lattice
                else:
                    keep[left], spots[left], beams[left], crowd[left] = keep[i], spots[i], beams[i], crowd[i]
                    left += 1
            score[frame, lattice], explained[frame, lattice], error[frame, lattice] = value, members, told[0]
            excitation[frame, lattice] = math.sqrt(square / members)
            count[frame] = lattice + 1
            n = left
