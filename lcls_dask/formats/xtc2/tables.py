"""The index of one run of xtc2 streams: built once, kept in a directory that processes map and share.

On disk: ``timestamps`` (uint64 an event), and for each stream ``<stream>.places`` (int64 an event of the stream) and,
unless the stream has every event, ``<stream>.events`` (uint32: which event of the run each is). That is at most 16
bytes an event and stream where streams agree; ``index.json`` holds the rest.
"""

import atexit
import json
import mmap
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ... import config
from ...errors import FormatError, LclsError, RunNotFoundError, SeveralRunsError
from ..identity import snapshot_of
from ..merge import merge_timestamps
from .files import NAME, StreamFiles, find, listing
from .layout import BEGIN_RUN
from .scan import Scan, Section, StreamScanner, Transition

#: Changes whenever what is written below changes, so that old indexes are not read.
VERSION = 5


@dataclass(frozen=True)
class StreamTable:
    """One stream of the run.

    Attributes
    ----------
    name : str
    files : tuple of str
        Chunk files, then the smalldata file if there is one.
    places : (n,) int64
        ``chunk file << CHUNK_SHIFT | offset`` of each of its events.
    events : (n,) uint32 or None
        Which event of the run each is; None where it has them all.
    configure : Transition
    transitions : tuple of Transition
    unread, reason : int, str
        Bytes at the end that are no whole datagram, and why.
    duplicates : int
        Events that were left out because their timestamp was there before.
    disordered : bool
        Whether its timestamps fell somewhere: the index is sorted.
    ended : bool
    outside : int
        Events of the file that belong to no run: they follow a Configure without a BeginRun.
    """

    name: str
    files: tuple[str, ...]
    places: np.ndarray[Any, np.dtype[np.int64]]
    events: np.ndarray[Any, np.dtype[np.uint32]] | None
    configure: Transition
    transitions: tuple[Transition, ...]
    unread: int
    reason: str
    duplicates: int
    disordered: bool
    ended: bool
    outside: int


@dataclass(frozen=True)
class RunTables:
    """Where every event of a run lies.

    Attributes
    ----------
    directory : Path
        Of the index; surveys of detectors are kept in it too.
    home : Path
        The run's own directory.
    snapshot, experiment, run
    timestamps : (events,) uint64
        Rising.
    streams : tuple of StreamTable
    used : tuple of (str, int)
        Every file and how much of it belongs to the snapshot.
    """

    directory: Path
    home: Path
    snapshot: str
    experiment: str
    run: int
    timestamps: np.ndarray[Any, np.dtype[np.uint64]]
    streams: tuple[StreamTable, ...]
    used: tuple[tuple[str, int], ...]


def open_tables(home: Path, streams: Sequence[StreamFiles], run: int | None, used: Mapping[str, int]) -> RunTables:
    """The index of a run, from the cache or built.

    Parameters
    ----------
    home : Path
        Directory of the run's files.
    streams : sequence of StreamFiles
    run : int or None
        Which run, where the files hold several.
    used : mapping of str to int
        Bytes of each file to read; all where a file is not in it.
    """
    names = list(used) or listing(home, streams)
    extents = {name: _extent(home, name, used) for name in names}
    key = snapshot_of(list(extents.values()))
    base = _cache()
    cached = _cached(base, key, run, home)
    if cached is not None:
        return cached
    # files that grow meanwhile are read as far as they were when the snapshot got its name
    built = _build(base, home, streams, run, {name: size for name, (_, size) in extents.items()})
    if built.snapshot != key:  # a chunk file has a name that its stream's first file does not tell
        with suppress(FileExistsError):
            (base / built.directory.name.replace(built.snapshot, key, 1)).symlink_to(built.directory.name)
    return built


def used_by(snapshot: str) -> dict[str, int]:
    """Bytes of each file that belong to a snapshot whose index is kept; empty where it is not."""
    for path in _cache().glob(f"{snapshot}-r*/index.json"):
        with suppress(OSError, ValueError):
            return dict(json.loads(path.read_text())["used"])
    return {}


def _extent(home: Path, name: str, used: Mapping[str, int]) -> tuple[Path, int]:
    path = find(home, name)
    size = path.stat().st_size
    if used.get(name, 0) > size:
        raise FormatError(f"{path}: has {size} bytes, the snapshot had {used[name]}: it was cut or replaced")
    return path, used.get(name, size)


def _cache() -> Path:
    """The directory of indexes, or one that lasts as long as this process where that can't be written."""
    base = config.index_cache()
    try:
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=base):
            return base
    except OSError as error:
        return _temporary(str(base), str(error))


_TEMPORARY: list[Path] = []


def _temporary(base: str, why: str) -> Path:
    if not _TEMPORARY:
        warnings.warn(
            f"{base}: indexes can't be kept there ({why}); they are made anew in each process. Set lcls.index-cache",
            stacklevel=5,
        )
        _TEMPORARY.append(Path(tempfile.mkdtemp(prefix="lcls-index-")))
        atexit.register(shutil.rmtree, _TEMPORARY[0], ignore_errors=True)
    return _TEMPORARY[0]


def kept(directory: Path, name: str) -> Path:
    """Where in an index something about a field is kept; its name comes from a file and may be long or odd."""
    digest = blake2b(name.encode(), digest_size=6).hexdigest()
    return directory / f"{re.sub(r'[^0-9A-Za-z_.]', '_', name)[:100]}-{digest}"


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """A directory to fill, which takes its place only when it is complete; whoever is first wins."""
    target.parent.mkdir(parents=True, exist_ok=True)  # somebody may have tidied the cache
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _name(home: Path, key: str, run: int, stats: Mapping[str, Sequence[int]]) -> str:
    """Directory of an index: two copies of a run, or a file that was written over, have indexes of their own."""
    text = json.dumps([str(home), sorted((name, *numbers) for name, numbers in stats.items())])
    return f"{key}-r{run:04d}-{blake2b(text.encode(), digest_size=6).hexdigest()}"


def _cached(base: Path, key: str, run: int | None, home: Path) -> RunTables | None:
    for path in sorted(base.glob(f"{key}-r{'*' if run is None else f'{run:04d}'}-*")):
        try:
            meta = json.loads((path / "index.json").read_text())
            if meta["version"] != VERSION or meta["home"] != str(home) or not _unchanged(home, meta["stat"]):
                continue
            if run is None:
                _choose(meta["runs"], None, home)
            return _load(path.resolve(), home, meta)
        except LclsError:
            raise
        except (OSError, ValueError, KeyError):
            continue  # somebody tidies the cache: it is built again
    return None


def _unchanged(home: Path, stats: Mapping[str, Sequence[int]]) -> bool:
    """Whether the files are those that were indexed: as long or longer, and if as long, not written since."""
    for name, (used, mtime) in stats.items():
        try:
            now = find(home, name).stat()
        except RunNotFoundError:
            return False
        if now.st_size < used or (now.st_size == used and now.st_mtime_ns != mtime):
            return False
    return True


def _choose(runs: Sequence[int], run: int | None, home: Path) -> int:
    known = ", ".join(str(number) for number in runs)
    if run is None and len(runs) > 1:
        raise SeveralRunsError(f"{home}: the files hold the runs {known}; choose one with run=")
    if run is not None and run not in runs:
        raise RunNotFoundError(f"{home}: there is no run {run}; the files hold {known}")
    return runs[0] if run is None else run


def map_file(path: Path, dtype: str) -> np.ndarray[Any, Any]:
    """A file as an array, which is read where it is touched."""
    size = path.stat().st_size
    return np.memmap(path, dtype, "r") if size else np.empty(0, dtype)


def _load(path: Path, home: Path, meta: Mapping[str, Any]) -> RunTables:
    streams = tuple(
        StreamTable(
            **{
                **stream,
                "files": tuple(stream["files"]),
                "configure": Transition(**stream["configure"]),
                "transitions": tuple(Transition(*row) for row in stream["transitions"]),
                "places": map_file(path / f"{stream['name']}.places", "<i8"),
                "events": None if stream["events"] is None else map_file(path / f"{stream['name']}.events", "<u4"),
            }
        )
        for stream in meta["streams"]
    )
    used = tuple((name, size) for name, size in meta["used"])
    stamps = map_file(path / "timestamps", "<u8")
    return RunTables(path, home, meta["snapshot"], meta["experiment"], meta["run"], stamps, streams, used)


def _build(
    base: Path, home: Path, streams: Sequence[StreamFiles], run: int | None, used: Mapping[str, int]
) -> RunTables:
    with tempfile.TemporaryDirectory(prefix=".making-", dir=base) as scratch:
        work = Path(scratch)
        scans = []
        for stream in streams:
            with (
                (work / f"{stream.name}.stamps").open("wb") as stamps,
                (work / f"{stream.name}.all").open("wb") as places,
            ):
                scans.append(StreamScanner(home, stream, used, stamps, places).scan())
        number, sections = _sections(home, scans, run)
        sizes = dict(used) | {name: size for scan in scans for name, size in scan.sizes.items()}
        paths = {name: find(home, name) for name in sorted(sizes)}
        snapshot = snapshot_of([(path, sizes[name]) for name, path in paths.items()])
        stats = {name: (sizes[name], path.stat().st_mtime_ns) for name, path in paths.items()}
        target = base / _name(home, snapshot, number, stats)
        with published(target) as making:
            tables = [_stream(making, work, scan, section) for scan, section in zip(scans, sections, strict=True)]
            _merge(making, scans, tables)
            meta = {
                "version": VERSION,
                "snapshot": snapshot,
                "experiment": _experiment(home, streams, sections),
                "run": number,
                "runs": _runs(scans) or [number],
                "used": [(name, sizes[name]) for name in paths],
                "home": str(home),
                "stat": stats,
                "streams": [
                    _describe(making, scan, section, len(stamps))
                    for scan, section, stamps in zip(scans, sections, tables, strict=True)
                ],
            }
            (making / "index.json").write_text(json.dumps(meta))
    return _load(target, home, meta)


def _runs(scans: Sequence[Scan]) -> list[int]:
    return sorted({section.run for scan in scans for section in scan.sections if section.run is not None})


def _experiment(home: Path, streams: Sequence[StreamFiles], sections: Sequence[Section]) -> str:
    for section in sections:
        if section.experiment:
            return section.experiment
    match = NAME.fullmatch(streams[0].first)
    return match["experiment"] if match else "unknown"


def _sections(home: Path, scans: Sequence[Scan], run: int | None) -> tuple[int, list[Section]]:
    """The run's number, and the section of each stream that belongs to it."""
    told = [scan for scan in scans if any(section.run is not None for section in scan.sections)]
    for scan in told[1:]:
        ours, theirs = ({(s.experiment, s.run) for s in x.sections if s.run is not None} for x in (told[0], scan))
        if not ours & theirs:
            raise FormatError(
                f"{home}: streams of different runs: {told[0].files[0]} holds {_names(ours)}, "
                f"{scan.files[0]} holds {_names(theirs)}"
            )
    if not told:  # no stream says which run it is: file names do, or nothing
        match = NAME.fullmatch(scans[0].files[0])
        number = int(match["run"]) if match else 0
        if any(len(scan.sections) > 1 for scan in scans):
            raise FormatError(f"{home}: several runs, none of which says its number in BeginRun")
        return _choose([number], run, home), [scan.sections[0] for scan in scans]
    number = _choose(_runs(scans), run, home)
    begun = _begin_run(next(s for s in told[0].sections if s.run == number)) if _has(told[0], number) else None
    return number, [_section(scan, number, begun) for scan in scans]


def _names(runs: Iterable[tuple[str, int | None]]) -> str:
    return ", ".join(f"{experiment} run {number}" for experiment, number in sorted(runs, key=str))


def _has(scan: Scan, number: int) -> bool:
    return any(section.run == number for section in scan.sections)


def _begin_run(section: Section) -> int:
    return next(t.timestamp for t in section.transitions if t.service == BEGIN_RUN)


def _section(scan: Scan, number: int, begun: int | None) -> Section:
    """A stream's part of the run: by its number, else by the time of BeginRun, else the only one."""
    for section in scan.sections:
        if section.run == number:
            return section
    unnamed = [section for section in scan.sections if section.run is None]
    for section in unnamed:
        if section.begun and _begin_run(section) == begun:
            return section
    if len(unnamed) == 1 and len(scan.sections) == 1:
        return unnamed[0]
    raise FormatError(f"{scan.files[0]}: does not hold run {number}, which other streams hold")


def _stream(making: Path, work: Path, scan: Scan, section: Section) -> np.ndarray[Any, Any]:
    """Write a stream's places; its timestamps, sorted and without repeats, are given back as a map."""
    stamps = map_file(work / f"{scan.name}.stamps", "<u8")[section.begin : section.end]
    places = map_file(work / f"{scan.name}.all", "<i8")[section.begin : section.end]
    if scan.disordered:
        order = np.argsort(stamps, kind="stable")
        stamps = np.asarray(stamps[order])
        first = np.ones(stamps.size, np.bool_)
        first[1:] = stamps[1:] > stamps[:-1]
        stamps, places = stamps[first], np.asarray(places[order])[first]
    with (making / f"{scan.name}.places").open("wb") as out:
        for start in range(0, places.size, 1 << 20):
            places[start : start + (1 << 20)].tofile(out)
            _let_go(places)
    return stamps


def _let_go(values: np.ndarray[Any, Any]) -> None:
    """Drop the pages of a map that were read: they would count as this process's memory, however long the run."""
    if isinstance(values, np.memmap):
        values._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def _merge(making: Path, scans: Sequence[Scan], tables: Sequence[np.ndarray[Any, Any]]) -> None:
    """Write the union of the timestamps, and of each stream that lacks some the numbers of its events."""
    total, missing = 0, np.zeros(len(scans), np.int64)
    outs = [(making / f"{scan.name}.events").open("wb") for scan in scans]
    try:
        with (making / "timestamps").open("wb") as out:
            for stamps, members in merge_timestamps(tables):
                stamps.tofile(out)
                for s, file in enumerate(outs):
                    (np.flatnonzero(members[s]) + total).astype("<u4").tofile(file)
                total += stamps.size
                missing += stamps.size - members.sum(1)
                for table in tables:
                    _let_go(table)
    finally:
        for file in outs:
            file.close()
    if total > 0xFFFFFFFF:
        raise FormatError(f"{making}: {total} events in one run; the index counts up to {0xFFFFFFFF}")
    for scan, lacking in zip(scans, missing, strict=True):
        if not lacking:
            (making / f"{scan.name}.events").unlink()


def _describe(making: Path, scan: Scan, section: Section, events: int) -> dict[str, Any]:
    small = len(scan.files) - 1

    def row(t: Transition) -> Transition:
        return t if t.file >= 0 else Transition(t.service, t.timestamp, small, t.offset, t.end)

    return {
        "name": scan.name,
        "files": scan.files,
        "places": None,
        "events": True if (making / f"{scan.name}.events").exists() else None,
        "configure": asdict(row(section.configure)),
        "transitions": [tuple(asdict(row(t)).values()) for t in section.transitions],
        "unread": scan.unread,
        "reason": scan.reason,
        "duplicates": section.end - section.begin - events,
        "disordered": scan.disordered,
        "ended": section.ended,
        "outside": sum(s.end - s.begin for s in scan.sections if s.run is None and s is not section),
    }
