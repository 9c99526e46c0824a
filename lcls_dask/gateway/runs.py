"""The runs under the gateway's root: found, opened, kept open, and read while they are what they were."""

import base64
import errno
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import google_crc32c
import numpy as np

from ..errors import AccessError, ConfinementError, LclsError, RunNotFoundError, SnapshotError
from ..formats import RunSource, find_runs, open_source
from ..stores.keys import RunKeys
from .files import Watch

#: Runs that a process keeps open; each holds some files.
MOST_RUNS = 64
#: Seconds for which an answer to "what is there now" may be given again.
FRESH = 1.0
_MOST_DIGESTS = 1 << 17


@dataclass(frozen=True)
class Piece:
    """Bytes of a key.

    Attributes
    ----------
    data : memoryview
    start, total : int
        Where they begin, and how many the key has.
    digest : str
        Of `data`, as RFC 9530 writes it.
    """

    data: memoryview
    start: int
    total: int
    digest: str


class OpenRun:
    """A run of one snapshot.

    Parameters
    ----------
    source : RunSource
    """

    def __init__(self, source: RunSource) -> None:
        self.source = source
        self.keys = RunKeys(source)
        self._watch = Watch(source)
        self._digests: dict[tuple[str, int, int], str] = {}
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
        LclsError
            They cannot be read.
        """
        total = None if span is None else self._plain_size(key)
        if total is None:
            whole = self.keys.read(key)
            if whole is None:
                return None
            start, stop, _ = (span or slice(None)).indices(whole.nbytes)
            data, total = whole[start : max(start, stop)], whole.nbytes
        else:
            assert span is not None
            start, stop, _ = span.indices(total)
            read = self.keys.read(key, slice(start, max(start, stop)))
            assert read is not None  # it has a size
            data = read
        self._watch.check(key)  # after reading: what was read before the files changed is right
        return Piece(data, start, total, self._digest(key, start, data))

    def size(self, key: str) -> int | None:
        """Bytes of a key, None where there is no such key."""
        return self.keys.size(key)

    def _plain_size(self, key: str) -> int | None:
        """Size of a key that need not be read to know it; metadata and encoded chunks are read at once instead."""
        return None if self.encoded(key) or key.endswith("zarr.json") else self.keys.size(key)

    def encoded(self, key: str) -> bool:
        """Whether the key is of an array whose chunks are passed through as they are stored."""
        parts = key.split("/")
        nodes = self.source.index.nodes
        path = f"/{parts[0]}" if f"/{parts[0]}" in nodes else "/"
        name = parts[0] if path == "/" else (parts[1] if len(parts) > 1 else "")
        variable = nodes[path].variables.get(name)
        return variable is not None and bool(variable.codecs)

    def _digest(self, key: str, start: int, data: memoryview) -> str:
        where = (key, start, data.nbytes)
        digest = self._digests.get(where)
        if digest is None:
            # a read-only array is the one view that the library takes without a copy
            checksum = google_crc32c.value(np.frombuffer(data.toreadonly(), np.uint8)) if data.nbytes else 0
            digest = f"crc32c=:{base64.b64encode(checksum.to_bytes(4, 'big')).decode()}:"
            if len(self._digests) >= _MOST_DIGESTS:
                self._digests.clear()
            self._digests[where] = digest
        return digest


class Runs:
    """Experiments and runs under a root. All methods block: they are for threads.

    Parameters
    ----------
    root : Path
        Holds ``<experiment>`` or ``<hutch>/<experiment>``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve(strict=True)
        self._lock = threading.Lock()
        self._pinned: OrderedDict[tuple[str, int, str], OpenRun] = OrderedDict()
        self._current: dict[tuple[str, int], tuple[float, OpenRun]] = {}

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
        ConfinementError
            A link leads out of the root.
        """
        for candidate in (self._root / name, self._root / name[:3] / name):
            if candidate.is_dir():
                return self._confined(candidate)
        raise RunNotFoundError(f"{name}: no such experiment")

    def numbers(self, experiment: str) -> dict[int, Path]:
        """The runs of an experiment, and where they are; those that links place outside the root are left out."""
        found: dict[int, Path] = {}
        for number, path in find_runs(self.experiment(experiment)).items():
            try:
                found[number] = self._confined(path)
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
            A link leads out of the root, or of the run.
        LclsError
            They cannot be opened.
        """
        with self._lock:
            if snapshot is not None and (pinned := self._pinned.get((experiment, run, snapshot))) is not None:
                self._pinned.move_to_end((experiment, run, snapshot))
                return pinned
            if snapshot is None and (experiment, run) in self._current:
                since, current = self._current[experiment, run]
                if time.monotonic() - since < FRESH:
                    return current
        path = find_runs(self.experiment(experiment)).get(run)
        if path is None:
            raise RunNotFoundError(f"{experiment}: no run {run}")
        opened = OpenRun(self._source(self._confined(path), run, snapshot))
        with self._lock:
            # whoever was first: all threads share one, with its watch and its digests
            opened = self._pinned.setdefault((experiment, run, opened.snapshot), opened)
            self._pinned.move_to_end((experiment, run, opened.snapshot))
            if snapshot is None:
                self._current[experiment, run] = time.monotonic(), opened
            while len(self._pinned) > MOST_RUNS:
                self._pinned.popitem(last=False)
            while len(self._current) > MOST_RUNS:
                self._current.pop(next(iter(self._current)))
        return opened

    def forget(self) -> None:
        """Open every run anew: an operator says that its files may have been replaced."""
        with self._lock:
            self._pinned.clear()
            self._current.clear()

    def _source(self, path: Path, run: int, snapshot: str | None) -> RunSource:
        # opened as it is now first: `open_source` may still hold what the snapshot was before its files were replaced
        source = open_source(path, run)
        if snapshot in (None, source.index.snapshot):
            return source
        return open_source(path, run, snapshot)

    def _confined(self, path: Path) -> Path:
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise RunNotFoundError(f"{path.name}: cannot be reached") from error
        if not real.is_relative_to(self._root):
            raise ConfinementError(f"{path.name}: a link leads out of the gateway's root")
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
            return 404, "leads out of the root"
        case SnapshotError():
            return 410, "snapshot gone"
        case AccessError():
            return 503, "not readable by the gateway"
        case LclsError():
            return 500, "damaged"
        case OSError() if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return 503, "out of resources"
        case OSError():
            return 503, "file system error"
    return 500, "internal error"
