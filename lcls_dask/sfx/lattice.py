"""Indexing by a known lattice: what the compiled search needs to know of the cell, and how it takes frames.

The search is a one-dimensional one for the lattice's shortest axis and a rotation about it, judged by how much likelier
the spots are in the lattice than by chance; `kernels.indexing` has it, docs/crystallography-indexing.md describes it.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from .cell import Cell

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
        from .kernels.indexing import index_frames

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
        basis = self.cell.primitive
        fold, both = axis_symmetry(self.cell)
        # two spots of a lattice are never nearer than its shortest reciprocal vector
        apart = min(0.004, 0.4 / float(np.linalg.norm(basis, axis=1).max()))
        index_frames(
            np.ascontiguousarray(q, np.float64), np.ascontiguousarray(offset, np.int64),
            np.ascontiguousarray(wavelength, np.float64), basis, fold, both, *directions(),
            self.fewest, self.threshold, self.rest, apart, *made.values(),
        )  # fmt: skip
        there = np.arange(self.lattices) < made["count"][:, None]
        flat = {name: made[name][there] for name in ("star", "shift", "score", "explained", "error", "excitation")}
        # of the reduced lattice, to that of the cell as it was given
        flat["star"] = np.swapaxes(self.cell.to_primitive, 0, 1) @ flat["star"]
        return {"count": made["count"], "member": made["member"], **flat}


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
