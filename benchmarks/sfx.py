"""Crystallography: peaks of a Jungfrau 4M against psana.peakfinder8, with calibration in one pass, powder patterns."""

import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
from distributed import Client, LocalCluster

import lcls_dask
from lcls_dask import sfx
from lcls_dask.facility.geometry import PIXEL, jungfrau_4m
from lcls_dask.sfx import Calibration, Geometry, Panel, PixelConstants
from lcls_dask.sfx.calibration import calibrate_block
from lcls_dask.sfx.kernels.powder import add_frames
from lcls_dask.sfx.peaks import Finder, Settings
from lcls_dask.sfx.rings import radii

from .timing import Setting, compare, interleaved, ratio, show

Array = np.ndarray[Any, Any]
PEAKS, TOLD = 120, {"threshold": 0.0, "min_snr": 5.0, "max_pixels": 30, "background_radius": 4}


def geometry() -> Geometry:
    """The Jungfrau 4M of the simulated facility."""
    layout, panels = jungfrau_4m(), []
    for name, corner, slow, fast, (row, column) in zip(
        layout.name, layout.corner, layout.slow, layout.fast, layout.first.tolist(), strict=True
    ):
        x, y = ((corner + 0.5 * slow + 0.5 * fast) * PIXEL).tolist()
        fs, ss = (fast * PIXEL).tolist(), (slow * PIXEL).tolist()
        segment, row = divmod(row, 512)
        panels.append(Panel(name, segment, row, row + 256, column, column + 256, (x, y, 0.0), (*fs, 0.0), (*ss, 0.0)))
    return Geometry(tuple(panels), (8, 512, 1024), 0.12, 9500.0)


def frames(detector: Geometry, count: int) -> Array:
    """(count, 8, 512, 1024) float32: a Poisson background that falls from the beam, and 120 peaks of 300 to 3000."""
    random, radius = np.random.default_rng(0), radii(detector)
    level = 20 * np.exp(-radius / 600) + 3
    made = np.empty((count, *detector.shape), np.float32)
    for frame in made:
        frame[:] = random.poisson(level) + random.normal(0, 0.3, level.shape)
        for _ in range(PEAKS):
            segment, row, column = random.integers(8), random.integers(8, 504), random.integers(8, 1016)
            at = np.arange(-4, 5)
            shape = np.exp(-0.5 * (at[:, None] ** 2 + at**2)) / (2 * np.pi)
            frame[segment, row - 4 : row + 5, column - 4 : column + 5] += random.poisson(
                random.uniform(300, 3000) * shape
            )
    return made


def _psana(detector: Geometry) -> Callable[[Array], int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from psana.peakfinder8 import peakfinder_8
    except ImportError:
        return None
    mask, ring = np.ones((4096, 1024), np.int8), np.rint(radii(detector)).reshape(4096, 1024).astype(np.float32)

    def find(frame: Array) -> int:
        return len(peakfinder_8(2048 * 64, frame.reshape(4096, 1024), mask, ring, 256, 256, 4, 16,
                                0.0, 5.0, 2, 30, 4)[0])  # fmt: skip

    return find


def peaks(setting: Setting, detector: Geometry, values: Array) -> None:
    """Full and sampled statistics."""
    finders = {name: Finder.of(detector, None, Settings(**TOLD, statistics=name), None) for name in ("full", "sampled")}
    none = xr.Dataset()
    contenders: dict[str, Callable[[], object]] = {
        "reading the frames once": lambda: values.max(),
        **{f"find_peaks, {name}": lambda one=one: one.find(values, none)[0] for name, one in finders.items()},
    }
    psana = _psana(detector)
    if psana is None:
        print("  SKIPPED: psana is not installed, there is nothing to compare with (pip install -e '.[psana]')")
    else:
        contenders["psana.peakfinder8"] = lambda: [psana(frame) for frame in values[:2]]
        number = psana(values[0])
        found = int(finders["full"].find(values[:1], none)[0].sum())
        compare("peaks of the first frame that psana does not find, or alone", abs(number - found), 1)
    for work in contenders.values():
        work()  # compiles
    timings = interleaved(setting.repeats, contenders)
    for name, timing in timings.items():
        events = 2 if name == "psana.peakfinder8" else len(values)
        show(name, timing, events=min(events, len(values)), size=events * values[0].nbytes)
    if psana is not None:
        scale = len(values) / min(2, len(values))
        for name, reach in (("full", 12), ("sampled", 20)):
            ours = timings[f"find_peaks, {name}"]
            ratio(
                f"frames/s, {name}, over psana", timings["psana.peakfinder8"], ours, reach, at_least=True, scale=scale
            )
    for name in finders:
        seconds = timings[f"find_peaks, {name}"].median / len(values)
        print(f"  cores for a Jungfrau 4M, {name}: {120 * seconds:.1f} at 120 Hz, {1000 * seconds:.1f} at 1 kHz")


def fused(setting: Setting, detector: Geometry, values: Array) -> None:
    """Calibration and peaks in one pass."""
    random = np.random.default_rng(1)
    pedestal = random.normal(2700, 80, (3, *detector.shape)).astype(np.float32)
    gain = np.full((3, *detector.shape), 41.0, np.float32)
    raw = np.clip(np.rint(pedestal[0] + 41 * 9.5 * values / 20), 0, 16383).astype(np.uint16)
    calibration = Calibration(PixelConstants(pedestal, gain), photon_energy=9500.0)
    stages = calibration.stages(dict(calibration.pixels.digests))
    none = xr.Dataset()
    for name in ("full", "sampled"):
        settings = Settings(**TOLD, statistics=name)
        one, two = Finder.of(detector, None, settings, stages), Finder.of(detector, None, settings, None)
        contenders: dict[str, Callable[[], object]] = {
            "calibrate alone": lambda: calibrate_block(raw, none, stages),
            "calibrate, then find_peaks": lambda two=two: two.find(calibrate_block(raw, none, stages), none)[0],
            "both in one pass": lambda one=one: one.find(raw, none)[0],
        }
        for work in contenders.values():
            work()
        timings = interleaved(setting.repeats, contenders)
        for what, timing in timings.items():
            show(f"{what}, {name}", timing, events=len(raw), size=raw.nbytes)
        ratio(f"apart over one pass, {name}", timings["calibrate, then find_peaks"], timings["both in one pass"], 1.4,
              at_least=True)  # fmt: skip
        seconds = timings["both in one pass"].median / len(raw)
        print(f"  cores from raw frames, {name}: {120 * seconds:.1f} at 120 Hz, {1000 * seconds:.1f} at 1 kHz")


def powders(setting: Setting, values: Array) -> None:
    """Sum, squares, maximum and count of many frames: blocks of 32, those in memory again and again."""
    block = setting.size(32, 2 * len(values))
    count = setting.size(992, block)
    n = values[0].size
    flat, chosen = np.resize(values, (block, n)), np.arange(block)
    part = np.zeros(n, np.uint32), np.zeros(n), np.zeros(n), np.full(n, -np.inf, np.float32)
    total = np.zeros(n, np.float32)

    def ours() -> None:
        for _ in range(count // block):
            add_frames(flat, chosen, *part)

    def peer() -> None:
        for number in range(count):
            np.add(total, flat[number % block], out=total)

    ours()
    timings = interleaved(min(3, setting.repeats), {"powder": ours, "np.add": peer})
    for name, timing in timings.items():
        show(f"{name}, {count} frames", timing, events=count, size=count * values[0].nbytes)
    ratio("powder over np.add", timings["powder"], timings["np.add"], 1.5)


def _hits(path: Path, part: slice | None) -> xr.DataArray:
    """Which frames of a run have peaks, from its raw frames: not computed yet."""
    raw = sfx.frames_of(lcls_dask.open_run(path))
    calibration = Calibration(sfx.read_constants(path.parent / "constants.h5"), photon_energy=9500.0)
    raw = raw if part is None else raw.isel(event=part)
    return sfx.find_hits(sfx.find_peaks(raw, geometry(), **{**TOLD, "threshold": 4.0}, calibration=calibration))


def _bare(path: Path, part: slice) -> Array:
    with dask.config.set(scheduler="synchronous"):
        return np.asarray(_hits(path, part)["peaks"])


def disk(setting: Setting) -> None:
    """A whole run from disk on two workers, against two bare processes that do the same to half of it each."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    events, path = setting.size(1024, 16), setting.directory / "run"
    lcls_dask.simulate(path, "sfx", events=events, seed=1)
    raw = sfx.frames_of(lcls_dask.open_run(path))
    gain = np.full((3, *raw.shape[1:]), 41.0, np.float32)
    sfx.write_constants(sfx.derive_constants([raw[:12]]), setting.directory / "constants.h5", gain)
    halves = slice(0, events // 2), slice(events // 2, events)
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
    )  # fmt: skip
    with ProcessPoolExecutor(2, get_context("spawn")) as pool, cluster, Client(cluster):

        def bare() -> Array:
            return np.concatenate(list(pool.map(_bare, (path, path), halves)))

        def workers() -> Array:
            return np.asarray(_hits(path, None)["peaks"])

        assert (bare() == workers()).all()  # and all is compiled
        timings = interleaved(min(3, setting.repeats), {"two Dask workers": workers, "two bare processes": bare})
    os.sched_setaffinity(0, cores)
    for name, timing in timings.items():
        show(f"run from disk, {name}", timing, events=events, size=sum(f.stat().st_size for f in path.glob("*.xtc2")))
    ratio("events/s of two workers over two bare processes", timings["two bare processes"],
          timings["two Dask workers"], 0.9, at_least=True)  # fmt: skip


def run(setting: Setting) -> None:
    """Measure."""
    detector = geometry()
    values = frames(detector, setting.size(8, 1))
    peaks(setting, detector, values)
    fused(setting, detector, values)
    powders(setting, values)
    del values
    disk(setting)
