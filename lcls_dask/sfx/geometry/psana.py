"""psana's geometry files: segments in a hierarchy of objects, each shifted and turned in its parent.

psana's frame has x down, y to the right seen from the crystal, so that the laboratory's x, y, z are its -y, -x, -z.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import FormatError
from .model import Geometry, Panel

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Segment:
    """Pixels of a kind of segment, about its centre [um].

    Attributes
    ----------
    rows, columns : tuple of (int, float)
        Where the rows and columns of each ASIC begin: number and place of the first.
    shape : (int, int)
    pitch : (float, float)
        Step to the next row, y, and to the next column, x.
    """

    rows: tuple[tuple[int, float], ...]
    columns: tuple[tuple[int, float], ...]
    shape: tuple[int, int]
    pitch: tuple[float, float]


_JUNGFRAU_COLUMNS = ((0, -38587.5), (256, -19237.5), (512, 112.5), (768, 19462.5))

#: By psana's names. Pixels between ASICs that are wider than others are taken to be as others are.
SEGMENTS = {
    "SENS2X1:V1": Segment(((0, 10112.64),), ((0, -21434.4), (194, 219.84)), (185, 388), (-109.92, 109.92)),
    "EPIX10KA:V1": Segment(((0, 17675.0), (176, -175.0)), ((0, -19275.0), (192, 175.0)), (352, 384), (-100.0, 100.0)),
    "EPIXHR2X2:V1": Segment(((0, 14475.0), (144, -175.0)), ((0, -19275.0), (192, 175.0)), (288, 384), (-100.0, 100.0)),
    "EPIX100:V1": Segment(((0, -17700.0), (352, 150.0)), ((0, -19300.0), (384, 150.0)), (704, 768), (50.0, 50.0)),
    "JUNGFRAU:V1": Segment(((0, 19237.5), (256, -112.5)), _JUNGFRAU_COLUMNS, (512, 1024), (-75.0, 75.0)),
    "JUNGFRAU:V2": Segment(((0, -19237.5), (256, 112.5)), _JUNGFRAU_COLUMNS, (512, 1024), (75.0, 75.0)),
    "EPIXMASIC:V1": Segment(((0, 4775.0),), ((0, -9575.0),), (192, 384), (-50.0, 50.0)),
}


@dataclass(frozen=True)
class Entry:
    """One object in its parent: shift [um], and angles about z, y, x with tilts [degree]."""

    parent: tuple[str, int]
    name: tuple[str, int]
    shift: Array
    angles: Array


def parse(text: str, where: str) -> list[Entry]:
    """Read the objects of a file.

    Parameters
    ----------
    text : str
    where : str
        What errors call it.

    Returns
    -------
    list of Entry

    Raises
    ------
    FormatError
        A line is no object, or there is none.

    Examples
    --------
    >>> parse("IP:V1 0 JUNGFRAU:V2 0 0 0 -100000 90 0 0 0 0 0", "a.data")[0].name
    ('JUNGFRAU:V2', 0)
    """
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split()
        try:
            values = np.array(fields[4:13], np.float64)
            if len(values) != 9 or not np.isfinite(values).all():
                raise ValueError
            entry = Entry(
                (fields[0], int(fields[1])), (fields[2], int(fields[3])), values[:3], values[3:6] + values[6:]
            )
        except (ValueError, IndexError):
            raise FormatError(f"{where}: line {number} is {line[:60]!r}, not an object of a psana geometry") from None
        entries.append(entry)
    if not entries:
        raise FormatError(f"{where}: has no objects, so it is no psana geometry")
    return entries


def _turn(angles: Array) -> Array:
    """About z first, then y, then x."""
    (cz, cy, cx), (sz, sy, sx) = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    made: Array = about_x @ about_y @ about_z
    return made


def from_psana(text: str, where: str, distance: float | None, photon_energy: float | None) -> Geometry:
    """The geometry that a file tells.

    Parameters
    ----------
    text : str
    where : str
    distance : float or None
        [m]; by default that of the file: files have it with either sign.
    photon_energy : float or None
        [eV].

    Returns
    -------
    Geometry
        A panel for each ASIC, ``p<segment>a<ASIC>``; segments in psana's order.

    Raises
    ------
    FormatError
        It is no geometry, or has segments of an unknown kind.
    """
    entries = parse(text, where)
    kinds = {entry.name[0] for entry in entries if not any(entry.name == other.parent for other in entries)}
    known = {kind: _segment(kind, where) for kind in kinds}
    if len({segment.shape for segment in known.values()}) != 1:
        raise FormatError(f"{where}: has segments of several shapes, {', '.join(sorted(kinds))}; frames have one")
    by_parent: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        by_parent.setdefault(entry.parent, []).append(entry)
    placed: list[tuple[Segment, Array, Array, tuple[str, ...]]] = []

    def _descend(node: tuple[str, int], turn: Array, shift: Array, groups: tuple[str, ...]) -> None:
        if len(groups) > 20:
            raise FormatError(f"{where}: {node[0]} {node[1]} is a part of itself")
        for entry in sorted(by_parent.get(node, []), key=lambda one: one.name[1]):
            own, there = turn @ _turn(entry.angles), turn @ entry.shift + shift
            if entry.name in by_parent:
                _descend(entry.name, own, there, (*groups, f"{entry.name[0].partition(':')[0].lower()}{entry.name[1]}"))
            else:
                placed.append((known[entry.name[0]], own, there, groups))

    for root in dict.fromkeys(entry.parent for entry in entries):
        if not any(entry.name == root for entry in entries):
            _descend(root, np.eye(3), np.zeros(3), ())
    if not placed:
        raise FormatError(f"{where}: its objects have no parent that is not a part of them")
    away = float(np.mean([shift[2] for _, _, shift, _ in placed])) * 1e-6
    panels = [
        panel
        for number, (segment, turn, shift, groups) in enumerate(placed)
        for panel in _panels(number, segment, turn, shift, away, (f"p{number}", *groups))
    ]
    if distance is None and away == 0:
        raise FormatError(f"{where}: tells no distance; give distance=, in metres")
    shape = (len(placed), *placed[0][0].shape)
    return Geometry(tuple(panels), shape, abs(away) if distance is None else distance, photon_energy)


def _segment(kind: str, where: str) -> Segment:
    if kind in SEGMENTS:
        return SEGMENTS[kind]
    match = re.fullmatch(r"MTRX:(?:V2:)?(\d+):(\d+):([0-9.]+):([0-9.]+)", kind)
    if match is None or not kind.startswith("MTRX:V2"):
        raise FormatError(f"{where}: segments {kind} are not known; these are: {', '.join(SEGMENTS)}, MTRX:V2:...")
    rows, columns, height, width = int(match[1]), int(match[2]), float(match[3]), float(match[4])
    return Segment(
        ((0, height * (rows - 1) / 2),), ((0, -width * (columns - 1) / 2),), (rows, columns), (-height, width)
    )


def _lab(vector: Array) -> tuple[float, float, float]:
    """Of psana's frame [um] in the laboratory [m]."""
    x, y, z = (1e-6 * vector).tolist()
    return -y, -x, -z


def _panels(
    number: int, segment: Segment, turn: Array, shift: Array, away: float, groups: tuple[str, ...]
) -> list[Panel]:
    made = []
    rows = [*segment.rows, (segment.shape[0], 0.0)]
    columns = [*segment.columns, (segment.shape[1], 0.0)]
    fs, ss = turn @ np.array([segment.pitch[1], 0, 0]), turn @ np.array([0, segment.pitch[0], 0])
    for i, (row, y) in enumerate(segment.rows):
        for j, (column, x) in enumerate(segment.columns):
            corner = turn @ np.array([x, y, 0]) + shift - np.array([0, 0, away * 1e6])
            made.append(
                Panel(
                    f"p{number}a{i * len(segment.columns) + j}",
                    number,
                    row,
                    rows[i + 1][0],
                    column,
                    columns[j + 1][0],
                    _lab(corner),
                    _lab(fs),
                    _lab(ss),
                    groups,
                )
            )
    return made
