"""Each kind of run once in small, so that the loops are compiled and kept for all processes to come."""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from dask import config
from scipy.spatial.transform import Rotation

from ..access.run import open_run
from ..errors import UnsupportedError
from ..facility import simulate
from ..sfx.calibration import Calibration
from ..sfx.chain import analyse
from ..sfx.constants.model import PixelConstants
from ..sfx.geometry.model import Geometry, Panel
from ..sfx.hits import find_hits
from ..sfx.indexing import index
from ..sfx.peaks import STATISTICS, find_peaks
from ..tof import chain
from . import sfx, tof

#: Events of each kind that need all loops. Indexing, a third of those of crystallography, comes on its own as well, so
#: that two processes have as much to do.
EVENTS = {"sfx": 6, "indexing": 1, "peaks": 5, "tof": 400}


def rehearse() -> dict[str, float | str]:
    """Simulate, read and reduce a few events of each kind, each in a process of its own.

    numba keeps the compiled loops beside the package, or where it may write, or in ``NUMBA_CACHE_DIR``.

    Returns
    -------
    dict of str to float or str
        Seconds that each kind took, or what is missing for it.

    Examples
    --------
    >>> rehearse()  # doctest: +SKIP
    {'sfx': 53.7, 'indexing': 25.6, 'peaks': 8.1, 'tof': 28.5}
    """
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return dict(zip(EVENTS, pool.map(_reduce, EVENTS), strict=True))


def _reduce(kind: str) -> float | str:
    start = time.perf_counter()
    try:
        _ALONE.get(kind, partial(_simulate_and_reduce, kind))()
    except UnsupportedError as error:  # an extra that is not installed
        return str(error)
    return time.perf_counter() - start


def _simulate_and_reduce(kind: str) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        config.set({"scheduler": "synchronous", "lcls.index-cache": f"{folder}/indexes"}),
    ):
        path = Path(folder) / "run"
        simulate(path, kind, events=EVENTS[kind], seed=0)
        run = open_run(path)
        if kind == "tof":
            chain.plan(run, tof.settings(path)).compute()
        else:
            analyse(run, Path(folder) / "sfx", sfx.settings_of(path, run.events))
        run.source.close()


def _index() -> None:
    """Index the spots of a crystal."""
    cell = (79.1, 79.1, 37.9, 90.0, 90.0, 90.0)
    hkl = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3), axis=-1).reshape(-1, 3)
    q = hkl / cell[:3] @ Rotation.from_euler("xyz", (0.4, 0.5, 0.6)).as_matrix()
    on_sphere = abs(np.linalg.norm(q + np.array([0.0, 0.0, 1 / 1.3]), axis=1) - 1 / 1.3) < 3e-4
    index(q[on_sphere], cell, space_group="P 43 21 2")


def _find_peaks() -> None:
    """Find peaks of raw frames, which the reduction of a run does not: its powder patterns want them calibrated."""
    panel = Panel("p0", 0, 0, 64, 0, 64, (-0.004, -0.004, 0.0), (1e-4, 0.0, 0.0), (0.0, 1e-4, 0.0))
    raw = np.random.default_rng(0).integers(1000, 1010, (EVENTS["peaks"], 1, 64, 64)).astype(np.uint16)
    calibration = Calibration(PixelConstants(np.full((3, 1, 64, 64), 1000.0), 41.0))
    for statistics in STATISTICS:
        geometry = Geometry((panel,), (1, 64, 64), distance=0.1)
        find_hits(find_peaks(raw, geometry, threshold=1.0, statistics=statistics, calibration=calibration)).load()


#: What needs no run.
_ALONE = {"indexing": _index, "peaks": _find_peaks}
