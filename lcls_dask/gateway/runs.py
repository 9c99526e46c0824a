"""The runs under the gateway's root: found, opened, kept open, and read while they are what they were."""

import base64
import errno
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np

from ..errors import (
    AccessError,
    ConfinementError,
    LclsError,
    PolicyError,
    RunNotFoundError,
    SnapshotError,
    StorageError,
)
from ..formats import RunSource, find_runs, open_source
from ..formats.codecs import is_plain
from ..stores.keys import RunKeys
from .files import Disk, Watch, identities, stamp_of
from .kept import Kept
from .seen import Seen

#: Runs that a process keeps open; each holds some files.
MOST_RUNS = 64
#: Seconds for which an answer to "what is there now" may be given again.
FRESH = 1.0
#: A chunk of up to so many bytes is read together with others.
LIGHT = 64 << 10
#: Of larger ones so many bytes are read while those before them are sent.
PART = 4 << 20
#: Bytes of small chunks that stay in memory.
KEPT = 16 << 20
_MOST_DIGESTS = 1 << 14
_ALL = slice(None)


@dataclass(frozen=True)
class Piece:
    """Bytes of a key.

    Attributes
    ----------
    data : memoryview
        The first of them, or all.
    start, size, total : int
        Where they begin, how many they are, and how many the key has.
    digest : str
        Of all of them, as RFC 9530 writes it.
    rest : iterator of memoryview or None
        What follows `data`. It is read when it is asked for, and raises what `OpenRun.read` does.
    """

    data: memoryview
    start: int
    size: int
    total: int
    digest: str
    rest: Iterator[memoryview] | None = None


@dataclass(frozen=True, slots=True)
class _Array:
    chunk_bytes: int  # decoded
    part: int  # bytes that are read at a time, whole rows; 0 where chunks are passed through as they are stored

    @property
    def large(self) -> bool:
        return self.part > 0 and self.chunk_bytes > LIGHT


class OpenRun:
    """A run of one snapshot.

    Parameters
    ----------
    source : RunSource
    watch : Watch
    disk : Disk
        On which its files lie.
    kept : Kept
        Where its small chunks stay.
    """

    def __init__(self, source: RunSource, watch: Watch, disk: Disk, kept: Kept) -> None:
        self.source = source
        self.keys = RunKeys(source)
        #: When its files were found to be others than those that were opened, on the monotonic clock.
        self.stale: float | None = None
        self._watch, self._disk = watch, disk
        self._kept, self._opening = kept, object()
        self._arrays: dict[str, _Array] = {}
        self._digests: dict[str, str] = {}
        self._tag = f"{source.index.experiment}/{source.index.run}@{source.index.snapshot}/"

    @property
    def snapshot(self) -> str:
        """What of the files is served."""
        return self.source.index.snapshot

    def etag(self, key: str) -> str:
        """The strong tag of a key; nothing is read for it."""
        return f'"{blake2b((self._tag + key).encode(), digest_size=12).hexdigest()}"'

    def read(self, key: str, span: slice | None = None) -> Piece | None:
        """Bytes of a key, as they were when the run was opened.

        Parameters
        ----------
        key : str
        span : slice, optional
            Which ones; all by default.

        Returns
        -------
        Piece or None
            None where there is no such key; an empty one where the key ends before `span`.

        Raises
        ------
        SnapshotError
            The files are no longer those that were opened.
        StorageError
            Their disk is away.
        LclsError
            They cannot be read.
        """
        return self._disk.patiently(lambda: self._read(key, span))

    def _read(self, key: str, span: slice | None) -> Piece | None:
        array = self._array(key)
        if array is not None and array.large and (total := self.keys.size(key)) is not None:
            start, stop, _ = (span or slice(None)).indices(total)
            return self._large(key, start, max(start, stop), total, array.part)
        whole = self._whole(key)
        if whole is None:
            return None
        start, stop, _ = (span or slice(None)).indices(whole.nbytes)
        data = whole[start : max(start, stop)]
        digest = self._digest(key, data, whole=data.nbytes == whole.nbytes)
        return Piece(data, start, data.nbytes, whole.nbytes, digest)

    def _large(self, key: str, start: int, stop: int, total: int, part: int) -> Piece:
        """Bytes of a large chunk: part by part where their digest is known, else all at once."""
        whole = stop - start == total
        digest = self._digests.get(key) if whole else None
        parts = self._parts(key, start, stop, part if digest else total)
        data = next(parts)
        rest = parts if data.nbytes < stop - start else None
        return Piece(data, start, stop - start, total, digest or self._digest(key, data, whole=whole), rest)

    def _parts(self, key: str, start: int, stop: int, part: int) -> Iterator[memoryview]:
        """What lies between, cut where rows begin; at least one, which may be empty."""
        for first in range(start - start % part, max(stop, start + 1), part):
            data = self._as_opened(key, slice(max(start, first), min(stop, first + part)))
            assert data is not None  # it has a size
            yield data

    def _whole(self, key: str) -> memoryview | None:
        where = (self._opening, key)
        light = self.light(key)
        if light and (kept := self._kept.get(where)) is not None:
            self._check(key)
            return kept
        whole = self._as_opened(key)
        if light and whole is not None:
            whole = memoryview(bytes(whole))  # what was read may be a part of something larger
            self._kept.put(where, whole)
        return whole

    def _as_opened(self, key: str, span: slice = _ALL) -> memoryview | None:
        """Bytes of the files that were opened."""
        try:
            data = self.keys.read(key, span)
        except LclsError:
            self._check(key)  # what another file holds is no damage of the one that was opened
            raise
        self._check(key)  # after reading: what was read before the files changed is right
        return data

    def _check(self, key: str) -> None:
        self.check()
        self._watch.check_chunk(key)

    def check(self) -> None:
        """Look whether the files are still those that were opened.

        Raises
        ------
        SnapshotError
        """
        try:
            self._watch.check()
        except SnapshotError:
            self.stale = time.monotonic()
            raise
        self.stale = None  # a disk that was away brings back the same files

    def size(self, key: str) -> int | None:
        """Bytes of a key, None where there is no such key."""
        return self.keys.size(key)

    def light(self, key: str) -> bool:
        """Whether a chunk is known to be so small that many are read in one go. Does not wait."""
        array = self._arrays.get(key.rpartition("/c/")[0])
        return array is not None and array.chunk_bytes <= LIGHT

    def _array(self, key: str) -> _Array | None:
        """The array that a chunk's key belongs to; to make its node, a run may have to read."""
        name = key.rpartition("/c/")[0]
        array = self._arrays.get(name)
        if array is None and name:
            path, _, last = name.rpartition("/")
            node = self.source.index.nodes.get(f"/{path}")
            variable = node.variables.get(last) if node is not None else None
            if variable is not None:
                item = variable.item_bytes
                part = max(PART // item, 1) * item if item and is_plain(variable.codecs) else 0
                array = _Array(variable.storage_chunk * item, part)
                self._arrays[name] = array
        return array

    def _digest(self, key: str, data: memoryview, *, whole: bool) -> str:
        # those of chunks are kept, those of any range that somebody may think of are not
        digest = self._digests.get(key) if whole else None
        if digest is None:
            # a read-only array is the one view that the library takes without a copy
            checksum = google_crc32c.value(np.frombuffer(data.toreadonly(), np.uint8)) if data.nbytes else 0
            digest = f"crc32c=:{base64.b64encode(checksum.to_bytes(4, 'big')).decode()}:"
            if whole:
                if len(self._digests) >= _MOST_DIGESTS:
                    self._digests.clear()
                self._digests[key] = digest
        return digest


class _Renamed:
    """A source whose snapshot goes by another name."""

    def __init__(self, source: RunSource, snapshot: str) -> None:
        self._source = source
        self.index = replace(source.index, snapshot=snapshot)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class Runs:
    """Experiments and runs under a root. All methods block: they are for threads.

    Parameters
    ----------
    root : Path
        Holds ``<experiment>`` or ``<hutch>/<experiment>``.
    seen : Seen
    """

    def __init__(self, root: Path, seen: Seen) -> None:
        self._root, self._seen = root.resolve(strict=True), seen
        self._disk = Disk(self._root)
        self._lock = threading.Lock()
        self._pinned: OrderedDict[tuple[str, int, str], OpenRun] = OrderedDict()
        self._current: dict[tuple[str, int], tuple[float, OpenRun]] = {}
        self._kept = Kept(KEPT)

    @property
    def root(self) -> Path:
        """The directory, without symbolic links."""
        return self._root

    def experiment(self, name: str) -> Path:
        """Directory of an experiment.

        Raises
        ------
        RunNotFoundError
            There is none.
        StorageError
            The disk is away.
        ConfinementError
            A link leads out of the root.
        """
        return self._disk.patiently(lambda: self._experiment(name))

    def _experiment(self, name: str) -> Path:
        for candidate in (self._root / name, self._root / name[:3] / name):
            if candidate.is_dir():
                return _confined(candidate, self._root)
        raise RunNotFoundError(f"{name}: no such experiment")

    def numbers(self, experiment: str) -> dict[int, Path]:
        """The runs of an experiment, and where they are; those that links place elsewhere are left out."""
        found: dict[int, Path] = {}
        home = self.experiment(experiment)
        for number, path in find_runs(home).items():
            try:
                found[number] = _confined(path, home)
            except ConfinementError:
                continue
        return found

    def open(self, experiment: str, run: int, snapshot: str | None = None) -> OpenRun:
        """Open a run, or take the one that is open.

        Parameters
        ----------
        experiment : str
        run : int
        snapshot : str, optional
            What is there now by default.

        Returns
        -------
        OpenRun

        Raises
        ------
        RunNotFoundError
        SnapshotError
            The files hold another one.
        ConfinementError
            A link leads out of the experiment, or of the run.
        LclsError
            They cannot be opened.
        """
        if snapshot is not None:
            with self._lock:
                pinned = self._pinned.get((experiment, run, snapshot))
                if pinned is not None and (pinned.stale is None or time.monotonic() - pinned.stale < FRESH):
                    self._pinned.move_to_end((experiment, run, snapshot))
                    return pinned
        now = self._now(experiment, run)
        if snapshot is None or now.snapshot.startswith(snapshot):
            return now
        # one that the run has outgrown; there is none by this name if its files were written to since
        older = self._disk.patiently(lambda: self._opened(experiment, run, snapshot))
        if not older.snapshot.startswith(snapshot):
            raise SnapshotError(f"{experiment}/r{run:04d}: was written to; ask for the run again, without a snapshot")
        return self._keep(experiment, run, older)

    def _now(self, experiment: str, run: int) -> OpenRun:
        with self._lock:
            since, current = self._current.get((experiment, run), (-math.inf, None))
            if current is not None and time.monotonic() - since < FRESH:
                return current
        found = self._keep(experiment, run, self._disk.patiently(lambda: self._opened(experiment, run)))
        with self._lock:
            self._current[experiment, run] = time.monotonic(), found
            while len(self._current) > MOST_RUNS:
                self._current.pop(next(iter(self._current)))
        return found

    def _source(self, experiment: str, run: int, snapshot: str | None) -> RunSource:
        home = self._experiment(experiment)
        path = find_runs(home).get(run)
        if path is None:
            raise RunNotFoundError(f"{experiment}: no run {run}")
        # members may make links in their experiment, and the gateway may read all experiments
        return open_source(_confined(path, home), run, snapshot, within=str(home))

    def _opened(self, experiment: str, run: int, snapshot: str | None = None) -> OpenRun:
        """A run under the name by which its snapshot goes: its own, as long as its files are as they were."""
        source = self._source(experiment, run, snapshot)
        disk = Disk(self._root, Path(source.ref.path))
        files = identities(source)
        if not (stamp := stamp_of(source, files)):
            return OpenRun(source, Watch(source, files, time.time_ns()), disk, self._kept)
        where = f"{source.ref.path}:{source.ref.run}@"
        first = self._seen.first(where + source.index.snapshot, stamp)
        if first.stamp != stamp:
            name = blake2b(f"{source.index.snapshot} {stamp}".encode(), digest_size=16).hexdigest()
            first, source = self._seen.first(where + name, stamp), cast(RunSource, _Renamed(source, name))
        return OpenRun(source, Watch(source, files, first.since_ns), disk, self._kept)

    def _keep(self, experiment: str, run: int, opened: OpenRun) -> OpenRun:
        key = (experiment, run, opened.snapshot)
        with self._lock:
            # whoever was first: all threads share one, with its watch and its digests
            there = self._pinned.setdefault(key, opened)
            try:
                there.check()
            except SnapshotError:
                there = self._pinned[key] = opened
            self._pinned.move_to_end(key)
            while len(self._pinned) > MOST_RUNS:
                self._pinned.popitem(last=False)
        return there

    def pinned(self, experiment: str, run: int, snapshot: str) -> OpenRun | None:
        """A run that is open, None where it is not. Does not wait."""
        return self._pinned.get((experiment, run, snapshot))

    def forget(self) -> None:
        """Open every run anew: an operator says that its files may have been replaced."""
        with self._lock:
            self._pinned.clear()
            self._current.clear()


def _confined(path: Path, home: Path) -> Path:
    """Where a path really is, if that is inside of `home`."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise RunNotFoundError(f"{path.name}: cannot be reached") from error
    if not real.is_relative_to(home):
        raise ConfinementError(f"{path.name}: a link leads to where it must not")
    return real


def status_of(error: Exception) -> tuple[int, str]:
    """What a reader is told of an error: a status, and the audit's reason.

    Examples
    --------
    >>> status_of(SnapshotError("it has grown"))
    (410, 'snapshot gone')
    """
    match error:
        case RunNotFoundError():
            return 404, "no such run"
        case ConfinementError():
            return 404, "a link leads out"
        case SnapshotError():
            return 410, "snapshot gone"
        case PolicyError():
            return 503, "policy unavailable"
        case StorageError():
            return 503, "disk away"
        case AccessError():
            return 503, "not readable by the gateway"
        case LclsError():
            return 500, "damaged"
        case OSError() if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return 503, "out of resources"
        case OSError():
            return 503, "file system error"
    return 500, "internal error"
