"""Measuring: one core, contenders in turn, medians, ratios against what is to be reached, and the machine."""

import datetime
import gc
import importlib.metadata
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask.config
import numpy as np

#: A contender does its work once; if it gives a tuple, that is its own (wall, CPU) seconds, as of a subprocess.
Contender = Callable[[], object]


def pin() -> None:
    """Stay on one core, with everything that is started from here."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"


@dataclass(frozen=True)
class Timing:
    """Wall and CPU seconds of the repetitions of one contender."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the wall seconds."""
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        """Median of the CPU seconds, which other users of the machine disturb least."""
        return statistics.median(self.cpu)


def interleaved(repeats: int, contenders: Mapping[str, Contender], memory: int = 0) -> dict[str, Timing]:
    """Run contenders in turn, A B A B, so that a disturbance of the machine meets them all.

    Parameters
    ----------
    repeats : int
        How often each runs.
    contenders : mapping of str to callable
    memory : int
        Bytes that are taken, written and given back right before each contender. A virtual machine gets memory from its
        host anew when it has not used it for seconds, at 0.1 to 3 s/GB: who has large results would pay for that.

    Returns
    -------
    dict of str to Timing
    """
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            gc.collect()  # nobody pays for what others left behind
            np.ones(memory, np.uint8)
            wall, cpu = time.perf_counter(), time.process_time()
            told = work()
            took = time.perf_counter() - wall, time.process_time() - cpu
            measured[name].append(told if isinstance(told, tuple) else took)
    return {
        name: Timing(tuple(wall for wall, _ in pairs), tuple(cpu for _, cpu in pairs))
        for name, pairs in measured.items()
    }


def show(name: str, timing: Timing, *, events: int = 0, size: int = 0) -> None:
    """Print one contender: its median and best time, and the rate of the median."""
    rates = f"{events / timing.median:13,.0f} events/s" if events else ""
    rates += f"{size / timing.median / 1e9:8.2f} GB/s" if size else ""
    print(f"  {name:36}{timing.median:10.4f} s, best {min(timing.wall):9.4f} s{rates}")


def compare(what: str, value: float, reach: float, *, at_least: bool = False, unit: str = "") -> None:
    """Print a figure beside what the project set out to reach."""
    met = value >= reach if at_least else value <= reach
    sign = ">=" if at_least else "<="
    print(f"  {what:56}{value:10.4g}{unit}  {sign} {reach:g}{unit} {'reached' if met else 'MISSED'}")


def ratio(
    what: str,
    over: Timing,
    under: Timing,
    reach: float | None = None,
    *,
    at_least: bool = False,
    scale: float = 1,
) -> None:
    """Print a ratio: of median wall times, which counts; of the best ones and of CPU times, to judge the noise by.

    Parameters
    ----------
    what : str
    over, under : Timing
    reach : float, optional
        What the project set out to reach.
    at_least : bool
        Whether more is better.
    scale : float
        By which `over` is to be multiplied, where it did only a part of the work.
    """
    value = scale * over.median / under.median
    if reach is None:
        print(f"  {what:56}{value:10.4g}")
    else:
        compare(what, value, reach, at_least=at_least)
    best = scale * min(over.wall) / min(under.wall)
    cpu = scale * over.median_cpu / max(under.median_cpu, 1e-9)
    print(f"  {f'  best repetitions {best:.4g}, CPU time {cpu:.4g}':56}")


def psana_version() -> str | None:
    """Version of the installed psana, the peer; None without it."""
    try:
        return importlib.metadata.version("psana")
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> str:
    """Where this was measured, in one line."""
    cpu, memory = platform.processor() or platform.machine(), 0.0
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x.partition(":")[2].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0] if names else cpu
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = f"load {os.getloadavg()[0]:.1f}"
    packages = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("numpy", "numba", "xarray", "dask"))
    return (
        f"{datetime.date.today()}: {cpu}, 1 of {os.cpu_count()} cores, {memory:.0f} GiB, {load}; "
        f"{platform.system()}, Python {sys.version.split()[0]}, {packages}, psana {psana_version() or 'NOT INSTALLED'}"
    )


def resident() -> dict[str, int]:
    """Memory of this process in bytes, by what it is: ``peak`` is all of it, ``anon`` what no file backs."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"peak": "VmHWM", "total": "VmRSS", "anon": "RssAnon", "file": "RssFile"}
    return {short: int(fields[name].split()[0]) * 1024 for short, name in names.items()}


@dataclass(frozen=True)
class Setting:
    """How a benchmark is to be run.

    Attributes
    ----------
    directory : Path
        For files of the benchmark; it is removed afterwards.
    quick : bool
        Tiny sizes, to see that everything works; the ratios then mean little.
    full : bool
        The largest sizes.
    repeats : int
        How often each contender runs.
    """

    directory: Path
    quick: bool
    full: bool
    repeats: int

    def size(self, usual: int, quick: int) -> int:
        """The number to use."""
        return quick if self.quick else usual

    @contextmanager
    def empty_cache(self) -> Iterator[None]:
        """An index cache that nothing is in yet."""
        with (
            tempfile.TemporaryDirectory(prefix="cache-", dir=self.directory) as cache,
            dask.config.set({"lcls.index-cache": cache, "scheduler": "synchronous"}),
        ):
            yield

    def psana(self) -> bool:
        """Whether psana can be the peer; says loudly when it can't."""
        if psana_version() is None:
            print("  SKIPPED: psana is not installed, there is nothing to compare with (pip install -e '.[psana]')")
        return psana_version() is not None

    def real(self, path: Path) -> bool:
        """Whether a real file is there to be grown; says loudly when it isn't."""
        if not path.exists():
            print(f"  SKIPPED: {path} is not there; set LCLS_DASK_DATA to the directory of the real files")
        return path.exists()
