"""Serial crystallography: from frames to merged intensities, lazily on DataArrays and runs.

Frames are (event, segment, row, column); ``fs`` is the column and ``ss`` the row within a segment, and the centre of a
pixel has whole coordinates. Lengths are in m, resolutions in Angstrom, photon energies in eV.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import Calibration, calibrate
    from .constants.files import read_constants
    from .constants.model import Constants, PixelConstants
    from .cxi import write_cxi
    from .geometry.files import read_geometry, write_geometry
    from .geometry.model import Geometry, Panel
    from .hits import find_hits
    from .patterns import powder
    from .peaks import find_peaks
    from .radial import azimuthal_integrate

# imported when first used: numba and xarray take a second
_LAZY = {
    "Calibration": "calibration",
    "Constants": "constants.model",
    "Geometry": "geometry.model",
    "Panel": "geometry.model",
    "PixelConstants": "constants.model",
    "azimuthal_integrate": "radial",
    "calibrate": "calibration",
    "find_hits": "hits",
    "find_peaks": "peaks",
    "powder": "patterns",
    "read_constants": "constants.files",
    "read_geometry": "geometry.files",
    "write_cxi": "cxi",
    "write_geometry": "geometry.files",
}

__all__ = [
    "Calibration",
    "Constants",
    "Geometry",
    "Panel",
    "PixelConstants",
    "azimuthal_integrate",
    "calibrate",
    "find_hits",
    "find_peaks",
    "powder",
    "read_constants",
    "read_geometry",
    "write_cxi",
    "write_geometry",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
