"""Crystallography: indexing by a known cell against DIALS, and how its cost grows with spots and cell."""

import shutil
from typing import Any

import numpy as np
import xarray as xr

from lcls_dask import sfx
from tests import sfx_spots as spots

from .timing import Setting, Timing, compare, interleaved, show

Array = np.ndarray[Any, Any]


def frames_of(cell: sfx.Cell, count: int, frames: int, spurious: float = 0.3) -> xr.Dataset:
    """Stills of `count` spots and some spurious ones."""
    random = np.random.default_rng(count)
    made = [spots.still(random, cell, count, spurious)[0] for _ in range(frames)]
    edges = np.concatenate([[0], np.cumsum([len(one) for one in made])])
    return xr.Dataset({"offset": ("row_edge", edges), "q": (("peak", "axis"), np.concatenate(made))})


def _dials(peaks: xr.Dataset, cell: sfx.Cell, found: list[int]) -> tuple[float, float]:
    """Seconds that DIALS computes for these frames, by its own process's account, without its imports."""
    import resource
    import time

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    empty = peaks.isel(row_edge=slice(0, 2), peak=slice(0, 5)).assign(offset=("row_edge", [0, 5]))
    spent = []
    for some in (empty, peaks):
        wall, cpu = time.perf_counter(), used()
        crystals = sfx.index(some, cell, "dials", photon_energy=12398.42 / spots.WAVELENGTH)
        spent.append((time.perf_counter() - wall, used() - cpu))
    found.append(crystals.sizes["crystal"])
    return spent[1][0] - spent[0][0], spent[1][1] - spent[0][1]


def run(setting: Setting) -> None:
    """Measure."""
    many = setting.size(200, 10)
    cell = spots.CELLS["lysozyme"]
    frames = frames_of(cell, 100, many)
    sfx.index(frames.isel(row_edge=slice(0, 3)), cell)  # compiles
    contenders: dict[str, Any] = {"lattice": lambda: sfx.index(frames, cell)}
    few, found = 3, [0]
    if shutil.which("dials.index") and not setting.quick:  # it takes 7 s a frame
        part = frames.isel(row_edge=slice(0, few + 1), peak=slice(0, int(frames["offset"][few])))
        contenders["dials"] = lambda: _dials(part, cell, found)
    ours = interleaved(setting.repeats, {"lattice": contenders["lattice"]})["lattice"]
    indexed = sfx.index(frames, cell).sizes["crystal"]
    print(f"  lysozyme, 100 spots and 43 spurious ones a frame: {indexed} of {many} frames indexed")
    show("index, lattice", ours, events=many)
    compare("frames a second on one core", many / ours.median, 500, at_least=True)
    if "dials" in contenders:
        theirs = interleaved(min(2, setting.repeats), {"dials": contenders["dials"]})["dials"]
        show("DIALS real_space_grid_search", theirs, events=few)
        print(f"  DIALS indexed {found[-1]} of {few} of the same frames")
        compare(
            "CPU time of DIALS over ours, a frame",
            (theirs.median_cpu / few) / (ours.median_cpu / many),
            1000,
            at_least=True,
        )
    else:
        print("  SKIPPED: DIALS, with --quick and where it is not installed (apt-get install dials)")
    _growth(setting)


def _growth(setting: Setting) -> None:
    """Cost by spots and cell."""
    many = setting.size(60, 4)
    print(f"  ms a frame of CPU time, 30 % spurious, {many} frames; and of blanks")
    counts = (15, 25, 50, 100, 150)
    print("  " + " " * 12 + "".join(f"{count:>9} spots" for count in counts) + "     blanks")
    for name, cell in spots.CELLS.items():
        rows = []
        random = np.random.default_rng(0)
        blanks = [spots.blank(random, "uniform") for _ in range(many)]
        edges = np.concatenate([[0], np.cumsum([len(one) for one in blanks])])
        tables = [frames_of(cell, count, many) for count in counts]
        tables.append(xr.Dataset({"offset": ("row_edge", edges), "q": (("peak", "axis"), np.concatenate(blanks))}))
        for table in tables:
            timing: Timing = interleaved(min(3, setting.repeats), {"": lambda table=table: sfx.index(table, cell)})[""]  # noqa: B023
            rows.append(1e3 * min(timing.cpu) / many)
        print(f"  {name:12}" + "".join(f"{value:15.2f}" for value in rows))
