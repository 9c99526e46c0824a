"""What the files of a snapshot were like when it was first served: one answer for all processes of a gateway.

A snapshot is named by the names, lengths and edges of its files. Files that were written to since keep that name, and
nobody could tell the old bytes from the new ones; so what is there now goes by another name.
"""

import os
import tempfile
import time
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
    """A directory with a small file for each snapshot, made by whichever process is first.

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
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=self._directory, prefix=".") as file:
                file.write(f"{time.time_ns()} {stamp}")
                file.flush()
                try:
                    os.link(file.name, path)  # whole, or not at all
                except FileExistsError:
                    pass  # another process was first
        since, _, told = path.read_text().partition(" ")
        return First(told, int(since))

    def forget(self) -> None:
        """What is there now is right, an operator says."""
        for path in self._directory.iterdir():
            path.unlink(missing_ok=True)
