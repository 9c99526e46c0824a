"""Serial crystallography: from frames to merged intensities, lazily on DataArrays and runs.

Frames are (event, segment, row, column); ``fs`` is the column and ``ss`` the row within a segment, and the centre of a
pixel has whole coordinates. Lengths are in m, resolutions in Angstrom, photon energies in eV.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import Calibration, calibrate
    from .cell import Cell, as_cell, read_cell
    from .constants.darks import derive_constants, write_constants
    from .constants.files import read_constants
    from .constants.model import Constants, PixelConstants
    from .cxi import write_cxi
    from .dials_files import read_dials, write_dials
    from .figures import figures_of_merit
    from .files import write_hkl, write_mtz
    from .geometry.files import read_geometry, write_geometry
    from .geometry.model import Geometry, Panel
    from .hits import find_hits
    from .indexing import fit_threshold, index
    from .integration import integrate, predict
    from .merging import merge
    from .orientations import read_orientations, write_orientations
    from .patterns import powder
    from .peaks import find_peaks
    from .radial import azimuthal_integrate
    from .runs import frames_of
    from .stream import read_stream, write_stream

# imported when first used: numba and xarray take a second
_LAZY = {
    "Calibration": "calibration",
    "Cell": "cell",
    "Constants": "constants.model",
    "Geometry": "geometry.model",
    "Panel": "geometry.model",
    "PixelConstants": "constants.model",
    "as_cell": "cell",
    "azimuthal_integrate": "radial",
    "calibrate": "calibration",
    "derive_constants": "constants.darks",
    "figures_of_merit": "figures",
    "find_hits": "hits",
    "find_peaks": "peaks",
    "fit_threshold": "indexing",
    "frames_of": "runs",
    "index": "indexing",
    "integrate": "integration",
    "merge": "merging",
    "powder": "patterns",
    "predict": "integration",
    "read_cell": "cell",
    "read_constants": "constants.files",
    "read_dials": "dials_files",
    "read_geometry": "geometry.files",
    "read_orientations": "orientations",
    "read_stream": "stream",
    "write_constants": "constants.darks",
    "write_cxi": "cxi",
    "write_dials": "dials_files",
    "write_geometry": "geometry.files",
    "write_hkl": "files",
    "write_mtz": "files",
    "write_orientations": "orientations",
    "write_stream": "stream",
}

__all__ = [
    "Calibration",
    "Cell",
    "Constants",
    "Geometry",
    "Panel",
    "PixelConstants",
    "as_cell",
    "azimuthal_integrate",
    "calibrate",
    "derive_constants",
    "figures_of_merit",
    "find_hits",
    "find_peaks",
    "fit_threshold",
    "frames_of",
    "index",
    "integrate",
    "merge",
    "powder",
    "predict",
    "read_cell",
    "read_constants",
    "read_dials",
    "read_geometry",
    "read_orientations",
    "read_stream",
    "write_constants",
    "write_cxi",
    "write_dials",
    "write_geometry",
    "write_hkl",
    "write_mtz",
    "write_orientations",
    "write_stream",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
