"""Nothing is read from outside of where a run lies, whatever links lead there, also ones made at this moment."""

import os
import stat
from pathlib import Path

from ..errors import ConfinementError, FormatError


def real_home(path: str | Path, within: str | None) -> Path:
    """Where a run really lies; from then on files are opened below this path, and no link in it is followed.

    Parameters
    ----------
    path : str or Path
        As it was given.
    within : str or None
        A directory, without symbolic links, that it must lie in.

    Returns
    -------
    Path

    Raises
    ------
    ConfinementError
        A link leads out of that directory.
    """
    real = Path(os.path.realpath(path))
    if within is not None and not real.is_relative_to(within):
        raise ConfinementError(f"{path}: a link leads out of {within}")
    return real


def check_opened(descriptor: int, path: str | Path, home: Path) -> None:
    """Look at what was opened, not at what its name leads to by now.

    Raises
    ------
    ConfinementError
        It lies outside of `home`.
    FormatError
        It is no regular file.
    """
    if not os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"{home}/"):
        raise ConfinementError(f"{path}: a link leads out of the run's directory {home}")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise FormatError(f"{path}: is no regular file")


def open_inside(path: str | Path, home: Path) -> int:
    """Descriptor of a file, to read; see `check_opened`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # to open a pipe must not wait
    try:
        check_opened(descriptor, path, home)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
