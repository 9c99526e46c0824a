"""Spots of stills with known lattices, and of frames without any, as scattering vectors."""

from functools import lru_cache
from typing import Any

import numpy as np

from lcls_dask.sfx.cell import Cell

Array = np.ndarray[Any, Any]

#: A 4 Mpx detector [m, pixel], and the beam [Angstrom].
PIXEL, DISTANCE, HALF, WAVELENGTH = 75e-6, 0.1, 1024, 1.3
#: What is not known exactly: of a spot's place [pixel], of the cell and the distance (relative, at most), of a node's
#: distance from the Ewald sphere [1/Angstrom].
NOISE, STRAIN, AWAY, EXCITATION = 0.3, 0.005, 0.002, 1e-3
B_FACTOR = 18.0

CELLS = {
    "lysozyme": Cell((79.0, 79.0, 38.0, 90, 90, 90), "P 43 21 2"),
    "triclinic": Cell((48.0, 57.0, 66.0, 83, 76, 71), "P 1"),
    "large": Cell((93.0, 93.0, 130.0, 90, 90, 120), "P 61 2 2"),
    "centred": Cell((90.0, 60.0, 70.0, 90, 105, 90), "C 1 2 1"),
}


def rotation(random: np.random.Generator) -> Array:
    """An evenly distributed rotation matrix."""
    w, x, y, z = (q := random.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def scattering(xy: Array, distance: float = DISTANCE) -> Array:
    """Scattering vectors [1/Angstrom] of places on the detector [pixel]."""
    place = np.column_stack([xy * PIXEL, np.full(len(xy), distance)])
    return (place / np.linalg.norm(place, axis=1)[:, None] - [0, 0, 1]) / WAVELENGTH


@lru_cache(maxsize=8)
def _indices(cell: Cell, limit: float) -> Array:
    """Indices of the reduced lattice up to a limit of 1/d, (n, 3) float64."""
    axes = cell.primitive
    most = [int(limit * np.linalg.norm(axis)) + 1 for axis in axes]
    hkl = np.stack(np.meshgrid(*(np.arange(-m, m + 1.0) for m in most), indexing="ij"), -1).reshape(-1, 3)
    return hkl[((hkl @ np.linalg.inv(axes).T) ** 2).sum(axis=1) < limit**2]


def lattice_xy(random: np.random.Generator, cell: Cell, count: int) -> tuple[Array, Array]:
    """Places [pixel] of the strongest `count` spots of a crystal, and its true reciprocal axes of the reduced cell."""
    axes = cell.primitive @ np.diag(1 + STRAIN * random.uniform(-1, 1, 3)) @ rotation(random).T
    star = np.linalg.inv(axes).T
    limit = 2 * np.sin(0.5 * np.arctan(HALF * PIXEL / DISTANCE)) / WAVELENGTH
    hkl = _indices(cell, 1.02 * limit)
    along = hkl @ star[:, 2]  # few are where the sphere is; the rest is not worth its time
    q = hkl[(along < 5 * EXCITATION) & (along > -0.55 * WAVELENGTH * (1.02 * limit) ** 2 - 5 * EXCITATION)] @ star
    # a node's distance from the Ewald sphere, nearly
    q = q[np.abs(q[:, 2] + (q**2).sum(axis=1) * (WAVELENGTH / 2)) < 5 * EXCITATION]
    square = (q**2).sum(axis=1)
    q, square = q[(square > 0) & (square < limit**2)], square[(square > 0) & (square < limit**2)]
    beam = q + np.array([0, 0, 1 / WAVELENGTH])
    miss = np.linalg.norm(beam, axis=1) - 1 / WAVELENGTH
    strength = random.exponential(size=len(beam)) * np.exp(-0.5 * (B_FACTOR * square + (miss / EXCITATION) ** 2))
    xy = beam[:, :2] / beam[:, 2:] * DISTANCE / PIXEL
    strength[(np.abs(xy) > HALF).any(axis=1) | (np.hypot(*xy.T) < 30)] = -1
    best = np.argsort(-strength)[:count]
    xy = xy[best[strength[best] > 0]]
    return xy + NOISE * random.normal(size=xy.shape), star


def anywhere(random: np.random.Generator, count: int) -> Array:
    """Places [pixel] evenly over the detector's disc."""
    radius, azimuth = 0.9 * HALF * np.sqrt(random.uniform(size=count)), random.uniform(0, 2 * np.pi, count)
    return np.column_stack([radius * np.cos(azimuth), radius * np.sin(azimuth)])


def still(random: np.random.Generator, cell: Cell, count: int, spurious: float = 0.3) -> tuple[Array, Array]:
    """Scattering vectors of a crystal's spots and others, and its true reciprocal axes."""
    xy, star = lattice_xy(random, cell, count)
    wrong = round(len(xy) * spurious / (1 - spurious))
    xy = random.permutation(np.concatenate([xy, anywhere(random, wrong)]))
    return scattering(xy, DISTANCE * (1 + AWAY * random.uniform(-1, 1))), star


def blank(random: np.random.Generator, kind: str) -> Array:
    """Scattering vectors of a frame without a crystal: uniform, low, rings, clusters or rows."""
    count = int(random.integers(12, 200))
    if kind == "uniform":
        xy = anywhere(random, count)
    elif kind == "low":
        xy = anywhere(random, count) * random.uniform(0.2, 1, (count, 1))
    elif kind == "rings":
        radius = random.choice(random.uniform(150, 900, 4), count) + random.normal(0, 1.5, count)
        azimuth = random.uniform(0, 2 * np.pi, count)
        xy = np.column_stack([radius * np.cos(azimuth), radius * np.sin(azimuth)])
    elif kind == "clusters":
        centres = anywhere(random, max(3, count // 4))
        xy = centres[random.integers(len(centres), size=count)] + random.normal(0, 3, (count, 2))
    else:
        xy = anywhere(random, count // 2)
        for _ in range(int(random.integers(1, 3))):
            azimuth, step = random.uniform(0, np.pi), random.uniform(8, 60)
            along = (np.arange(int(random.integers(8, 30))) - random.integers(4, 10)) * step
            line = np.outer(along, [np.cos(azimuth), np.sin(azimuth)]) + anywhere(random, 1) * 0.5
            xy = np.concatenate([xy, line + random.normal(0, 0.3, line.shape)])
        xy = xy[(np.abs(xy) < HALF).all(axis=1)]
    return scattering(xy)


def angle(star: Array, true: Array, cell: Cell) -> float:
    """Rotation [degree] between two lattices, the least of those that the lattice's own rotations make."""
    best = 180.0
    turns = []
    for one in (star, true):
        left, _, right = np.linalg.svd(one.T @ cell.primitive)
        turns.append(left @ right)
    for own in cell.rotations:
        cos = (np.trace(turns[1].T @ turns[0] @ own) - 1) / 2
        best = min(best, float(np.degrees(np.arccos(np.clip(cos, -1, 1)))))
    return best
