"""The demo on simulated runs: reduce, kill a worker, compare with the truth, lay out."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from .. import open_run
from ..access.run import Run
from ..display import size_text
from ..errors import FormatError, LclsError
from ..facility import simulate
from ..facility.plan import DROPPED
from . import sfx, tof
from .page import Check, Section, Table, write_page
from .pictures import sfx_pictures, tof_pictures
from .referee import available, referee
from .workers import Pass, blocks, reduce_blocks, two_workers

Say = Callable[[str], None]
Array = np.ndarray[Any, Any]

NOTE = (
    "These runs are simulated, so what was put into them is known. That the numbers agree checks the reduction: "
    "nothing is lost, doubled or mislabelled between the files and the result. It does not check the physics."
)
#: Seed of both runs.
SEED = 2026
#: Events that psana reads for comparison.
REFEREE_EVENTS = {"tof": 50, "sfx": 4}


@dataclass(frozen=True)
class Reduced:
    """One run, reduced twice: undisturbed, and with a worker killed on the way."""

    run: Run
    path: Path
    bytes: int
    raw_seconds: float
    quiet: Pass
    disturbed: Pass


def demonstrate(out: Path, events: int, frames: int, say: Say) -> list[Section]:
    """Simulate one run of each kind, reduce them, and write the page.

    Parameters
    ----------
    out : Path
        Directory for the page, the PNGs and the runs ``tof`` and ``sfx``; those of an earlier demo are replaced.
    events, frames : int
        Events of the time-of-flight run, frames of the Jungfrau run.
    say : callable
        Told what is being done.

    Returns
    -------
    list of Section

    Raises
    ------
    LclsError
        `out` holds something else under those names.

    Examples
    --------
    >>> demonstrate(Path("demo-out"), 200_000, 300, print)  # doctest: +SKIP
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = {kind: _simulated(out / kind, kind, count, say) for kind, count in (("tof", events), ("sfx", frames))}
    with two_workers() as client:
        reduced_tof = _tof(client, paths["tof"], say)
        reduced_sfx = _sfx(client, paths["sfx"], say)
    both = (reduced_tof, reduced_sfx)
    sections = [
        Section(
            "Time of flight: 16 digitizer channels",
            "Pulses are found in the digitizer's windows and histogrammed by arrival time, channel by channel.",
            checks=(
                *tof.check(reduced_tof.path, reduced_tof.quiet.result),
                *_common(reduced_tof, "hsd", "tof", say),
            ),
            pictures=tuple(tof_pictures(out, reduced_tof.quiet.result)),
        ),
        Section(
            "Crystallography: Jungfrau 4M",
            f"A frame with {sfx.HIT_PIXELS} or more pixels above {sfx.STRONG_PHOTONS:g} photons is a hit.",
            checks=(
                *sfx.check(reduced_sfx.path, reduced_sfx.quiet.result),
                *_common(reduced_sfx, "jungfrau", "sfx", say),
            ),
            pictures=tuple(
                sfx_pictures(out, reduced_sfx.quiet.result, sfx.read_constants(reduced_sfx.path.absolute()))
            ),
        ),
        Section(
            "Speed",
            "Two workers, one thread each; the page cache is warm, as the runs have just been written. "
            "The raw read takes the same files through one process and looks at nothing.",
            tables=(_speed(both),),
        ),
    ]
    write_page(out / "index.html", "lcls_dask: two simulated runs", NOTE, sections)
    return sections


def _simulated(path: Path, kind: str, count: int, say: Say) -> Path:
    if path.exists() and not (path / "truth.json").is_file():
        raise LclsError(f"{path}: is there already and no simulated run; choose another directory with --out")
    shutil.rmtree(path, ignore_errors=True)
    say(f"simulating {count:,} {kind} events in {path}")
    simulate(path, kind, events=count, seed=SEED)
    return path


def _tof(client: Client, path: Path, say: Say) -> Reduced:
    run = open_run(path)
    where = str(path.absolute())
    polarity, sample_ns = tof.constants(path)
    reduction = tof.Reduction(where, run.snapshot, polarity, sample_ns, tof.baselines(where, run.snapshot))
    own = tof.digitizer(where, run.snapshot).sizes["hsd.event"]
    return _twice(client, run, path, reduction, tof.merge, own, 1 << 13, say)


def _sfx(client: Client, path: Path, say: Say) -> Reduced:
    run = open_run(path)
    reduction = sfx.Reduction(str(path.absolute()), run.snapshot, path.absolute())
    return _twice(client, run, path, reduction, sfx.merge, run.events, 24, say)


def _twice(
    client: Client,
    run: Run,
    path: Path,
    reduction: Callable[[tuple[int, int]], Any],
    merge: Callable[[Sequence[Any]], Any],
    events: int,
    longest: int,
    say: Say,
) -> Reduced:
    parts = blocks(events, max(1, min(longest, events // 8)))
    # the first blocks compile the kernels, in each worker
    reduce_blocks(client, reduction, merge, parts[:2])
    say(f"reducing {run.experiment} run {run.number}: {len(parts)} blocks on 2 workers")
    quiet = reduce_blocks(client, reduction, merge, parts)
    say("the same, killing a worker on the way")
    disturbed = reduce_blocks(client, reduction, merge, parts, kill=True)
    client.wait_for_workers(2, timeout=60)
    files = sorted(path.glob("*.xtc2"))
    return Reduced(run, path, sum(file.stat().st_size for file in files), read_raw(files), quiet, disturbed)


def read_raw(files: Sequence[Path]) -> float:
    """Seconds to read files through one buffer, looking at nothing.

    Parameters
    ----------
    files : sequence of Path

    Returns
    -------
    float

    Examples
    --------
    >>> read_raw([]) < 1
    True
    """
    buffer = bytearray(16 << 20)
    start = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - start


def _common(reduced: Reduced, detector: str, kind: str, say: Say) -> list[Check]:
    """What is checked for both runs: gaps, damage, the killed worker, psana."""
    import zarr

    faults = json.loads((reduced.path / "truth.json").read_text())["faults"]
    written = np.asarray(zarr.open_group(reduced.path / "truth.zarr", mode="r")["written"])
    events = reduced.run.events
    present = reduced.run.source.read("/", f"{detector}.raw.present", slice(0, events))
    damage = reduced.run.source.read("/", f"{detector}.raw.damage", slice(0, events))
    expected = np.zeros(damage.shape, damage.dtype)
    for fault in faults["damaged"] + [{**fault, "damage": DROPPED} for fault in faults["dropped"]]:
        expected[fault["event"], fault["segment"]] |= fault["damage"]
    killed = reduced.disturbed
    return [
        Check("events", f"{events:,}", f"{len(written):,}", events == len(written)),
        Check(
            "absent segments",
            f"{np.count_nonzero(~present):,} in {np.count_nonzero(~present.all(axis=1)):,} events",
            f"{np.count_nonzero(~written):,}, the same ones",
            np.array_equal(present, written),
        ),
        Check(
            "segments with damage bits",
            f"{np.count_nonzero(damage):,}",
            f"{np.count_nonzero(expected):,}, the same ones",
            np.array_equal(damage, expected),
        ),
        Check(
            f"worker killed after {killed.finished_before} of {killed.blocks} blocks",
            "same result" if killed.result == reduced.quiet.result else "another result",
            "the result without it, bit by bit",
            killed.result == reduced.quiet.result,
        ),
        referee_check(reduced.run, REFEREE_EVENTS[kind], say),
    ]


def referee_check(run: Run, events: int, say: Say) -> Check:
    """Compare a run's first events with psana's reading of them.

    Parameters
    ----------
    run : Run
    events : int
    say : callable

    Returns
    -------
    Check
        Not passed and not failed where psana is not installed or cannot read the run.

    Examples
    --------
    >>> referee_check(run, 10, print).passed  # doctest: +SKIP
    True
    """
    name = "values that psana reads"
    if not available():
        return Check(name, "", "psana is not installed", None)
    say(f"asking psana for {events} events of {run.path}")
    try:
        verdict = referee(run, events)
    except FormatError as error:
        return Check(name, "", str(error), None)
    told = f"{verdict.values - len(verdict.different):,} equal"
    if verdict.different:
        told += f"; not {verdict.different[0]}"
    return Check(name, told, f"{verdict.values:,} in {verdict.events} events", not verdict.different)


def _speed(both: Sequence[Reduced]) -> Table:
    rows = []
    for reduced in both:
        raw = reduced.bytes / reduced.raw_seconds / 1e9
        quiet = reduced.bytes / reduced.quiet.seconds / 1e9
        rows.append(
            (
                f"{reduced.run.experiment} run {reduced.run.number}",
                f"{reduced.run.events:,}",
                size_text(reduced.bytes),
                f"{raw:.2f} GB/s",
                f"{quiet:.2f} GB/s",
                f"{reduced.run.events / reduced.quiet.seconds:,.0f} /s",
                f"{reduced.quiet.seconds:.1f} s",
                f"{reduced.disturbed.seconds:.1f} s",
            )
        )
    columns = ("run", "events", "files", "raw read", "reduced", "events", "took", "took with a worker killed")
    return Table(columns, tuple(rows))
