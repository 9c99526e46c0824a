"""A detector in the laboratory: flat panels, each a rectangle of pixels of one segment.

The laboratory is CrystFEL's: the origin is the crystal, z runs along the beam, y up, and x to the left seen along the
beam. ``fs`` counts columns and ``ss`` rows within a segment; a pixel's centre has whole coordinates.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]
Vector = tuple[float, float, float]

#: Wavelength [Angstrom] times photon energy [eV]: h c / e.
EV_ANGSTROM = 12398.419843320026


@dataclass(frozen=True)
class Panel:
    """A flat rectangle of pixels.

    Attributes
    ----------
    name : str
    segment : int
    row0, row1, column0, column1 : int
        Its pixels within the segment, half open.
    corner : (float, float, float)
        x, y, z of the centre of pixel (row0, column0) [m]; z is counted from the geometry's `distance`.
    fs, ss : (float, float, float)
        Steps to the next column and to the next row [m].
    groups : tuple of str
        Rigid groups that it is in.

    Examples
    --------
    >>> Panel("p0", 0, 0, 256, 0, 256, (0.01, 0.02, 0.0), (-75e-6, 0.0, 0.0), (0.0, -75e-6, 0.0)).shape
    (256, 256)
    """

    name: str
    segment: int
    row0: int
    row1: int
    column0: int
    column1: int
    corner: Vector
    fs: Vector
    ss: Vector
    groups: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.row1 - self.row0, self.column1 - self.column0


@dataclass(frozen=True)
class Geometry:
    """Where all pixels of a detector are.

    Attributes
    ----------
    panels : tuple of Panel
        They do not overlap. Pixels of none are nowhere: their positions are NaN.
    shape : (int, int, int)
        Segments, rows, columns of a frame.
    distance : float
        From the crystal to z = 0 of the panels [m].
    photon_energy : float or None
        [eV].
    bad : (segments, rows, columns) bool or None
        Pixels that do not count.
    slab : tuple of (int, int)
        First row and column of each segment in the two-dimensional slab that files of other programs hold; one below
        the other by default.

    Raises
    ------
    ArgumentError
        A panel is empty, has pixels outside the frame, or of another panel, or lies along one line.

    Examples
    --------
    >>> panel = Panel("p0", 0, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
    >>> geometry = Geometry((panel,), (1, 4, 6), distance=0.1, photon_energy=9500.0)
    >>> geometry.place(0, 1.5, 2)
    array([0.0002 , 0.00015, 0.1    ])
    >>> geometry.resolution().shape
    (1, 4, 6)
    """

    panels: tuple[Panel, ...]
    shape: tuple[int, int, int]
    distance: float
    photon_energy: float | None = None
    bad: Array | None = field(default=None, compare=False, repr=False)
    slab: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        segments, rows, columns = self.shape
        if not self.slab:
            object.__setattr__(self, "slab", tuple((segment * rows, 0) for segment in range(segments)))
        if len(self.slab) != segments:
            raise ArgumentError(f"slab: has {len(self.slab)} places, and there are {segments} segments")
        if self.bad is not None and self.bad.shape != self.shape:
            raise ArgumentError(f"bad: has shape {self.bad.shape}, and frames have {self.shape}")
        owner = np.full((segments, *(len(cuts) for cuts in self._cuts)), -1, np.int32)
        for number, panel in enumerate(self.panels):
            if not (
                0 <= panel.segment < segments
                and 0 <= panel.row0 < panel.row1 <= rows
                and 0 <= panel.column0 < panel.column1 <= columns
            ):
                raise ArgumentError(
                    f"panel {panel.name}: segment {panel.segment}, rows {panel.row0}:{panel.row1}, columns "
                    f"{panel.column0}:{panel.column1} do not fit frames of {segments} x {rows} x {columns} pixels"
                )
            vectors = np.array([panel.corner, panel.fs, panel.ss])
            if not np.isfinite(vectors).all() or not np.cross(vectors[1], vectors[2]).any():
                raise ArgumentError(f"panel {panel.name}: its corner, fs and ss do not span a plane of pixels")
            place = owner[panel.segment][self._cells(panel)]
            if (place >= 0).any():
                other = self.panels[int(place.max())].name
                raise ArgumentError(f"panels {other} and {panel.name} share pixels of segment {panel.segment}")
            place[...] = number
        object.__setattr__(self, "_owner", owner)

    @cached_property
    def _cuts(self) -> tuple[Array, Array]:
        """First rows and columns of the cells that the edges of all panels cut a segment into."""
        rows = {0} | {edge for panel in self.panels for edge in (panel.row0, panel.row1)}
        columns = {0} | {edge for panel in self.panels for edge in (panel.column0, panel.column1)}
        return np.array(sorted(rows)), np.array(sorted(columns))

    def _cells(self, panel: Panel) -> tuple[slice, slice]:
        rows, columns = self._cuts
        return (
            slice(*np.searchsorted(rows, (panel.row0, panel.row1))),
            slice(*np.searchsorted(columns, (panel.column0, panel.column1))),
        )

    def panel_of(self, segment: Any, row: Any, column: Any) -> Array:
        """The panel of each place.

        Parameters
        ----------
        segment : (...) int
        row, column : (...) float
            Pixel i reaches from i - 0.5 to i + 0.5; what is beyond the frame belongs to the pixel at its edge.

        Returns
        -------
        (...) int32
            Numbers in `panels`, -1 for none.

        Examples
        --------
        >>> panel = Panel("p0", 0, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
        >>> Geometry((panel,), (1, 4, 8), 0.1).panel_of(0, [0, 1], [5.4, 5.6])
        array([ 0, -1], dtype=int32)
        """
        _, rows, columns = self.shape
        segment, row, column = (np.asarray(one) for one in (segment, row, column))
        if segment.size and not (0 <= segment.min() and segment.max() < self.shape[0]):
            raise ArgumentError(
                f"segment: {segment.min()} to {segment.max()} are asked for of {self.shape[0]} segments"
            )
        # a cell begins half a pixel before the centre of its first one
        i = np.searchsorted(self._cuts[0], np.clip(row, 0, rows - 1) + 0.5, side="right") - 1
        j = np.searchsorted(self._cuts[1], np.clip(column, 0, columns - 1) + 0.5, side="right") - 1
        numbers: Array = self._owner[segment, i, j]  # type: ignore[attr-defined]
        return numbers

    @cached_property
    def vectors(self) -> Array:
        """Of each panel: (panels, 3, 3) float64 [m], its steps fs and ss, and pixel (0, 0) of its segment, as rows."""
        made = np.empty((len(self.panels), 3, 3))
        for number, panel in enumerate(self.panels):
            fs, ss = np.array(panel.fs), np.array(panel.ss)
            origin = np.array(panel.corner) - panel.row0 * ss - panel.column0 * fs
            origin[2] += self.distance
            made[number] = fs, ss, origin
        return made

    def place(self, segment: Any, row: Any, column: Any) -> Array:
        """Where in the laboratory something lies in a frame.

        Parameters
        ----------
        segment : (...) int
        row, column : (...) float
            Fractional pixels.

        Returns
        -------
        (..., 3) float64
            x, y, z [m]; NaN where there is no panel.

        Examples
        --------
        >>> panel = Panel("p0", 0, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
        >>> Geometry((panel,), (1, 4, 6), 0.1).place([0, 0], [0, 3], [0.5, 5])
        array([[5.e-05, 0.e+00, 1.e-01],
               [5.e-04, 3.e-04, 1.e-01]])
        """
        number = self.panel_of(segment, row, column)
        if not self.panels:
            return np.full((*number.shape, 3), np.nan)
        fs, ss, origin = np.moveaxis(self.vectors[number], -2, 0)
        there = origin + np.asarray(row)[..., None] * ss + np.asarray(column)[..., None] * fs
        placed: Array = np.where((number >= 0)[..., None], there, np.nan)
        return placed

    def positions(self) -> Array:
        """Where the centre of each pixel is.

        Returns
        -------
        (3, segments, rows, columns) float64
            x, y, z [m]; NaN for pixels of no panel.

        Examples
        --------
        >>> panel = Panel("p0", 0, 0, 2, 0, 3, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
        >>> Geometry((panel,), (1, 2, 3), 0.1).positions()[0]
        array([[[0.    , 0.0001, 0.0002],
                [0.    , 0.0001, 0.0002]]])
        """
        made = np.full((3, *self.shape), np.nan)
        for panel, (fs, ss, origin) in zip(self.panels, self.vectors, strict=True):
            row = np.arange(panel.row0, panel.row1)[:, None]
            column = np.arange(panel.column0, panel.column1)
            place = made[:, panel.segment, panel.row0 : panel.row1, panel.column0 : panel.column1]
            for axis in range(3):
                place[axis] = origin[axis] + row * ss[axis] + column * fs[axis]
        return made

    def _wavelength(self, photon_energy: float | None) -> float:
        energy = self.photon_energy if photon_energy is None else photon_energy
        if energy is None:
            raise ArgumentError("photon_energy: the geometry has none; give it, in eV")
        if not np.isfinite(energy) or energy <= 0:
            raise ArgumentError(f"photon_energy: {energy} eV is not above zero")
        return EV_ANGSTROM / energy

    def scattering_vectors(self, segment: Any, row: Any, column: Any, photon_energy: float | None = None) -> Array:
        """The scattering vector of each place in a frame: q = (s - s0) / wavelength.

        Parameters
        ----------
        segment : (...) int
        row, column : (...) float
            Fractional pixels.
        photon_energy : float, optional
            [eV]; the geometry's own by default.

        Returns
        -------
        (..., 3) float64
            In 1/Angstrom, without the factor of 2 pi, so that 1/\\|q\\| is the resolution d.

        Examples
        --------
        >>> panel = Panel("p0", 0, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
        >>> Geometry((panel,), (1, 4, 6), 0.1).scattering_vectors(0, 0, 0, 9500.0)
        array([ 0.,  0., -0.])
        """
        return _scattering(self.place(segment, row, column), self._wavelength(photon_energy))

    def resolution(self, photon_energy: float | None = None) -> Array:
        """Resolution of each pixel.

        Parameters
        ----------
        photon_energy : float, optional
            [eV]; the geometry's own by default.

        Returns
        -------
        (segments, rows, columns) float64
            d in Angstrom: infinite in the direct beam, NaN for pixels of no panel.

        Examples
        --------
        >>> panel = Panel("p0", 0, 0, 1, 0, 2, (0.01, 0.0, 0.0), (1e-2, 0.0, 0.0), (0.0, 1e-2, 0.0))
        >>> Geometry((panel,), (1, 1, 2), 0.1, 9500.0).resolution().round(2)
        array([[[13.1 ,  6.62]]])
        """
        wavelength = self._wavelength(photon_energy)
        x, y, z = self.positions()
        # 1/d = 2 sin(theta) / wavelength, 2 theta from the beam; by half-angle, exact near the beam
        radius = np.hypot(x, y)
        with np.errstate(divide="ignore"):
            made: Array = wavelength / (2 * np.sin(0.5 * np.arctan2(radius, z)))
        return made

    def moved(self, dx: float = 0.0, dy: float = 0.0, dz: float = 0.0) -> "Geometry":
        """The same detector elsewhere.

        Parameters
        ----------
        dx, dy, dz : float
            [m].

        Returns
        -------
        Geometry

        Examples
        --------
        >>> panel = Panel("p0", 0, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
        >>> Geometry((panel,), (1, 4, 6), 0.1).moved(dx=1e-3, dz=0.02).place(0, 0, 0)
        array([0.001, 0.   , 0.12 ])
        """
        panels = tuple(
            replace(panel, corner=(panel.corner[0] + dx, panel.corner[1] + dy, panel.corner[2]))
            for panel in self.panels
        )
        return replace(self, panels=panels, distance=self.distance + dz)

    def to_slab(self, segment: Any, row: Any, column: Any) -> tuple[Array, Array]:
        """Rows and columns of places in the slab that files of other programs hold.

        Parameters
        ----------
        segment : (...) int
        row, column : (...) float

        Returns
        -------
        ss, fs : (...) float64

        Examples
        --------
        >>> panel = Panel("p0", 1, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
        >>> ss, fs = Geometry((panel,), (2, 4, 6), 0.1).to_slab(1, 2, 3)
        >>> float(ss), float(fs)
        (6.0, 3.0)
        """
        first = np.array(self.slab, np.float64)[np.asarray(segment)]
        return first[..., 0] + row, first[..., 1] + column

    def from_slab(self, ss: Any, fs: Any) -> tuple[Array, Array, Array]:
        """Segments, rows and columns of places in the slab.

        Parameters
        ----------
        ss, fs : (...) float
            Whole numbers for centres of pixels.

        Returns
        -------
        segment : (...) int64
        row, column : (...) float64

        Raises
        ------
        ArgumentError
            A place is in no segment.

        Examples
        --------
        >>> panel = Panel("p0", 1, 0, 4, 0, 6, (0.0, 0.0, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
        >>> [float(one) for one in Geometry((panel,), (2, 4, 6), 0.1).from_slab(6.25, 3)]
        [1.0, 2.25, 3.0]
        """
        ss, fs = np.asarray(ss, np.float64), np.asarray(fs, np.float64)
        segment = np.full(np.broadcast_shapes(ss.shape, fs.shape), -1)
        for number, (row, column) in enumerate(self.slab):
            inside = (ss >= row - 0.5) & (ss < row + self.shape[1] - 0.5)
            inside &= (fs >= column - 0.5) & (fs < column + self.shape[2] - 0.5)
            segment[inside] = number
        if (segment < 0).any():
            raise ArgumentError(
                f"{int((segment < 0).sum())} places are in none of the {self.shape[0]} segments of the slab"
            )
        first = np.array(self.slab, np.float64)[segment]
        return segment, ss - first[..., 0], fs - first[..., 1]

    def assemble(self, frame: Any, fill: float = np.nan, pixel: float | None = None) -> Array:
        """A picture of the detector, as seen along the beam.

        Parameters
        ----------
        frame : (segments, rows, columns) array
        fill : float
            Where there is no pixel.
        pixel : float, optional
            Size of the picture's pixels [m]; the detector's own by default.

        Returns
        -------
        (height, width) float32
            The beam is at its centre; up is up and x grows to the left. Each pixel goes to the nearest place.

        Raises
        ------
        ArgumentError
            The frame has another shape.

        Examples
        --------
        >>> panel = Panel("p0", 0, 0, 2, 0, 2, (0.0, 0.0, 0.0), (-1e-4, 0.0, 0.0), (0.0, -1e-4, 0.0))
        >>> Geometry((panel,), (1, 2, 2), 0.1).assemble(np.array([[[1, 2], [3, 4]]]), fill=0)
        array([[0., 0., 0.],
               [0., 1., 2.],
               [0., 3., 4.]], dtype=float32)
        """
        values = np.asarray(frame)
        if values.shape != self.shape:
            raise ArgumentError(f"frame: has shape {values.shape}, and the geometry is of {self.shape}")
        if not self.panels:
            raise ArgumentError("the geometry has no panels to show")
        size = float(np.linalg.norm(self.panels[0].fs)) if pixel is None else pixel
        x, y, _ = self.positions()
        there = np.isfinite(x)
        column, row = np.rint(-x[there] / size).astype(np.int64), np.rint(-y[there] / size).astype(np.int64)
        half_width, half_height = np.abs(column).max(), np.abs(row).max()
        picture = np.full((2 * half_height + 1, 2 * half_width + 1), fill, np.float32)
        picture[row + half_height, column + half_width] = values[there]
        return picture


def _scattering(place: Array, wavelength: float) -> Array:
    """(s - s0) / wavelength of places (..., 3) as seen from the crystal."""
    x, y, z = np.moveaxis(place, -1, 0)
    length = np.linalg.norm(place, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # z / length - 1, without the loss of digits near the beam
        along = -(x * x + y * y) / (length * (length + z))
        made: Array = np.stack([x / length, y / length, along], axis=-1) / wavelength
    return made
