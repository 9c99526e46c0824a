"""A thousand events at random by their timestamps, against psana's build_table() and event(ts)."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from . import grow, peer
from .timing import Setting, Timing, interleaved, ratio, show


def run(setting: Setting) -> None:
    """Measure."""
    small = grow.small_run(setting.directory / "scalars", setting.size(100_000, 2_000))
    _compare(setting, small, "energy", "gmd.raw.milliJoulesPerPulse", "a scalar")
    if setting.real(grow.JUNGFRAU):
        frames = setting.directory / "frames"
        grow.grow(grow.JUNGFRAU, frames, "mfx101332224", 7, setting.size(3000, 30), smalldata=True)
        _compare(setting, frames, "frames", "jungfrau.raw.raw", "a frame of 1 MB")


def _compare(setting: Setting, path: Path, task: str, name: str, what: str) -> None:
    with setting.empty_cache():
        opened = xr.open_dataset(path, engine="lcls")
        stamps = opened["timestamp"].values
        wanted = stamps[peer.chosen_events(len(stamps), setting.size(1000, 20))]

        def access() -> None:
            _visit(opened[name], wanted)

        def open_and_access() -> None:
            with setting.empty_cache():
                _visit(xr.open_dataset(path, engine="lcls")[name], wanted)

        access()
        mine = interleaved(setting.repeats, {"open and access": open_and_access, "access": access})
    print(f"  {len(wanted)} of {len(stamps)} events, {what} of each")
    for label, timing in mine.items():
        show(f"lcls_dask, {label}", timing, events=len(wanted))
    if not setting.psana():
        return
    told = _psana(min(3, setting.repeats), lambda: peer.ask(task, path, len(wanted)))
    for label, timing in told.items():
        show(f"psana, {label}", timing, events=len(wanted))
    whole = told["build_table and access"]
    ratio("psana over lcls_dask, with opening", whole, mine["open and access"], 5, at_least=True)
    ratio("psana over lcls_dask, both opened before", told["access"], mine["access"])


def _visit(values: xr.DataArray, stamps: np.ndarray[Any, Any]) -> None:
    """Every value in memory once, a block of them after the other, as psana gives event after event."""
    rows = np.searchsorted(values["timestamp"].values, stamps)
    block = values.encoding["preferred_chunks"]["event"]
    for first in range(0, len(rows), block):
        part = rows[first : first + block]
        assert values.isel(event=part).values.shape[0] == len(part)


def _psana(repeats: int, ask: Any) -> dict[str, Timing]:
    answers = [ask() for _ in range(repeats)]
    both = [[sum(part) for part in zip(a["open"], a["access"], strict=True)] for a in answers]
    return {
        "build_table and access": Timing(tuple(wall for wall, _ in both), tuple(cpu for _, cpu in both)),
        "access": Timing(tuple(a["access"][0] for a in answers), tuple(a["access"][1] for a in answers)),
    }
