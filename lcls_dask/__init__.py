"""Lazily streamed, labelled LCLS runs on xarray, zarr and Dask.

>>> import lcls_dask
>>> run = lcls_dask.open_run(run_path)
>>> run.events
20
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .access.experiment import Experiment, open_experiment
    from .access.run import Run, open_run
    from .cluster import connect
    from .facility import simulate

__version__ = "0.1.0"

# imported when first used: the package itself must stay light
_LAZY = {
    "Experiment": "access.experiment",
    "Run": "access.run",
    "connect": "cluster",
    "open_experiment": "access.experiment",
    "open_run": "access.run",
    "simulate": "facility",
}

__all__ = ["Experiment", "Run", "__version__", "connect", "open_experiment", "open_run", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
