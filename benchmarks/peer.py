"""psana at work, in a process of its own: ``python -m benchmarks.peer TASK PATH EVENTS`` prints seconds as JSON.

Times are from just before the DataSource is made to the last event asked for: neither the interpreter's start, nor
psana's import, nor its sleep at the end of a file counts.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]


def ask(task: str, path: Path, events: int) -> dict[str, Any]:
    """Let psana do a task in a new process.

    Parameters
    ----------
    task : str
        ``"peaks"``, ``"loop"``, ``"scalars"``, ``"energy"`` or ``"frames"``; see the functions of this module.
    path : Path
        A file for ``"peaks"``, else a run's directory.
    events : int
        How many events to read.

    Returns
    -------
    dict
        ``events`` and lists ``[wall, cpu]`` of seconds by name.
    """
    environment = {**os.environ, "PS_PARALLEL": "none", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "benchmarks.peer", task, str(path), str(events)]
    done = subprocess.run(command, env=environment, cwd=path.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"psana failed at {task!r} of {path}: {done.stderr.strip().splitlines()[-1:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def timed(task: str, path: Path, events: int, name: str) -> tuple[float, float]:
    """Wall and CPU seconds of psana at a task; checks that it gave all the events."""
    answer = ask(task, path, events)
    if answer["events"] != events:
        raise RuntimeError(f"psana gave {answer['events']} events of {path}, {events} were asked for")
    wall, cpu = answer[name]
    return wall, cpu


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = time.perf_counter() - wall, time.process_time() - cpu


def _file(path: str) -> Any:
    from psana import DataSource

    return DataSource(files=path, skip_calib_load="all")


def _run(path: str) -> Any:
    from psana import DataSource
    from psana.psexp.ds_base import DataSourceBase

    # it would ask SLAC's logbook for the list of files; without an answer it takes those of the directory, as here
    DataSourceBase._get_file_info_from_db = lambda self, runnum: {}
    first = next(Path(path).glob("*-s000-c000.xtc2")).name
    experiment, number = first.split("-")[:2]
    return DataSource(exp=experiment, run=int(number[1:]), dir=path, skip_calib_load="all")


def peaks(path: str, events: int, clock: _Clock) -> int:
    """FEX windows of a digitizer by the detector's interface, from one file."""
    done = samples = 0
    with clock("all"):
        run = next(_file(path).runs())
        detector = run.Detector("xpphsd").hsd
        for event in run.events():
            for channels in (detector.peaks(event) or {}).values():
                for _, windows in channels.values():
                    samples += sum(map(len, windows))
            done += 1
            if done == events:
                break
    return done


def loop(path: str, events: int, clock: _Clock) -> int:
    """The event loop of a run with smalldata, nothing else."""
    done = 0
    with clock("loop"):
        run = next(_run(path).runs())
        for _ in run.events():
            done += 1
            if done == events:
                break
    return done


def scalars(path: str, events: int, clock: _Clock) -> int:
    """Every scalar of every event, by the detectors' interfaces."""
    done, total = 0, 0.0
    with clock("all"):
        run = next(_run(path).runs())
        gmd, ebeam = run.Detector("gmd").raw, run.Detector("ebeam").raw
        for event in run.events():
            total += gmd.milliJoulesPerPulse(event) + gmd.RMS_E(event) + ebeam.damageMask(event)
            total += ebeam.ebeamCharge(event) + ebeam.ebeamL3Energy(event) + ebeam.ebeamPhotonEnergy(event)
            done += 1
            if done == events:
                break
    return done


def _random(path: str, events: int, clock: _Clock, detector: str, field: str) -> int:
    with clock("open"):
        run = next(_run(path).runs())
        read = getattr(run.Detector(detector).raw, field)
        with run.build_table():
            pass
    stamps = np.array(sorted(run._ts_table))
    chosen = chosen_events(len(stamps), events)
    with clock("access"):
        for stamp in stamps[chosen].tolist():
            if read(run.event(stamp)) is None:
                raise SystemExit(f"psana has no {field} at {stamp}")
    return len(chosen)


def energy(path: str, events: int, clock: _Clock) -> int:
    """A scalar of events at random, one after the other."""
    return _random(path, events, clock, "gmd", "milliJoulesPerPulse")


def frames(path: str, events: int, clock: _Clock) -> int:
    """Frames of events at random, one after the other."""
    return _random(path, events, clock, "jungfrau", "raw")


def chosen_events(total: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The events of random access: the same for psana and for lcls_dask."""
    return np.random.default_rng(1).permutation(total)[:count]


TASKS = {task.__name__: task for task in (peaks, loop, scalars, energy, frames)}


def main() -> None:
    """Do one task."""
    name, path, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
    import psana  # noqa: F401  # its import is no part of the task

    clock = _Clock()
    done = TASKS[name](path, events, clock)
    print(json.dumps({"events": done, **clock.seconds}), flush=True)
    os._exit(0)  # psana's threads and destructors have nothing to do with the task


if __name__ == "__main__":
    main()
