"""Files that only their owner may read, and the checks that they still are such files."""

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import IdentityError


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read (0600), at once or not at all."""
    _replace(path, data, 0o600)


def write_public(path: Path, data: bytes) -> None:
    """Write a file that all can read (0644), at once or not at all."""
    _replace(path, data, 0o644)


def make_private_directory(path: Path) -> None:
    """Make a directory that only its owner can enter (0700), with those above it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def read_private(path: Path) -> bytes:
    """Read a file that holds a secret.

    Parameters
    ----------
    path : Path

    Returns
    -------
    bytes

    Raises
    ------
    IdentityError
        It is not there, is not a plain file of this user, or others can read or write it.
    """
    data, status = _read(path)
    if status.st_mode & 0o077:
        raise IdentityError(f"{path} can be read by others (mode {status.st_mode & 0o777:04o}): chmod 600 {path}")
    if status.st_uid not in (os.geteuid(), 0):
        raise IdentityError(f"{path} belongs to another user (uid {status.st_uid}): use an identity of your own")
    return data


def read_public(path: Path) -> bytes:
    """Read a file that others may see but not change.

    Parameters
    ----------
    path : Path

    Returns
    -------
    bytes

    Raises
    ------
    IdentityError
        It is not there, is no plain file, or others can write it.
    """
    data, status = _read(path)
    if status.st_mode & 0o022:
        raise IdentityError(f"{path} can be written by others (mode {status.st_mode & 0o777:04o}): chmod go-w {path}")
    return data


def check_directory(path: Path) -> None:
    """Refuse a directory in which others could put files of theirs."""
    try:
        status = path.stat()
    except OSError:
        raise IdentityError(f"there is no identity at {path}: lcls-dask identity create {path}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise IdentityError(f"{path} is no directory: lcls-dask identity create DIRECTORY makes one")
    if status.st_mode & 0o022:
        raise IdentityError(f"{path} can be written by others (mode {status.st_mode & 0o777:04o}): chmod 700 {path}")


def check_private_directory(path: Path) -> None:
    """Refuse a directory that others could look into, or that is not this user's."""
    check_directory(path)
    status = path.stat()
    if status.st_mode & 0o077:
        raise IdentityError(f"{path} can be seen by others (mode {status.st_mode & 0o777:04o}): chmod 700 {path}")
    if status.st_uid not in (os.geteuid(), 0):
        raise IdentityError(f"{path} belongs to another user (uid {status.st_uid}): use a directory of your own")


@contextmanager
def locked(path: Path, mode: int) -> Iterator[int]:
    """Hold a file, made where it is not there, that only one process at a time appends to; gives its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def append(descriptor: int, lines: bytes) -> None:
    """Append whole lines to a file that is `locked`, and wait until they are on disk.

    Raises
    ------
    OSError
        They could not be written whole.
    """
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        # a writer died in the middle of its line: ours must not become the end of it
        lines = b"\n" + lines
    while lines:  # a disk that fills up takes a part, and then says why it takes no more
        lines = lines[os.write(descriptor, lines) :]
    os.fsync(descriptor)


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    try:
        # what is checked is the file that is read, not one put there in between; to open a pipe must not wait
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise IdentityError(f"{path} is no plain file; make an identity with lcls-dask identity create")
            return file.read(), status
    except OSError as error:
        if isinstance(error, IdentityError):
            raise
        raise IdentityError(
            f"{path} cannot be read ({error.strerror}); lcls-dask identity list shows what is there"
        ) from None


def _replace(path: Path, data: bytes, mode: int) -> None:
    # mkstemp makes it 0600, so a key is never readable by others, not even before the chmod
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
