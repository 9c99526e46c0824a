"""The sum of all pixels of a Jungfrau run by xarray and Dask, against a copy from np.memmap and a sum."""

from pathlib import Path

import numpy as np
import xarray as xr

from lcls_dask.formats import open_source

from . import grow
from .hsd import raw_read
from .timing import Setting, interleaved, ratio, show

NAME = "jungfrau.raw.raw"
FRAME = 512 * 1024


def pixels(path: Path) -> int:
    """Their sum by a lazy array on the synchronous scheduler."""
    return int(xr.open_dataset(path, engine="lcls", chunks={})[NAME].sum().compute())


def mapped(path: Path, first: int, step: int, frames: int, block: int) -> int:
    """The sum of the same bytes: each block of frames is copied from a memory map, then summed."""
    file = np.memmap(path, np.uint8, "r")
    rows = np.lib.stride_tricks.as_strided(file[first:], (frames, 2 * FRAME), (step, 1), writeable=False)
    total = 0
    for start in range(0, frames, block):
        total += int(np.array(rows[start : start + block]).view(np.uint16).sum())
    return total


def run(setting: Setting) -> None:
    """Measure."""
    if not setting.real(grow.JUNGFRAU):
        return
    frames = setting.size(1000, 20)
    path = grow.grow(grow.JUNGFRAU, setting.directory, "mfx101332224", 7, frames, smalldata=False)
    size = frames * FRAME * 2
    with setting.empty_cache():
        sums = {"lcls_dask": pixels(path)}
        block = xr.open_dataset(path, engine="lcls", chunks={})[NAME].variable.chunksizes["event"][0]
        source = open_source(path)
        data = path.read_bytes()[: 4 << 20]
        # where the pixels lie: found by their values, so that the peer owes nothing to our reader
        at = data.index(np.ascontiguousarray(source.read("/", NAME, slice(0, 1))).tobytes())
        step = data.index(np.ascontiguousarray(source.read("/", NAME, slice(1, 2))).tobytes(), at + 1) - at
        sums["np.memmap"] = mapped(path, at, step, frames, block)
        timings = interleaved(
            2 * setting.repeats,
            {
                "np.memmap, copy and sum": lambda: mapped(path, at, step, frames, block),
                "lcls_dask, open and sum": lambda: pixels(path),
                "raw read": lambda: raw_read(path),
            },
        )
    assert sums["lcls_dask"] == sums["np.memmap"], sums
    print(f"  {frames} frames, {size / 1e9:.3f} GB of pixels, blocks of {block} frames; the sums are equal")
    for name, timing in timings.items():
        show(name, timing, events=frames, size=size)
    ratio("lcls_dask over np.memmap", timings["lcls_dask, open and sum"], timings["np.memmap, copy and sum"], 1.10)
