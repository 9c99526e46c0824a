"""CrystFEL's geometry files: panels of a slab of pixels, rigid groups, bad regions, masks.

The format is that of the manual page crystfel_geometry(5). Corners are where pixels begin, in pixels; here they become
the centres of first pixels, in metres.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArgumentError, FormatError
from .model import EV_ANGSTROM, Geometry, Panel

Array = np.ndarray[Any, np.dtype[Any]]

#: Rows and columns of the segments that LCLS detectors consist of: Jungfrau, ePix10ka, CSPAD, ePix100.
SEGMENTS = ((512, 1024), (352, 384), (185, 388), (704, 768))

_LENGTHS = {"m": 1.0, "mm": 1e-3}
_ENERGIES = {"eV": 1.0, "keV": 1e3, "MeV": 1e6}
_COMPONENT = re.compile(r"([+-]?\s*[0-9.]*(?:[eE][+-]?\d+)?)\s*\*?\s*([xyz])")


@dataclass
class Block:
    """The entries of one panel, or of one bad region."""

    name: str
    told: dict[str, str] = field(default_factory=dict)
    where: str = ""

    def number(self, key: str, default: float | None = None) -> float:
        """A number among them."""
        text = self.told.get(key)
        if text is None:
            if default is None:
                raise FormatError(f"{self.where}: {self.name}/{key} is missing")
            return default
        try:
            value = float(text.split()[0])
        except (ValueError, IndexError):
            raise FormatError(f"{self.where}: {self.name}/{key} is {text!r}, not a number") from None
        if not np.isfinite(value):
            raise FormatError(f"{self.where}: {self.name}/{key} is {text!r}, not a finite number")
        return value

    def whole(self, key: str) -> int:
        """A whole number among them."""
        value = self.number(key)
        if value != round(value) or abs(value) > 1 << 30:
            raise FormatError(f"{self.where}: {self.name}/{key} is {self.told[key]!r}, not a whole number")
        return round(value)

    def vector(self, key: str) -> Array:
        """A direction among them, such as ``+0.01x -1.0y``."""
        text = self.told.get(key)
        if text is None:
            raise FormatError(f"{self.where}: {self.name}/{key} is missing")
        found, rest = np.zeros(3), text.replace(" ", "")
        while rest:
            match = _COMPONENT.match(rest)
            try:
                if match is None:
                    raise ValueError
                size = match[1] + "1" if match[1] in ("", "+", "-") else match[1]
                found["xyz".index(match[2])] += float(size)
            except ValueError:
                raise FormatError(f"{self.where}: {self.name}/{key} is {text!r}, not like '+0.1x -1.0y'") from None
            rest = rest[match.end() :]
        return found


@dataclass(frozen=True)
class Entries:
    """What a file says.

    Attributes
    ----------
    top : dict of str to str
        Outside of panels, as it stands at the end of the file.
    panels, bad : list of Block
    groups : dict of str to list of str
        Members of each rigid group, which may be groups.
    """

    top: dict[str, str]
    panels: list[Block]
    bad: list[Block]
    groups: dict[str, list[str]]


def parse(text: str, where: str) -> Entries:
    """Read the entries of a file.

    Parameters
    ----------
    text : str
    where : str
        What errors call it.

    Returns
    -------
    Entries

    Raises
    ------
    FormatError
        A line is no entry, or there is no panel.

    Examples
    --------
    >>> found = parse("clen = 0.1\\np0/min_fs = 0\\nbadbeam/min_x = -5\\nrigid_group_q0 = p0", "a.geom")
    >>> [block.name for block in found.panels], found.groups
    (['p0'], {'q0': ['p0']})
    """
    top: dict[str, str] = {}
    panels: dict[str, Block] = {}
    bad: dict[str, Block] = {}
    groups: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition(";")[0].strip()
        if not entry:
            continue
        key, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or not key:
            raise FormatError(f"{where}: line {number} is {entry[:60]!r}, not 'key = value'")
        name, slash, own = key.partition("/")
        if slash and name.startswith("bad"):
            bad.setdefault(name, Block(name, where=where)).told[own] = value
        elif slash:
            # what stands outside counts for panels that come after it
            block = panels.setdefault(name, Block(name, dict(top) if name not in panels else {}, where))
            block.told[own] = value
        elif match := re.fullmatch(r"(?:rigid_group|group)_(?:collection_)?(.+)", key):
            groups[match[1]] = [member.strip() for member in value.split(",") if member.strip()]
        else:
            top[key] = value
    if not panels:
        raise FormatError(f"{where}: has no panels, so it is no CrystFEL geometry")
    return Entries(top, list(panels.values()), list(bad.values()), groups)


@dataclass(frozen=True)
class Layout:
    """How a slab of pixels is cut into segments.

    Attributes
    ----------
    shape : (int, int, int)
        Segments, rows, columns.
    slab : tuple of (int, int)
        First row and column of each segment.
    indices : tuple of tuple of int
        The fixed indices of each segment, where the file has more dimensions than a slab.
    """

    shape: tuple[int, int, int]
    slab: tuple[tuple[int, int], ...]
    indices: tuple[tuple[int, ...], ...] = ()

    def place(self, ss: int, fs: int, index: tuple[int, ...]) -> tuple[int, int, int]:
        """Segment, row and column."""
        _, rows, columns = self.shape
        if self.indices:
            return self.indices.index(index), ss, fs
        for segment, (row, column) in enumerate(self.slab):
            if row <= ss < row + rows and column <= fs < column + columns:
                return segment, ss - row, fs - column
        raise ArgumentError(f"pixel fs={fs}, ss={ss} is in none of {len(self.slab)} segments of {rows} x {columns}")


def _index(block: Block) -> tuple[int, ...]:
    """Fixed indices of a panel: those of dimensions that are neither events, nor ss or fs."""
    dims = sorted(key for key in block.told if re.fullmatch(r"dim\d+", key))
    return tuple(block.whole(key) for key in dims if block.told[key] not in ("%", "ss", "fs"))


def layout_of(panels: list[Block], shape: tuple[int, int, int] | None) -> Layout:
    """Cut the slab into segments.

    Parameters
    ----------
    panels : list of Block
    shape : (int, int, int) or None
        Segments, rows, columns; by default those of an LCLS detector whose segments fill the slab, or else one.

    Returns
    -------
    Layout

    Examples
    --------
    >>> told = {"min_fs": "0", "max_fs": "1023", "min_ss": "0", "max_ss": "4095"}
    >>> layout_of([Block("all", told)], None).shape
    (8, 512, 1024)
    """
    height = max(block.whole("max_ss") for block in panels) + 1
    width = max(block.whole("max_fs") for block in panels) + 1
    indices = tuple(sorted({_index(block) for block in panels}))
    if len(indices) > 1:
        made = (len(indices), height, width) if shape is None else shape
        return Layout(made, tuple((segment * made[1], 0) for segment in range(made[0])), indices)
    if shape is None:
        rows, columns = next(
            ((rows, columns) for rows, columns in SEGMENTS if height % rows == 0 and width % columns == 0),
            (height, width),
        )
        # segments beside each other are in columns from top to bottom, as in Cheetah's slabs of the CSPAD
        down, across = height // rows, width // columns
        return Layout(
            (down * across, rows, columns),
            tuple((row * rows, column * columns) for column in range(across) for row in range(down)),
        )
    segments, rows, columns = shape
    return Layout(shape, tuple((segment * rows, 0) for segment in range(segments)))


def groups_of(groups: Mapping[str, list[str]], panels: list[str]) -> dict[str, tuple[str, ...]]:
    """The rigid groups that each panel is in, by themselves or through other groups.

    Parameters
    ----------
    groups : mapping of str to list of str
    panels : list of str

    Returns
    -------
    dict of str to tuple of str

    Examples
    --------
    >>> groups_of({"q0": ["p0", "p1"], "all": ["q0"]}, ["p0", "p2"])
    {'p0': ('q0', 'all'), 'p2': ()}
    """

    def _members(name: str, seen: frozenset[str]) -> Iterator[str]:
        for member in groups.get(name, []):
            if member in panels:
                yield member
            if member in groups and member not in seen:
                yield from _members(member, seen | {member})

    within = {name: set(_members(name, frozenset({name}))) for name in groups}
    return {panel: tuple(name for name, inside in within.items() if panel in inside) for panel in panels}


def panel_of(block: Block, layout: Layout, groups: tuple[str, ...]) -> Panel:
    """A panel of its entries.

    Parameters
    ----------
    block : Block
    layout : Layout
    groups : tuple of str

    Returns
    -------
    Panel
    """
    ss0, ss1, fs0, fs1 = (block.whole(key) for key in ("min_ss", "max_ss", "min_fs", "max_fs"))
    segment, row, column = layout.place(ss0, fs0, _index(block))
    if row + ss1 - ss0 >= layout.shape[1] or column + fs1 - fs0 >= layout.shape[2]:
        rows, columns = layout.shape[1:]
        raise ArgumentError(
            f"{block.where}: panel {block.name} reaches over segments of {rows} x {columns} pixels; "
            "give their shape by shape=(segments, rows, columns)"
        )
    pixel = 1 / block.number("res")
    fs, ss = block.vector("fs") * pixel, block.vector("ss") * pixel
    corner = np.array(
        [block.number("corner_x") * pixel, block.number("corner_y") * pixel, block.number("coffset", 0.0)]
    )
    x, y, z = (corner + 0.5 * fs + 0.5 * ss).tolist()
    return Panel(
        block.name, segment, row, row + ss1 - ss0 + 1, column, column + fs1 - fs0 + 1, (x, y, z),
        _vector(fs), _vector(ss), groups,
    )  # fmt: skip


def _vector(values: Array) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z


def bad_regions(regions: list[Block], panels: list[Block], geometry: Geometry) -> Array | None:
    """Pixels of bad regions, of panels that are not to be used, and of none.

    Parameters
    ----------
    regions, panels : list of Block
    geometry : Geometry
        Without them.

    Returns
    -------
    (segments, rows, columns) bool or None
        None where there are none.
    """
    out = [
        panel for panel, block in zip(geometry.panels, panels, strict=True) if block.told.get("no_index", "0") != "0"
    ]
    if not regions and not out:
        return None
    bad = np.zeros(geometry.shape, np.bool_)
    x, y, _ = geometry.positions() if any("min_x" in region.told for region in regions) else (None, None, None)
    places = list(zip(geometry.panels, panels, strict=True))
    for panel in out:
        bad[panel.segment, panel.row0 : panel.row1, panel.column0 : panel.column1] = True
    for region in regions:
        only = region.told.get("panel")
        if only is not None and only not in {block.name for block in panels}:
            raise FormatError(f"{region.where}: {region.name} is of panel {only!r}, which there is none of")
        for panel, block in places:
            if only not in (None, block.name):
                continue
            part = bad[panel.segment, panel.row0 : panel.row1, panel.column0 : panel.column1]
            if "min_x" in region.told:
                assert x is not None
                assert y is not None
                size = 1 / block.number("res")
                where = (panel.segment, slice(panel.row0, panel.row1), slice(panel.column0, panel.column1))
                part |= (
                    (x[where] >= region.number("min_x") * size)
                    & (x[where] <= region.number("max_x") * size)
                    & (y[where] >= region.number("min_y") * size)
                    & (y[where] <= region.number("max_y") * size)
                )
            else:
                ss0, fs0 = block.whole("min_ss"), block.whole("min_fs")
                rows = slice(max(region.whole("min_ss") - ss0, 0), max(region.whole("max_ss") - ss0 + 1, 0))
                columns = slice(max(region.whole("min_fs") - fs0, 0), max(region.whole("max_fs") - fs0 + 1, 0))
                part[rows, columns] = True
    return bad


def length(text: str, where: str) -> float | None:
    """The distance that ``clen`` tells [m]; None where it names a place in the data.

    Parameters
    ----------
    text : str
    where : str

    Returns
    -------
    float or None
    """
    return None if text.startswith("/") else _quantity(text, _LENGTHS, "m", f"{where}: clen")


def energy(top: Mapping[str, str], where: str) -> float | None:
    """The photon energy that a file tells [eV]; None where it names a place in the data, or tells none.

    Parameters
    ----------
    top : mapping of str to str
    where : str

    Returns
    -------
    float or None
    """
    if "photon_energy" in top and not top["photon_energy"].startswith("/"):
        return _quantity(top["photon_energy"], _ENERGIES, "eV", f"{where}: photon_energy")
    if "wavelength" in top and not top["wavelength"].startswith("/"):
        return EV_ANGSTROM / _quantity(top["wavelength"], {"A": 1.0, "m": 1e10}, "m", f"{where}: wavelength")
    return None


def _quantity(text: str, units: Mapping[str, float], default: str, what: str) -> float:
    value, _, unit = text.strip().partition(" ")
    try:
        number = float(value) * units[unit.strip() or default]
    except (ValueError, KeyError):
        raise FormatError(f"{what} is {text!r}, not a number with one of the units {', '.join(units)}") from None
    if not (np.isfinite(number) and number > 0):
        raise FormatError(f"{what} is {text!r}, which is not above zero")
    return number


def from_data(data: Path | None, text: str, event: int, what: str) -> float:
    """A number of an event that a geometry file only names the place of.

    Parameters
    ----------
    data : Path or None
        HDF5 file.
    text : str
        Such as ``/LCLS/detector_1/EncoderValue``.
    event : int
    what : str

    Returns
    -------
    float
    """
    if data is None:
        raise ArgumentError(f"{what} is at {text} in the data: give {what}=, or the file by data=")
    import h5py

    path = text.split()[0]
    try:
        with h5py.File(data) as file:
            values = np.asarray(file[path], np.float64).ravel()
        return float(values[0 if values.size == 1 else event])
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise FormatError(f"{data}: {path} does not tell {what} of event {event}: {error}") from None


def crystfel_text(
    geometry: Geometry,
    *,
    adu_per_photon: float = 1.0,
    data: str = "/entry_1/data_1/data",
    mask: str | None = "/entry_1/data_1/mask",
) -> str:
    """A geometry as CrystFEL reads it, of the slab that `write_cxi` writes.

    Parameters
    ----------
    geometry : Geometry
        Its bad pixels are not told; the mask of the data does that.
    adu_per_photon : float
    data, mask : str
        Where the data has them.

    Returns
    -------
    str

    Examples
    --------
    >>> panel = Panel("p0", 0, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
    >>> text = crystfel_text(Geometry((panel,), (1, 4, 6), 0.1, 9500.0))
    >>> [line for line in text.splitlines() if "corner" in line]
    ['p0/corner_x = -0.500000', 'p0/corner_y = -0.500000']
    """
    lines = ["; written by lcls_dask", f"clen = {geometry.distance:.9f}", f"adu_per_photon = {adu_per_photon:g}"]
    if geometry.photon_energy is not None:
        lines.append(f"photon_energy = {geometry.photon_energy:.4f} eV")
    lines += [f"data = {data}", "dim0 = %", "dim1 = ss", "dim2 = fs"]
    if mask is not None:
        lines += [f"mask = {mask}", "mask_good = 0x0000", "mask_bad = 0xffff"]
    members: dict[str, list[str]] = {}
    for panel in geometry.panels:
        for group in panel.groups:
            members.setdefault(group, []).append(panel.name)
    lines += ["", *(f"rigid_group_{group} = {','.join(names)}" for group, names in members.items())]
    if members:
        lines.append(f"rigid_group_collection_all = {','.join(members)}")
    for panel in geometry.panels:
        fs, ss, corner = (np.array(one) for one in (panel.fs, panel.ss, panel.corner))
        size = float(np.linalg.norm(fs))
        x, y, z = corner - 0.5 * fs - 0.5 * ss
        row, column = geometry.slab[panel.segment]
        # ten digits: a hundredth of a pixel a kilometre away
        lines += [
            "",
            f"{panel.name}/min_fs = {column + panel.column0}",
            f"{panel.name}/max_fs = {column + panel.column1 - 1}",
            f"{panel.name}/min_ss = {row + panel.row0}",
            f"{panel.name}/max_ss = {row + panel.row1 - 1}",
            f"{panel.name}/res = {1 / size:.6f}",
            f"{panel.name}/corner_x = {x / size:.6f}",
            f"{panel.name}/corner_y = {y / size:.6f}",
            f"{panel.name}/coffset = {z:.9f}",
            f"{panel.name}/fs = {_components(fs / size)}",
            f"{panel.name}/ss = {_components(ss / size)}",
        ]
    return "\n".join(lines) + "\n"


def _components(vector: Array) -> str:
    return " ".join(f"{value:+.10f}{axis}" for value, axis in zip(vector, "xyz", strict=True))
