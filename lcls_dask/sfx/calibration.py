"""From raw frames to photons."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import ArgumentError
from ..reduce.kernels.arrays import read_only
from .constants.files import Remembered
from .constants.model import Constants, PixelConstants
from .detectors import Detector, detector_named, epix10ka_ranges
from .frames import as_frames, fits, mapped, present_of, whole_frames
from .kernels.frames import VALUE, Stages
from .masks import good_pixels

Array = np.ndarray[Any, np.dtype[Any]]

#: Rows and columns of the stretches that a common mode is of: 0 for those of a bank.
COMMON_MODES = {"bank": (0, 0), "row": (1, 0), "column": (0, 1)}


@dataclass(frozen=True)
class Calibration:
    """How raw frames become photons: for `calibrate`, and for `find_peaks` in one pass.

    Attributes
    ----------
    constants : Constants
        Such as `read_constants` gives.
    run : int or None
        Whose constants; None where all runs have the same.
    detector : str
        ``"jungfrau"``, ``"epix10ka"`` or ``"cspad"``.
    photon_energy : float or None
        [eV]; without it, values are in keV, or in ADU where the constants have no gain.
    mask : (segments, rows, columns) array or None
        True for pixels that count, beside those that the constants call bad.
    common_mode : {"row", "column", "bank"} or None
        Take the median off each row, or column, of a bank of pixels that share an amplifier, or off the bank.
    common_mode_limit : float
        Pixels further from their pedestal do not count for the median, nor does a larger median [ADU].
    configuration : (segments, rows, columns) int or None
        Control bits of the pixels of an ePix10ka, which it needs; see `detectors.epix10ka_ranges`.

    Examples
    --------
    >>> Calibration(PixelConstants(np.full((4, 6), 100.0)), detector="cspad").units
    'ADU'
    """

    constants: Constants
    run: int | None = None
    detector: str = "jungfrau"
    photon_energy: float | None = None
    mask: Any = None
    common_mode: str | None = None
    common_mode_limit: float = 100.0
    configuration: Any = None

    def __post_init__(self) -> None:
        kind = detector_named(self.detector)
        if not isinstance(self.constants, Constants):
            raise ArgumentError(
                f"constants: are what read_constants gives, or PixelConstants, not {type(self.constants).__name__}"
            )
        if self.photon_energy is not None and not (np.isfinite(self.photon_energy) and self.photon_energy > 0):
            raise ArgumentError(f"photon_energy={self.photon_energy} eV must be above zero")
        if self.common_mode is not None and self.common_mode not in COMMON_MODES:
            raise ArgumentError(f"there is no common_mode {self.common_mode!r}; choose from {', '.join(COMMON_MODES)}")
        if not (np.isfinite(self.common_mode_limit) and self.common_mode_limit > 0):
            raise ArgumentError(f"common_mode_limit={self.common_mode_limit} ADU must be above zero")
        if kind.name == "epix10ka" and self.configuration is None:
            raise ArgumentError("configuration: an ePix10ka's pixels are set one by one; give their control bits")

    @property
    def pixels(self) -> PixelConstants:
        """The constants of the run."""
        return self.constants.of_run(self.run)

    @property
    def units(self) -> str:
        """Of what is calibrated."""
        if self.pixels.gain is None:
            return "ADU"
        return "keV" if self.photon_energy is None else "photon"

    def attributes(self) -> dict[str, str | int | float]:
        """What results say of how they were made: digests of the constants, and the settings."""
        told: dict[str, str | int | float | None] = {
            **{f"constants.{kind}": digest for kind, digest in self.pixels.digests.items()},
            "calibration.run": self.run,
            "calibration.detector": self.detector,
            "calibration.photon_energy": self.photon_energy,
            "calibration.common_mode": self.common_mode,
        }
        return {key: value for key, value in told.items() if value is not None}

    def sent(self) -> "Calibration":
        """As it goes to workers: constants of a file by its name."""
        constants = self.constants
        if isinstance(constants, PixelConstants) and constants.file is not None:
            return replace(self, constants=Remembered(constants))
        return self

    def stages(self, digests: dict[str, str]) -> Stages:
        """Pedestals and factors of each stage of gain; the constants must be those of the digests."""
        kind, pixels = detector_named(self.detector), self.pixels
        if dict(pixels.digests) != digests:
            raise ArgumentError("the constants are not those that the calibration was described with; describe it anew")
        pedestal, gain = pixels.pedestal, pixels.gain
        if gain is None:
            if self.photon_energy is not None:
                raise ArgumentError("photon_energy: photons need a gain, which these constants have none of")
            gain = np.ones_like(pedestal)
        shape, good = pixels.shape, good_pixels(self.mask, pixels.shape)
        pedestal, gain = (_chosen(one, kind, self.configuration, shape) for one in (pedestal, gain))
        with np.errstate(divide="ignore"):
            factor = 1 / (gain * (1 if self.photon_energy is None else np.float32(self.photon_energy / 1000)))
        factor[~np.isfinite(factor)] = np.nan
        for bad in (pixels.bad, None if good is None else ~good):
            if bad is not None:
                factor[:, bad] = np.nan
        step = COMMON_MODES.get(self.common_mode or "bank", (0, 0))
        return Stages(
            read_only(np.ascontiguousarray(pedestal, np.float32).reshape(len(pedestal), -1)),
            read_only(np.ascontiguousarray(factor, np.float32).reshape(len(factor), -1)),
            np.array(kind.states, np.int64),
            VALUE if max(kind.states) > 0 else 0xFFFF,
            kind.bank,
            (step[0] or kind.bank[0], step[1] or kind.bank[1]),
            self.common_mode_limit if self.common_mode else 0.0,
        )


def _chosen(values: Array, kind: Detector, configuration: Any, shape: tuple[int, int, int]) -> Array:
    """Constants of the stages that a pixel has, of those of all ranges of gain."""
    stages = max(kind.states) + 1
    if len(values) == 1:
        return np.repeat(values, stages, axis=0)
    if kind.name == "epix10ka":
        ranges = epix10ka_ranges(configuration)
        if ranges.shape[1:] != shape:
            raise ArgumentError(f"configuration: is of {ranges.shape[1:]} pixels, and the constants of {shape}")
        if len(values) != kind.ranges:
            raise ArgumentError(f"constants of an ePix10ka are of {kind.ranges} ranges of gain, not {len(values)}")
        return np.take_along_axis(values, ranges.astype(np.int64), axis=0)
    if len(values) < stages:
        raise ArgumentError(f"constants of a {kind.name} are of {stages} ranges of gain, not {len(values)}")
    return values[:stages]


def calibrate(raw: Any, constants: "Constants | Calibration", **options: Any) -> xr.DataArray:
    """Turn raw frames into photons.

    The pedestal of the stage of gain that the two uppermost bits of a pixel tell is subtracted, the common mode too
    where it is asked for, and the difference divided by gain and photon energy.

    Parameters
    ----------
    raw : xarray.DataArray, numpy.ndarray or dask.array.Array
        (event, segment, row, column) uint16, as `lcls_dask.sfx.find_peaks` takes frames.
    constants : Constants or Calibration
        What `read_constants` gives, or `PixelConstants`; or all together.
    **options : object
        `run`, `detector`, `photon_energy`, `mask`, `common_mode`, `common_mode_limit`, `configuration`: see
        `Calibration`.

    Returns
    -------
    (event, segment, row, column) xarray.DataArray
        float32 photons, keV or ADU, on Dask; NaN for pixels that do not count and for absent segments. Attributes have
        digests of the constants.

    Raises
    ------
    ArgumentError
        An option is out of range, or frames and constants do not fit each other.

    Examples
    --------
    >>> constants = PixelConstants(np.full((3, 1, 2, 2), 1000.0), gain=[[[[40.0]] * 2]] * 3 * np.ones((1, 2)))
    >>> raw = np.array([[1400, 1000], [1800, 1400 + (1 << 14)]], np.uint16)
    >>> calibrate(raw, constants, photon_energy=10_000.0).values[0, 0]
    array([[1., 0.],
           [2., 1.]], dtype=float32)
    """
    if isinstance(constants, Calibration):
        if options:
            raise ArgumentError(f"{', '.join(options)}: the Calibration has them already")
        calibration = constants
    else:
        calibration = Calibration(constants, **options)
    array = as_frames(raw)
    shared = delayed(Calibration.stages, pure=True)(calibration.sent(), checked(array, calibration))
    made = mapped(whole_frames(array), calibrate_block, shared, np.float32)
    return made.assign_attrs(units=calibration.units, long_name="calibrated pixels", **calibration.attributes())


def checked(array: xr.DataArray, calibration: Calibration) -> dict[str, str]:
    """Check that frames and constants fit each other; the digests of the constants.

    Parameters
    ----------
    array : (event, segment, row, column) xarray.DataArray
    calibration : Calibration

    Returns
    -------
    dict of str to str

    Raises
    ------
    ArgumentError
        They do not.
    """
    if array.dtype != np.uint16:
        raise ArgumentError(f"raw frames are uint16, as the detector writes them, not {array.dtype}")
    pixels = calibration.pixels
    fits(array, pixels.shape, "the constants")
    good_pixels(calibration.mask, pixels.shape)
    return dict(pixels.digests)


def calibrate_block(values: Array, coords: xr.Dataset, stages: Stages) -> Array:
    """Photons of a block of raw frames.

    Parameters
    ----------
    values : (event, segment, row, column) uint16
    coords : xarray.Dataset
        Its `present` (event, segment) says which segments are there.
    stages : Stages

    Returns
    -------
    (event, segment, row, column) float32
    """
    from .kernels.frames import calibrate_frame, room

    raw = read_only(values)
    out = np.empty(raw.shape, np.float32)
    scratch = room(stages)
    for frame, calibrated in zip(raw, out, strict=True):
        calibrate_frame(frame, stages, scratch, calibrated.reshape(-1))
    there = present_of(coords, raw.shape[:2])
    if not there.all():
        out[~there] = np.nan
    return out
