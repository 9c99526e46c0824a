"""Indexing by a known lattice: what the compiled search needs to know of the cell, and how it takes frames.

The search is a one-dimensional one for the lattice's shortest axis and a rotation about it, judged by how much likelier
the spots are in the lattice than by chance; `kernels.indexing` has it, docs/crystallography-indexing.md describes it.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .cell import Cell

if TYPE_CHECKING:
    from .kernels.indexing import Fit, Lattice, Spots

Array = np.ndarray[Any, np.dtype[Any]]

#: Directions in the coarsest table of half a sphere, and how much finer each next one is.
_COARSEST, _FINER, _LEVELS = 1024, 1.2, 28


@dataclass(frozen=True)
class Search:
    """How frames are indexed.

    Attributes
    ----------
    cell : Cell
    lattices : int
        The most in one frame.
    fewest : int
        Fewest spots that a lattice explains.
    threshold, rest : float
        Least logarithm of the likelihood ratio, lattice to chance, of all spots and of those outside the lattice's two
        strongest rows.
    """

    cell: Cell
    lattices: int = 1
    fewest: int = 6
    threshold: float = 40.0
    rest: float = 25.0

    def frames(self, q: Array, offset: Array, wavelength: Array) -> dict[str, Array]:
        """Index frames.

        Parameters
        ----------
        q : (spots, 3) float64
            Scattering vectors [1/Angstrom], all finite.
        offset : (frames + 1,) int64
        wavelength : (frames,) float64
            [Angstrom]; 0 where spots lie on no Ewald sphere.

        Returns
        -------
        dict of str to array
            `count` (frames,); `member` (spots,); `star`, `shift`, `score`, `explained`, `error`, `excitation`
            (lattices, ...).
        """
        from .kernels.indexing import explained, prepare, take_away

        frames, shape = len(offset) - 1, (len(offset) - 1, self.lattices)
        made: dict[str, Array] = {
            "count": np.zeros(frames, np.int32),
            "star": np.zeros((*shape, 3, 3)),
            "shift": np.zeros((*shape, 2)),
            "score": np.zeros(shape),
            "explained": np.zeros(shape, np.int32),
            "member": np.full(len(q), -1, np.int8),
            "error": np.zeros(shape),
            "excitation": np.zeros(shape),
        }
        q, cell = np.ascontiguousarray(q, np.float64), lattice_of(self.cell)
        # two spots of a lattice are never nearer than its shortest reciprocal vector
        apart = min(0.004, 0.4 / float(np.linalg.norm(self.cell.primitive, axis=1).max()))
        spots, best, one = _room(int(np.diff(offset).max(initial=0)))
        for frame, (first, last) in enumerate(pairwise(np.asarray(offset).tolist())):
            if last - first < self.fewest:
                continue
            n = prepare(q[first:last], float(wavelength[frame]), apart, spots)
            for lattice in range(self.lattices):
                if n < self.fewest:
                    break
                score = _search(spots, n, cell, one, best)
                if score == -np.inf or score < self.threshold:
                    break
                members, excitation, rest = explained(spots, n, cell, best)
                if members < self.fewest or rest < self.rest:
                    break
                n = take_away(spots, n, lattice, made["member"][first:last])
                told = {
                    "star": best.star, "shift": best.shift, "score": score, "explained": members,
                    "error": best.errors[0], "excitation": excitation,
                }  # fmt: skip
                for name, value in told.items():
                    made[name][frame, lattice] = value
                made["count"][frame] = lattice + 1
        there = np.arange(self.lattices) < made["count"][:, None]
        flat = {name: made[name][there] for name in ("star", "shift", "score", "explained", "error", "excitation")}
        # of the reduced lattice, to that of the cell as it was given
        flat["star"] = np.swapaxes(self.cell.to_primitive, 0, 1) @ flat["star"]
        return {"count": made["count"], "member": made["member"], **flat}


def lattice_of(cell: Cell) -> "Lattice":
    """A cell's primitive lattice, as the search takes it."""
    from .kernels.indexing import Lattice

    a, b, c = basis = cell.primitive
    length = float(np.linalg.norm(a))
    one = a / length
    two = b - (b @ one) * one
    two /= np.linalg.norm(two)
    frame = np.array([one, two, np.cross(one, two)])
    second, third = frame @ b, frame @ c
    widest = max(float(np.linalg.norm(axis[1:])) for axis in (second, third))
    volume = 1.0 / abs(float(np.linalg.det(basis)))
    reciprocal = np.ascontiguousarray(np.linalg.inv(basis).T)
    return Lattice(reciprocal, basis @ basis.T, frame, second, third, length, widest, volume, *axis_symmetry(cell))


def _room(most: int) -> "tuple[Spots, Fit, Fit]":
    """Room for the spots of a frame, and two lattices."""
    from .kernels.indexing import Fit, Spots

    spots = Spots(
        np.empty(most, np.int64), np.empty((most, 3)), np.empty((most, 3)), np.empty(most),
        np.empty((most, 3), np.int64), np.empty((most, 2)), np.empty(most), np.empty(most),
    )  # fmt: skip
    best, one = (Fit(np.empty((3, 3)), np.empty(2), np.empty(6), np.empty(3), np.empty((3, 3))) for _ in range(2))
    return spots, best, one


def _search(spots: "Spots", n: int, cell: "Lattice", one: "Fit", best: "Fit") -> float:
    """Find the lattice that explains the first `n` spots best, into `best`; its evidence, endless below 0 for none."""
    from .kernels.indexing import EFFORTS, SURE, candidates, fit_best, settle

    most = -np.inf
    for effort in EFFORTS:
        fitted = np.empty((effort[2], 3, 3))
        many = candidates(spots, n, cell, *directions(), effort, fitted)
        most = fit_best(spots, n, cell, fitted, min(many, effort[3]), most, one, best)
        if most > SURE:
            break
    return most if most == -np.inf else float(settle(spots, n, cell, most, one, best))


def axis_symmetry(cell: Cell) -> tuple[int, bool]:
    """Rotations of the lattice about its shortest axis, and whether none of the others reverses that."""
    axis = cell.primitive[0] / np.linalg.norm(cell.primitive[0])
    along = cell.rotations @ axis @ axis
    return int((along > 1 - 1e-3).sum()), not bool((along < -1 + 1e-3).any())


@lru_cache(maxsize=1)
def directions() -> tuple[Array, Array]:
    """Even directions of half a sphere (a Fibonacci lattice), in ever finer tables.

    Returns
    -------
    (3 total,) float32
        Of each table all x, all y, all z.
    (levels + 1,) int64
        Where each begins, in directions.
    """
    tables, edges = [], [0]
    for level in range(_LEVELS):
        many = int(_COARSEST * _FINER**level) // 16 * 16
        number = np.arange(many) + 0.5
        z = 1 - number / many
        across, azimuth = np.sqrt(1 - z * z), np.pi * (3 - np.sqrt(5)) * number
        tables.append(np.concatenate([across * np.cos(azimuth), across * np.sin(azimuth), z]))
        edges.append(edges[-1] + many)
    return np.concatenate(tables).astype(np.float32), np.array(edges, np.int64)


def wavelengths(q: Array, offset: Array) -> Array:
    """Wavelength [Angstrom] of each frame, of the sphere that its spots lie on; 0 where they lie on none.

    Parameters
    ----------
    q : (spots, 3) float64
        The beam runs along z, so that ``q_z = -wavelength |q|^2 / 2``.
    offset : (frames + 1,) int64

    Returns
    -------
    (frames,) float64
    """
    square = (q**2).sum(axis=1)
    each = np.divide(-2 * q[:, 2], square, out=np.zeros(len(q)), where=square > 0)
    made = np.zeros(len(offset) - 1)
    for frame, (first, last) in enumerate(pairwise(offset)):
        if last > first:
            middle = np.median(each[first:last])
            if middle > 0 and np.abs(each[first:last] - middle).max() < 0.01 * middle:
                made[frame] = middle
    return made
