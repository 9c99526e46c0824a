"""Importing lcls_dask, and with it the xarray engine, against importing psana."""

import json
import os
import subprocess
import sys
from functools import partial

from .timing import Setting, compare, interleaved, show

_IMPORT = """
import json, sys, time
wall, cpu = time.perf_counter(), time.process_time()
{work}
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


def _import(work: str) -> tuple[float, float]:
    env = {**os.environ, "PS_PARALLEL": "none"}
    done = subprocess.run([sys.executable, "-c", _IMPORT.format(work=work)], check=True, capture_output=True, env=env)
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


def run(setting: Setting) -> None:
    """Measure."""
    work = {
        "import lcls_dask": "import lcls_dask",
        "and what opens a run": "import lcls_dask.access.engine, lcls_dask.formats.xtc2.source",
    }
    if setting.psana():
        work["from psana import DataSource"] = "from psana import DataSource"
    timings = interleaved(setting.repeats, {name: partial(_import, text) for name, text in work.items()})
    for name, timing in timings.items():
        show(name, timing)
    compare("CPU time of import lcls_dask", timings["import lcls_dask"].median_cpu, 0.3, unit=" s")
