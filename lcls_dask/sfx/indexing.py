"""Indexing: orientations of crystals, of the spots of each frame."""

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError
from ..reduce.ragged import Ragged
from .cell import as_cell
from .crystals import as_peaks, crystals_dataset, spots_of, with_events
from .geometry.model import Geometry
from .lattice import Search

Array = np.ndarray[Any, np.dtype[Any]]

METHODS = ("lattice", "dials", "indexamajig")

#: Least evidence of a lattice; 1 of 1000 frames without a crystal reaches it, see `fit_threshold`.
THRESHOLD = 40.0

#: Radius of a node over the root mean square distance of nodes from the sphere, where they fade as 1 - distance^2.
_RADIUS = np.sqrt(5.0)


def index(
    peaks: Any,
    cell: Any,
    method: str = "lattice",
    *,
    space_group: str | None = None,
    geometry: Geometry | None = None,
    photon_energy: Any = None,
    lattices: int = 1,
    fewest: int = 6,
    threshold: float = THRESHOLD,
    **options: Any,
) -> "xr.Dataset | Ragged":
    """Find the lattices of the crystals in each frame.

    The built-in method looks for a known cell: its shortest axis in all directions [1]_, the others by a rotation about
    it [2]_, and judges what it finds by the likelihood of the spots' places in the lattice, over that by chance. A
    frame without a crystal gets no lattice. It takes no program but this one, and about 1 ms for 100 spots.

    Parameters
    ----------
    peaks : Ragged, xarray.Dataset or (spots, 3) array
        What `find_peaks` gave, with `geometry`; or with a variable `q` (peak, 3), scattering vectors [1/Angstrom]. An
        array is the scattering vectors of one frame. The beam runs along z.
    cell : Cell, sequence of 6 float, str or Path
        See `as_cell`.
    method : {"lattice", "dials", "indexamajig"}
        The built-in one, or a program that must be installed.
    space_group : str, optional
        Such as ``"P 43 21 2"``; its centring counts here.
    geometry : Geometry, optional
        Where pixels are.
    photon_energy : float or (event,) array, optional
        [eV]; by default what peaks or geometry say, else what the spots' places on the Ewald sphere say.
    lattices : int
        The most that are looked for in one frame.
    fewest : int
        Fewest spots that a lattice must explain.
    threshold : float
        Least evidence that there is a lattice; see `fit_threshold`.
    **options : object
        For the programs; see `sfx.programs`.

    Returns
    -------
    xarray.Dataset or Ragged
        A Ragged of a Ragged. Rows are events. Of each crystal `matrix` (3, 3): a*, b*, c* as rows [1/Angstrom], of the
        cell as it was given; `cell` (6,); `shift` (2,) of the detector [m], NaN without a geometry; `explained`,
        `score`, `error`, `profile_radius`. Coordinates over `event`: those of the peaks, `spots` that were used, and
        `marked` where some had to be left out since they are nowhere.

    Raises
    ------
    ArgumentError
        The cell is no lattice, or there is no such method, or peaks have no places.
    UnsupportedError
        The program is not installed.

    References
    ----------
    .. [1] I. Steller, R. Bolotovsky and M. G. Rossmann, J. Appl. Cryst. 30 (1997) 1036.
    .. [2] R. J. Gildea et al., Acta Cryst. D70 (2014) 2652.

    Examples
    --------
    >>> hkl = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3), -1).reshape(-1, 3)
    >>> cos, sin = np.cos(0.4), np.sin(0.4)
    >>> turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) @ [[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]
    >>> q = hkl / [79.1, 79.1, 37.9] @ turn
    >>> on_sphere = abs(np.linalg.norm(q + [0, 0, 1 / 1.3], axis=1) - 1 / 1.3) < 3e-4
    >>> crystals = index(q[on_sphere], (79.1, 79.1, 37.9, 90, 90, 90), space_group="P 43 21 2")
    >>> crystals.sizes["crystal"], crystals["cell"].values.round().tolist()
    (1, [[79.0, 79.0, 38.0, 90.0, 90.0, 90.0]])
    """
    known = as_cell(cell, space_group)
    if method not in METHODS:
        raise ArgumentError(f"there is no method {method!r}; choose from {', '.join(METHODS)}")
    if not (1 <= lattices <= 100 and fewest >= 4 and np.isfinite(threshold)):
        raise ArgumentError(
            f"lattices={lattices}, fewest={fewest}, threshold={threshold}: at least one lattice and at most a hundred, "
            "at least four spots, and a number are wanted"
        )
    if method == "lattice" and options:
        raise ArgumentError(f"{sorted(options)[0]}= is no option of the built-in method")
    if method == "lattice":
        search = Search(known, lattices, fewest, float(threshold), min(25.0, 0.6 * float(threshold)))
        return _apply(peaks, _by_search, search, geometry, photon_energy)
    from . import programs

    return _apply(peaks, programs.index_block, method, known, geometry, photon_energy, lattices, options)


def _apply(peaks: Any, work: Any, *arguments: Any) -> "xr.Dataset | Ragged":
    if isinstance(peaks, Ragged):
        return peaks.map_blocks(work, *arguments)
    made: xr.Dataset = work(as_peaks(peaks), *arguments)
    return made


def _by_search(peaks: xr.Dataset, search: Search, geometry: Geometry | None, photon_energy: Any) -> xr.Dataset:
    """Crystals of a block of peaks."""
    q, offset, wavelength = spots_of(peaks, geometry, photon_energy)
    fine = np.isfinite(q).all(axis=1)
    kept = np.concatenate([[0], np.cumsum(fine)])[offset]
    found = search.frames(q[fine], kept, wavelength)
    event = np.repeat(np.arange(len(offset) - 1), found["count"])
    shift = np.full((len(event), 2), np.nan)
    if geometry is not None:
        shift = -found["shift"] * (wavelength[event] * geometry.distance)[:, None]
    told = {"method": "lattice", "threshold": search.threshold, "fewest": search.fewest}
    made = crystals_dataset(
        found["count"],
        {
            "matrix": found["star"],
            "shift": shift,
            "explained": found["explained"],
            "score": found["score"],
            "error": found["error"],
            "profile_radius": _RADIUS * found["excitation"],
        },
        search.cell,
        told,
    )
    spots, marked = np.diff(kept).astype(np.int32), np.diff(kept) < np.diff(offset)
    return with_events(made, peaks, spots, marked)


def fit_threshold(
    peaks: Any,
    cell: Any,
    *,
    chance: float = 1e-3,
    space_group: str | None = None,
    geometry: Geometry | None = None,
    photon_energy: Any = None,
    frames: int = 500,
    seed: int = 0,
) -> float:
    """Tell the evidence that a frame like these, but without a lattice, reaches by chance.

    Each spot is turned about the beam by a random angle of its own, which keeps its resolution and breaks any lattice;
    that of the best lattice in what is left has a distribution of extremes [1]_, whose tail is drawn out.

    Parameters
    ----------
    peaks : Ragged, xarray.Dataset or (spots, 3) array
        The user's own frames; see `index`. A Ragged is computed.
    cell : Cell, sequence of 6 float, str or Path
    chance : float
        Share of frames without a crystal that may get a lattice.
    space_group, geometry, photon_energy : optional
        See `index`.
    frames : int
        How many scrambled frames there are at least, from as many copies as that takes.
    seed : int

    Returns
    -------
    float
        For `threshold` of `index`.

    Raises
    ------
    ArgumentError
        No frame has enough spots for a lattice.

    References
    ----------
    .. [1] E. J. Gumbel, Statistics of Extremes (1958).

    Examples
    --------
    >>> q = np.random.default_rng(0).normal(0, 0.1, (60, 3))
    >>> 15 < fit_threshold(q, (79.1, 79.1, 37.9, 90, 90, 90), frames=100) < 45
    True
    """
    known = as_cell(cell, space_group)
    if not 0 < chance < 1:
        raise ArgumentError(f"chance={chance} must be above 0 and below 1")
    block = peaks.compute() if isinstance(peaks, Ragged) else as_peaks(peaks)  # type: ignore[no-untyped-call]
    q, offset, wavelength = spots_of(block, geometry, photon_energy)
    search = replace(Search(known), threshold=-np.inf, rest=-np.inf)
    own = [
        (q[first:last][np.isfinite(q[first:last]).all(axis=1)], each)
        for first, last, each in zip(offset[:-1], offset[1:], wavelength, strict=True)
    ]
    own = [(spots, each) for spots, each in own if len(spots) >= search.fewest]
    if not own:
        raise ArgumentError(f"no frame has {search.fewest} spots: there is nothing to scramble")
    random = np.random.default_rng(seed)
    chosen = [own[i % len(own)] for i in range(max(frames, 50))] if len(own) < frames else own[:: len(own) // frames]
    copies = []
    for spots, _ in chosen:
        azimuth = random.uniform(0, 2 * np.pi, len(spots))
        cos, sin = np.cos(azimuth), np.sin(azimuth)
        x, y, z = spots.T
        copies.append(np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1))
    edges = np.concatenate([[0], np.cumsum([len(one) for one in copies])])
    found = search.frames(np.concatenate(copies), edges, np.array([each for _, each in chosen]))
    score = found["score"][np.isfinite(found["score"])]
    # moments of Gumbel's distribution: its scale is the tail's, which for a likelihood ratio is about 1
    scale = max(1.0, float(np.std(score)) * np.sqrt(6) / np.pi)
    place = float(np.mean(score)) - np.euler_gamma * scale
    return float(place - scale * np.log(-np.log1p(-chance)))
