"""Time of flight: hits in waveforms and FEX windows, spectra and covariance, against peers and the memory's speed."""

import importlib.util
import logging
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
from distributed import Client, LocalCluster
from numba import njit

import lcls_dask
from lcls_dask import tof
from lcls_dask.tof.covariance import Moments
from lcls_dask.tof.hits import _of_waveforms

from .timing import Setting, interleaved, ratio, show

Array = np.ndarray[Any, Any]
CHANNELS, SAMPLES, SIGMA, NOISE, THRESHOLD, DELAY = 16, 3000, 3.5, 4.0, 40.0, 6


@njit(nogil=True)  # type: ignore[untyped-decorator]
def read_once(samples: Any) -> Any:
    """Sum of samples: what reading them takes."""
    total = np.int16(0)
    for i in range(samples.size):
        total = np.int16(total + samples[i])
    return total


def waveforms(events: int) -> tuple[Array, Array, int]:
    """(events, 16, 3000) int16 with two negative pulses to a waveform in the mean; baselines; how many pulses."""
    random = np.random.default_rng(0)
    rows = events * CHANNELS
    base = 2048 + random.integers(-6, 7, (CHANNELS, 4))
    stock = np.rint(NOISE * random.standard_normal(1 << 22)).astype(np.int16)
    out = np.empty((rows, SAMPLES), np.int16)
    counts = random.poisson(2, rows)
    for row in range(rows):
        begin = random.integers(0, stock.size - SAMPLES)
        out[row] = stock[begin : begin + SAMPLES] + np.resize(base[row % CHANNELS], SAMPLES)
        for t, height in zip(
            random.uniform(100, SAMPLES - 40, counts[row]), random.uniform(80, 600, counts[row]), strict=True
        ):
            at = np.arange(int(t) - 25, int(t) + 27)
            out[row, at] -= np.rint(height * np.exp(-0.5 * ((at - t) / SIGMA) ** 2)).astype(np.int16)
    return out.reshape(events, CHANNELS, SAMPLES), base.astype(np.float64), int(counts.sum())


def _block_work(values: Array, **options: Any) -> Callable[[], xr.Dataset]:
    """Hits of a block in this thread, as a task on a worker finds them."""
    lazy = tof.find_hits(values[:1], threshold=THRESHOLD, dead_time=1.5, **options)
    (task,) = [t for key, t in dict(lazy.__dask_graph__()).items() if isinstance(key, tuple) and key[0] == lazy._name]
    work = task[0] if isinstance(task, tuple) else task.func
    coords = xr.Dataset(coords={"channel": np.arange(CHANNELS)})
    assert isinstance(work, partial)
    assert work.func is _of_waveforms
    return lambda: work(values, coords)


def _pycfd() -> Callable[[Array, Array], list[float]] | None:
    spec = importlib.util.find_spec("psana")
    folder = next(iter(spec.submodule_search_locations or []), None) if spec else None
    path = Path(folder or "") / "hexanode" / "PyCFD.py"
    if folder is None or not path.exists():
        return None
    told = importlib.util.spec_from_file_location("pycfd", path)
    assert told is not None
    assert told.loader is not None
    module = importlib.util.module_from_spec(told)
    told.loader.exec_module(module)
    options = {"sample_interval": 1.0, "delay": DELAY, "fraction": 0.6, "threshold": THRESHOLD, "walk": 0,
               "polarity": "Negative", "timerange_low": -1, "timerange_high": 1e9, "offset": 0}  # fmt: skip
    find: Callable[[Array, Array], list[float]] = module.PyCFD(options).CFD
    return find


def _loop(find: Callable[[Array], Any], signal: Array) -> int:
    return sum(len(find(row)) for row in signal)


def hits(setting: Setting, values: Array, base: Array, pulses: int) -> None:
    """Raw waveforms."""
    rows = values.shape[0] * CHANNELS
    flat = values.reshape(-1)
    contenders = {
        "reading the samples once": lambda: read_once(flat),
        "cfd, baseline of each waveform": _block_work(values),
        "cfd, baseline given": _block_work(values, baseline=base),
        "matched, baseline of each waveform": _block_work(values, method="matched"),
    }
    found = contenders["cfd, baseline of each waveform"]()
    for work in contenders.values():
        work()  # compiles
    timings = interleaved(setting.repeats, contenders)
    print(f"  {rows} waveforms of {SAMPLES} int16, {pulses} pulses, {found.sizes['hit']} found")
    for name, timing in timings.items():
        show(name, timing, events=rows, size=values.nbytes)
    ours = timings["cfd, baseline of each waveform"]
    ratio("bandwidth of cfd over reading once", timings["reading the samples once"], ours, 0.4, at_least=True)
    cores = 1e6 * CHANNELS * ours.median / rows
    print(f"  cores for 1 MHz x {CHANNELS} channels, raw{cores:14.1f}")
    _peers(setting, values, contenders["cfd, baseline of each waveform"])


def _peers(setting: Setting, values: Array, ours: Callable[[], object]) -> None:
    rows = values.shape[0] * CHANNELS
    some = min(rows, setting.size(8000, 16))
    signal = -tof.subtract_baseline(values.reshape(-1, 1, SAMPLES)[:some])[:, 0].values
    positive = np.ascontiguousarray(-signal, np.float32)
    axis = np.arange(SAMPLES, dtype=np.float64)
    from scipy.signal import find_peaks

    contenders: dict[str, tuple[Callable[[], int], float]] = {
        "scipy.signal.find_peaks in a loop": (
            lambda: _loop(lambda row: find_peaks(row, height=THRESHOLD, distance=9)[0], positive), 130),
    }  # fmt: skip
    pycfd = _pycfd()
    if pycfd is None:
        print("  SKIPPED: psana's PyCFD is not here (pip install -e '.[psana]')")
    else:
        contenders["psana's PyCFD"] = (lambda: _loop(lambda row: pycfd(row.astype(np.float64), axis), signal), 200)
    try:
        from extra import signal as extra
    except ImportError:
        print("  SKIPPED: EXtra is not installed (pip install euxfel-extra)")
    else:
        # as EXtra's find_edges calls them: trace by trace, into arrays that are there
        room = {"edges": np.empty(400, np.float32), "amplitudes": np.empty(400, np.float32)}
        contenders["extra.signal.cfd"] = (
            lambda: _loop(lambda row: range(extra.cfd(row, THRESHOLD, DELAY, 9, 0.6, **room)[2]), positive),
            30,
        )
        contenders["extra.signal.dled"] = (
            lambda: _loop(lambda row: range(extra.dled(row, THRESHOLD, 0.6, 9, **room)[2]), positive),
            15,
        )
    for name, (work, reach) in contenders.items():
        try:
            work()
        except TypeError as error:
            print(f"  SKIPPED: {name} is called otherwise in this version: {error}")
            continue
        theirs, again = interleaved(setting.repeats, {name: work, "ours": ours}).values()
        show(f"{name}, {some} waveforms", theirs, events=some)
        ratio(f"waveforms/s of cfd over {name}", theirs, again, reach, at_least=True, scale=rows / some)


def fex(setting: Setting, values: Array, base: Array) -> None:
    """FEX windows."""
    band = int(base.min()) - 40, int(base.max()) + 40
    payload = tof.fex_sparsify(values, *band).compute()
    options = {"threshold": THRESHOLD, "baseline": base}
    raw = values.nbytes / payload["words"].nbytes

    def straight() -> xr.Dataset:
        with dask.config.set(scheduler="synchronous"):
            return tof.find_hits(tof.decode_fex(payload), **options).compute()

    def full() -> xr.Dataset:
        with dask.config.set(scheduler="synchronous"):
            return tof.find_hits(tof.padded(tof.decode_fex(payload), 2048), **options).compute()

    assert abs(straight().sizes["hit"] / max(full().sizes["hit"], 1) - 1) < 0.01
    timings = interleaved(setting.repeats, {"windows": straight, "full waveforms first": full})
    events = values.shape[0]
    print(f"  FEX of {events} events: {raw:.1f} times smaller")
    for name, timing in timings.items():
        show(name, timing, events=events, size=payload["words"].nbytes)
    ratio("full waveforms first over windows", timings["full waveforms first"], timings["windows"], 4, at_least=True)
    print(f"  cores for 1 MHz x {CHANNELS} channels, FEX{1e6 * timings['windows'].median / events:14.1f}")


def covariance(setting: Setting) -> None:
    """Covariance of 1000 x 1000 bins."""
    shots, bins = setting.size(4000, 200), setting.size(1000, 50)
    random = np.random.default_rng(1)
    counts = [random.poisson(0.1, (shots, bins)).astype(np.float32) for _ in range(2)]
    reals = [random.standard_normal((shots, bins)) for _ in range(2)]
    contenders = {
        "GEMM, float32": lambda: counts[0].T @ counts[1],
        "counts": lambda: Moments.of(*counts),
        "GEMM, float64": lambda: reals[0].T @ reals[1],
        "reals": lambda: Moments.of(*reals),
    }
    timings = interleaved(setting.repeats, contenders)
    for name, timing in timings.items():
        show(f"covariance, {name}", timing, events=shots)
    for name, peer in (("counts", "GEMM, float32"), ("reals", "GEMM, float64")):
        ratio(f"covariance of {name} by speed of a GEMM", timings[peer], timings[name], 0.8, at_least=True)


def histogram(setting: Setting) -> None:
    """Histogram of hits."""
    from lcls_dask.tof.kernels.histogram import count_hits

    size = setting.size(4_000_000, 10_000)
    times = np.random.default_rng(2).uniform(0, 500, size)
    edges = np.linspace(0, 500, 5001)
    offset = np.array([0, size])
    counts, outside = np.zeros((1, 1, 5000), np.int64), np.zeros((1, 1), np.int64)
    contenders: dict[str, Callable[[], object]] = {
        "hits": lambda: count_hits(offset, times, 1, np.zeros(1, np.int64), edges, 10.0, counts, outside),
        "np.histogram": lambda: np.histogram(times, 5000, (0, 500))[0],
    }
    try:
        import boost_histogram as bh
    except ImportError:
        print("  SKIPPED: boost-histogram is not installed (pip install boost-histogram)")
    else:
        axis = bh.Histogram(bh.axis.Regular(5000, 0, 500))
        contenders["boost-histogram"] = lambda: axis.fill(times)
    for work in contenders.values():
        work()
    timings = interleaved(setting.repeats, contenders)
    for name, timing in timings.items():
        show(f"histogram, {name}", timing, events=size)
    for name in list(contenders)[1:]:
        ratio(f"hits/s histogrammed over {name}", timings[name], timings["hits"])


def _spectrum(path: Path, part: slice | None, baseline: Array) -> xr.DataArray:
    """Hits of some events, counted by time: not computed yet."""
    # a whole node's blocks go to workers by name; one that is cut takes its offsets along
    node = lcls_dask.open_run(path).dataset(group="/hsd", chunks=None, **({"events": part} if part else {}))
    hits = tof.find_hits(tof.windows(node), threshold=60, baseline=baseline)
    return tof.tof_spectrum(hits, np.arange(0, 400, 0.5))


def _bare(path: Path, part: slice, baseline: Array) -> Array:
    with dask.config.set(scheduler="synchronous"):
        return np.asarray(_spectrum(path, part, baseline))


def disk(setting: Setting) -> None:
    """A whole run from disk on two workers, against two bare processes that do the same to half of it each."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    events, path = setting.size(1_000_000, 600), setting.directory / "run"
    lcls_dask.simulate(path, "tof", events=events, seed=1)
    node = lcls_dask.open_run(path).dataset(group="/hsd", chunks=None)
    baseline = tof.baseline_of(tof.windows(node, waveforms=True)).values
    halves = slice(0, events // 2), slice(events // 2, events)
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
    )  # fmt: skip
    with ProcessPoolExecutor(2, get_context("spawn")) as pool, cluster, Client(cluster):

        def bare() -> Array:
            return sum(pool.map(_bare, (path, path), halves, (baseline, baseline)), np.zeros(()))

        def workers() -> Array:
            return np.asarray(_spectrum(path, None, baseline))

        assert (bare() == workers()).all()  # and all is compiled
        timings = interleaved(setting.repeats, {"two Dask workers": workers, "two bare processes": bare})
    os.sched_setaffinity(0, cores)
    for name, timing in timings.items():
        show(f"run from disk, {name}", timing, events=events, size=sum(f.stat().st_size for f in path.glob("*.xtc2")))
    ratio("events/s of two workers over two bare processes", timings["two bare processes"],
          timings["two Dask workers"], 0.9, at_least=True)  # fmt: skip


def run(setting: Setting) -> None:
    """Measure."""
    values, base, pulses = waveforms(setting.size(2000, 20))
    hits(setting, values, base, pulses)
    fex(setting, values, base)
    del values
    covariance(setting)
    histogram(setting)
    disk(setting)
