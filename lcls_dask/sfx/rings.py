"""The rings of a geometry: which pixels are equally far from the beam."""

from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..reduce.kernels.masks import BLOCK
from .geometry.model import Geometry
from .kernels.rings import GROUP
from .kernels.sweep import Rings, Sample

Array = np.ndarray[Any, np.dtype[Any]]

#: Pixels that the sampled statistics take of each ring, and the provisional limits of each group of rings.
SAMPLE, COARSE = 100, 128


def radii(geometry: Geometry) -> Array:
    """Distance of each pixel from the beam.

    Parameters
    ----------
    geometry : Geometry

    Returns
    -------
    (segments, rows, columns) float64
        In pixels of the first panel; NaN for pixels of no panel.

    Examples
    --------
    >>> from lcls_dask.sfx import Panel
    >>> panel = Panel("p0", 0, 0, 1, 0, 3, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
    >>> radii(Geometry((panel,), (1, 1, 3), 0.1))
    array([[[0., 1., 2.]]])
    """
    x, y, _ = geometry.positions()
    size = float(np.linalg.norm(geometry.panels[0].fs)) if geometry.panels else 1.0
    radius: Array = np.hypot(x, y) / size
    return radius


def rings_of(geometry: Geometry, good: Array | None, least: float, most: float) -> Rings:
    """Number the rings, each a pixel wide, and choose samples of them.

    Parameters
    ----------
    geometry : Geometry
    good : (segments, rows, columns) bool or None
        Pixels that count, beside those that the geometry calls bad.
    least, most : float
        Radii within which they do [pixel].

    Returns
    -------
    Rings

    Raises
    ------
    ArgumentError
        The detector reaches further than 65,534 pixels from the beam.

    Examples
    --------
    >>> from lcls_dask.sfx import Panel
    >>> panel = Panel("p0", 0, 0, 1, 0, 3, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
    >>> rings_of(Geometry((panel,), (1, 1, 3), 0.1), None, 0, 1).ring
    array([0, 1, 2], dtype=uint16)
    """
    radius = radii(geometry).ravel()
    there = (radius >= least) & (radius <= most)
    if good is not None:
        there &= good.ravel()
    if geometry.bad is not None:
        there &= ~geometry.bad.ravel()
    furthest = float(radius[there].max(initial=0.0))
    if furthest > 65534:
        raise ArgumentError(f"the geometry reaches {furthest:.0f} pixels from the beam; is its corner in pixels?")
    # halves go to the even number
    number = np.rint(np.where(there, radius, 0.0)).astype(np.int64)
    rings = int(number.max(initial=0)) + 1
    number[~there] = rings
    blocks = -(-number.size // BLOCK)
    padded = np.full(blocks * BLOCK, rings)
    padded[: number.size] = number
    last = np.where(padded < rings, padded, -1).reshape(blocks, BLOCK).max(axis=1)
    # stable, so that the same pixels are chosen always and everywhere
    order = np.argsort(number.astype(np.uint16), kind="stable").astype(np.int32)
    count = np.bincount(number, minlength=rings + 1)[:rings]
    edge = np.concatenate([[0], np.cumsum(count)])
    group_edge = edge[np.minimum(np.arange(0, rings + GROUP, GROUP), rings)]
    first = padded.reshape(blocks, BLOCK).min(axis=1)
    return Rings(
        number.astype(np.uint16),
        count,
        first.astype(np.int32),
        last.astype(np.int32),
        np.floor(np.log2(np.maximum(last - first + 1, 1))).astype(np.int32),
        _sample(order, edge, SAMPLE),
        _sample(order, group_edge, COARSE),
    )


def _sample(order: Array, edge: Array, most: int) -> Sample:
    """At most so many random pixels of each group, in the order of the frame."""
    random = np.random.default_rng(0)
    parts = []
    for first, last in zip(edge[:-1].tolist(), edge[1:].tolist(), strict=True):
        pixels = order[first:last]
        parts.append(np.sort(random.choice(pixels, most, replace=False)) if len(pixels) > most else np.sort(pixels))
    sizes = [len(part) for part in parts]
    pixels = np.concatenate(parts)
    place = np.argsort(pixels, kind="stable").astype(np.int32)
    return Sample(pixels[place], place, np.concatenate([[0], np.cumsum(sizes)]))
