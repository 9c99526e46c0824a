"""What the files of a snapshot were like when it was first served: one answer for all processes of a gateway.

A snapshot is named by the names, lengths and edges of its files. Files that were written to since keep that name, and
nobody could tell the old bytes from the new ones; so what is there now goes by another name.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path


@dataclass(frozen=True)
class First:
    """A snapshot as it was first served.

    Attributes
    ----------
    stamp : str
        What its files were like.
    since_ns : int
        When that was, in nanoseconds since the epoch.
    """

    stamp: str
    since_ns: int


class Seen:
    """A directory with a line for each snapshot, written by whichever process is first.

    Parameters
    ----------
    directory : Path
        Of all processes of a gateway; emptied by `forget`.

    Examples
    --------
    >>> seen = Seen(Path("."))
    >>> seen.first("0a1b", "before").stamp, seen.first("0a1b", "after").stamp
    ('before', 'before')
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def first(self, snapshot: str, stamp: str) -> First:
        """What was said first of a snapshot; this, if nothing was."""
        path = self._directory / blake2b(snapshot.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        while True:
            try:
                since, _, told = os.readlink(path).partition(" ")
                return First(told, int(since))
            except FileNotFoundError:
                # a link to nowhere: made whole or not at all, by one process alone, and without a block of its own
                with suppress(FileExistsError):
                    os.symlink(f"{time.time_ns()} {stamp}", path)

    def forget(self) -> None:
        """What is there now is right, an operator says."""
        for path in self._directory.iterdir():
            path.unlink(missing_ok=True)
