"""Opening a run of small events with smalldata, the first time and again, against psana's event loop."""

import xarray as xr

from . import grow, peer
from .timing import Setting, interleaved, ratio, show


def run(setting: Setting) -> None:
    """Measure."""
    events = setting.size(1_000_000, 5_000)
    asked = setting.size(100_000, 500)
    path = grow.small_run(setting.directory / "run", events)
    small = grow.small_run(setting.directory / "small", 100)
    with setting.empty_cache():
        opened(str(small))  # compiles

    def first() -> None:
        with setting.empty_cache():
            opened(str(path))

    with setting.empty_cache():
        opened(str(path))
        timings = interleaved(
            2 * setting.repeats, {"lcls_dask, first opening": first, "lcls_dask, again": lambda: opened(str(path))}
        )
    print(f"  {events} events in 2 streams")
    for name, timing in timings.items():
        show(name, timing, events=events)
    one = timings["lcls_dask, first opening"]
    if setting.psana():
        told = interleaved(min(3, setting.repeats), {"psana": lambda: peer.timed("loop", path, asked, "loop")})["psana"]
        show(f"psana, run.events(), {asked} events", told, events=asked)
        ratio("psana's loop over the first opening", told, one, 30, at_least=True, scale=events / asked)
    ratio("opening again over the first opening", timings["lcls_dask, again"], one, 0.1)


def opened(path: str) -> None:
    """Open a run as a user does."""
    xr.open_dataset(path, engine="lcls", chunks={})
