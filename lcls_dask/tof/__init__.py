"""Time of flight: from digitizer samples to spectra, lazily on DataArrays and runs.

Each operation takes NumPy or Dask, and gives the same whatever the blocks are. Times are in ns, energies in eV, lengths
in mm.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .angular import angular_fit
    from .axes import energy_to_tof, tof_to_energy, tof_to_mq
    from .calibration import fit_energy_calibration, fit_mq_calibration
    from .covariance import covariance_map, partial_covariance_map
    from .deadtime import deadtime_correct
    from .delayline import dld_reconstruct
    from .fex import decode_fex, fex_sparsify, padded
    from .hits import find_hits
    from .node import windows
    from .samples import baseline_of, subtract_baseline
    from .spectra import energy_spectrum, event_spectra, tof_spectrum

# imported when first used: numba and SciPy take a second
_LAZY = {
    "angular_fit": "angular",
    "baseline_of": "samples",
    "covariance_map": "covariance",
    "deadtime_correct": "deadtime",
    "decode_fex": "fex",
    "dld_reconstruct": "delayline",
    "energy_spectrum": "spectra",
    "energy_to_tof": "axes",
    "event_spectra": "spectra",
    "fex_sparsify": "fex",
    "find_hits": "hits",
    "fit_energy_calibration": "calibration",
    "fit_mq_calibration": "calibration",
    "padded": "fex",
    "partial_covariance_map": "covariance",
    "subtract_baseline": "samples",
    "tof_spectrum": "spectra",
    "tof_to_energy": "axes",
    "tof_to_mq": "axes",
    "windows": "node",
}

__all__ = [
    "angular_fit",
    "baseline_of",
    "covariance_map",
    "deadtime_correct",
    "decode_fex",
    "dld_reconstruct",
    "energy_spectrum",
    "energy_to_tof",
    "event_spectra",
    "fex_sparsify",
    "find_hits",
    "fit_energy_calibration",
    "fit_mq_calibration",
    "padded",
    "partial_covariance_map",
    "subtract_baseline",
    "tof_spectrum",
    "tof_to_energy",
    "tof_to_mq",
    "windows",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
