"""Prediction and integration of reflections."""

from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import ArgumentError
from ..reduce.ragged import Ragged, empty_like
from .crystals import energies_of
from .geometry.model import EV_ANGSTROM, Geometry

Array = np.ndarray[Any, np.dtype[Any]]

#: Radius of a node [1/Angstrom] where the crystal does not say.
PROFILE_RADIUS = 1.5e-3

_WORDS = {
    "offset": ("1", "first reflection of each crystal"),
    "h": ("1", "index h"),
    "k": ("1", "index k"),
    "l": ("1", "index l"),
    "intensity": ("1", "intensity above the background"),
    "sigma": ("1", "standard deviation of the intensity"),
    "background": ("1", "background of a pixel"),
    "peak": ("1", "highest pixel"),
    "fs": ("pixel", "predicted column"),
    "ss": ("pixel", "predicted row"),
    "segment": ("1", "segment"),
    "excitation": ("1/Angstrom", "distance of the node from the Ewald sphere"),
}
_PREDICTED = ("offset", "h", "k", "l", "fs", "ss", "segment", "excitation")


@dataclass(frozen=True)
class Prediction:
    """Which reflections are looked for.

    Attributes
    ----------
    geometry : Geometry
    photon_energy : float or None
        [eV]; of each event where it has one.
    profile_radius : float or None
        [1/Angstrom]; of each crystal by default.
    spread : float
        What the radius of a node grows by with its distance from the origin: half of the mosaicity [rad].
    d_min : float
        [Angstrom].
    """

    geometry: Geometry
    photon_energy: float | None
    profile_radius: float | None
    spread: float
    d_min: float

    def of_crystal(self, matrix: Array, shift: Array, radius: float, energy: float) -> dict[str, Array]:
        """Reflections of a crystal: `hkl` (n, 3), `place` (n, 3) of segment, row, column, `excitation` (n,)."""
        from .kernels.integrate import predict as kernel

        moved = self.geometry.moved(*shift) if np.isfinite(shift).all() and shift.any() else self.geometry
        inverse = np.linalg.inv(moved.vectors)
        if self.profile_radius is not None or not np.isfinite(radius):
            radius = PROFILE_RADIUS if self.profile_radius is None else self.profile_radius
        star = np.ascontiguousarray(matrix)
        most = tuple((np.linalg.norm(np.linalg.inv(star), axis=0) / self.d_min).astype(int).tolist())
        room = 4096
        while True:
            hkl, place, excitation = np.empty((room, 3), np.int32), np.empty((room, 3)), np.empty(room)
            count = kernel(
                star, most, EV_ANGSTROM / energy, float(radius), self.spread, 1 / self.d_min, inverse,
                bounds_of(self.geometry), hkl, place, excitation,
            )  # fmt: skip
            if count <= room:
                return {"hkl": hkl[:count], "place": place[:count], "excitation": excitation[:count]}
            room = count


def bounds_of(geometry: Geometry) -> Array:
    """Segment, first and last row, first and last column (half open) of each panel: (panels, 5) int64."""
    return np.array([(p.segment, p.row0, p.row1, p.column0, p.column1) for p in geometry.panels], np.int64)


def _prediction(
    geometry: Geometry, photon_energy: float | None, profile_radius: float | None, mosaicity: float, d_min: float
) -> Prediction:
    if not (np.isfinite(d_min) and d_min > 0):
        raise ArgumentError(f"d_min={d_min} Angstrom must be above 0")
    if profile_radius is not None and not 0 < profile_radius < 0.1:
        raise ArgumentError(f"profile_radius={profile_radius} 1/Angstrom must be above 0 and below 0.1")
    if not (np.isfinite(mosaicity) and mosaicity >= 0):
        raise ArgumentError(f"mosaicity={mosaicity} degree must not be negative")
    return Prediction(geometry, photon_energy, profile_radius, np.deg2rad(mosaicity) / 2, float(d_min))


def predict(
    crystals: Any,
    geometry: Geometry,
    *,
    d_min: float,
    photon_energy: float | None = None,
    profile_radius: float | None = None,
    mosaicity: float = 0.0,
) -> "xr.Dataset | Ragged":
    """Predict where on the detector the reflections of crystals are.

    A reflection diffracts if its node, a ball about the lattice point, meets the Ewald sphere.

    Parameters
    ----------
    crystals : Ragged or xarray.Dataset
        What `index` gave; shifts of the detector are applied.
    geometry : Geometry
    d_min : float
        Limit of resolution [Angstrom].
    photon_energy : float, optional
        [eV]; by default of each event, else the geometry's.
    profile_radius : float, optional
        Radius of a node [1/Angstrom]; by default what each crystal's spots say.
    mosaicity : float
        Full angle [degree] that orientations of mosaic blocks spread over: far nodes are larger by it.

    Returns
    -------
    xarray.Dataset or Ragged
        Rows are crystals: `h`, `k`, `l`, `fs`, `ss`, `segment`, `excitation`. Absences are left out.

    Raises
    ------
    ArgumentError
        An argument is out of range, or there is no photon energy.

    Examples
    --------
    >>> spots = predict(crystals, geometry, d_min=2.0)  # doctest: +SKIP
    """
    told = _prediction(geometry, photon_energy, profile_radius, mosaicity, d_min)
    if isinstance(crystals, Ragged):
        return crystals.map_blocks(_predicted, told)
    return _predicted(crystals, told)


def _each(crystals: xr.Dataset, prediction: Prediction) -> "list[dict[str, Array]]":
    """Predicted reflections of each crystal, without absences."""
    if not {"offset", "matrix", "shift"} <= set(crystals.data_vars):
        raise ArgumentError("crystals: have no matrix and shift; give what index or read_stream gave")
    offset = crystals["offset"].values
    energy = np.repeat(energies_of(crystals, prediction.geometry, prediction.photon_energy), np.diff(offset))
    count = crystals.sizes["crystal"]
    radius = crystals["profile_radius"].values if "profile_radius" in crystals else np.full(count, np.nan)
    made = []
    for i in range(count):
        one = prediction.of_crystal(crystals["matrix"].values[i], crystals["shift"].values[i], radius[i], energy[i])
        kept = ~_absent(crystals, one["hkl"])
        made.append({name: values[kept] for name, values in one.items()})
    return made


def _absent(crystals: xr.Dataset, hkl: Array) -> Array:
    """Reflections that the centring forbids; those that screw axes forbid are measured, since they tell the group."""
    if "space_group" not in crystals.attrs or not len(hkl):
        return np.zeros(len(hkl), np.bool_)
    from .cell import as_cell

    group = as_cell(crystals.attrs["cell"], crystals.attrs["space_group"]).gemmi_group
    operations = group.operations()
    operations.sym_ops = operations.sym_ops[:1]
    absent: Array = operations.systematic_absences(np.ascontiguousarray(hkl))
    return absent


def _predicted(crystals: xr.Dataset, prediction: Prediction) -> xr.Dataset:
    return _dataset(_each(crystals, prediction), None, crystals.attrs)


def _dataset(each: "list[dict[str, Array]]", measured: Array | None, attrs: Any) -> xr.Dataset:
    """A block of reflections."""
    hkl = np.concatenate([one["hkl"] for one in each] or [np.empty((0, 3), np.int32)])
    place = np.concatenate([one["place"] for one in each] or [np.empty((0, 3))])
    columns: dict[str, Array] = {
        "offset": np.concatenate([np.zeros(1, np.int64), np.cumsum([len(one["hkl"]) for one in each], dtype=np.int64)]),
        **{name: hkl[:, i] for i, name in enumerate("hkl")},
        "fs": place[:, 2].astype(np.float32),
        "ss": place[:, 1].astype(np.float32),
        "segment": place[:, 0].astype(np.int32),
        "excitation": np.concatenate([one["excitation"] for one in each] or [np.empty(0)]).astype(np.float32),
    }
    if measured is not None:
        columns |= {name: measured[:, i] for i, name in enumerate(("intensity", "sigma", "background", "peak"))}
    return reflections_dataset(columns, attrs)


def reflections_dataset(columns: dict[str, Array], attrs: Any) -> xr.Dataset:
    """Reflections of crystals.

    Parameters
    ----------
    columns : dict of str to array
        `offset` (crystals + 1,), and what is known of each reflection.
    attrs : mapping
        Of the crystals: `cell` and `space_group` are kept.

    Returns
    -------
    xarray.Dataset
    """
    return xr.Dataset(
        {
            name: (
                "row_edge" if name == "offset" else "reflection",
                values,
                dict(zip(("units", "long_name"), _WORDS[name], strict=True)),
            )
            for name, values in columns.items()
        },
        attrs={name: attrs[name] for name in ("cell", "space_group") if name in attrs},
    )


def integrate(
    frames: xr.DataArray,
    crystals: Any,
    geometry: Geometry,
    *,
    d_min: float,
    photon_energy: float | None = None,
    profile_radius: float | None = None,
    mosaicity: float = 0.0,
    radii: tuple[float, float, float] = (4.0, 5.0, 7.0),
    gain: float = 1.0,
) -> "xr.Dataset | Ragged":
    """Integrate the reflections of crystals by three rings.

    Pixels within the inner ring are summed, less the mean of those between the middle and the outer one that no other
    reflection reaches [1]_. A reflection that a bad pixel, the panel's edge or another reflection touches is left out.

    Parameters
    ----------
    frames : (event, segment, row, column) xarray.DataArray
        Calibrated, NumPy or Dask; NaN where there is nothing.
    crystals : Ragged or xarray.Dataset
        Of these events: what `index` gave.
    geometry : Geometry
        Its `bad` pixels do not count.
    d_min, photon_energy, profile_radius, mosaicity : float
        See `predict`.
    radii : (float, float, float)
        Of the rings [pixel].
    gain : float
        What one photon counts in `frames`, for the standard deviation.

    Returns
    -------
    xarray.Dataset or Ragged
        Like that of `predict`, with `intensity`, `sigma`, `background` of a pixel and `peak`, the highest pixel. A
        Ragged where frames or crystals are lazy.

    Raises
    ------
    ArgumentError
        Frames do not fit the geometry or the crystals, or an argument is out of range.

    References
    ----------
    .. [1] T. A. White et al., Acta Cryst. D69 (2013) 1231.

    Examples
    --------
    >>> reflections = integrate(frames, crystals, geometry, d_min=2.0)  # doctest: +SKIP
    >>> merged = merge(reflections, space_group="P 43 21 2")  # doctest: +SKIP
    """
    told = _prediction(geometry, photon_energy, profile_radius, mosaicity, d_min)
    if len(radii) != 3 or not 0 < radii[0] <= radii[1] < radii[2] <= 50:
        raise ArgumentError(f"radii={radii} pixels: three rising ones up to 50 are wanted")
    if frames.ndim != 4 or tuple(frames.shape[1:]) != geometry.shape:
        raise ArgumentError(f"frames: have shape {frames.shape}, and the geometry is of {geometry.shape} an event")
    if not (np.isfinite(gain) and gain > 0):
        raise ArgumentError(f"gain={gain} must be above 0")
    events = len(crystals) if isinstance(crystals, Ragged) else crystals.sizes["row_edge"] - 1
    if events != frames.shape[0]:
        raise ArgumentError(f"crystals: are of {events} events, and there are {frames.shape[0]} frames")
    rest = (told, np.array(radii, np.float64), float(gain))
    if not isinstance(crystals, Ragged):
        if not isinstance(frames.data, da.Array):
            return _integrated(frames.values, crystals, *rest)
        crystals = Ragged.from_blocks([delayed(crystals)], [events], empty_like(crystals))
    work = delayed(_integrated, pure=True)
    blocks = [
        work(frames.data[span], block, *rest) for span, block in zip(crystals.spans, crystals.blocks, strict=True)
    ]
    none = np.empty((0, *geometry.shape), np.float32)
    return Ragged.from_blocks(blocks, crystals.events, _integrated(none, crystals.meta, *rest))


def _integrated(frames: Array, crystals: xr.Dataset, prediction: Prediction, radii: Array, gain: float) -> xr.Dataset:
    """Reflections of a block of events."""
    from .kernels.integrate import three_rings

    geometry = prediction.geometry
    each = _each(crystals, prediction)
    event = np.repeat(np.arange(len(frames)), np.diff(crystals["offset"].values))
    bad = np.zeros((0, 0, 0), np.bool_) if geometry.bad is None else np.ascontiguousarray(geometry.bad)
    near, bounds = np.zeros(geometry.shape, np.int8), bounds_of(geometry)
    parts = []
    for i, one in enumerate(each):
        frame = np.ascontiguousarray(frames[event[i]], np.float32)
        place = one["place"]
        panel = geometry.panel_of(place[:, 0].astype(np.int64), place[:, 1], place[:, 2]).astype(np.int64)
        out = np.empty((len(place), 4), np.float32)
        three_rings(frame, bad, np.ascontiguousarray(place), panel, bounds, radii, gain, near, out)
        kept = np.isfinite(out[:, 0])
        each[i] = {name: values[kept] for name, values in one.items()}
        parts.append(out[kept])
    return _dataset(each, np.concatenate(parts or [np.empty((0, 4), np.float32)]), crystals.attrs)
