"""Peaks as indexing takes them, and crystals as it gives them."""

from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError
from .cell import Cell
from .geometry.model import EV_ANGSTROM, Geometry
from .lattice import wavelengths

Array = np.ndarray[Any, np.dtype[Any]]

#: Scattering vectors are shorter than this [1/Angstrom].
_LARGEST = 10.0

_WORDS = {
    "offset": ("1", "first crystal of each event"),
    "matrix": ("1/Angstrom", "reciprocal axes a*, b*, c* in the laboratory"),
    "cell": ("Angstrom, degree", "a, b, c, alpha, beta, gamma of this crystal"),
    "shift": ("m", "what is to be added to the detector's position"),
    "explained": ("1", "spots that the lattice explains"),
    "score": ("1", "logarithm of the likelihood ratio, lattice to chance"),
    "error": ("1/Angstrom", "error of a spot's place across its beam"),
    "profile_radius": ("1/Angstrom", "radius of a node"),
}


def as_peaks(peaks: Any) -> xr.Dataset:
    """Peaks as a block of them.

    Parameters
    ----------
    peaks : xarray.Dataset or (spots, 3) array

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    ArgumentError
        It is neither.
    """
    if isinstance(peaks, xr.Dataset):
        if "offset" not in peaks or not {"q", "fs"} & set(peaks.data_vars):
            raise ArgumentError("peaks: have no offset, and fs and ss or q: give what find_peaks gave")
        return peaks
    q = np.asarray(peaks, np.float64)
    if q.ndim != 2 or q.shape[1] != 3:
        raise ArgumentError(f"peaks: of shape {q.shape}; (spots, 3) scattering vectors of one frame are wanted")
    return xr.Dataset({"offset": ("row_edge", np.array([0, len(q)])), "q": (("peak", "axis"), q)})


def spots_of(peaks: xr.Dataset, geometry: Geometry | None, photon_energy: Any) -> tuple[Array, Array, Array]:
    """Scattering vectors of a block of peaks.

    Parameters
    ----------
    peaks : xarray.Dataset
    geometry : Geometry or None
    photon_energy : float, (event,) array or None
        [eV].

    Returns
    -------
    q : (peaks, 3) float64
        [1/Angstrom]; NaN where a peak is nowhere.
    offset : (events + 1,) int64
    wavelength : (events,) float64
        [Angstrom], 0 where it is not known.

    Raises
    ------
    ArgumentError
        Peaks have places in pixels, and there is no geometry.
    """
    edges = peaks["offset"].values
    segments = int(peaks.sizes.get("segment", peaks.sizes.get("channel", 1)))
    offset = edges[:: max(segments, 1)].astype(np.int64)
    events = len(offset) - 1
    energy = photon_energy
    if energy is None and "photon_energy" in peaks.coords:
        energy = peaks["photon_energy"].values
    if energy is None and geometry is not None:
        energy = geometry.photon_energy
    if "q" in peaks:
        q = peaks["q"].values.astype(np.float64)
        largest = float(np.abs(q[np.isfinite(q)]).max(initial=0.0))
        if largest > _LARGEST:
            raise ArgumentError(f"q: reaches {largest:g}, and no X-rays scatter so far; it is wanted in 1/Angstrom")
        if energy is None:
            fine = np.isfinite(q).all(axis=1)
            kept = np.concatenate([[0], np.cumsum(fine)])[offset]
            return q, offset, wavelengths(q[fine], kept)
        return q, offset, EV_ANGSTROM / _energies(energy, events)
    if geometry is None:
        raise ArgumentError("peaks are places in pixels: give geometry=, which tells where these are")
    each = _energies(geometry.photon_energy if energy is None else energy, events)
    row = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    q = geometry.scattering_vectors(row % max(segments, 1), peaks["ss"].values, peaks["fs"].values, EV_ANGSTROM)
    q = q / (EV_ANGSTROM / each)[row // max(segments, 1)][:, None]
    return q, offset, EV_ANGSTROM / each


def energies_of(crystals: xr.Dataset, geometry: Geometry, photon_energy: Any) -> Array:
    """Photon energy of each event.

    Parameters
    ----------
    crystals : xarray.Dataset
    geometry : Geometry
    photon_energy : float, (event,) array or None
        [eV]; None for that of each event, and the geometry's where it is NaN or there is none.

    Returns
    -------
    (events,) float64
        [eV]; it may be NaN where there is no crystal.

    Raises
    ------
    ArgumentError
        Nothing has it.
    """
    energy, known, events = photon_energy, geometry.photon_energy, crystals.sizes["row_edge"] - 1
    if energy is None and "photon_energy" in crystals.coords:
        energy = crystals["photon_energy"].values.astype(np.float64)
        energy = np.where(np.isnan(energy), np.nan if known is None else known, energy)
        needed = energy[np.diff(crystals["offset"].values) > 0]  # where there is no crystal nothing depends on it
        _energies(needed, len(needed))
        return np.asarray(energy)
    return _energies(known if energy is None else energy, events)


def _energies(energy: Any, events: int) -> Array:
    if energy is None:
        raise ArgumentError("photon_energy: neither events nor geometry have it; give it, in eV")
    values = np.asarray(energy, np.float64)
    if values.ndim and len(values) != events:
        raise ArgumentError(
            f"photon_energy: {len(values)} values for {events} events of a block; make it a coordinate of the events"
        )
    if not (np.isfinite(values) & (values > 0)).all():
        raise ArgumentError("photon_energy: is not above zero [eV] for every event")
    return np.broadcast_to(values, events)


def with_events(made: xr.Dataset, peaks: xr.Dataset, spots: Array, marked: Array) -> xr.Dataset:
    """Crystals with the coordinates of their events, how many spots were used, and which frames had some left out."""
    kept = {str(name): coord.variable for name, coord in peaks.coords.items() if coord.dims == ("event",)}
    return made.assign_coords(
        kept
        | {
            "spots": ("event", spots, {"units": "1", "long_name": "spots that were used"}),
            "marked": ("event", marked, {"units": "1", "long_name": "some spots were nowhere"}),
        }
    )


def crystals_dataset(count: Array, columns: dict[str, Array], cell: Cell | None, told: dict[str, Any]) -> xr.Dataset:
    """A block of crystals.

    Parameters
    ----------
    count : (events,) int
    columns : dict of str to (crystals, ...) array
        `matrix`, `shift`, and what else is known of each.
    cell : Cell or None
        What was looked for.
    told : dict
        Attributes: how they were found.

    Returns
    -------
    xarray.Dataset
    """
    dims: dict[str, Any] = {
        "matrix": ("crystal", "star", "axis"),
        "cell": ("crystal", "parameter"),
        "shift": ("crystal", "lateral"),
    }
    edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(count, dtype=np.int64)])
    columns = columns | {"cell": parameters_of(columns["matrix"])}
    attrs = told | ({"cell": list(cell.parameters), "space_group": cell.space_group} if cell else {})

    words = {name: dict(zip(("units", "long_name"), told, strict=True)) for name, told in _WORDS.items()}
    return xr.Dataset(
        {"offset": ("row_edge", edges, words["offset"])}
        | {name: (dims.get(name, "crystal"), values, words[name]) for name, values in columns.items()},
        attrs=attrs,
    )


def parameters_of(matrix: Array) -> Array:
    """Cells of reciprocal axes.

    Parameters
    ----------
    matrix : (..., 3, 3) float64
        a*, b*, c* as rows [1/Angstrom].

    Returns
    -------
    (..., 6) float64
        a, b, c [Angstrom], alpha, beta, gamma [degree].

    Examples
    --------
    >>> parameters_of(np.diag([0.1, 0.05, 0.02])).tolist()
    [10.0, 20.0, 50.0, 90.0, 90.0, 90.0]
    """
    axes = np.swapaxes(np.linalg.inv(matrix), -1, -2)
    length = np.linalg.norm(axes, axis=-1)
    following, other = axes[..., [1, 2, 0], :], axes[..., [2, 0, 1], :]
    cos = (following * other).sum(axis=-1) / (length[..., [1, 2, 0]] * length[..., [2, 0, 1]])
    made: Array = np.concatenate([length, np.degrees(np.arccos(np.clip(cos, -1, 1)))], axis=-1)
    return made
