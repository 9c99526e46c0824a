"""One run of one snapshot: its keys are read while its files are what they were."""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import google_crc32c
import numpy as np

from ..errors import LclsError, SnapshotError
from ..formats import RunSource, memory
from ..formats.codecs import is_plain
from ..stores.keys import RunKeys
from .files import ChunkFile, Disk, Watch
from .kept import Kept

#: A chunk of up to so many bytes is read together with others.
LIGHT = 64 << 10
#: Of larger ones so many bytes are read while those before them are sent.
PART = 4 << 20
#: Of what is in memory so many bytes are taken at a time: they stay in the processor's cache until they are encrypted.
_SIP = memory.LEAST
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
    rest : Rest or None
        What follows `data`.
    """

    data: memoryview
    start: int
    size: int
    total: int
    digest: str
    rest: "Rest | None" = None


class Rest:
    """What follows of a large chunk. Both ways to read it raise what `OpenRun.read` does.

    Parameters
    ----------
    part : callable
        Reads a part that begins at a byte.
    start, stop : int
        Of what there is.
    file : ChunkFile, optional
        Which holds the same bytes.
    """

    def __init__(self, part: Callable[[int], memoryview], start: int, stop: int, file: ChunkFile | None = None) -> None:
        self._part, self._at, self._stop, self._file = part, start, stop, file
        self._sip = memory.empty(_SIP).data if file else memoryview(b"")

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return self._stop - self._at

    def ready(self) -> memoryview | None:
        """What need not be waited for, good until the next call; None where there is no such thing, and ever after."""
        if self._file is None or not self.left:
            return None
        got = self._file.read(self._sip[: self.left], self._at)
        if not got:
            self._file = None
            return None
        self._at += got
        return self._sip[:got]

    def read(self) -> memoryview:
        """The next part; waits for a disk."""
        data = self._part(self._at)
        self._at += data.nbytes
        return data


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
        """Bytes of a large chunk: bit by bit where their digest is known, else all at once."""
        whole = stop - start == total
        digest = self._digests.get(key) if whole else None
        read = partial(self._part, key, stop=stop, part=part if digest else total)
        if digest and (file := self._watch.open_chunk(key, total)) is not None:
            self._check(key)
            return Piece(memoryview(b""), start, total, total, digest, Rest(read, start, stop, file))
        data = read(start)
        at = start + data.nbytes
        rest = Rest(read, at, stop) if at < stop else None
        return Piece(data, start, stop - start, total, digest or self._digest(key, data, whole=whole), rest)

    def _part(self, key: str, start: int, stop: int, part: int) -> memoryview:
        """Bytes from `start` on, to where the next part begins; parts are whole rows."""
        data = self._as_opened(key, slice(start, min(stop, start - start % part + part)))
        assert data is not None  # it has a size
        return data

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
        """Bytes of a key, None where there is no such key; only an encoded chunk is read. Raises what `read` does."""
        return self._disk.patiently(lambda: self._size(key))

    def _size(self, key: str) -> int | None:
        size = self.keys.size(key)
        if size is not None:
            self._check(key)
        return size

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
