"""The demo on simulated runs: served, reduced by two users, attacked, compared with the truth, laid out."""

import json
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client

from .. import open_run
from ..access.run import Run
from ..display import size_text
from ..errors import FormatError, LclsError
from ..facility import simulate
from ..facility.plan import DROPPED
from ..plot.spectra import draw
from ..tof import chain
from . import intruder, sfx, tof
from .page import Check, Picture, Section, Table, write_page
from .pictures import sfx_pictures
from .referee import available, referee
from .site import Site, acting_as, build_site, secrets_in, serving
from .workers import Pass, compute_plan, two_workers

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
#: Whose experiments they are, which the simulation names.
TOF_USER, SFX_USER = "alice", "bob"
TOF_EXPERIMENT, SFX_EXPERIMENT = "tmosim01", "cxisim01"
_BLOCK = 64 << 20


@dataclass(frozen=True)
class Reduced:
    """One run, reduced twice: undisturbed, and with a worker killed on the way.

    The second time in crystallography is the second half of the run, as if it had been broken off before.
    """

    run: Run
    path: Path
    bytes: int
    raw_seconds: float
    served_rate: float
    quiet: Pass
    disturbed: Pass
    exposed: int


def demonstrate(out: Path, events: int, frames: int, say: Say) -> list[Section]:
    """Simulate one run of each kind, serve them, reduce them as their users, try to break in, and write the page.

    Parameters
    ----------
    out : Path
        Directory for the page, the PNGs and the runs, below ``runs``; those of an earlier demo are replaced. Keys and
        tokens lie in a directory in it that only its owner can enter, and which is gone afterwards.
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
    runs = out.absolute() / "runs"
    tof_path = _simulated(runs / TOF_EXPERIMENT / "r0001", "tof", events, say)
    sfx_path = _simulated(runs / SFX_EXPERIMENT / "r0001", "sfx", frames, say)
    with tempfile.TemporaryDirectory(prefix="site-", dir=out) as folder:
        site = build_site(Path(folder).absolute(), runs, {TOF_USER: TOF_EXPERIMENT, SFX_USER: SFX_EXPERIMENT})
        with serving(site) as port:
            say(f"the gateway serves them at https://localhost:{port}")
            with acting_as(site, TOF_USER, port), two_workers() as client:
                reduced_tof = _tof(client, site, tof_path, say)
                tof_section = _tof_section(reduced_tof, out, say)
            with acting_as(site, SFX_USER, port), two_workers() as client:
                reduced_sfx = _sfx(client, site, sfx_path, say)
                sfx_section = _sfx_section(reduced_sfx, out, say)
            reads = _reads(site)
            say("trying to break in")
            attempts = intruder.attempts(site, _target(reduced_tof.run), TOF_USER, SFX_USER)
            tried = tuple(intruder.try_all(site, port, attempts))
            for reduced in (reduced_tof, reduced_sfx):
                reduced.run.source.close()
    sections = [
        tof_section,
        sfx_section,
        Section(
            "Who may read",
            f"{TOF_EXPERIMENT} belongs to {TOF_USER}, {SFX_EXPERIMENT} to {SFX_USER}. All values above came through "
            "the gateway over mutual TLS, each read authorised and audited; psana alone read the files themselves.",
            tables=(reads,),
        ),
        Section("An intruder", "Each line is a connection to the same gateway.", tried, intruder.COLUMNS),
        Section(
            "Speed",
            "Two workers, one thread each, and one process of the gateway; the page cache is warm, as the runs have "
            "just been written; in crystallography the second half of the run is done again. The raw read takes the "
            "same files through one process and looks at nothing; the served read takes the detector's values through "
            "the gateway into one thread.",
            tables=(_speed((reduced_tof, reduced_sfx)),),
        ),
    ]
    write_page(out / "index.html", "lcls_dask: two simulated runs", NOTE, sections)
    return sections


def _tof_section(reduced: Reduced, out: Path, say: Say) -> Section:
    pictures = draw(reduced.quiet.result, out)
    return Section(
        "Time of flight: 16 digitizer channels",
        "What lcls-dask tof makes of the digitizer's windows: hits, spectra by time and by energy, angular "
        "distributions, and the covariance without the pulse energy's part.",
        (*tof.check(reduced.path, reduced.quiet.result), *_common(reduced, "hsd", "tof", say)),
        pictures=tuple(Picture(path, f"{title}.") for path, title in pictures.items()),
    )


def _sfx_section(reduced: Reduced, out: Path, say: Say) -> Section:
    settings = sfx.settings_of(reduced.path, reduced.run.events)
    return Section(
        "Crystallography: Jungfrau 4M",
        "From raw frames to merged intensities, as lcls-dask sfx does it: calibration, peaks, hits, indexing by the "
        "known cell, integration, merging.",
        (*sfx.check(reduced.path, reduced.quiet.result), *_common(reduced, "jungfrau", "sfx", say)),
        pictures=tuple(sfx_pictures(out, reduced.run, settings, reduced.quiet.result.tree)),
    )


def _simulated(path: Path, kind: str, count: int, say: Say) -> Path:
    if path.exists() and not (path / "truth.json").is_file():
        raise LclsError(f"{path}: is there already and no simulated run; choose another directory with --out")
    shutil.rmtree(path, ignore_errors=True)
    say(f"simulating {count:,} {kind} events in {path}")
    simulate(path, kind, events=count, seed=SEED)
    return path


def _tof(client: Client, site: Site, path: Path, say: Say) -> Reduced:
    run = open_run(f"lcls://{TOF_EXPERIMENT}/r0001")
    plan = chain.plan(run, tof.settings(path))
    say(f"reducing {run.path}: {plan.hits.npartitions} blocks on 2 workers, killing one on the way")
    disturbed = compute_plan(client, plan, kill=True)  # and the kernels are compiled
    say("the same, undisturbed")
    quiet = compute_plan(client, plan)
    sent = [dict(one.__dask_graph__()) for one in plan.reductions.values()]  # type: ignore[no-untyped-call]
    return _reduced(site, run, path, ("/hsd", "hsd.raw.windows.samples"), sent, quiet, disturbed)


def _sfx(client: Client, site: Site, path: Path, say: Say) -> Reduced:
    uri = f"lcls://{SFX_EXPERIMENT}/r0001"
    run = open_run(uri)
    settings = sfx.settings_of(path, run.events)
    say(f"from frames to merged intensities: {run.path} on 2 workers")
    halfway = site.folder / "sfx-again"
    quiet = sfx.reduce_run(client, run, site.folder / "sfx", settings, halfway=halfway)
    say("the second half of it once more, killing a worker on the way")
    disturbed = sfx.reduce_run(client, run, halfway, settings, kill=True)
    return _reduced(site, run, path, ("/", "jungfrau.raw.raw"), (run, settings), quiet, disturbed)


def _reduced(
    site: Site, run: Run, path: Path, bulk: tuple[str, str], sent: object, quiet: Pass, disturbed: Pass
) -> Reduced:
    """Both passes, and how fast the same bytes are read; `sent` is what workers get."""
    files = sorted(path.glob("*.xtc2"))
    size, exposed = sum(file.stat().st_size for file in files), secrets_in(site, pickle.dumps(sent))
    return Reduced(run, path, size, read_raw(files), read_served(run, *bulk), quiet, disturbed, exposed)


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


def read_served(run: Run, node: str, name: str, limit: int = 256 << 20) -> float:
    """Bytes a second of a variable, read in blocks and not looked at.

    Parameters
    ----------
    run : Run
    node, name : str
    limit : int
        Bytes that are enough.

    Returns
    -------
    float

    Examples
    --------
    >>> read_served(open_run(run_path), "/", "timestamp") > 0
    True
    """
    variable = run.index.nodes[node].variables[name]
    rows = min(variable.shape[0], max(1, limit // variable.item_bytes))
    length = -(-_BLOCK // (variable.item_bytes * variable.chunk)) * variable.chunk
    start = time.perf_counter()
    for first in range(0, rows, length):
        run.source.read(node, name, slice(first, min(first + length, rows)))
    return rows * variable.item_bytes / (time.perf_counter() - start)


def _target(run: Run) -> intruder.Target:
    """The first chunk of a detector's values."""
    return intruder.Target(run.experiment, run.number, run.snapshot, "hsd/hsd.raw.windows.samples/c/0")


def _reads(site: Site) -> Table:
    """What the audit has counted until now."""
    told: dict[tuple[str, str], list[int]] = {}
    for record in site.audit():
        counts = told.setdefault((str(record["user"]), str(record["experiment"])), [0, 0, 0])
        if record["decision"] == "allowed":
            counts[0] += record["count"]
            counts[1] += record["bytes"]
        else:
            counts[2] += record["count"]
    rows = ((*who, f"{reads:,}", size_text(size), f"{refused:,}") for who, (reads, size, refused) in told.items())
    return Table(("user", "experiment", "answers", "bytes", "refused"), tuple(rows))


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
    killed, undisturbed = reduced.disturbed, reduced.quiet.result
    same = undisturbed.identical(killed.result) if isinstance(undisturbed, xr.Dataset) else undisturbed == killed.result
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
            "same result" if same else "another result",
            "the result without it, bit by bit",
            same,
        ),
        Check("keys and tokens in what Dask sends", f"{reduced.exposed}", "0", reduced.exposed == 0),
        referee_check(reduced.run, REFEREE_EVENTS[kind], say, reduced.path),
    ]


def referee_check(run: Run, events: int, say: Say, files: Path | None = None) -> Check:
    """Compare a run's first events with psana's reading of them.

    Parameters
    ----------
    run : Run
    events : int
    say : callable
    files : Path, optional
        Where psana finds the run; where it was opened by default.

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
    say(f"asking psana for {events} events of {files or run.path}")
    try:
        verdict = referee(run, events, files=files)
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
                f"{reduced.served_rate / 1e9:.2f} GB/s",
                f"{quiet:.2f} GB/s",
                f"{reduced.run.events / reduced.quiet.seconds:,.0f} /s",
                f"{reduced.quiet.seconds:.1f} s",
                f"{reduced.disturbed.seconds:.1f} s",
            )
        )
    columns = (
        "run",
        "events",
        "files",
        "raw read",
        "served read",
        "reduced",
        "events",
        "took",
        "again, with a worker killed",
    )
    return Table(columns, tuple(rows))
