"""All FEX windows of a digitizer run as CSR arrays, against psana's event loop and a raw read."""

import mmap
import os
from pathlib import Path

import xarray as xr

from . import grow, peer
from .timing import Setting, interleaved, ratio, show

COLUMNS = [f"xpphsd.hsd.windows.{name}" for name in ("offset", "start", "length", "sample_offset", "samples")]
BLOCK = 4 << 20


def windows(path: Path) -> xr.Dataset:
    """Starts, lengths and samples of every window, in memory."""
    return xr.open_dataset(path, engine="lcls", group="/xpphsd")[COLUMNS].load()


def raw_read(path: Path) -> int:
    """Every byte of a file into one buffer, again and again: what no reader can be faster than; bytes read."""
    # anonymous memory begins at a page: elsewhere some processors copy several times slower (see xtc2/kernels.py)
    buffer, at = mmap.mmap(-1, BLOCK), 0
    fd = os.open(path, os.O_RDONLY)
    while got := os.preadv(fd, [buffer], at):
        at += got
    os.close(fd)
    return at


def run(setting: Setting) -> None:
    """Measure."""
    if not setting.real(grow.HSD):
        return
    events = setting.size(500_000, 2_000)
    asked = setting.size(100_000, 500)
    path = grow.grow(grow.HSD, setting.directory / "run", "hsd", 1, events, smalldata=False)
    size = path.stat().st_size
    with setting.empty_cache():
        windows(grow.HSD)  # compiles

    def first_time() -> None:
        with setting.empty_cache():
            windows(path)

    def again() -> None:
        windows(path)

    with setting.empty_cache():
        windows(path)
        timings = interleaved(
            setting.repeats,
            {"raw read": lambda: raw_read(path), "lcls_dask": first_time, "lcls_dask, lengths cached": again},
            memory=size,
        )
    print(f"  {events} events, {size / 1e9:.3f} GB, one file; the index and the lengths are made anew each time")
    for name, timing in timings.items():
        show(name, timing, events=events, size=size)
    if setting.psana():
        # a part of the events, as it takes so long; its time is that from the first to the last of them
        told = interleaved(min(3, setting.repeats), {"psana": lambda: peer.timed("peaks", path, asked, "all")})["psana"]
        show(f"psana, det.hsd.peaks, {asked} events", told, events=asked)
        ratio("events/s of lcls_dask over psana's", told, timings["lcls_dask"], 20, at_least=True, scale=events / asked)
    ratio("lcls_dask over a raw read", timings["lcls_dask"], timings["raw read"], 10)
