"""Write a simulated run: what happens when, in every stream."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import SimulationError, TargetExistsError
from ..formats.xtc2.bulk import pack_events
from ..formats.xtc2.layout import BEGIN_STEP, DISABLE, ENABLE, END_RUN, END_STEP, SLOW_UPDATE
from ..formats.xtc2.writer import StreamWriter, runinfo_names
from . import scan, sfx, tof
from .plan import PULSE_RATE, Block, Clock, Plan
from .truth import TruthWriter

#: Seconds between flushes of a run that is written in real time.
_BEAT = 0.1


@dataclass(frozen=True)
class _Kind:
    experiment: str
    events: int
    streams: int
    segments: int
    stride: int
    make: Callable[[int, int, int, Clock], Plan]


KINDS = {
    "tof": _Kind("tmosim01", 10_000, 4, tof.CHANNELS, 91, tof.TofPlan),
    "sfx": _Kind("cxisim01", 50, 2, sfx.SEGMENTS, 7738, sfx.SfxPlan),
    "scan": _Kind("rixsim01", 600, 2, scan.SEGMENTS, 910, scan.ScanPlan),
}


@dataclass(frozen=True)
class Simulation:
    """What `simulate` wrote.

    Attributes
    ----------
    path : Path
        Directory of the run.
    kind, experiment : str
    run, events, seed : int
    streams : tuple of Path
        The xtc2 files.
    truth : Path
        ``truth.json``; ``truth.zarr`` lies beside it.
    """

    path: Path
    kind: str
    experiment: str
    run: int
    events: int
    seed: int
    streams: tuple[Path, ...]
    truth: Path


def simulate(
    path: str | os.PathLike[str],
    kind: str = "tof",
    *,
    events: int | None = None,
    seed: int = 0,
    rate_hz: float | None = None,
    streams: int | None = None,
    experiment: str | None = None,
    run: int = 1,
) -> Simulation:
    """Write a run in LCLS-II's real format, and the truth about it.

    Parameters
    ----------
    path : path
        Directory to make. Streams, ``smalldata/``, ``truth.json`` and ``truth.zarr`` go into it.
    kind : {"tof", "sfx", "scan"}
        16 time-of-flight channels on a digitizer; lysozyme on a Jungfrau 4M; or a motor scan with a fast and a
        slow detector.
    events : int, optional
        By default 10,000, 50 or 600.
    seed : int
        0 to 2**63 - 1. The same arguments give the same bytes.
    rate_hz : float, optional
        Write in real time at this rate, up to 70 kHz, with files named ``.inprogress`` until the end. By default
        as fast as can be.
    streams : int, optional
        Number of streams that the detector's segments are spread over; by default 4, 2 or 2.
    experiment : str, optional
        By default ``tmosim01``, ``cxisim01`` or ``rixsim01``.
    run : int

    Returns
    -------
    Simulation

    Raises
    ------
    SimulationError
        An argument is out of range.
    TargetExistsError
        `path` is a file, or a directory that is not empty.

    Examples
    --------
    >>> import tempfile
    >>> from lcls_dask.facility import simulate
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [stream.name for stream in simulate(folder, "scan", events=20).streams]
    ['rixsim01-r0001-s000-c000.xtc2', 'rixsim01-r0001-s001-c000.xtc2']
    """
    if kind not in KINDS:
        raise SimulationError(f"there is no kind of simulated run called {kind!r}; choose from {', '.join(KINDS)}")
    chosen = KINDS[kind]
    events = chosen.events if events is None else events
    streams = chosen.streams if streams is None else streams
    experiment = chosen.experiment if experiment is None else experiment
    _check(events, seed, rate_hz, streams, chosen.segments, experiment, run)
    directory = Path(path)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise TargetExistsError(f"{directory} is there already and not an empty directory; choose another path")
    directory.mkdir(parents=True, exist_ok=True)

    clock = Clock(chosen.stride if rate_hz is None else max(13, round(PULSE_RATE / rate_hz)))
    plan: Plan = chosen.make(seed, events, streams, clock)
    result = Simulation(
        directory,
        kind,
        experiment,
        run,
        events,
        seed,
        tuple(directory / f"{experiment}-r{run:04d}-s{stream:03d}-c000.xtc2" for stream in range(streams)),
        directory / "truth.json",
    )
    # the truth of a live run is known beforehand, but for what is appended
    _write_truth(result, plan)
    truth = TruthWriter(directory / "truth.zarr", plan.truth_arrays)
    for name, (spec, values) in plan.constants().items():
        truth.constant(name, spec, values)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(StreamWriter(directory, experiment, run, stream, inprogress=rate_hz is not None))
            for stream in range(streams)
        ]
        _begin(writers, plan)
        for block in _timeline(writers, plan, events, rate_hz):
            truth.append(block.truth)
        _transition(writers, plan, DISABLE, events, 5000)
        _transition(writers, plan, END_STEP, events, 4000)
        _transition(writers, plan, END_RUN, events, 3000)
    truth.close()
    return result


def _check(
    events: int, seed: int, rate_hz: float | None, streams: int, segments: int, experiment: str, run: int
) -> None:
    if events < 1:
        raise SimulationError(f"a run of {events} events cannot be simulated; ask for 1 or more")
    if not 0 <= seed < 1 << 63:
        raise SimulationError(f"seed {seed} is out of range; choose one from 0 to 2**63 - 1")
    if rate_hz is not None and not 0.001 <= rate_hz <= 70_000:
        raise SimulationError(f"a rate of {rate_hz} Hz cannot be simulated; choose 0.001 to 70000, or none")
    if not 1 <= streams <= segments:
        raise SimulationError(f"{streams} streams cannot share {segments} segments; choose 1 to {segments}")
    if not re.fullmatch(r"[a-z][a-z0-9_]{1,31}", experiment):
        raise SimulationError(f"{experiment!r} is no experiment's name; write one like tmosim01")
    if not 1 <= run <= 9999:
        raise SimulationError(f"run {run} is out of range; choose 1 to 9999")


def _write_truth(result: Simulation, plan: Plan) -> None:
    facts = {
        "kind": result.kind,
        "experiment": result.experiment,
        "run": result.run,
        "events": result.events,
        "seed": result.seed,
        "streams": [path.name for path in result.streams],
        "steps": [first for first, _ in _step_bounds(result.events, len(plan.steps))],
        "faults": plan.faults.as_json(),
        **plan.truth(),
    }
    result.truth.write_text(json.dumps(facts, indent=1) + "\n")
    for name, content in plan.files().items():
        (result.path / name).write_bytes(content)


def _begin(writers: list[StreamWriter], plan: Plan) -> None:
    for writer, stream in zip(writers, plan.streams, strict=True):
        info = runinfo_names()
        writer.configure(plan.clock.timestamp(0, 9000), [*stream.names, info], stream.values)
        writer.begin_run(plan.clock.timestamp(0, 8000), names=info)


def _transition(
    writers: list[StreamWriter], plan: Plan, service: int, event: int, before: int, values: bytes = b""
) -> None:
    """One transition in every stream at the same moment; stream 0 carries its values."""
    for number, writer in enumerate(writers):
        writer.transition(service, plan.clock.timestamp(event, before), values if number == 0 else b"")


def _step_bounds(events: int, steps: int) -> list[tuple[int, int]]:
    """First event and end of each step; a run of few events has fewer steps."""
    edges = np.linspace(0, events, min(steps, events) + 1).astype(int).tolist()
    return list(pairwise(edges))


def _timeline(writers: list[StreamWriter], plan: Plan, events: int, rate_hz: float | None) -> Iterator[Block]:
    """Write steps, slow updates and events in their order."""
    period = max(10, min(4000, events // 8))
    began = time.monotonic()
    for number, (first, end) in enumerate(_step_bounds(events, len(plan.steps))):
        if number:
            _transition(writers, plan, DISABLE, first, 5000)
            _transition(writers, plan, END_STEP, first, 4000)
        _transition(writers, plan, BEGIN_STEP, first, 3000, plan.steps[number])
        _transition(writers, plan, ENABLE, first, 2000)
        at = first
        while at < end:
            if at % period == 0:
                _transition(writers, plan, SLOW_UPDATE, at, 1000, plan.update(at // period))
            n = min(plan.block, end - at, period - at % period)
            if rate_hz is not None:
                n = min(n, _due(writers, at, began, rate_hz))
            block = plan.events(at, n)
            timestamps = plan.clock.timestamps(np.arange(at, at + n))
            for writer, part in zip(writers, block.streams, strict=True):
                writer.write_block(
                    pack_events(timestamps, part.contributions, damage=part.damage, present=part.present)
                )
            yield block
            at += n


def _due(writers: list[StreamWriter], written: int, began: float, rate_hz: float) -> int:
    """Wait until events are due, and say how many."""
    for writer in writers:
        writer.flush()
    while (due := int((time.monotonic() - began) * rate_hz) - written) < 1:
        time.sleep(min(_BEAT, max(0.0, began + (written + 1) / rate_hz - time.monotonic())))
    if due < rate_hz * _BEAT:
        # many events in a block cost little more than one
        time.sleep(_BEAT)
        due = int((time.monotonic() - began) * rate_hz) - written
    return due
