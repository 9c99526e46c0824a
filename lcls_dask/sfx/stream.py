"""CrystFEL's stream files (2.3): peaks, crystals and reflections of each frame, in both directions.

In a stream places are of the slab of all segments and counted from the corner of a pixel; here from its centre, half a
pixel less. Written from the format's description in CrystFEL's manual and published examples of streams.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import dask
import numpy as np
import xarray as xr

from ..errors import ArgumentError, FormatError, RunNotFoundError
from ..reduce.ragged import Ragged
from .cell import Cell, as_cell, cell_of_text, lattice_words
from .crystals import crystals_dataset, parameters_of
from .files import whole_file
from .geometry.model import Geometry

Array = np.ndarray[Any, np.dtype[Any]]

_HALF = 0.5
_FIRST_LINE = "CrystFEL stream format 2."


@dataclass(frozen=True)
class Stream:
    """What a stream holds.

    Attributes
    ----------
    peaks : xarray.Dataset
        Rows are frames: `fs`, `ss`, `intensity`, `panel`, and `segment` where a geometry was given.
    crystals : xarray.Dataset
        As `index` gives them; coordinates over `event`: `filename`, `event_name`, `serial`, `photon_energy`, `hit`,
        `indexed_by`.
    reflections : xarray.Dataset
        Rows are crystals, as `integrate` gives them.
    cell : Cell or None
        The target cell.
    geometry_text : str
        The geometry file that it was made with.
    """

    peaks: xr.Dataset
    crystals: xr.Dataset
    reflections: xr.Dataset
    cell: Cell | None
    geometry_text: str


@dataclass
class _Columns:
    """What is gathered while reading."""

    frames: list[dict[str, str]] = field(default_factory=list)
    peaks: list[list[list[str]]] = field(default_factory=list)
    crystals: list[dict[str, str]] = field(default_factory=list)
    crystals_of_frame: list[int] = field(default_factory=list)
    reflections: list[list[list[str]]] = field(default_factory=list)
    geometry: list[str] = field(default_factory=list)
    cell: list[str] = field(default_factory=list)


class _Lines:
    """Lines of a file with their numbers, for errors that say where."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._lines, self.number, self._path = iter(file), 0, path

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number += 1
        return next(self._lines).rstrip("\n")

    def until(self, end: str, what: str) -> Iterator[str]:
        """Lines up to the one that begins with `end`."""
        for line in self:
            if line.startswith(end):
                return
            yield line
        raise FormatError(f"{self._path}: ends at line {self.number} within {what}; it was cut off")

    def wrong(self, what: str) -> FormatError:
        """An error at this line."""
        return FormatError(f"{self._path}: line {self.number}: {what}")


def read_stream(path: str | Path, geometry: Geometry | None = None) -> Stream:
    """Read a stream.

    Parameters
    ----------
    path : str or Path
    geometry : Geometry, optional
        To tell segments apart; without it `fs` and `ss` are places in the slab.

    Returns
    -------
    Stream

    Raises
    ------
    FormatError
        It is no stream, or is damaged or cut off; the error says in which line.

    Examples
    --------
    >>> stream = read_stream("lysozyme.stream")  # doctest: +SKIP
    >>> merged = merge(stream.reflections, space_group="P 43 21 2")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_file():
        raise RunNotFoundError(f"{path}: there is no such file")
    found = _Columns()
    with path.open(errors="replace") as file:
        lines = _Lines(file, path)
        if not next(lines, "").startswith(_FIRST_LINE):
            raise lines.wrong(f"'{_FIRST_LINE}x' is wanted: this is no stream")
        for line in lines:
            if line == "----- Begin geometry file -----":
                found.geometry = list(lines.until("----- End geometry file -----", "the geometry"))
            elif line == "----- Begin unit cell -----":
                found.cell = list(lines.until("----- End unit cell -----", "the cell"))
            elif line == "----- Begin chunk -----":
                _read_chunk(lines, found)
    cell = cell_of_text("\n".join(found.cell), f"{path}: the cell") if found.cell else None
    try:
        return _stream(found, cell, geometry)
    except (ValueError, IndexError, KeyError) as error:
        if isinstance(error, ArgumentError | FormatError):
            raise
        raise FormatError(f"{path}: something in it is no number: {error}") from None


def _read_chunk(lines: _Lines, found: _Columns) -> None:
    frame: dict[str, str] = {}
    peaks: list[list[str]] = []
    before = len(found.crystals)
    for line in lines.until("----- End chunk -----", "a frame"):
        if line == "Peaks from peak search":
            peaks = _table(lines, "End of peak list", "the peaks", 5)
        elif line == "--- Begin crystal":
            found.crystals.append(_read_crystal(lines, found))
        else:
            name, equals, value = line.partition("=" if " = " in line else ":")
            if equals:
                frame[name.strip()] = value.strip()
    found.frames.append(frame)
    found.peaks.append(peaks)
    found.crystals_of_frame.append(len(found.crystals) - before)


def _read_crystal(lines: _Lines, found: _Columns) -> dict[str, str]:
    crystal: dict[str, str] = {}
    reflections: list[list[str]] = []
    for line in lines.until("--- End crystal", "a crystal"):
        if line == "Reflections measured after indexing":
            reflections = _table(lines, "End of reflections", "the reflections", 10)
        else:
            name, _, value = line.partition(" = ")
            crystal[name.strip()] = value.strip()
    for name in ("astar", "bstar", "cstar"):
        if len(crystal.get(name, "").split()) < 3:
            raise lines.wrong(f"a crystal without three numbers of {name}")
    found.reflections.append(reflections)
    return crystal


def _table(lines: _Lines, end: str, what: str, columns: int) -> list[list[str]]:
    rows = lines.until(end, what)
    next(rows, None)  # the names of the columns
    made = []
    for row in rows:
        values = row.split()
        if len(values) != columns:
            raise lines.wrong(f"{columns} columns are wanted in {what}, not {len(values)}")
        made.append(values)
    return made


def _edges(counts: list[int]) -> Array:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _columns(tables: list[list[list[str]]], columns: int) -> list[list[str]]:
    rows = [row for table in tables for row in table]
    return [[row[i] for row in rows] for i in range(columns)]


def _places(fs: list[str], ss: list[str], panel: list[str], geometry: Geometry | None, dim: str) -> dict[str, Any]:
    x, y = np.array(fs, np.float64) - _HALF, np.array(ss, np.float64) - _HALF
    made: dict[str, Any] = {"panel": (dim, np.array(panel, np.str_))}
    if geometry is not None:
        segment, y, x = geometry.from_slab(y, x)
        made["segment"] = (dim, segment.astype(np.int32))
    return made | {
        name: (dim, values.astype(np.float32), {"units": "pixel"}) for name, values in (("fs", x), ("ss", y))
    }


def _first_number(text: str, otherwise: float) -> float:
    return float(text.split()[0]) if text else otherwise


def _stream(found: _Columns, cell: Cell | None, geometry: Geometry | None) -> Stream:
    frames = found.frames
    fs, ss, _, intensity, panel = _columns(found.peaks, 5)
    peaks = xr.Dataset(
        {
            "offset": ("row_edge", _edges([len(table) for table in found.peaks])),
            "intensity": ("peak", np.array(intensity, np.float32)),
            **_places(fs, ss, panel, geometry, "peak"),
        }
    )
    vectors = [[crystal[f"{axis}star"].split()[:3] for axis in "abc"] for crystal in found.crystals]
    matrix = np.array(vectors, np.float64).reshape(-1, 3, 3) / 10
    shift = np.full((len(matrix), 2), np.nan)
    for i, crystal in enumerate(found.crystals):
        words = crystal.get("predict_refine/det_shift x", "").split()
        if len(words) >= 4:  # "0.010 y = -0.032 mm"
            shift[i] = float(words[0]) * 1e-3, float(words[3]) * 1e-3
    radius = np.array([_first_number(crystal.get("profile_radius", ""), np.nan) / 10 for crystal in found.crystals])
    columns = {"matrix": matrix, "shift": shift, "profile_radius": radius}
    crystals = crystals_dataset(np.array(found.crystals_of_frame, np.int64), columns, cell, {"method": "stream"})
    crystals = crystals.assign_coords(
        filename=("event", np.array([frame.get("Image filename", "") for frame in frames], np.str_)),
        event_name=("event", np.array([frame.get("Event", "") for frame in frames], np.str_)),
        serial=("event", np.array([int(frame.get("Image serial number", 0)) for frame in frames], np.int64)),
        photon_energy=("event", np.array([_first_number(f.get("photon_energy_eV", ""), np.nan) for f in frames])),
        hit=("event", np.array([frame.get("hit", "0") == "1" for frame in frames], np.bool_)),
        indexed_by=("event", np.array([frame.get("indexed_by", "none") for frame in frames], np.str_)),
    )
    h, k, l, value, sigma, peak, background, fs, ss, panel = _columns(found.reflections, 10)  # noqa: E741
    numbers = {"intensity": value, "sigma": sigma, "peak": peak, "background": background}
    reflections = xr.Dataset(
        {
            "offset": ("row_edge", _edges([len(table) for table in found.reflections])),
            **{name: ("reflection", np.array(v, np.int32)) for name, v in (("h", h), ("k", k), ("l", l))},
            **{name: ("reflection", np.array(v, np.float32)) for name, v in numbers.items()},
            **_places(fs, ss, panel, geometry, "reflection"),
        },
        attrs=crystals.attrs,
    )
    return Stream(peaks, crystals, reflections, cell, "\n".join(found.geometry))


def write_stream(
    path: str | Path,
    crystals: "xr.Dataset | Ragged",
    reflections: "xr.Dataset | Ragged",
    peaks: "xr.Dataset | Ragged | None" = None,
    *,
    geometry: Geometry | None = None,
    geometry_text: str = "",
    filename: str = "",
) -> None:
    """Write a stream that CrystFEL's programs read.

    Parameters
    ----------
    path : str or Path
    crystals : xarray.Dataset or Ragged
        What `index` gave, or `read_stream`. A Ragged is computed.
    reflections : xarray.Dataset or Ragged
        Of these crystals: what `integrate` gave.
    peaks : xarray.Dataset or Ragged, optional
        Of these events: what `find_peaks` gave.
    geometry : Geometry, optional
        That of `segment`, `fs` and `ss`; without it these are places in the slab, as `read_stream` gives them.
    geometry_text : str
        The geometry file, which goes along.
    filename : str
        Of the frames, where the events have no coordinate `filename`: the CXI file that they are in.

    Raises
    ------
    ArgumentError
        Reflections or peaks are not of these crystals.
    TargetExistsError
        The file is there already.

    Examples
    --------
    >>> write_stream("run5.stream", crystals, reflections)  # doctest: +SKIP
    """
    found, spots, seen = dask.compute(crystals, reflections, peaks)  # type: ignore[attr-defined,no-untyped-call]
    _write(Path(path), found, spots, seen, geometry, geometry_text, filename)


def _write(
    path: Path,
    crystals: xr.Dataset,
    reflections: xr.Dataset,
    peaks: xr.Dataset | None,
    geometry: Geometry | None,
    geometry_text: str,
    filename: str,
) -> None:
    offset, rows = crystals["offset"].values, reflections["offset"].values
    if len(rows) - 1 != crystals.sizes["crystal"]:
        raise ArgumentError(f"reflections: are of {len(rows) - 1} crystals, and there are {crystals.sizes['crystal']}")
    events = len(offset) - 1
    peak_edges = None if peaks is None else peaks["offset"].values
    if peak_edges is not None:
        if (len(peak_edges) - 1) % max(events, 1) or (len(peak_edges) > 1 and not events):
            raise ArgumentError(f"peaks: have {len(peak_edges) - 1} rows, which are not of {events} events")
        peak_edges = peak_edges[:: max((len(peak_edges) - 1) // max(events, 1), 1)]
    cell = as_cell(crystals.attrs["cell"], crystals.attrs.get("space_group")) if "cell" in crystals.attrs else None
    spot = _written_places(reflections, "reflection", geometry)
    peak = None if peaks is None else _written_places(peaks, "peak", geometry)
    with whole_file(path) as place, place.open("w") as file:
        file.write("CrystFEL stream format 2.3\nGenerated by lcls_dask\n")
        if geometry_text:
            file.write(f"----- Begin geometry file -----\n{geometry_text}\n----- End geometry file -----\n")
        if cell is not None:
            file.write(f"----- Begin unit cell -----\n{cell_text(cell)}----- End unit cell -----\n")
        for event in range(events):
            file.write("----- Begin chunk -----\n")
            _write_frame(file, crystals, event, filename, None if geometry is None else geometry.photon_energy)
            if peaks is not None and peak is not None and peak_edges is not None:
                _write_peaks(file, peaks, slice(peak_edges[event], peak_edges[event + 1]), peak)
            for number in range(offset[event], offset[event + 1]):
                _write_crystal(file, crystals, number, cell, reflections, slice(rows[number], rows[number + 1]), spot)
            file.write("----- End chunk -----\n")


def _written_places(table: xr.Dataset, dim: str, geometry: Geometry | None) -> tuple[Array, Array, Array]:
    """fs, ss in the slab, from the corner, and the panel of each row."""
    fs, ss = table["fs"].values.astype(np.float64), table["ss"].values.astype(np.float64)
    if geometry is None:
        panel = table["panel"].values if "panel" in table else np.full(table.sizes[dim], "p0")
        return fs + _HALF, ss + _HALF, panel
    if "segment" in table.data_vars:
        segment = table["segment"].values
    else:
        edges = table["offset"].values
        segment = np.repeat(np.arange(len(edges) - 1), np.diff(edges)) % geometry.shape[0]
    names = np.array([panel.name for panel in geometry.panels] + ["none"])
    panel = names[geometry.panel_of(segment, ss, fs)]
    slab_ss, slab_fs = geometry.to_slab(segment, ss, fs)
    return slab_fs + _HALF, slab_ss + _HALF, panel


def cell_text(cell: Cell) -> str:
    """The cell as a CrystFEL cell file has it.

    Parameters
    ----------
    cell : Cell

    Returns
    -------
    str

    Examples
    --------
    >>> print(cell_text(Cell((79.1, 79.1, 37.9, 90, 90, 90), "P 43 21 2")).splitlines()[2])
    lattice_type = tetragonal
    """
    kind, centring, axis = lattice_words(cell)
    lines = ["CrystFEL unit cell file version 1.0", "", f"lattice_type = {kind}", f"centering = {centring}"]
    lines += [f"unique_axis = {axis}"] if axis != "*" else []
    names = ("a", "b", "c", "al", "be", "ga")
    units = ("A", "A", "A", "deg", "deg", "deg")
    lines += [f"{name} = {value:.4f} {unit}" for name, value, unit in zip(names, cell.parameters, units, strict=True)]
    return "\n".join(lines) + "\n"


def _at(crystals: xr.Dataset, name: str, event: int, otherwise: Any) -> Any:
    return crystals[name].values[event] if name in crystals.coords else otherwise


def _write_frame(file: TextIO, crystals: xr.Dataset, event: int, filename: str, photon_energy: float | None) -> None:
    edges = crystals["offset"].values
    some = int(edges[event + 1] - edges[event])
    file.write(f"Image filename: {_at(crystals, 'filename', event, filename or 'frames.cxi')}\n")
    name = _at(crystals, "event_name", event, f"//{event}")
    file.write(f"Event: {name}\n" if name else "")
    file.write(f"Image serial number: {_at(crystals, 'serial', event, event + 1)}\n")
    file.write(f"hit = {int(_at(crystals, 'hit', event, some > 0))}\n")
    by = _at(crystals, "indexed_by", event, "lcls_dask-lattice" if some else "none")
    file.write(f"indexed_by = {by}\n")
    energy = _at(crystals, "photon_energy", event, np.nan if photon_energy is None else photon_energy)
    file.write(f"photon_energy_eV = {energy:.6f}\n" if np.isfinite(energy) else "")


def _write_peaks(file: TextIO, peaks: xr.Dataset, rows: slice, place: tuple[Array, Array, Array]) -> None:
    d = peaks["q"].values[rows] if "q" in peaks else np.zeros((rows.stop - rows.start, 3))
    intensity = peaks["intensity"].values[rows]
    file.write(f"num_peaks = {len(intensity)}\nPeaks from peak search\n")
    file.write("  fs/px   ss/px (1/d)/nm^-1   Intensity  Panel\n")
    fs, ss, panel = (column[rows] for column in place)
    for i in range(len(intensity)):
        size = 10 * float(np.linalg.norm(d[i]))
        file.write(f"{fs[i]:7.2f} {ss[i]:7.2f} {size:10.2f}  {intensity[i]:10.2f}   {panel[i]}\n")
    file.write("End of peak list\n")


def _write_crystal(
    file: TextIO,
    crystals: xr.Dataset,
    number: int,
    cell: Cell | None,
    reflections: xr.Dataset,
    rows: slice,
    place: tuple[Array, Array, Array],
) -> None:
    matrix = crystals["matrix"].values[number]
    values = parameters_of(matrix)
    file.write("--- Begin crystal\n")
    file.write("Cell parameters " + " ".join(f"{value / 10:.5f}" for value in values[:3]) + " nm, ")
    file.write(" ".join(f"{value:.5f}" for value in values[3:]) + " deg\n")
    for name, axis in zip(("astar", "bstar", "cstar"), 10 * matrix, strict=True):
        file.write(f"{name} = {axis[0]:+.7f} {axis[1]:+.7f} {axis[2]:+.7f} nm^-1\n")
    if cell is not None:
        kind, centring, axis_name = lattice_words(cell)
        file.write(f"lattice_type = {kind}\ncentering = {centring}\n")
        file.write(f"unique_axis = {axis_name}\n" if axis_name != "*" else "")
    if "profile_radius" in crystals and np.isfinite(crystals["profile_radius"].values[number]):
        file.write(f"profile_radius = {10 * crystals['profile_radius'].values[number]:.5f} nm^-1\n")
    shift = 1e3 * crystals["shift"].values[number]
    if np.isfinite(shift).all():
        file.write(f"predict_refine/det_shift x = {shift[0]:.3f} y = {shift[1]:.3f} mm\n")
    file.write(f"num_reflections = {rows.stop - rows.start}\n")
    file.write("Reflections measured after indexing\n")
    file.write("   h    k    l          I   sigma(I)       peak background  fs/px  ss/px panel\n")
    columns = [reflections[name].values[rows] for name in ("h", "k", "l", "intensity", "sigma")]
    columns += [
        reflections[name].values[rows] if name in reflections else np.zeros(rows.stop - rows.start)
        for name in ("peak", "background")
    ]
    columns += [column[rows] for column in place]
    for h, k, l, value, sigma, peak, background, fs, ss, panel in zip(*columns, strict=True):  # noqa: E741
        file.write(
            f"{h:4d} {k:4d} {l:4d} {value:10.2f} {sigma:10.2f} {peak:10.2f} {background:10.2f} "
            f"{fs:6.1f} {ss:6.1f} {panel}\n"
        )
    file.write("End of reflections\n--- End crystal\n")
