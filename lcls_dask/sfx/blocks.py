"""One block of a run's frames: from raw pixels to reflections, which a file keeps."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import GatewayError, LclsError, SnapshotError, StorageError, UnsupportedError
from ..formats import SourceRef, reopen
from ..reduce.ragged import concatenate, select_events
from .calibration import calibrate_block
from .cxi import Writer, new_file
from .frames import DIMS, as_float32
from .hits import count_peaks
from .indexing import index
from .integration import integrate
from .kept import save
from .patterns import Part, add_frames_to, no_frames
from .peaks import peaks_of_block
from .recipe import Settings, Tools, tools_of

Array = np.ndarray[Any, np.dtype[Any]]

#: Frames that are in memory at once have so many bytes as float32.
STRETCH_BYTES = 128 << 20

#: What a damaged or odd frame raises. All else is a mistake in the program, which must not pass for bad frames.
FAULTS = (LclsError, ValueError, ArithmeticError, IndexError)

#: Those of them that are not the frame's fault, and end the run: storage, gateway, programs, other files by now.
FATAL = (OSError, GatewayError, SnapshotError, UnsupportedError)

#: Names of the sums of a powder pattern, in their order.
SUMS = ("count", "sum", "square", "max", "frames")

_WORDS = {
    "peaks": "peaks of the frame",
    "hit": "a crystal was hit",
    "crystals": "crystals that were indexed",
    "bad": "the frame failed: attribute reasons tells why",
    "segments": "segments that are there",
}


@dataclass(frozen=True)
class Block:
    """Frames of a run that one task reduces.

    Attributes
    ----------
    source : SourceRef
        Of the run, which is opened where frames are read: not by the scheduler, which unpickles this too.
    location : str
        Where the run was opened.
    run : int
        Its number.
    variable : str
        That of the raw frames.
    settings : Settings
    digest : str
        Of run and settings; results of others are never taken for these.
    out : Path
        Directory of the results.
    coords : xarray.Dataset
        Of its events: `timestamp`, `frame` (which of the run), `present` (event, segment), and `segment`, the labels.
    """

    source: SourceRef
    location: str
    run: int
    variable: str
    settings: Settings
    digest: str
    out: Path
    coords: xr.Dataset

    @property
    def first(self) -> int:
        """The first event."""
        return int(self.coords["frame"][0])

    @property
    def last(self) -> int:
        """Behind the last event."""
        return int(self.coords["frame"][-1]) + 1

    @property
    def path(self) -> Path:
        """File that it has when it is finished."""
        return self.out / "blocks" / f"{self.digest}-{self.first:07d}-{self.last:07d}.h5"

    @property
    def cxi(self) -> Path:
        """File of its hits."""
        return self.out / "hits" / f"{self.first:07d}.cxi"


@dataclass(frozen=True)
class Found:
    """What is found in some frames.

    Attributes
    ----------
    frames, peaks : xarray.Dataset
        Of all of them.
    crystals, reflections : xarray.Dataset
        Of hits alone.
    """

    frames: xr.Dataset
    peaks: xr.Dataset
    crystals: xr.Dataset
    reflections: xr.Dataset

    @classmethod
    def together(cls, parts: "list[Found]") -> "Found":
        """All of them, in their order."""
        frames = xr.concat([part.frames for part in parts], "event", combine_attrs="override")
        frames.attrs["reasons"] = {key: text for part in parts for key, text in part.frames.attrs["reasons"].items()}
        return cls(frames, *(concatenate(getattr(p, name) for p in parts) for name in RAGGED))


RAGGED = ("peaks", "crystals", "reflections")


def reduce_block(block: Block, tools_digest: str) -> None:
    """Reduce a block, and keep what comes out in its file.

    Parameters
    ----------
    block : Block
    tools_digest : str
        See `tools_of`.

    Raises
    ------
    StorageError
        A file cannot be written.
    """
    if block.path.exists():
        return
    tools = tools_of(block.settings, block.run, tools_digest)
    shape = tools.geometry.shape
    sums, parts = no_frames(shape, 2), []
    length = max(1, STRETCH_BYTES // (4 * int(np.prod(shape))))
    with ExitStack() as stack:
        writer = None
        if block.settings.cxi:
            writer = stack.enter_context(_cxi(block.cxi, tools))
        for first in range(0, block.last - block.first, length):
            for found, photons, own in _of_stretch(block, tools, first, length):
                _add(found, photons, own, sums, writer, tools)
                parts.append(found)
    found = Found.together(parts)
    if block.settings.cxi and not found.frames["hit"].any():
        block.cxi.unlink(missing_ok=True)
    dims = ("group", *DIMS[1:])
    powder = {name: (dims[: one.ndim], one) for name, one in zip(SUMS, sums, strict=True)}
    with writing(block.path):
        save(block.path, {**vars(found), "powder": xr.Dataset(powder)})


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the disk as one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # HDF5 tells of a full disk within a longer text, and as a RuntimeError when it closes a file
        told = re.search(r"error message = '([^']*)'", str(error))
        if isinstance(error, LclsError) or not (told or isinstance(error, OSError)):
            raise
        why = told[1] if told else (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise StorageError(
            f"{path}: cannot be written: {why}; what is finished stays, and the same command goes on from there"
        ) from error


@contextmanager
def _cxi(path: Path, tools: Tools) -> Iterator[Writer]:
    with writing(path), new_file(path, again=True) as file:
        writer = Writer(file, tools.geometry, np.dtype(np.float32), None, tools.units)
        writer.once(tools.good, None)
        yield writer


def _of_stretch(block: Block, tools: Tools, first: int, length: int) -> Iterator[tuple[Found, Array, xr.Dataset]]:
    """What is found in a stretch, its frames and coordinates; frame by frame, where one of them fails."""
    own = block.coords.isel(event=slice(first, first + length))
    events = own.sizes["event"]
    try:
        photons = read_photons(block, tools, own)
        yield _found(photons, own, tools), photons, own
    except FATAL:
        raise
    except FAULTS as error:
        if events > 1:
            for event in range(first, first + events):
                yield from _of_stretch(block, tools, event, 1)
            return
        nothing = np.full((1, *tools.geometry.shape), np.nan, np.float32)
        words = " ".join(f"{type(error).__name__}: {error}".split())
        yield _found(nothing, own, tools, words), nothing, own


def read_photons(block: Block, tools: Tools, coords: xr.Dataset) -> Array:
    """Calibrated frames.

    Parameters
    ----------
    block : Block
    tools : Tools
    coords : xarray.Dataset
        Of some consecutive events of the block.

    Returns
    -------
    (event, segment, row, column) float32
    """
    first, events = int(coords["frame"][0]), coords.sizes["event"]
    try:
        raw = reopen(block.source).read("/", block.variable, slice(first, first + events))
    except OSError as error:
        if isinstance(error, LclsError):
            raise
        raise StorageError(f"{block.location}: cannot be read: {error.strerror or error}; run again later") from error
    return as_float32(raw, coords) if tools.stages is None else calibrate_block(raw, coords, tools.stages)


def _found(photons: Array, coords: xr.Dataset, tools: Tools, reason: str | None = None) -> Found:
    settings = tools.settings
    peaks = peaks_of_block(photons, coords.assign_attrs(units=tools.units), tools.finder)
    count = count_peaks(peaks, coords.sizes["segment"], 0.0)
    seen = np.array([_has_pixels(frame) for frame in photons])
    hit = seen & (count >= settings.min_peaks) & (count <= (settings.max_peaks or np.inf))
    chosen = np.flatnonzero(hit)
    crystals = index(
        select_events(peaks, chosen), tools.cell, geometry=tools.geometry, lattices=settings.lattices,
        threshold=settings.evidence,
    )  # fmt: skip
    reflections = integrate(
        xr.DataArray(photons[chosen], dims=DIMS), crystals, tools.geometry, d_min=tools.d_min,
        profile_radius=settings.profile_radius, mosaicity=settings.mosaicity,
    )  # fmt: skip
    assert isinstance(crystals, xr.Dataset)
    assert isinstance(reflections, xr.Dataset)
    number = np.zeros(len(hit), np.int32)
    number[chosen] = np.diff(crystals["offset"].values)
    columns = {
        "peaks": count.astype(np.int32),
        "hit": hit,
        "crystals": number,
        "bad": ~seen,
        "segments": coords["present"].values.sum(axis=1, dtype=np.int32),
    }
    reasons = {str(frame): reason or _why(there) for frame, there, fine in
               zip(coords["frame"].values, columns["segments"], seen, strict=True) if not fine}  # fmt: skip
    frames = xr.Dataset(
        {name: ("event", values, {"units": "1", "long_name": _WORDS[name]}) for name, values in columns.items()},
        {name: coords[name].variable for name in ("timestamp", "frame")},
        {"reasons": reasons},
    )
    return Found(frames, peaks, crystals.drop_vars("present", errors="ignore"), reflections)


def _has_pixels(frame: Array) -> bool:
    """Whether any pixel is a number; most frames tell it by a few of them."""
    return bool(np.isfinite(frame[:, ::16, ::16]).any() or np.isfinite(frame).any())


def _why(segments: int) -> str:
    return "all pixels are NaN" if segments else "no segment is there"


def _add(found: Found, photons: Array, coords: xr.Dataset, sums: Part, writer: Writer | None, tools: Tools) -> None:
    """Add frames to the powder pattern, and hits to the CXI file; bad ones to neither."""
    hit = found.frames["hit"].values
    group = np.where(found.frames["bad"].values, -1, np.where(hit, 0, 1))
    add_frames_to(sums, photons, coords, group)
    if writer is None or not hit.any():
        return
    chosen = np.flatnonzero(hit)
    energies = np.full(len(chosen), tools.geometry.photon_energy, np.float64)
    stamps = coords["timestamp"].values[chosen]
    writer.append(photons[chosen], found.peaks, chosen, int(coords["frame"][0]), energies, stamps)
