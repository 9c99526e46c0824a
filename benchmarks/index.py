"""The index of a long run of four streams: bytes on disk, memory to build and to use it, time."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask.config

from . import grow
from .timing import Setting, compare, resident

STREAMS = 4


def run(setting: Setting) -> None:
    """Measure."""
    events = setting.size(100_000_000 if setting.full else 10_000_000, 20_000)
    began = time.perf_counter()
    path = grow.smalldata_run(setting.directory / "run", events, STREAMS)
    cache = setting.directory / "cache"
    made = time.perf_counter() - began
    print(f"  {events} events, {STREAMS} streams, one of which has every seventh (made in {made:.0f} s)")
    _in_process("build", grow.smalldata_run(setting.directory / "tiny", 100, STREAMS), setting.directory / "other")
    told = {what: _in_process(what, path, cache) for what in ("import", "build", "open", "read")}
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    texts = {
        "import": "imports alone",
        "build": "building the index",
        "open": "opening it in a new process",
        "read": "and reading all timestamps by blocks",
    }
    for what, memory in told.items():
        print(
            f"  {texts[what]:40}{memory['seconds']:9.2f} s  CPU {memory['cpu']:.2f} s  most resident "
            f"{memory['peak'] / 1e6:6.0f} MB, of which no file backs {memory['anon'] / 1e6:6.0f} MB"
        )
    there = events * (STREAMS - 1 + 1 / 7)
    compare("on disk, bytes an event and stream", size / (events * STREAMS), 16)
    print(f"  {'  the same for each datagram that there is':56}{size / there:10.4g}")
    for what in ("build", "open"):
        compare(f"most resident, {texts[what]}", told[what]["peak"] / 1e6, 200, unit=" MB")
    print(f"  {'building, an event and stream':56}{1e9 * told['build']['seconds'] / (events * STREAMS):10.1f} ns")


def _in_process(what: str, path: Path, cache: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.index", what, str(path), str(cache)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=grow.REPOSITORY)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


class _Watch(threading.Thread):
    """The most memory that no file backs: the kernel keeps a peak only of all memory together."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anon = 0
        self._stop_now = threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.01):
            self.anon = max(self.anon, resident()["anon"])

    def stop(self) -> int:
        self._stop_now.set()
        self.join()
        return max(self.anon, resident()["anon"])


def main() -> None:
    """One task in a process of its own; prints its memory and time as JSON."""
    what, path, cache = sys.argv[1:]
    watch = _Watch()
    watch.start()
    import lcls_dask.formats.xtc2.source  # noqa: F401
    from lcls_dask.formats import open_source

    with dask.config.set({"lcls.index-cache": cache}):
        wall, cpu = time.perf_counter(), time.process_time()
        if what != "import":
            root = (source := open_source(path)).index.nodes["/"]
            if what == "read":
                stamps = root.variables["timestamp"]
                for start in range(0, stamps.shape[0], stamps.chunk):
                    source.read("/", "timestamp", slice(start, min(start + stamps.chunk, stamps.shape[0])))
        seconds, used = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": used, **resident(), "anon": watch.stop()}))


if __name__ == "__main__":
    main()
