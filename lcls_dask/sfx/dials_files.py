"""Crystals and reflections as DIALS keeps them: ``.expt`` and ``.refl``, written and read by DIALS itself."""

import json
import tempfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from ..errors import ArgumentError, FormatError, RunNotFoundError
from ..reduce.ragged import Ragged
from .cell import as_cell, gemmi
from .crystals import crystals_dataset, energies_of
from .files import whole_file
from .geometry.model import EV_ANGSTROM, Geometry
from .integration import reflections_dataset
from .programs import dials_python, run_program

Array = np.ndarray[Any, np.dtype[Any]]

#: How a reflection table begins. DIALS takes any other file for a pickle, which would run what is in it.
_MAGIC = b"\x93\xbbdials::af::reflection_table"
#: All of a file of experiments that is handed to DIALS: images and profiles may name files that it would unpickle.
_PARTS = ("beam", "detector", "crystal", "goniometer", "scan")
#: Cosine of the angle between a panel's axes that is taken for rounding: DIALS wants none at all.
_SKEW = 1e-3
_SCRIPT = Path(__file__).with_name("dials_tables.py")


@dataclass(frozen=True)
class DialsTables:
    """What the files of DIALS hold.

    Attributes
    ----------
    crystals : xarray.Dataset
        As `index` gives them, each in an event of its own; coordinates over `event`: `identifier`, `photon_energy`.
    reflections : xarray.Dataset
        As `integrate` gives them; rows are crystals. The attribute `left_out` counts those that were not integrated, or
        belong to no crystal.
    """

    crystals: xr.Dataset
    reflections: xr.Dataset


def write_dials(
    path: str | Path,
    crystals: xr.Dataset | Ragged,
    reflections: xr.Dataset | Ragged,
    geometry: Geometry,
    *,
    photon_energy: float | None = None,
) -> None:
    """Write ``PATH.expt`` and ``PATH.refl``: stills, each with its crystal, and their integrated reflections.

    What `dials.scale` and the programs after it go on from. No image is named in them. Shifts of the detector are
    rounded to 1 um, as each one takes a description of all panels, of some 1 kB a panel.

    Parameters
    ----------
    path : str or Path
        Without a suffix.
    crystals : xarray.Dataset or Ragged
        What `index` or `read_stream` gave.
    reflections : xarray.Dataset or Ragged
        What `integrate` gave for them.
    geometry : Geometry
    photon_energy : float, optional
        [eV]; that of each event by default, or of the geometry.

    Raises
    ------
    ArgumentError
        Crystals and reflections do not belong together, or do not say what cell was looked for; a panel is skew.
    FormatError
        DIALS failed; the error has its last words.
    TargetExistsError
        A file is there already.
    UnsupportedError
        DIALS is not installed.

    Examples
    --------
    >>> write_dials("run5", crystals, reflections, geometry)  # doctest: +SKIP
    """
    found, measured = dask.compute(crystals, reflections)  # type: ignore[attr-defined,no-untyped-call]
    told = _arrays(found, measured, geometry, photon_energy)
    python, name = dials_python(), Path(path)
    with (
        whole_file(name.with_name(f"{name.name}.expt")) as experiments,
        whole_file(name.with_name(f"{name.name}.refl")) as table,
        tempfile.TemporaryDirectory(prefix="lcls-dask-dials-") as folder,
    ):
        arrays = Path(folder) / "tables.npz"
        np.savez(arrays, **told)
        files = [str(one.absolute()) for one in (arrays, experiments, table)]
        run_program([python, "-I", str(_SCRIPT), "write", *files], len(told["wavelength"]), Path(folder))


def _arrays(
    crystals: xr.Dataset, reflections: xr.Dataset, geometry: Geometry, photon_energy: float | None
) -> dict[str, Any]:
    """What the two files hold, in the units and from the origins of DIALS: mm, and corners of pixels."""
    if "cell" not in crystals.attrs:
        raise ArgumentError("crystals: do not say what cell was looked for; give what index or read_stream gave")
    for one, given, names in (
        ("crystals", crystals, ("offset", "matrix", "shift")),
        ("reflections", reflections, ("offset", *"hkl", "fs", "ss", "intensity", "sigma", "background")),
    ):
        if missing := [name for name in names if name not in given]:
            raise ArgumentError(f"{one}: have no {missing[0]}; give what index, or integrate, or read_stream gave")
    edges, first = crystals["offset"].values, reflections["offset"].values
    matrix = crystals["matrix"].values
    if "segment" not in reflections:
        raise ArgumentError("reflections: do not say on which segment they are; read the stream with its geometry")
    if len(first) - 1 != len(matrix):
        raise ArgumentError(f"reflections: are of {len(first) - 1} crystals, and there are {len(matrix)}")
    event = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    owner = np.repeat(np.arange(len(matrix)), np.diff(first))
    wavelength = (EV_ANGSTROM / energies_of(crystals, geometry, photon_energy))[event]
    shift = np.nan_to_num(crystals["shift"].values).round(6) + 0.0
    segment, row, column = (reflections[name].values for name in ("segment", "ss", "fs"))
    panel = geometry.panel_of(segment, row, column)
    if (panel < 0).any():
        raise ArgumentError(f"reflection {int((panel < 0).argmax())}: lies on no panel of this geometry")
    beam = geometry.place(segment, row, column)
    beam[:, :2] += shift[owner]
    hkl = np.stack([reflections[name].values for name in "hkl"], axis=1).astype(np.int32)
    vectors, starts = _square(geometry) * 1e3, _starts(geometry)
    vectors[:, 2] = _corners(vectors, starts)
    pixel = np.linalg.norm(vectors[:, :2], axis=2)
    place = np.stack([column, row], axis=1) - starts[panel] + 0.5
    still = event[owner] + 0.5
    identifier = [blake2b(f"{n}:{e}".encode() + m.tobytes(), digest_size=16).hexdigest()
                  for n, (e, m) in enumerate(zip(event.tolist(), matrix, strict=True))]  # fmt: skip
    return {
        "axes": np.swapaxes(np.linalg.inv(matrix), -1, -2),
        "wavelength": wavelength,
        "shift": shift * 1e3,
        "identifier": np.array(identifier, np.str_),
        "hall": np.array(as_cell(crystals.attrs["cell"], crystals.attrs.get("space_group")).gemmi_group.hall),
        "panels": vectors,
        "panel_name": np.array([one.name for one in geometry.panels], np.str_),
        "panel_size": np.array([one.shape[::-1] for one in geometry.panels], np.int64),
        "id": owner.astype(np.int32),
        "panel": panel.astype(np.uint64),
        "hkl": hkl,
        "s1": beam / (np.linalg.norm(beam, axis=1) * wavelength[owner])[:, None],
        "xyzcal.px": np.concatenate([place, still[:, None]], axis=1),
        "xyzcal.mm": np.concatenate([place * pixel[panel], np.zeros((len(place), 1))], axis=1),
        "intensity.sum.value": reflections["intensity"].values.astype(np.float64),
        "intensity.sum.variance": reflections["sigma"].values.astype(np.float64) ** 2,
        "background.mean": reflections["background"].values.astype(np.float64),
        "d": 1 / np.linalg.norm(np.einsum("ni,nij->nj", hkl, matrix[owner]), axis=1),
    }


def _starts(geometry: Geometry) -> Array:
    """First column and row of each panel within its segment: (panels, 2) int64."""
    return np.array([(one.column0, one.row0) for one in geometry.panels], np.int64)


def _corners(vectors: Array, starts: Array) -> Array:
    """Where DIALS has the origin of a panel: the corner of its first pixel, not the centre of its segment's first."""
    corners: Array = vectors[:, 2] + ((starts[:, :, None] - 0.5) * vectors[:, :2]).sum(axis=1)
    return corners


def _square(geometry: Geometry) -> Array:
    """Vectors of panels whose axes are at right angles, as they are but for the rounding of files."""
    vectors = geometry.vectors.copy()
    fast, slow = vectors[:, 0], vectors[:, 1]
    along = (slow * fast).sum(axis=1) / (fast**2).sum(axis=1)
    skew = np.abs(along) * np.linalg.norm(fast, axis=1) / np.linalg.norm(slow, axis=1)
    if (skew > _SKEW).any():
        name = geometry.panels[int(skew.argmax())].name
        raise ArgumentError(f"panel {name}: its fs and ss are not at right angles, as DIALS wants them")
    vectors[:, 1] = slow - along[:, None] * fast
    return vectors


def read_dials(path: str | Path, geometry: Geometry | None = None) -> DialsTables:
    """Read ``PATH.expt`` and ``PATH.refl``, which `write_dials` or a program of DIALS wrote.

    Intensities are those by summation; by profile fitting where there are no others. Where DIALS has the beam along -z,
    as in most of its files, all is turned by half about y, so that it goes along z.

    Parameters
    ----------
    path : str or Path
        Without a suffix.
    geometry : Geometry, optional
        To tell segments apart, its panels in the order of theirs, and shifts of the detector; without it `segment` is
        the panel, `fs` and `ss` are places on it, and shifts are NaN.

    Returns
    -------
    DialsTables

    Raises
    ------
    FormatError
        They are not such files, or not of integrated crystals of one space group, or of another geometry.
    RunNotFoundError
        One is not there.
    UnsupportedError
        DIALS is not installed.

    Examples
    --------
    >>> tables = read_dials("integrated")  # doctest: +SKIP
    >>> merged = merge(tables.reflections, space_group="P 43 21 2")  # doctest: +SKIP
    """
    name = Path(path)
    files = [name.with_name(f"{name.name}{suffix}").absolute() for suffix in (".expt", ".refl")]
    for one in files:
        if not one.is_file():
            raise RunNotFoundError(f"{one}: there is no such file")
    plain = _plain(files[0])
    with open(files[1], "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise FormatError(f"{files[1]}: is no reflection table of DIALS 2 or later; write it anew with a later one")
    with tempfile.TemporaryDirectory(prefix="lcls-dask-dials-") as folder:
        arrays = Path(folder) / "tables.npz"
        known = Path(folder) / "plain.expt"
        known.write_text(plain)
        command = [dials_python(), "-I", str(_SCRIPT), "read", str(arrays), str(known), str(files[1])]
        run_program(command, 100, Path(folder))
        with np.load(arrays) as told:
            found = dict(told)
    if len(found["hall"]) > 1:
        raise FormatError(f"{files[0]}: has crystals of {' and '.join(found['hall'])}; split them first")
    if geometry is not None and len(geometry.panels) != int(found["panels"]):
        raise FormatError(f"{files[0]}: has {found['panels']} panels, and the geometry {len(geometry.panels)}")
    if len(found["panel"]) and not found["panel"].max() < found["panels"]:
        raise FormatError(f"{files[1]}: has a reflection on panel {found['panel'].max()} of {found['panels']}")
    return _tables(_along_z(found, files[0]), geometry, files[0])


def _plain(path: Path) -> str:
    """What of a file of experiments is data and nothing else."""
    try:
        told = json.loads(path.read_bytes())
        if told["__id__"] != "ExperimentList":
            raise ValueError(told["__id__"])
        kept: dict[str, Any] = {part: told.get(part, []) for part in _PARTS}
        kept["experiment"] = [
            {name: one[name] for name in ("__id__", "identifier", *_PARTS) if name in one} for one in told["experiment"]
        ]
        return json.dumps({"__id__": "ExperimentList", "imageset": [], "profile": [], "scaling_model": []} | kept)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: is no list of experiments of DIALS 2 or later") from error


def _along_z(found: dict[str, Array], path: Path) -> dict[str, Array]:
    """The same in our laboratory."""
    if not len(found["beam"]):
        return found
    beam = found["beam"] / np.linalg.norm(found["beam"], axis=1)[:, None]
    along = beam[:, 2]
    if (np.abs(along) < 1 - 1e-6).any():
        raise FormatError(f"{path}: has a beam along {beam[np.abs(along).argmin()].round(4).tolist()}, and not along z")
    turn = np.stack([np.sign(along), np.ones(len(along)), np.sign(along)], axis=1)
    return found | {"matrix": found["matrix"] * turn[:, None], "origin": found["origin"] * turn[:, None]}


def _shifts(origin: Array, geometry: Geometry, path: Path) -> Array:
    """How far each detector is from the geometry's, across the beam."""
    away = origin * 1e-3 - _corners(geometry.vectors, _starts(geometry))
    shift: Array = away[:, 0, :2]
    aside = np.abs(away[..., :2] - shift[:, None]).max(initial=0.0)
    along = np.abs(away[..., 2]).max(initial=0.0)
    # where a distance was refined, it is some 1e-3 of it
    if aside > 0.5 * np.linalg.norm(geometry.vectors[0, 0]) or along > 0.01 * geometry.distance:
        far = 1e3 * max(aside, along)
        raise FormatError(f"{path}: its panels lie up to {far:.3g} mm elsewhere than the geometry's")
    return shift


def _tables(found: dict[str, Array], geometry: Geometry | None, path: Path) -> DialsTables:
    matrix, count = found["matrix"], len(found["matrix"])
    kept = found["integrated"] & (found["id"] >= 0) & (found["id"] < count)
    rows = np.flatnonzero(kept)[np.argsort(found["id"][kept], kind="stable")]
    offset = np.concatenate([[0], np.cumsum(np.bincount(found["id"][rows], minlength=count))])
    panel, place = found["panel"][rows], found["place"][rows] - 0.5
    segment, shift = panel, np.full((count, 2), np.nan)
    if geometry is not None:
        shift = _shifts(found["origin"], geometry, path)
        segment = np.array([one.segment for one in geometry.panels])[panel]
        place = place + _starts(geometry)[panel]
    columns = (
        {"offset": offset}
        | {name: found["hkl"][rows, axis] for axis, name in enumerate("hkl")}
        | {
            "intensity": found["intensity"][rows].astype(np.float32),
            "sigma": np.sqrt(found["variance"][rows]).astype(np.float32),
            "background": found["background"][rows].astype(np.float32),
            "fs": place[:, 0].astype(np.float32),
            "ss": place[:, 1].astype(np.float32),
            "segment": segment.astype(np.int32),
        }
    )
    known = {"matrix": matrix, "shift": shift}
    made = crystals_dataset(np.ones(count, np.int64), known, None, {"method": "dials"})
    if count:
        hall = str(found["hall"][0])
        group = gemmi().find_spacegroup_by_ops(gemmi().symops_from_hall(hall))
        if group is None:
            raise FormatError(f"{path}: has crystals in an uncommon setting ({hall}); reindex them first")
        made.attrs |= {"cell": made["cell"].median("crystal").values.tolist(), "space_group": group.xhm()}
    told = {"identifier": ("event", found["identifier"]),
            "photon_energy": ("event", EV_ANGSTROM / found["wavelength"], {"units": "eV"})}  # fmt: skip
    return DialsTables(
        made.assign_coords(told),
        reflections_dataset(columns, made.attrs).assign_attrs(left_out=int(len(kept) - len(rows))),
    )
