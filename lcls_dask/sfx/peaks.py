"""Bragg peaks of frames, by radial statistics."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import delayed

from ..errors import ArgumentError
from ..reduce.kernels.arrays import read_only
from ..reduce.ragged import Ragged, block_coordinates
from .calibration import Calibration, checked
from .frames import as_float32, as_frames, fits, present_of, ragged, told_of, whole_frames
from .geometry.model import Geometry
from .kernels.frames import Stages
from .kernels.peaks import Panels, Peaks
from .kernels.rings import Statistics
from .kernels.sweep import Rings
from .masks import good_pixels
from .rings import rings_of

Array = np.ndarray[Any, np.dtype[Any]]

STATISTICS = ("full", "sampled")

#: Raw frames that are taken in together, as long as they take no more bytes than this when they are calibrated.
TOGETHER, ROOM = 4, 64 << 20

_COLUMNS = {
    "fs": (np.float32, "pixel", "column, centres of pixels are whole numbers"),
    "ss": (np.float32, "pixel", "row, centres of pixels are whole numbers"),
    "intensity": (np.float32, "", "sum above the background about the peak"),
    "snr": (np.float32, "1", "intensity by the standard deviation of that background"),
    "pixels": (np.int32, "1", "pixels above the threshold"),
}


@dataclass(frozen=True)
class Settings:
    """What finding peaks is told; see `find_peaks`.

    Attributes
    ----------
    threshold, min_snr : float
    min_pixels, max_pixels, background_radius : int
    min_radius, max_radius : float
    statistics : str
    """

    threshold: float
    min_snr: float = 5.0
    min_pixels: int = 2
    max_pixels: int = 200
    background_radius: int = 3
    min_radius: float = 0.0
    max_radius: float = np.inf
    statistics: str = "full"

    def __post_init__(self) -> None:
        if self.statistics not in STATISTICS:
            raise ArgumentError(f"there are no statistics {self.statistics!r}; choose from {', '.join(STATISTICS)}")
        if not np.isfinite(self.threshold):
            raise ArgumentError(f"threshold={self.threshold} must be a number, in the frames' units")
        if not (np.isfinite(self.min_snr) and self.min_snr > 0):
            raise ArgumentError(f"min_snr={self.min_snr} must be above zero")
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise ArgumentError(
                f"{self.min_pixels} to {self.max_pixels} pixels to a peak: 1 or more are wanted, rising"
            )
        if not 1 <= self.background_radius <= 100:
            raise ArgumentError(f"background_radius={self.background_radius} must be from 1 to 100 pixels")
        if not 0 <= self.min_radius < self.max_radius:
            raise ArgumentError(f"radii from {self.min_radius} to {self.max_radius} pixels: a rising range is wanted")


@dataclass(frozen=True)
class Finder:
    """What finding peaks needs, made once for all blocks.

    Attributes
    ----------
    rings : Rings
    panels : Panels
    settings : Settings
    stages : Stages or None
        Of raw frames.
    sample : Stages or None
        Those of the pixels that the first limits are of.
    """

    rings: Rings
    panels: Panels
    settings: Settings
    stages: Stages | None = None
    sample: Stages | None = None

    @classmethod
    def of(cls, geometry: Geometry, mask: Array | None, settings: Settings, stages: Stages | None) -> "Finder":
        """Make one of a geometry; the mask is True for pixels that count."""
        from .kernels.rings import sample_of

        bounds = sorted((p.segment, p.row0, p.row1, p.column0, p.column1) for p in geometry.panels)
        panels = np.array(bounds, np.int64).reshape(-1, 5)
        first = np.searchsorted(panels[:, 0], np.arange(geometry.shape[0] + 1))
        rings = rings_of(geometry, mask, settings.min_radius, settings.max_radius)
        if stages is None:
            return cls(rings, Panels(panels, first), settings)
        sample = sample_of(rings, settings.statistics)
        pedestal, factor = read_only(sample.of(stages.pedestal)), read_only(sample.of(stages.factor))
        return cls(rings, Panels(panels, first), settings, stages, stages._replace(pedestal=pedestal, factor=factor))

    def find(self, values: Array, coords: xr.Dataset) -> tuple[Array, dict[str, Array]]:
        """Numbers of peaks (event, segment), and their columns, of a block of frames."""
        from .kernels.peaks import find_peaks

        settings, shape = self.settings, values.shape[1:]
        told = float(settings.min_snr), settings.min_pixels, settings.max_pixels, 2 * settings.background_radius
        measured, count = np.empty(4), np.zeros(values.shape[:2], np.int32)
        parts: list[Peaks] = [Peaks(*(np.empty(0, dtype) for dtype, _, _ in _COLUMNS.values()))]
        for event, (frame, above, found, pixels) in enumerate(self._strong(values, coords)):
            members = np.empty((5, above), np.int32)
            out = Peaks(*(np.empty(above // settings.min_pixels, dtype) for dtype, _, _ in _COLUMNS.values()))
            many = find_peaks(
                frame, shape, self.rings, self.panels, told, above, found, pixels, members, measured, count[event], out
            )
            parts.append(Peaks(*(column[:many].copy() for column in out)))
        return count, {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}

    def _strong(self, values: Array, coords: xr.Dataset) -> Iterator[tuple[Array, int, Statistics, Array]]:
        """Frame by frame: its pixels, how many are strong, the statistics of its rings, and first the strong pixels."""
        from .kernels.frames import calibrate_frame, room
        from .kernels.rings import room as rings_room
        from .kernels.rings import strong, strong_of_raw

        # of a whole number in place of a real one, everything would be compiled once more
        limits = float(self.settings.min_snr), float(self.settings.threshold)
        rooms, method = tuple(rings_room(self.rings) for _ in range(TOGETHER)), self.settings.statistics
        found, scratch = rooms[0]
        stages, sample = self.stages, self.sample
        if stages is None or sample is None:
            for frame in map(np.ravel, as_float32(values, coords)):
                yield frame, strong(method, frame, self.rings, *limits, found, scratch), found, scratch.taken.pixels
            return
        frames, aside = _frames(self.rings.ring.size), room(stages)
        raw, present = read_only(values), present_of(coords, values.shape[:2])
        for first in range(0, len(raw), len(frames)):
            some, there = raw[first : first + len(frames)], present[first : first + len(frames)]
            if there.all() and not stages.limit:
                counts = strong_of_raw(
                    method, some.reshape(len(some), -1), stages, sample, self.rings, *limits, frames, rooms
                )
                for frame, above, (found, scratch) in zip(frames, counts, rooms, strict=False):
                    yield frame, above, found, scratch.taken.pixels
                continue
            frame, (found, scratch) = frames[0], rooms[0]
            for one, segments in zip(some, there, strict=True):
                calibrate_frame(one, stages, aside, frame)
                frame.reshape(one.shape)[~segments] = np.nan
                yield frame, strong(method, frame, self.rings, *limits, found, scratch), found, scratch.taken.pixels


@dataclass(frozen=True, eq=False)
class Ingredients:
    """What a `Finder` is made of: little, where constants are in a file, and so what goes to workers.

    Attributes
    ----------
    geometry : Geometry
    mask : (segment, row, column) bool or None
    settings : Settings
    calibration : Calibration or None
    digests : dict of str to str
        Of the calibration's constants.
    """

    geometry: Geometry
    mask: Array | None
    settings: Settings
    calibration: Calibration | None
    digests: dict[str, str]

    @cached_property
    def token(self) -> str:
        """Tells them from others."""
        return tokenize(self.geometry, self.mask, self.settings, self.calibration, self.digests)

    def finder(self) -> Finder:
        """Make it, once in each process; the last few are kept, as several may find peaks in one graph."""
        with _MAKING:
            if self.token not in _MADE:
                stages = None if self.calibration is None else self.calibration.stages(self.digests)
                _MADE[self.token] = Finder.of(self.geometry, self.mask, self.settings, stages)
            _MADE.move_to_end(self.token)
            while len(_MADE) > _MOST:
                _MADE.popitem(last=False)
            return _MADE[self.token]


_MAKING, _MOST = threading.Lock(), 4
_MADE: OrderedDict[str, Finder] = OrderedDict()
_kept = threading.local()


def _frames(size: int) -> Array:
    """Room for calibrated frames, which a thread keeps: getting memory anew costs as much as filling it."""
    kept: Array | None = getattr(_kept, "frames", None)
    if kept is None or kept.shape[1] != size:
        kept = _kept.frames = np.empty((max(1, min(TOGETHER, ROOM // (4 * max(size, 1)))), size), np.float32)
    return kept


def find_peaks(
    frames: Any,
    geometry: Geometry,
    *,
    threshold: float,
    min_snr: float = 5.0,
    min_pixels: int = 2,
    max_pixels: int = 200,
    background_radius: int = 3,
    min_radius: float = 0.0,
    max_radius: float = np.inf,
    mask: Any = None,
    statistics: str = "full",
    calibration: Calibration | None = None,
) -> Ragged:
    """Find Bragg peaks.

    A pixel is strong where it is above ``max(mean + min_snr * sigma, threshold)`` of its ring about the beam, a pixel
    wide; five times, mean and sigma are taken without what is beyond ``mean +- min_snr * sigma`` [1]_. A peak is a
    group of strong pixels of one panel that touch, of which one at least is not at the panel's edge. Its background is
    the mean of the other pixels in a disc of ``2 * background_radius`` about it; its place is the mean of its pixels,
    weighted by their values. It counts where its intensity is `min_snr` standard deviations of that background or more,
    and its highest pixel above the highest there.

    Parameters
    ----------
    frames : xarray.DataArray, numpy.ndarray or dask.array.Array
        (event, segment, row, column), see `as_frames`. A boolean coordinate `present` (event, segment) marks the
        segments there are. Pixels that are NaN or infinite do not count.
    geometry : Geometry
        Its bad pixels do not count.
    threshold : float
        Least value of a strong pixel, in the frames' units.
    min_snr : float
    min_pixels, max_pixels : int
        Of a peak.
    background_radius : int
        Half the radius of the disc of background, which is ``local-bg-radius`` elsewhere [pixel].
    min_radius, max_radius : float
        Pixels nearer to the beam or further from it do not count [pixel].
    mask : (segment, row, column) array, optional
        True, or 1, for pixels that count.
    statistics : {"full", "sampled"}
        Of all pixels of each ring, or of 100 of them, always the same, which is several times as fast.
    calibration : Calibration, optional
        The frames are raw, and calibrated first, in one pass: faster, and in less memory, than `calibrate`.

    Returns
    -------
    Ragged
        `fs`, `ss` (column and row in the segment), `intensity`, `snr`, float32; `pixels`, int32. Rows are (event,
        segment).

    Raises
    ------
    ArgumentError
        An argument is out of range, or the frames are not those of the geometry.

    References
    ----------
    .. [1] A. Barty et al., J. Appl. Cryst. 47 (2014) 1118, doi:10.1107/S1600576714007626.

    Examples
    --------
    >>> from lcls_dask.sfx import Geometry, Panel
    >>> panel = Panel("p0", 0, 0, 64, 0, 64, (-0.004, -0.004, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
    >>> geometry = Geometry((panel,), (1, 64, 64), distance=0.1)
    >>> frame = np.random.default_rng(0).normal(0, 1, (64, 64))
    >>> frame[20, 30:33] += [50, 100, 50]
    >>> peaks = find_peaks(frame, geometry, threshold=20)
    >>> peaks
    <Ragged of 1 event x 1 segment in 1 block: fs [pixel], ss [pixel], intensity, snr, pixels>
    >>> found = peaks.compute()
    >>> found["fs"].values.round(1), found["ss"].values, found["pixels"].values
    (array([31.], dtype=float32), array([20.], dtype=float32), array([3], dtype=int32))
    """
    array = as_frames(frames)
    fits(array, geometry.shape, "the geometry")
    settings = Settings(
        threshold, min_snr, min_pixels, max_pixels, background_radius, min_radius, max_radius, statistics
    )
    good = good_pixels(mask, geometry.shape)
    told: dict[str, Any] = {}
    digests: dict[str, str] = {}
    if calibration is not None:
        digests, told = checked(array, calibration), calibration.attributes()
        array = array.assign_attrs(units=calibration.units)
    sent = None if calibration is None else calibration.sent()
    ingredients = Ingredients(geometry, good, settings, sent, digests)
    array = whole_frames(array).assign_attrs(told)
    shared = delayed(ingredients, name=f"finder-{ingredients.token}", traverse=False)
    return ragged(array, _peaks_of_block, shared, empty_peaks(array, settings))


def _peaks_of_block(values: Array, coords: xr.Dataset, ingredients: Ingredients) -> xr.Dataset:
    return peaks_of_block(values, coords, ingredients.finder())


def peaks_of_block(values: Array, coords: xr.Dataset, finder: Finder) -> xr.Dataset:
    """Peaks of a block of frames.

    Parameters
    ----------
    values : (event, segment, row, column) array
    coords : xarray.Dataset
        Of the block, over event and segment.
    finder : Finder

    Returns
    -------
    xarray.Dataset
    """
    count, columns = finder.find(values, coords)
    return peaks_dataset(count, columns, finder.settings, coords)


def peaks_dataset(count: Array, columns: dict[str, Array], settings: Settings, coords: xr.Dataset) -> xr.Dataset:
    """Peaks as CSR rows.

    Parameters
    ----------
    count : (event, segment) int
    columns : dict of str to (n,) array
    settings : Settings
    coords : xarray.Dataset
        Of the events; its attributes are `units`, of the frames, and what is to be told beside the settings.

    Returns
    -------
    xarray.Dataset
    """
    offset = np.concatenate([np.zeros(1, np.int64), np.cumsum(count.ravel(), dtype=np.int64)])
    told = dict(coords.attrs)
    units = told.pop("units", "1")
    made: dict[str, Any] = {
        "offset": ("row_edge", offset, {"units": "1", "long_name": "first peak of each (event, segment)"})
    }
    for name, (_, unit, words) in _COLUMNS.items():
        made[name] = ("peak", columns[name], {"units": unit or units, "long_name": words})
    told |= {key: value for key, value in vars(settings).items() if key != "max_radius" or np.isfinite(value)}
    return xr.Dataset(made, attrs=told).assign_coords(block_coordinates(coords))


def empty_peaks(array: xr.DataArray, settings: Settings) -> xr.Dataset:
    """Peaks of no frames.

    Parameters
    ----------
    array : xarray.DataArray
        The frames.
    settings : Settings

    Returns
    -------
    xarray.Dataset
    """
    none = {name: np.empty(0, dtype) for name, (dtype, _, _) in _COLUMNS.items()}
    count = np.zeros((0, array.sizes["segment"]), np.int32)
    return peaks_dataset(count, none, settings, xr.Dataset(attrs=told_of(array)))
