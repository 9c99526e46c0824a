"""The steps of indexing a frame's spots by a known lattice, which `sfx.lattice` takes one after the other."""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .lattice import (
    ACROSS,
    ALONG,
    assign,
    crowding,
    evidence,
    once_each,
    penalty,
    ratio,
    refine,
    rotate,
    same_metric,
    turn,
    without_rows,
)
from .order import by_size
from .search import find_axes, find_turns

Array = np.ndarray[Any, np.dtype[Any]]

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
ROWS = np.int64(2)


class Lattice(NamedTuple):
    """A known lattice, as the search takes it: its primitive axes a, b, c, the shortest first.

    Attributes
    ----------
    reciprocal : (3, 3) float64
        Rows a*, b*, c* [1/Angstrom].
    metric : (3, 3) float64
        Dot products of the axes [Angstrom^2].
    frame : (3, 3) float64
        Rows: the direction of a, and two across it.
    second, third : (3,) float64
        b and c in that frame [Angstrom].
    length, widest, volume : float
        Of a, of what of b or c is across it [Angstrom], and of the reciprocal cell [1/Angstrom^3].
    fold, both : int, bool
        Of the rotations about a, how many leave the lattice as it is, and whether none reverses it.
    """

    reciprocal: Array
    metric: Array
    frame: Array
    second: Array
    third: Array
    length: float
    widest: float
    volume: float
    fold: int
    both: bool


class Spots(NamedTuple):
    """Spots of a frame by rising angle, and where they are in a lattice.

    Attributes
    ----------
    keep : (n,) int64
        Their places among the frame's.
    q, beam : (n, 3) float64
        Scattering vectors [1/Angstrom], and directions of the scattered beams.
    crowd : (n,) float64
        See `lattice.crowding`.
    hkl, misses : (n, 3) int64, (n, 2) float64
        See `lattice.assign`.
    gains : (n,) float64
        What each gives to the evidence.
    keys : (n,) float64
        Scratch.
    """

    keep: Array
    q: Array
    beam: Array
    crowd: Array
    hkl: Array
    misses: Array
    gains: Array
    keys: Array


class Fit(NamedTuple):
    """A lattice in a frame.

    Attributes
    ----------
    star : (3, 3) float64
        Rows a*, b*, c* [1/Angstrom].
    shift : (2,) float64
        Of the centre [1/Angstrom].
    strain : (6,) float64
        Since the known cell; see `lattice.refine`.
    errors : (3,) float64
        See `lattice.evidence`.
    work : (3, 3) float64
        Scratch.
    """

    star: Array
    shift: Array
    strain: Array
    errors: Array
    work: Array


@njit(cache=True, nogil=True)
def _copy(fit, to):
    for i in range(3):
        to.errors[i] = fit.errors[i]
        for j in range(3):
            to.star[i, j] = fit.star[i, j]
    for i in range(6):
        to.strain[i] = fit.strain[i]
    to.shift[0], to.shift[1] = fit.shift[0], fit.shift[1]


@njit(cache=True, nogil=True)
def _nearest_apart(q, apart, size, order, keep):
    """Sort spots by angle, and leave one of those that are nearer to each other than `apart`; how many."""
    for i in range(len(q)):
        size[i] = math.sqrt(q[i, 0] ** 2 + q[i, 1] ** 2 + q[i, 2] ** 2)
    by_size(size, len(q), order)
    found = 0
    for place in range(len(q)):
        i = order[place]
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
def prepare(q, wavelength, apart, spots):
    """Sort a frame's spots, and leave one of those that are nearer to each other than `apart`; how many.

    Parameters
    ----------
    q : (n, 3) float64
        Scattering vectors [1/Angstrom]; the beam runs along z.
    wavelength : float
        In Angstrom; 0 for spots that lie on no Ewald sphere.
    apart : float
        [1/Angstrom]
    spots : Spots
        Out: `keep`, `q`, `beam`, `crowd`.
    """
    order = np.empty(len(q), np.int64)
    n = _nearest_apart(q, apart, spots.gains, order, spots.keep)
    size = spots.keys
    for i in range(n):
        x, y, z = q[spots.keep[i], 0], q[spots.keep[i], 1], q[spots.keep[i], 2]
        size[i] = math.sqrt(x * x + y * y + z * z)
        spots.q[i, 0], spots.q[i, 1], spots.q[i, 2] = x, y, z
        if wavelength > 0:
            z += 1.0 / wavelength
            length = math.sqrt(x * x + y * y + z * z)
            spots.beam[i, 0], spots.beam[i, 1], spots.beam[i, 2] = x / length, y / length, z / length
        else:
            spots.beam[i, 0], spots.beam[i, 1], spots.beam[i, 2] = 0.0, 0.0, 1.0
    crowding(size, n, spots.crowd)
    return n


@njit(cache=True, nogil=True)
def candidates(spots, n, cell, tables, edges, effort, fitted):
    """Lattices that may be that of the spots of lowest angle, best first; how many.

    Parameters
    ----------
    spots : Spots
    n : int
        How many there are.
    cell : Lattice
    tables, edges : (3 total,) float32, (levels + 1,) int64
        Directions of half a sphere, ever more of them: of each level all x, all y, all z.
    effort : (int, int, int, int)
        One of `EFFORTS`.
    fitted : (>= effort[2], 3, 3) float64
        Out: a*, b*, c* as rows.
    """
    polished, kept, fits, _ = effort
    some = min(n, SEARCHED)
    q = np.empty((3, some), np.float32)
    for i in range(some):
        q[0, i], q[1, i], q[2, i] = spots.q[i, 0], spots.q[i, 1], spots.q[i, 2]
    reach = math.sqrt(spots.q[some - 1, 0] ** 2 + spots.q[some - 1, 1] ** 2 + spots.q[some - 1, 2] ** 2)
    step = STEP / (cell.length * reach)
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
    count = find_axes(x, y, z, q, cell.length, AXIS_WIDTH, step, polished, axes)

    turns = max(8, math.ceil(2 * math.pi / cell.fold * cell.widest * reach / STEP))
    cos, sin = np.empty(turns, np.float32), np.empty(turns, np.float32)
    for k in range(turns):
        cos[k], sin[k] = math.cos(2 * math.pi / cell.fold * k / turns), math.sin(2 * math.pi / cell.fold * k / turns)
    most = 2 * TURNS * kept
    value, found, order = np.empty(most), np.empty((most, 3, 3)), np.empty(most, np.int64)
    turned = find_turns(axes, count, cell, cos, sin, q, TURN_WIDTH, value, found, TURNS)

    by_size(value, turned, order)
    fits = min(fits, turned)
    work, turned_to, value = np.empty((3, 3)), np.empty((fits, 3, 3)), np.empty(fits)
    for c in range(fits):
        rotation, star = found[order[c]], turned_to[c]
        for i in range(3):
            for j in range(3):
                star[i, j] = 0.0
                for k in range(3):
                    star[i, j] += cell.reciprocal[i, k] * rotation[j, k]
        turn(spots.q, some, star, work, 0.45)
        turn(spots.q, some, star, work, 0.35)
        value[c] = -turn(spots.q, some, star, work, 0.25)
    by_size(value, fits, order)
    for c in range(fits):
        for i in range(3):
            for j in range(3):
                fitted[c, i, j] = turned_to[order[c], i, j]
    return fits


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
def _fit(spots, n, cell, one):
    """Fit a lattice to all spots, in place; its evidence, without end below 0 where it became another one."""
    for across in (ACROSS[4], ACROSS[2]):
        refine(spots.q, spots.beam, n, one.star, one.shift, one.strain, across, 0.5, max(ALONG, across), cell.volume,
               one.work, spots.hkl, spots.misses)  # fmt: skip
    if not same_metric(one.star, cell.metric, METRIC, one.work):
        return -math.inf
    return _judge(spots, n, cell, one)


@njit(cache=True, nogil=True)
def _place(spots, n, one):
    """Indices and misses of the spots in a lattice."""
    assign(spots.q, spots.beam, n, one.star, one.shift, one.work, spots.hkl, spots.misses)
    once_each(n, spots.hkl, spots.misses, spots.keys)


@njit(cache=True, nogil=True)
def _judge(spots, n, cell, one):
    """The evidence of a lattice."""
    _place(spots, n, one)
    return evidence(n, spots.misses, spots.crowd, cell.volume, one.errors) - penalty(one.strain, one.shift)


@njit(cache=True, nogil=True)
def fit_best(spots, n, cell, fitted, many, most, one, best):
    """Fit lattices to all spots; the highest evidence, which was `most` before.

    Parameters
    ----------
    spots : Spots
    n : int
    cell : Lattice
    fitted, many : (>= many, 3, 3) float64, int
        See `candidates`.
    most : float
    one : Fit
        Scratch.
    best : Fit
        Out, where one is better than `most`.
    """
    for c in range(many):
        for i in range(3):
            for j in range(3):
                one.star[i, j] = fitted[c, i, j]
        for i in range(6):
            one.strain[i] = 0.0
        one.shift[0] = one.shift[1] = 0.0
        _grow(spots.q, min(n, SEARCHED), n, one.star, one.work)
        value = _fit(spots, n, cell, one)
        if value > most:
            most = value
            _copy(one, best)
        if most > SURE:
            break
    return most


@njit(cache=True, nogil=True)
def settle(spots, n, cell, most, one, best):
    """Fit the best lattice until nothing changes; its evidence, and into `spots` their indices and misses.

    Parameters
    ----------
    spots, n, cell, most, one, best
        See `fit_best`.
    """
    if most < SURE:
        # few spots: with a wrong one more and a right one less, the fit may have ended beside the best
        for aside in ASIDE:
            _copy(best, one)
            rotate(one.star, aside[0], aside[1], 0.0)
            value = _fit(spots, n, cell, one)
            if value > most:
                most = value
                _copy(one, best)
    _copy(best, one)
    across, share, along = best.errors[0], best.errors[1], best.errors[2]
    for _ in range(3):
        refine(spots.q, spots.beam, n, one.star, one.shift, one.strain, across, share, along, cell.volume, one.work,
               spots.hkl, spots.misses)  # fmt: skip
    value = _judge(spots, n, cell, one)
    if value >= most and same_metric(one.star, cell.metric, METRIC, one.work):
        _copy(one, best)
        return value
    _place(spots, n, best)
    return most


@njit(cache=True, nogil=True)
def explained(spots, n, cell, best):
    """Which spots the lattice explains: those whose ``spots.gains`` is above 0.

    How many they are, the root mean square of their misses along the beam, and what is left of the evidence without the
    lattice's strongest rows.
    """
    members, square, gains = 0, 0.0, np.empty(n)
    for i in range(n):
        r = ratio(spots.misses[i, 0], spots.misses[i, 1], best.errors[0], best.errors[2], cell.volume) / spots.crowd[i]
        gains[i] = spots.gains[i] = math.log(1.0 + best.errors[1] * (r - 1.0))
        if spots.gains[i] > 0.0:
            members += 1
            square += spots.misses[i, 1] ** 2
    rest = without_rows(n, spots.hkl, gains, ROWS, spots.keys)
    return members, math.sqrt(square / max(members, 1)), rest


@njit(cache=True, nogil=True)
def take_away(spots, n, lattice, member):
    """Take the spots that a lattice explains from those there are; how many are left.

    ``member`` (n,) int8, of all the frame's spots, gets the lattice's number.
    """
    left = 0
    for i in range(n):
        if spots.gains[i] > 0.0:
            member[spots.keep[i]] = lattice
            continue
        spots.keep[left], spots.crowd[left] = spots.keep[i], spots.crowd[i]
        for k in range(3):
            spots.q[left, k], spots.beam[left, k] = spots.q[i, k], spots.beam[i, k]
        left += 1
    return left
