"""Crystals and reflections as DIALS keeps them: ``.expt`` and ``.refl``, written and read by DIALS itself."""

import tempfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError, FormatError, RunNotFoundError
from .cell import as_cell
from .crystals import crystals_dataset, energies_of
from .files import whole_file
from .geometry.model import EV_ANGSTROM, Geometry
from .integration import reflections_dataset
from .programs import dials_python, run_program

Array = np.ndarray[Any, np.dtype[Any]]

#: How a reflection table begins. DIALS takes any other file for a pickle, which would run what is in it.
_MAGIC = b"\x93\xbbdials::af::reflection_table"
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
    crystals: xr.Dataset,
    reflections: xr.Dataset,
    geometry: Geometry,
    *,
    photon_energy: float | None = None,
) -> None:
    """Write ``PATH.expt`` and ``PATH.refl``: stills, each with its crystal, and their integrated reflections.

    What `dials.scale`, `dials.merge`, `dials.report` and `cctbx.xfel.merge` go on from. No image is named in them.

    Parameters
    ----------
    path : str or Path
        Without a suffix.
    crystals : xarray.Dataset
        What `index` or `read_stream` gave, computed.
    reflections : xarray.Dataset
        What `integrate` gave for them, computed.
    geometry : Geometry
    photon_energy : float, optional
        [eV]; that of each event by default, or of the geometry.

    Raises
    ------
    ArgumentError
        Crystals and reflections do not belong together, or do not say what cell was looked for.
    TargetExistsError
        A file is there already.
    UnsupportedError
        DIALS is not installed.

    Examples
    --------
    >>> write_dials("run5", crystals, reflections, geometry)  # doctest: +SKIP
    """
    told = _arrays(crystals, reflections, geometry, photon_energy)
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
    edges, first = crystals["offset"].values, reflections["offset"].values
    matrix = crystals["matrix"].values
    if "segment" not in reflections:
        raise ArgumentError("reflections: do not say on which segment they are; read the stream with its geometry")
    if len(first) - 1 != len(matrix):
        raise ArgumentError(f"reflections: are of {len(first) - 1} crystals, and there are {len(matrix)}")
    event = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    owner = np.repeat(np.arange(len(matrix)), np.diff(first))
    wavelength = (EV_ANGSTROM / energies_of(crystals, geometry, photon_energy))[event]
    shift = np.nan_to_num(crystals["shift"].values)
    segment, row, column = (reflections[name].values for name in ("segment", "ss", "fs"))
    panel = geometry.panel_of(segment, row, column)
    if (panel < 0).any():
        raise ArgumentError(f"reflection {int((panel < 0).argmax())}: lies on no panel of this geometry")
    beam = geometry.place(segment, row, column)
    beam[:, :2] += shift[owner]
    hkl = np.stack([reflections[name].values for name in "hkl"], axis=1).astype(np.int32)
    vectors = geometry.vectors * 1e3
    starts = np.array([(one.column0, one.row0) for one in geometry.panels])
    # of DIALS' panels the origin is the corner of their first pixel
    vectors[:, 2] += ((starts[:, :, None] - 0.5) * vectors[:, :2]).sum(axis=1)
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
        "space_group": np.array(as_cell(crystals.attrs["cell"], crystals.attrs.get("space_group")).space_group),
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


def read_dials(path: str | Path, geometry: Geometry | None = None) -> DialsTables:
    """Read ``PATH.expt`` and ``PATH.refl``, which `write_dials` or a program of DIALS wrote.

    Intensities are those by summation; by profile fitting where there are no others.

    Parameters
    ----------
    path : str or Path
        Without a suffix.
    geometry : Geometry, optional
        To tell segments apart, its panels in the order of theirs; without it `segment` is the panel, and `fs` and `ss`
        are places on it.

    Returns
    -------
    DialsTables

    Raises
    ------
    FormatError
        They are not such files, or not of integrated crystals of one space group.
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
    with open(files[1], "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise FormatError(f"{files[1]}: is no reflection table of DIALS 2 or later; write it anew with a later one")
    with tempfile.TemporaryDirectory(prefix="lcls-dask-dials-") as folder:
        arrays = Path(folder) / "tables.npz"
        run_program([dials_python(), "-I", str(_SCRIPT), "read", str(arrays), *map(str, files)], 100, Path(folder))
        with np.load(arrays) as told:
            found = dict(told)
    if len(found["space_group"]) > 1:
        raise FormatError(f"{files[0]}: has crystals of {' and '.join(found['space_group'])}; split them first")
    if geometry is not None and len(geometry.panels) != int(found["panels"]):
        raise FormatError(f"{files[0]}: has {found['panels']} panels, and the geometry {len(geometry.panels)}")
    return _tables(found, geometry)


def _tables(found: dict[str, Array], geometry: Geometry | None) -> DialsTables:
    matrix, count = found["matrix"], len(found["matrix"])
    kept = found["integrated"] & (found["id"] >= 0) & (found["id"] < count)
    rows = np.flatnonzero(kept)[np.argsort(found["id"][kept], kind="stable")]
    offset = np.concatenate([[0], np.cumsum(np.bincount(found["id"][rows], minlength=count))])
    panel, place = found["panel"][rows], found["place"][rows] - 0.5
    segment = panel
    if geometry is not None:
        of = np.array([(one.segment, one.column0, one.row0) for one in geometry.panels])[panel]
        segment, place = of[:, 0], place + of[:, 1:]
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
    blank = {"shift": np.full((count, 2), np.nan)}
    made = crystals_dataset(np.ones(count, np.int64), {"matrix": matrix} | blank, None, {"method": "dials"})
    if count:
        axes = made["cell"].median("crystal").values.tolist()
        made.attrs |= {"cell": axes, "space_group": str(found["space_group"][0])}
    told = {"identifier": ("event", found["identifier"]),
            "photon_energy": ("event", EV_ANGSTROM / found["wavelength"], {"units": "eV"})}  # fmt: skip
    return DialsTables(
        made.assign_coords(told),
        reflections_dataset(columns, made.attrs).assign_attrs(left_out=int(len(kept) - len(rows))),
    )
