"""What a snapshot is called: a digest of the identity of each file and of the bytes used of it."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

#: Bytes read at each end of a file: headers and the newest data are there.
EDGE = 4096


def header_of(path: Path, used: int) -> str:
    """Digest of a file's first bytes, of which `used` count: tells one file from another of the same size.

    Raises
    ------
    OSError
        The file cannot be read.

    Examples
    --------
    >>> len(header_of(Path(__file__), 100))
    32
    """
    with path.open("rb") as file:
        return blake2b(file.read(min(EDGE, used)), digest_size=16).hexdigest()


def snapshot_of(files: Sequence[tuple[Path, int]]) -> str:
    """Name the snapshot that these files make up.

    Parameters
    ----------
    files : sequence of (Path, int)
        Each file and how many of its first bytes belong to the snapshot.

    Returns
    -------
    str
        32 hexadecimal digits. The directory that the files lie in does not matter, their names do.

    Raises
    ------
    OSError
        A file cannot be read.

    Examples
    --------
    >>> len(snapshot_of([(Path(__file__), 100)]))
    32
    """
    digest = blake2b(digest_size=16)
    for path, used in sorted(files, key=lambda item: (item[0].name, str(item[0]))):
        with path.open("rb") as file:
            first = file.read(min(EDGE, used))
            file.seek(max(0, used - EDGE))
            last = file.read(min(EDGE, used))
        # lengths first, so that no two lists of files give the same stream of bytes
        # and a run keeps its name when its files lose the mark of being written
        name = path.name.removesuffix(".inprogress").encode("utf-8", "surrogateescape")
        digest.update(b"%d:%s:%d:" % (len(name), name, used) + first + last)
    return digest.hexdigest()
