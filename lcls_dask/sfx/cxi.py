"""CXI files of hits with their peaks, as indexamajig --peaks=cxi reads them.

Frames are slabs, segments where the geometry's `slab` has them; peaks are pixel indices, to which CrystFEL adds its
half pixel; the mask is 0 for pixels that count.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from dask.base import compute

from ..errors import ArgumentError
from ..reduce.ragged import Ragged, as_ragged, rows_of
from .files import whole_file
from .frames import as_frames, fits, whole_frames
from .geometry.model import Geometry
from .masks import good_pixels

if TYPE_CHECKING:
    import h5py

Array = np.ndarray[Any, np.dtype[Any]]

#: Columns of peaks, by their names in the file.
_PEAKS = {"peakTotalIntensity": "intensity", "peakSNR": "snr", "peakNPixels": "pixels"}


def write_cxi(
    path: str | Path,
    frames: Any,
    peaks: "Ragged | xr.Dataset",
    geometry: Geometry,
    *,
    hits: Any = None,
    photon_energy: Any = None,
    mask: Any = None,
    powder: xr.Dataset | None = None,
    compression: str | None = None,
) -> Path:
    """Write hits, their peaks and the mask.

    Parameters
    ----------
    path : str or Path
        What is there already stays; a file that could not be finished goes.
    frames : xarray.DataArray, numpy.ndarray or dask.array.Array
        (event, segment, row, column), as `find_peaks` takes them; block by block, so that not all are in memory.
    peaks : Ragged or xarray.Dataset
        Of these frames.
    geometry : Geometry
    hits : (event) array of bool, optional
        Events to write; all by default.
    photon_energy : float or (event,) array, optional
        [eV]; the geometry's by default.
    mask : (segment, row, column) array, optional
        True for pixels that count, beside those that the geometry calls bad.
    powder : xarray.Dataset, optional
        What `powder` gave with hits: its maxima go along.
    compression : {None, "gzip"}
        Of frames.

    Returns
    -------
    Path

    Raises
    ------
    TargetExistsError
        There is a file already.
    ArgumentError
        Peaks, hits or energies are not of these events.

    Examples
    --------
    >>> from lcls_dask.sfx import Panel, find_peaks
    >>> panel = Panel("p0", 0, 0, 64, 0, 64, (-0.004, -0.004, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
    >>> geometry = Geometry((panel,), (1, 64, 64), distance=0.1, photon_energy=9500.0)
    >>> frames = np.random.default_rng(0).normal(0, 1, (2, 1, 64, 64))
    >>> frames[1, 0, 20, 30:33] += [50, 100, 50]
    >>> path = write_cxi("hits.cxi", frames, find_peaks(frames, geometry, threshold=20), geometry)
    >>> import h5py
    >>> with h5py.File(path) as file:
    ...     file["entry_1/result_1/nPeaks"][:], file["entry_1/data_1/data"].shape
    (array([0, 1], dtype=int32), (2, 64, 64))
    """
    array, ragged = whole_frames(as_frames(frames)), as_ragged(peaks)
    fits(array, geometry.shape, "the geometry")
    events = array.sizes["event"]
    if len(ragged) != events or ragged.channels != geometry.shape[0]:
        raise ArgumentError(
            f"peaks are of {len(ragged)} events x {ragged.channels} segments, and frames of {events} x "
            f"{geometry.shape[0]}; find them in these frames"
        )
    energy = geometry.photon_energy if photon_energy is None else photon_energy
    if energy is None:
        raise ArgumentError("photon_energy: the geometry has none; give it, in eV")
    energies = np.asarray(energy, np.float64)
    if energies.shape not in ((), (events,)):
        raise ArgumentError(
            f"photon_energy: has shape {energies.shape}; one number, or one for each of {events} events"
        )
    energies = np.broadcast_to(energies, events)
    chosen = _chosen(hits, events)
    if compression not in (None, "gzip"):
        raise ArgumentError(f"compression={compression!r} is not one that CrystFEL reads; choose None or 'gzip'")
    good = good_pixels(mask, geometry.shape)
    with new_file(Path(path)) as file:
        writer = Writer(file, geometry, array.dtype, compression, str(array.attrs.get("units", "1")))
        writer.once(good, powder)
        for first, last, values, found in _blocks(array, ragged):
            kept = np.flatnonzero(chosen(first, last))
            stamps = array["timestamp"].values[first:last] if "timestamp" in array.coords else None
            writer.append(
                values[kept], found, kept, first, energies[first:last][kept], None if stamps is None else stamps[kept]
            )
    return Path(path)


def _chosen(hits: Any, events: int) -> Any:
    """Which events of a span are to be written."""
    if hits is None:
        return lambda first, last: np.ones(last - first, np.bool_)
    told = hits.values if isinstance(hits, xr.DataArray) else np.asarray(hits)
    if told.shape != (events,) or told.dtype != np.bool_:
        raise ArgumentError(f"hits: is {told.dtype} of {told.shape}; a boolean for each of {events} events is wanted")
    return lambda first, last: told[first:last]


def _blocks(array: xr.DataArray, ragged: Ragged) -> Iterator[tuple[int, int, Array, xr.Dataset]]:
    """Frames and peaks of each block of events: what both are made of is computed once."""
    lengths = array.chunks[0] if array.chunks else ()
    edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    whole = None if ragged.events == tuple(lengths) else ragged.compute()  # type: ignore[no-untyped-call]
    delayed = array.data.to_delayed().ravel()
    together: Any = compute
    for number, (first, last) in enumerate(pairwise(edges)):
        if whole is None:
            values, found = together(delayed[number], ragged.blocks[number])
        else:
            (values,), found = together(delayed[number]), _some(whole, first, last, ragged.channels)
        yield first, last, values, found


def _some(peaks: xr.Dataset, first: int, last: int, segments: int) -> xr.Dataset:
    offset = peaks["offset"].values[first * segments : last * segments + 1]
    return (
        peaks.drop_vars("offset")
        .isel(peak=slice(int(offset[0]), int(offset[-1])))
        .assign(offset=("row_edge", offset - offset[0]))
    )


@contextmanager
def new_file(path: Path, *, again: bool = False) -> "Iterator[h5py.File]":
    """An HDF5 file that is there when it is finished, or not at all.

    Parameters
    ----------
    path : Path
    again : bool
        Whether it takes the place of one that is there already, instead of an error.

    Yields
    ------
    h5py.File

    Raises
    ------
    TargetExistsError
        There is a file already.
    """
    import h5py

    with whole_file(path, again=again) as part, h5py.File(part, "w") as file:
        yield file


class Writer:
    """Appends events to the datasets of a CXI file.

    Parameters
    ----------
    file : h5py.File
        Empty.
    geometry : Geometry
    dtype : dtype
        Of the pixels.
    compression : {None, "gzip"}
    units : str
        Of the pixels.
    """

    def __init__(
        self, file: "h5py.File", geometry: Geometry, dtype: np.dtype[Any], compression: str | None, units: str
    ) -> None:
        self._file, self._geometry, self._count = file, geometry, 0
        _, rows, columns = geometry.shape
        self._slab = max(row for row, _ in geometry.slab) + rows, max(column for _, column in geometry.slab) + columns
        file["cxi_version"] = 150
        self._data = file.create_dataset(
            "entry_1/data_1/data", (0, *self._slab), dtype.newbyteorder("="), maxshape=(None, *self._slab),
            chunks=(1, *self._slab), compression=compression, shuffle=compression is not None,
            compression_opts=1 if compression else None,
        )  # fmt: skip
        self._data.attrs["units"] = units
        for name, kind, width in (
            ("entry_1/result_1/nPeaks", np.int32, 0),
            ("entry_1/result_1/peakXPosRaw", np.float32, 1),
            ("entry_1/result_1/peakYPosRaw", np.float32, 1),
            *((f"entry_1/result_1/{name}", np.float32, 1) for name in _PEAKS),
            ("entry_1/event", np.int64, 0),
            ("LCLS/photon_energy_eV", np.float64, 0),
            ("LCLS/detector_1/EncoderValue", np.float64, 0),
            ("LCLS/timestamp", np.uint64, 0),
            ("LCLS/machineTime", np.int64, 0),
            ("LCLS/machineTimeNanoSeconds", np.int64, 0),
        ):
            shape = (0, 128) if width else (0,)
            file.create_dataset(
                name, shape, kind, maxshape=(None,) * len(shape), chunks=(64, 128) if width else (1024,)
            )
        file["LCLS/detector_1/EncoderValue"].attrs["units"] = "mm"

    def _as_slab(self, values: Array, fill: float = 0) -> Array:
        made = np.full((len(values), *self._slab), fill, values.dtype)
        _, rows, columns = self._geometry.shape
        for segment, (row, column) in enumerate(self._geometry.slab):
            made[:, row : row + rows, column : column + columns] = values[:, segment]
        return made

    def once(self, good: Array | None, powder: xr.Dataset | None) -> None:
        """Write what is of the detector, or of all events.

        Parameters
        ----------
        good : (segment, row, column) bool, optional
            Pixels that count, beside those that the geometry calls bad.
        powder : xarray.Dataset, optional
            What `powder` gave with hits.
        """
        used = np.ones(self._geometry.shape, np.bool_) if good is None else good.copy()
        if self._geometry.bad is not None:
            used &= ~self._geometry.bad
        self._file["entry_1/data_1/mask"] = self._as_slab((~used).astype(np.uint16)[None], 1)[0]
        if powder is not None:
            for group, name in (("hits", "powderHits"), ("misses", "powderMisses")):
                if group not in powder["group"].values:
                    raise ArgumentError("powder: has no hits and misses; give it hits=")
                values = powder["max"].sel(group=group).values.astype(np.float32)
                self._file[f"entry_1/data_1/{name}"] = self._as_slab(values[None], np.nan)[0]

    def append(
        self, values: Array, peaks: xr.Dataset, kept: Array, first: int, energies: Array, stamps: Array | None
    ) -> None:
        """Write some events of a block.

        Parameters
        ----------
        values : (n, segment, row, column) array
            Their frames.
        peaks : xarray.Dataset
            Of all events of the block.
        kept : (n,) int
            Which events these are, within the block.
        first : int
            The block's first event.
        energies : (n,) float64
            [eV].
        stamps : (n,) uint64, optional
        """
        segments, count = self._geometry.shape[0], len(kept)
        if not count:
            return
        start, self._count = self._count, self._count + count
        self._data.resize(self._count, axis=0)
        self._data[start:] = self._as_slab(np.asarray(values))
        event, segment = np.divmod(rows_of(peaks), segments)
        place = np.full(int((len(peaks["offset"]) - 1) / segments), -1)
        place[kept] = np.arange(count)
        inside = place[event] >= 0
        event, segment = place[event[inside]], segment[inside]
        number = np.bincount(event, minlength=count)
        column = np.arange(len(event)) - np.repeat(np.cumsum(number) - number, number)
        ss, fs = self._geometry.to_slab(segment, peaks["ss"].values[inside], peaks["fs"].values[inside])
        tables = {"peakXPosRaw": fs, "peakYPosRaw": ss,
                  **{name: peaks[own].values[inside] for name, own in _PEAKS.items()}}  # fmt: skip
        self._extend("entry_1/result_1/nPeaks", start, number)
        for name, flat in tables.items():
            dataset = self._file[f"entry_1/result_1/{name}"]
            width = max(dataset.shape[1], int(number.max(initial=0)))
            dataset.resize((self._count, width))
            rows = np.zeros((count, width), np.float32)
            rows[event, column] = flat
            dataset[start:] = rows
        self._extend("entry_1/event", start, first + kept)
        self._extend("LCLS/photon_energy_eV", start, energies)
        self._extend("LCLS/detector_1/EncoderValue", start, np.full(count, 1e3 * self._geometry.distance))
        if stamps is not None:
            stamps = stamps.astype(np.uint64)
            self._extend("LCLS/timestamp", start, stamps)
            self._extend("LCLS/machineTime", start, (stamps >> np.uint64(32)).astype(np.int64))
            self._extend("LCLS/machineTimeNanoSeconds", start, (stamps & np.uint64(0xFFFFFFFF)).astype(np.int64))

    def _extend(self, name: str, start: int, values: Array) -> None:
        dataset = self._file[name]
        dataset.resize(self._count, axis=0)
        dataset[start:] = values
