"""Which files a run is made of, and whether they are still the ones that were opened."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from ..errors import LclsError, SnapshotError, StorageError
from ..formats import RunSource
from ..formats.confine import open_inside
from ..formats.hdf5 import SUFFIXES
from ..formats.identity import EDGE
from ..formats.xtc2.files import IN_PROGRESS

_METADATA = "zarr.json"
#: Linux alone can read only what is in memory already.
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)

#: Reasons why a directory cannot be looked at that have nothing to do with its disk.
_NOT_THE_DISK = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM))

T = TypeVar("T")


class Disk:
    """Tells files that are gone from a disk that is away for a while.

    A disk is away when the root is missing or empty, as a mount point without its disk is; or when the nearest
    directory above a run that is still there lies on another device than the run did.

    Parameters
    ----------
    root : Path
        Directory of experiments.
    run : Path, optional
        Of one that is there now.
    """

    def __init__(self, root: Path, run: Path | None = None) -> None:
        self._root, self._run = root, run
        self._device = None if run is None else os.stat(run).st_dev

    def patiently(self, read: Callable[[], T]) -> T:
        """Read something; once more where it fails, as the disk may have come back a moment ago.

        Raises
        ------
        StorageError
            It fails, and the disk is away.
        """
        try:
            return read()
        except (LclsError, OSError) as error:
            if self._away():
                raise StorageError("the disk that the runs lie on is away; they can be read when it is back") from error
        return read()

    def _away(self) -> bool:
        try:
            with os.scandir(self._root) as entries:
                if next(entries, None) is None:
                    return True
            if self._run is None:
                return False
            there = next(place for place in (self._run, *self._run.parents) if place.exists())
            return os.stat(there).st_dev != self._device
        except OSError as error:
            return error.errno not in _NOT_THE_DISK


@dataclass(frozen=True)
class FileIdentity:
    """A file as it was at one moment.

    Attributes
    ----------
    path : str
        Absolute, as it will be when the run has ended.
    used : int or None
        Bytes that belong to the snapshot, None where all do.
    device, inode, size, mtime_ns : int
    """

    path: str
    used: int | None
    device: int
    inode: int
    size: int
    mtime_ns: int

    def header(self) -> str:
        """Digest of the file's first bytes, as many as a snapshot looks at."""
        used = self.size if self.used is None else self.used
        path = self.path if os.path.exists(self.path) else self.path + IN_PROGRESS
        with open(path, "rb") as file:
            return blake2b(file.read(min(EDGE, used)), digest_size=16).hexdigest()


class Watch:
    """Says when a run's files are no longer those that were opened.

    A file that is still being written may grow, and lose the mark of being written. All others must keep their inode,
    size and time of modification.

    Parameters
    ----------
    source : RunSource
        Just opened.
    files : tuple of FileIdentity
        Its files, as they are now.
    since_ns : int
        When its snapshot was first served: of a store, chunks that were written later are none of it.
    """

    def __init__(self, source: RunSource, files: tuple[FileIdentity, ...], since_ns: int) -> None:
        # the clock of the files may be ahead of this machine's
        self._since_ns = max([since_ns, *(file.mtime_ns for file in files)])
        self._path = Path(source.ref.path)
        self._store = self._path.is_dir() and (self._path / _METADATA).exists()
        self._grows = source.index.state == "live"
        self._files = files

    def check(self) -> None:
        """Look at all files.

        Raises
        ------
        SnapshotError
            They are no longer those that were opened.
        """
        for was in self._files:
            try:
                now = _stat(was.path)
            except OSError as error:
                raise SnapshotError(self._message(was.path, f"is gone ({error.strerror})")) from error
            if (now.st_dev, now.st_ino) != (was.device, was.inode):
                raise SnapshotError(self._message(was.path, "was replaced"))
            growing = self._grows or (was.used is not None and was.used < was.size)
            if growing and was.used is not None and now.st_size < was.used:
                raise SnapshotError(self._message(was.path, "was truncated"))
            if not growing and (now.st_size, now.st_mtime_ns) != (was.size, was.mtime_ns):
                raise SnapshotError(self._message(was.path, "was written to"))

    def check_chunk(self, key: str) -> None:
        """Look at the file of a chunk, where each has one: in an exported store.

        Raises
        ------
        SnapshotError
            It was written to since the snapshot was first served.
        """
        if not self._store or key.endswith(_METADATA):
            return
        try:
            now = os.stat(self._path / key)
        except OSError as error:
            raise SnapshotError(self._message(key, f"is gone ({error.strerror})")) from error
        self._check_times(key, now)

    def _check_times(self, key: str, now: os.stat_result) -> None:
        if max(now.st_mtime_ns, now.st_ctime_ns) > self._since_ns:
            raise SnapshotError(self._message(key, "was written to"))

    def open_chunk(self, key: str, size: int) -> "ChunkFile | None":
        """The file of a chunk that is stored as it is served, None where there is no such file of that size."""
        if not self._store or _NOWAIT is None:
            return None
        try:
            file = ChunkFile(open_inside(self._path / key, self._path), lambda now: self._check_times(key, now))
        except (OSError, LclsError):
            return None  # why, who reads it in the ordinary way will say
        return file if file.size == size else None

    def _message(self, path: str, what: str) -> str:
        return f"{os.path.basename(path)}: {what} since the run was opened; ask for the run again, without a snapshot"


class ChunkFile:
    """An open file, of which is read only what is in memory already; nothing here waits for a disk.

    Parameters
    ----------
    descriptor : int
        Is closed with this.
    check : callable
        Raises SnapshotError if the file is no longer what it was.
    """

    def __init__(self, descriptor: int, check: Callable[[os.stat_result], None]) -> None:
        self._descriptor, self._check = descriptor, check
        self.size = os.fstat(descriptor).st_size

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, into: memoryview, at: int) -> int:
        """Read from somewhere in the file; how many bytes, 0 where the disk would have to be waited for.

        Raises
        ------
        SnapshotError
            It was written to, replaced or removed, all of which change its times.
        """
        assert _NOWAIT is not None
        try:
            got = os.preadv(self._descriptor, [into], at, _NOWAIT)
        except OSError:  # EAGAIN, or the file system cannot tell
            return 0
        self._check(os.fstat(self._descriptor))  # after reading: what was read before the file changed is right
        return got


def identities(source: RunSource) -> tuple[FileIdentity, ...]:
    """The files of a run.

    Raises
    ------
    OSError
        One is not there any more.

    Examples
    --------
    >>> from lcls_dask.formats import open_source
    >>> [found.size for found in identities(open_source(run_path))]
    [...]
    """
    path = Path(source.ref.path)
    home = path if path.is_dir() else path.parent
    used: dict[str, int | None] = dict(source.ref.used)
    if not used:
        if path.is_file():
            used = {path.name: None}
        elif (path / _METADATA).exists():
            used = {_METADATA: None}
        else:
            used = {entry.name: None for entry in sorted(path.iterdir()) if entry.suffix in SUFFIXES}
    return tuple(_identity(home / name, size) for name, size in used.items())


def stamp_of(source: RunSource, files: tuple[FileIdentity, ...]) -> str:
    """A word that changes whenever a file is written to; empty for a run that grows, or has since it was cut off."""
    if source.index.state == "live" or any(found.used not in (None, found.size) for found in files):
        return ""
    told = "".join(f"{found.path}:{found.size}:{found.mtime_ns};" for found in files)
    return blake2b(told.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _identity(path: Path, used: int | None) -> FileIdentity:
    now = _stat(str(path))
    return FileIdentity(str(path), used, now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return os.stat(path + IN_PROGRESS)
