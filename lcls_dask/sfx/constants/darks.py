"""Pedestals, noise and bad pixels from runs without X-rays."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ...errors import ArgumentError, TargetExistsError
from ...reduce.reduction import Reduction, Running
from ..detectors import Detector, detector_named
from ..frames import as_frames, present_of, whole_frames

Array = np.ndarray[Any, np.dtype[Any]]

#: For each stage of gain: how often a pixel was in it, and sum and sum of squares of its values.
Part = dict[int, tuple[Array, Array, Array]]

#: What makes a pixel bad, as bits of its status.
TOO_FEW, DEAD, NOISY, FAR = 1, 2, 4, 8


@dataclass(frozen=True)
class Limits:
    """When a pixel is bad.

    Attributes
    ----------
    frames : int
        Fewest frames that it must have been seen in, of a stage that was measured.
    noise, pedestal : float
        Furthest from the median of its segment, in robust standard deviations.
    """

    frames: int = 10
    noise: float = 12.0
    pedestal: float = 12.0


def _sum(values: Array, coords: xr.Dataset, kind: Detector) -> Part:
    from ..kernels.darks import add_dark, stages_seen

    there, states = present_of(coords, values.shape[:2]), np.array(kind.states, np.int64)
    bits = 0x3FFF if max(kind.states) > 0 else 0xFFFF
    shape = values.shape[1:]
    part: Part = {}
    for event, frame in enumerate(np.ascontiguousarray(values)):
        for segment in np.flatnonzero(there[event]):
            raw, seen = frame[segment].reshape(-1), np.zeros(max(kind.states) + 1, np.bool_)
            stages_seen(raw, states, seen)
            for stage in np.flatnonzero(seen).tolist():
                if stage not in part:
                    part[stage] = np.zeros(shape, np.uint32), np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
                add_dark(raw, states, bits, stage, *(one[segment].reshape(-1) for one in part[stage]))
    return part


def _add(parts: Sequence[Part]) -> Part:
    made: Part = {}
    for part in parts:
        for stage, sums in part.items():
            mine = made.setdefault(stage, (np.zeros_like(sums[0]), np.zeros_like(sums[1]), np.zeros_like(sums[2])))
            for own, other in zip(mine, sums, strict=True):
                own += other
    return made


def _same(part: Part) -> Part:
    return part


def darks_reduction(detector: str) -> Reduction[Part, Part]:
    """The sums of dark frames, as a reduction of (values, coordinates).

    Parameters
    ----------
    detector : str

    Returns
    -------
    Reduction
        Whole numbers, so that the order does not matter.

    Examples
    --------
    >>> frames = np.full((3, 1, 2, 2), 7, np.uint16)
    >>> darks_reduction("cspad")([(frames, xr.Dataset())])[0][1]
    array([[[21, 21],
            [21, 21]]], dtype=uint64)
    """
    return Reduction(partial(_sum, kind=detector_named(detector)), _add, _same)


def derive_constants(
    darks: Sequence[Any], detector: str = "jungfrau", limits: Limits | None = None, segments: Any = None
) -> xr.Dataset:
    """Derive pedestals, noise and bad pixels from dark frames.

    Parameters
    ----------
    darks : sequence of xarray.DataArray or array
        Raw frames (event, segment, row, column), uint16, of runs without X-rays: of a Jungfrau one in each stage of
        gain. Read block by block.
    detector : str
        ``"jungfrau"`` or ``"cspad"``.
    limits : Limits, optional
    segments : (segment) array, optional
        Their labels.

    Returns
    -------
    xarray.Dataset
        `pedestals`, `rms` [ADU], `frames` and `pixel_status` over (range, segment, row, column); NaN in ranges of gain
        that no frame is in, whose pixels are not bad for that.

    Raises
    ------
    ArgumentError
        Frames are of several shapes, there are none, or the detector's constants are not told by bits alone.

    Examples
    --------
    >>> frames = np.random.default_rng(0).normal(2700, 4, (50, 1, 32, 32)).round().astype(np.uint16)
    >>> derived = derive_constants([frames])
    >>> float(derived["pedestals"][0].mean().round()), int((derived["pixel_status"][0] > 0).sum())
    (2700.0, 0)
    """
    kind = detector_named(detector)
    if kind.name == "epix10ka":
        raise ArgumentError("an ePix10ka's seven ranges are set by its configuration; give its constants as files")
    running = Running(darks_reduction(detector))
    shape: tuple[int, ...] | None = None
    for dark in darks:
        array = whole_frames(as_frames(dark))
        if array.dtype != np.uint16:
            raise ArgumentError(f"dark frames are raw, uint16, not {array.dtype}")
        if shape not in (None, array.shape[1:]):
            raise ArgumentError(f"dark frames are of {shape} and of {array.shape[1:]} pixels; one detector is wanted")
        shape = array.shape[1:]
        coords = array.coords.to_dataset().load()
        first = 0
        for block in array.data.blocks:
            last = first + block.shape[0]
            running.update(block.compute(), coords.isel(event=slice(first, last), missing_dims="ignore"))
            first = last
    if shape is None:
        raise ArgumentError("there are no dark frames")
    return _derived(running.result(), kind, shape, limits or Limits(), segments)


def _derived(part: Part, kind: Detector, shape: tuple[int, ...], limits: Limits, segments: Any) -> xr.Dataset:
    pedestal, rms = (np.full((kind.ranges, *shape), np.nan, np.float32) for _ in range(2))
    frames, status = np.zeros((kind.ranges, *shape), np.uint32), np.zeros((kind.ranges, *shape), np.uint16)
    for stage, (count, total, square) in part.items():
        number = np.maximum(count, 1)
        mean = total / number
        spread = np.sqrt(np.maximum(square / number - mean * mean, 0))
        seen = count > 0
        pedestal[stage], rms[stage] = np.where(seen, mean, np.nan), np.where(seen, spread, np.nan)
        frames[stage] = count
        # some pixels switch in any run: a stage was measured where most of them were in it
        if np.count_nonzero(count >= limits.frames) < 0.5 * count.size:
            continue
        bits = np.where(count < limits.frames, TOO_FEW, 0) | np.where(seen & (spread == 0), DEAD, 0)
        for values, most, bit in ((spread, limits.noise, NOISY), (mean, limits.pedestal, FAR)):
            for segment in np.flatnonzero(seen.any(axis=(1, 2))):
                good, own = seen[segment], values[segment]
                middle = np.median(own[good])
                width = max(1.4826 * float(np.median(abs(own[good] - middle))), 1e-3 * abs(float(middle)))
                bits[segment] |= np.where(good & (abs(own - middle) > most * width), bit, 0)
        status[stage] = bits
    dims = ("range", "segment", "row", "column")
    words = "bits: 1 too few frames, 2 dead, 4 noisy, 8 pedestal far from others"
    return xr.Dataset(
        {
            "pedestals": (dims, pedestal, {"units": "ADU", "long_name": "pedestal of each range of gain"}),
            "rms": (dims, rms, {"units": "ADU", "long_name": "noise of each range of gain"}),
            "frames": (dims, frames, {"units": "1", "long_name": "frames in which the pixel was in it"}),
            "pixel_status": (dims, status, {"units": "1", "long_name": words}),
        },
        {"segment": np.arange(shape[0]) if segments is None else np.asarray(segments)},
        {"detector": kind.name},
    )


def write_constants(derived: xr.Dataset, path: str | Path, gain: Any = None) -> Path:
    """Write constants as HDF5, for `read_constants`.

    Parameters
    ----------
    derived : xarray.Dataset
        What `derive_constants` gave; its attributes go along.
    path : str or Path
        What is there already stays.
    gain : (range, segment, row, column) array, optional
        [ADU/keV], which darks do not tell.

    Returns
    -------
    Path

    Raises
    ------
    TargetExistsError
        There is a file already.

    Examples
    --------
    >>> frames = np.full((20, 1, 4, 4), 2700, np.uint16)
    >>> from lcls_dask.sfx import read_constants
    >>> path = write_constants(derive_constants([frames]), "darks.h5")
    >>> float(read_constants(path).of_run(None).pedestal[0, 0, 0, 0])
    2700.0
    """
    import h5py

    target = Path(path)
    if target.exists():
        raise TargetExistsError(f"{target}: is there already; remove it, or choose another name")
    if gain is not None and np.shape(gain) != derived["pedestals"].shape:
        raise ArgumentError(f"gain: has shape {np.shape(gain)}, and pedestals {derived['pedestals'].shape}")
    part = target.with_name(f"{target.name}.partial")
    try:
        with h5py.File(part, "w") as file:
            for name, variable in derived.data_vars.items():
                file.create_dataset(
                    str(name), data=variable.values, compression="gzip", compression_opts=1, shuffle=True
                )
                file[str(name)].attrs.update({key: str(value) for key, value in variable.attrs.items()})
            if gain is not None:
                file["pixel_gain"] = np.asarray(gain, np.float32)
            file["segment"] = derived["segment"].values
            file.attrs.update({key: str(value) for key, value in derived.attrs.items()})
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    return target
