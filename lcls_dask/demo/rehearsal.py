"""Each kind of run once in small, so that the loops are compiled and kept for all processes to come."""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from dask import config
from scipy.spatial.transform import Rotation

from ..access.run import open_run
from ..errors import UnsupportedError
from ..facility import simulate
from ..sfx.chain import analyse
from ..sfx.indexing import index
from ..tof import chain
from . import sfx, tof

#: Events of each kind that need all loops. Indexing, a third of those of crystallography, comes on its own as well, so
#: that two processes have as much to do.
EVENTS = {"sfx": 6, "indexing": 1, "tof": 400}


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
    {'sfx': 53.7, 'indexing': 25.6, 'tof': 28.5}
    """
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return dict(zip(EVENTS, pool.map(_reduce, EVENTS), strict=True))


def _reduce(kind: str) -> float | str:
    start = time.perf_counter()
    try:
        _index() if kind == "indexing" else _simulate_and_reduce(kind)
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
