"""All scalars of a run of small events, against psana's event loop and a raw read."""

from pathlib import Path

import xarray as xr

from . import grow, peer
from .hsd import raw_read
from .timing import Setting, interleaved, ratio, show


def run(setting: Setting) -> None:
    """Measure."""
    events = setting.size(1_000_000, 5_000)
    asked = setting.size(50_000, 500)
    path = grow.small_run(setting.directory / "run", events)
    files = sorted(path.glob("*.xtc2"))
    size = sum(file.stat().st_size for file in files)
    with setting.empty_cache():
        variables = loaded(path)
        timings = interleaved(
            setting.repeats,
            {
                "raw read": lambda: [raw_read(file) for file in files],
                "lcls_dask, index cached": lambda: loaded(path),
            },
        )
    mine = timings["lcls_dask, index cached"]
    print(f"  {events} events, {variables} variables, 2 streams, {size / 1e9:.3f} GB")
    for name, timing in timings.items():
        show(name, timing, events=events, size=size)
    print(f"  {'an event and variable':56}{1e9 * mine.median / events / variables:10.1f} ns")
    ratio("lcls_dask over a raw read", mine, timings["raw read"])
    if setting.psana():
        told = interleaved(min(3, setting.repeats), {"psana": lambda: peer.timed("scalars", path, asked, "all")})
        show(f"psana, 6 detector calls, {asked} events", told["psana"], events=asked)
        ratio("events/s of lcls_dask over psana's", told["psana"], mine, scale=events / asked)


def loaded(path: Path) -> int:
    """Read every variable over events; their number."""
    return len(xr.open_dataset(path, engine="lcls", chunks={}).compute().variables)
