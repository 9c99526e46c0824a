"""What a run of crystallography is told, and what is made of that in each process."""

import hashlib
import importlib.metadata
import json
import threading
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError
from . import peaks
from .calibration import Calibration
from .cell import Cell, as_cell
from .constants.files import read_array, read_constants
from .geometry.files import read_geometry
from .geometry.model import Geometry
from .indexing import THRESHOLD
from .kernels.frames import Stages
from .masks import good_pixels

Array = np.ndarray[Any, np.dtype[Any]]


#: Raised when what is kept, or how it is made, changes.
FORMAT = 2


@dataclass(frozen=True)
class Settings:
    """What the chain is told. Files are named, not held, so that this is small where it travels to workers.

    Attributes
    ----------
    geometry : str
        File, see `read_geometry`.
    cell : sequence of 6 float, or str
        See `as_cell`.
    space_group : str or None
    constants : str or None
        File or directory, see `read_constants`; without, frames are taken as they are.
    detector : str or None
        The area detector; the only one by default.
    kind, common_mode : str or None
        See `Calibration`.
    configuration : str or None
        File of an array, control bits of an ePix10ka's pixels; see `Calibration`.
    mask : str or None
        File of an array, not 0 for pixels that count.
    distance, photon_energy : float or None
        [m], [eV]; what the geometry says by default.
    threshold, min_snr : float
    min_pixels, max_pixels, background_radius : int
    min_radius, max_radius : float
    statistics : str
        See `find_peaks`.
    min_peaks : int
    max_peaks : int or None
        See `find_hits`.
    lattices : int
    evidence : float
        See `index`, which calls it threshold.
    d_min : float or None
        [Angstrom]; that of the detector's corners by default.
    profile_radius : float or None
        [1/Angstrom]; by default that of each crystal. The right one for all merges better, a wrong one worse.
    mosaicity : float
        See `integrate`.
    scale : int
    reject : float or None
    anomalous : bool
        See `merge`.
    shells : int
        See `figures_of_merit`.
    cxi : bool
        Whether hits are written, as frames of float32.
    block : int or None
        Frames of a task; a share of the run by default.
    """

    geometry: str
    cell: tuple[float, ...] | str
    space_group: str | None = None
    constants: str | None = None
    detector: str | None = None
    kind: str = "jungfrau"
    common_mode: str | None = None
    configuration: str | None = None
    mask: str | None = None
    distance: float | None = None
    photon_energy: float | None = None
    threshold: float = 4.0
    min_snr: float = 6.0
    min_pixels: int = 2
    max_pixels: int = 30
    background_radius: int = 3
    min_radius: float = 0.0
    max_radius: float = np.inf
    statistics: str = "full"
    min_peaks: int = 15
    max_peaks: int | None = None
    lattices: int = 1
    evidence: float = THRESHOLD
    d_min: float | None = None
    profile_radius: float | None = None
    mosaicity: float = 0.0
    scale: int = 2
    reject: float | None = None
    anomalous: bool = False
    shells: int = 10
    cxi: bool = True
    block: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cell, str | Path | Cell):
            # a list or an array cannot be hashed
            object.__setattr__(self, "cell", as_cell(self.cell).parameters)


@dataclass(frozen=True, eq=False)
class Tools:
    """What frames are worked on with.

    Attributes
    ----------
    settings : Settings
    cell : Cell
    geometry : Geometry
    calibration : Calibration or None
    good : (segment, row, column) bool or None
        Pixels that count.
    """

    settings: Settings
    cell: Cell
    geometry: Geometry
    calibration: Calibration | None
    good: Array | None

    @classmethod
    def of(cls, settings: Settings, run: int) -> "Tools":
        """Read the files that the settings name.

        Parameters
        ----------
        settings : Settings
        run : int
            Whose constants.

        Returns
        -------
        Tools

        Raises
        ------
        RunNotFoundError, FormatError
            A file is not there, or not what it must be.
        ArgumentError
            A setting is out of range.
        """
        cell = as_cell(settings.cell, settings.space_group)
        geometry = read_geometry(settings.geometry, distance=settings.distance, photon_energy=settings.photon_energy)
        if geometry.photon_energy is None:
            raise ArgumentError(f"{settings.geometry}: tells no photon energy; give --photon-energy, in eV")
        good = None if settings.mask is None else _mask_of(Path(settings.mask), geometry.shape)
        calibration = None
        if settings.configuration is not None and (settings.kind != "epix10ka" or settings.constants is None):
            raise ArgumentError("configuration: is of an ePix10ka, and for its constants; give both, or leave it out")
        if settings.constants is not None:
            constants = read_constants(settings.constants).of_run(run)
            if constants.shape != geometry.shape:
                theirs, ours = (" x ".join(map(str, one)) for one in (constants.shape, geometry.shape))
                raise ArgumentError(f"{settings.constants}: is of {theirs} pixels, and the geometry is of {ours}")
            bits = None if settings.configuration is None else _bits_of(Path(settings.configuration), geometry.shape)
            calibration = Calibration(
                constants, run, settings.kind, None if constants.gain is None else geometry.photon_energy, good,
                settings.common_mode, configuration=bits,
            )  # fmt: skip
            if bits is not None:
                calibration.stages(dict(constants.digests))  # that they do not fit is told before all the work
        if settings.min_peaks < 1 or (settings.max_peaks is not None and settings.max_peaks < settings.min_peaks):
            raise ArgumentError(f"{settings.min_peaks} to {settings.max_peaks} peaks to a hit: rising ones are wanted")
        for name, least, most in (
            ("block", 1, np.inf), ("lattices", 1, 100), ("shells", 1, np.inf), ("scale", 0, np.inf),
            ("evidence", -np.inf, np.inf), ("mosaicity", 0, np.inf),
        ):  # fmt: skip
            value = getattr(settings, name)
            if value is not None and not (np.isfinite(value) and least <= value <= most):
                raise ArgumentError(f"{name}={value}: a number from {least} to {most} is wanted")
        for name, limit in (("d_min", np.inf), ("profile_radius", 0.1), ("reject", np.inf)):
            value = getattr(settings, name)
            if value is not None and not 0 < value < limit:
                raise ArgumentError(f"{name}={value}: a number above 0 and below {limit} is wanted")
        peaks_of(settings)
        return cls(settings, cell, geometry, calibration, good)

    @cached_property
    def finder(self) -> peaks.Finder:
        """Finds peaks in calibrated frames."""
        return peaks.Finder.of(self.geometry, self.good, peaks_of(self.settings), None)

    @cached_property
    def stages(self) -> Stages | None:
        """Calibrate raw frames; None where they are taken as they are."""
        return None if self.calibration is None else self.calibration.stages(dict(self.calibration.pixels.digests))

    @property
    def units(self) -> str:
        """Of calibrated frames."""
        return "1" if self.calibration is None else self.calibration.units

    @cached_property
    def d_min(self) -> float:
        """Limit of resolution [Angstrom]."""
        if self.settings.d_min is not None:
            return self.settings.d_min
        corners = [
            (panel.segment, row, column)
            for panel in self.geometry.panels
            for row in (panel.row0, panel.row1 - 1)
            for column in (panel.column0, panel.column1 - 1)
        ]
        q = self.geometry.scattering_vectors(*np.array(corners).T)
        return float(1 / np.linalg.norm(q, axis=1).max())

    @cached_property
    def digest(self) -> str:
        """Of `described`."""
        return _digest(json.dumps(self.described(), sort_keys=True).encode(), None)

    def described(self) -> dict[str, Any]:
        """All that results depend on, beside the run: settings, digests of what is in the files, and this version.

        Returns
        -------
        dict
            As JSON has it.
        """
        files = {"geometry", "constants", "configuration", "mask", "cell", "space_group"}
        told = {one.name: getattr(self.settings, one.name) for one in fields(self.settings) if one.name not in files}
        told |= {"cell": list(self.cell.parameters), "space_group": self.cell.space_group}
        told |= {"format": FORMAT, "lcls_dask": importlib.metadata.version("lcls_dask")}
        where = self.geometry
        layout = repr((where.panels, where.shape, where.distance, where.photon_energy, where.slab))
        told["geometry"] = _digest(layout.encode(), where.bad)
        told["mask"] = None if self.good is None else _digest(b"", self.good)
        told["constants"] = None if self.calibration is None else dict(self.calibration.pixels.digests)
        if self.calibration is not None and self.calibration.configuration is not None:
            told["configuration"] = _digest(b"", self.calibration.configuration)
        return {key: None if value == np.inf else value for key, value in told.items()}


def peaks_of(settings: Settings) -> peaks.Settings:
    """Those settings that finding peaks takes.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    peaks.Settings

    Raises
    ------
    ArgumentError
        One is out of range.
    """
    return peaks.Settings(**{one.name: getattr(settings, one.name) for one in fields(peaks.Settings)})


def _mask_of(path: Path, shape: tuple[int, int, int]) -> Array | None:
    """Pixels that count: psana's text and JSON have them as real numbers."""
    return good_pixels(np.nan_to_num(read_array(path, "a mask")) != 0, shape)


def _bits_of(path: Path, shape: tuple[int, int, int]) -> Array:
    """Control bits of pixels: psana's text and JSON have them as real numbers."""
    values = read_array(path, "a configuration")
    bits: Array = np.nan_to_num(values).astype(np.uint8)
    if values.shape != shape or (bits != values).any():
        raise ArgumentError(f"{path}: control bits of {' x '.join(map(str, shape))} pixels are wanted, 0 to 255")
    return bits


def _digest(text: bytes, values: Array | None) -> str:
    return hashlib.sha256(text + (b"" if values is None else np.ascontiguousarray(values).data)).hexdigest()[:16]


_making = threading.Lock()


def tools_of(settings: Settings, run: int, digest: str) -> Tools:
    """Make the tools once in each process, with what takes time to make.

    Parameters
    ----------
    settings : Settings
    run : int
    digest : str
        What `Tools.digest` was where the run was begun.

    Returns
    -------
    Tools

    Raises
    ------
    ArgumentError
        The files here have other contents than there.
    """
    with _making:
        made = _tools(settings, run, digest)
        # here, so that threads do not make them all at once
        _ = made.finder, made.stages, made.d_min
    return made


@lru_cache(maxsize=1)
def _tools(settings: Settings, run: int, digest: str) -> Tools:
    made = Tools.of(settings, run)
    if made.digest != digest:
        raise ArgumentError(
            f"{settings.geometry}, or the constants, configuration, mask or cell: have other contents here than when "
            "the run was begun, or lcls_dask has another version; keep them as they are until it ends, and the same "
            "for all workers"
        )
    return made
