"""Chunks kept on this machine: immutable ones, checked when they are read, and never more than a limit.

Off unless ``lcls.chunk-cache`` names a directory: on a machine that is shared, others must not be able to read it.
"""

import logging
import os
import tempfile
import threading
from hashlib import blake2b
from pathlib import Path

import google_crc32c
import numpy as np

from ... import config
from ...errors import AccessError

_log = logging.getLogger(__name__)
_TRAILER = 4
_SLACK = 0.9  # of the limit is left when the oldest are removed


class ChunkCache:
    """A directory of chunks.

    Parameters
    ----------
    directory : Path
        Made with mode 0700 where it is not there.
    limit : int
        Bytes that it may hold.

    Raises
    ------
    AccessError
        Others can read the directory.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory, self._limit = directory, limit
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            raise AccessError(f"{directory}: others can read the chunks kept there: chmod 700 {directory}")
        self._lock = threading.Lock()
        self._size = sum(entry.stat().st_size for entry in os.scandir(directory))

    def get(self, key: str) -> memoryview | None:
        """A chunk, None where it is not there, or not whole."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        body = memoryview(data)[:-_TRAILER]
        if len(data) < _TRAILER or _checksum(body) != data[-_TRAILER:]:
            _log.warning("%s is damaged and is fetched again", path)
            path.unlink(missing_ok=True)
            return None
        os.utime(path)  # used last
        return body

    def put(self, key: str, body: memoryview) -> None:
        """Keep a chunk; what was used least recently makes room for it. A full disk is no error of the reader."""
        size = body.nbytes + _TRAILER
        if size > self._limit:
            return
        temporary = None
        try:
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".", delete=False) as file:
                temporary = file.name
                file.write(body)
                file.write(_checksum(body))
            os.replace(temporary, self._path(key))
        except OSError as error:
            _log.warning("%s: a chunk could not be kept: %s", self._directory, error.strerror)
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            return
        with self._lock:
            self._size += size
            if self._size > self._limit:
                self._make_room()

    def _make_room(self) -> None:
        found = []
        for entry in os.scandir(self._directory):
            try:
                found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
            except FileNotFoundError:  # another process made room as well
                continue
        self._size = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if self._size <= _SLACK * self._limit:
                break
            Path(path).unlink(missing_ok=True)
            self._size -= size

    def _path(self, key: str) -> Path:
        return self._directory / blake2b(key.encode(), digest_size=16).hexdigest()


def _checksum(body: memoryview) -> bytes:
    value = google_crc32c.value(np.frombuffer(body.toreadonly(), np.uint8)) if body.nbytes else 0
    return int(value).to_bytes(_TRAILER, "big")


def chunk_cache() -> ChunkCache | None:
    """The cache that is configured, if there is one."""
    directory = config.chunk_cache()
    return ChunkCache(directory, config.chunk_cache_bytes()) if directory else None
