"""The runs under the gateway's root: found, opened, and kept open."""

import errno
import math
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

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
from .files import Disk, Watch, identities, stamp_of
from .kept import Kept
from .open_run import OpenRun
from .seen import Seen

#: Runs that a process keeps open; each holds some files.
MOST_RUNS = 64
#: Seconds for which an answer to "what is there now" may be given again.
FRESH = 1.0
#: Bytes of small chunks that stay in memory.
KEPT = 16 << 20


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
