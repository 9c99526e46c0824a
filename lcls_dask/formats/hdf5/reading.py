"""libhdf5's many errors as one line of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import FormatError, LclsError, RunNotFoundError
from ..confine import check_opened


def open_file(path: Path) -> Any:
    """Open an HDF5 file to read, with the lock that everybody takes, or without one where there is none to be had.

    Parameters
    ----------
    path : Path
        Without symbolic links.

    Returns
    -------
    h5py.File

    Raises
    ------
    OSError
        It cannot be opened.
    ConfinementError
        What was opened lies elsewhere.
    """
    import h5py

    try:
        # HDF5 lets a process open a file twice only if both agree on locking, and h5py's users leave the default
        file = h5py.File(path, "r")
    except OSError as error:
        # no locks on this file system, a writer that has gone or streams (SWMR), or an open without a lock
        if "lock" not in str(error):
            raise
        file = h5py.File(path, "r", locking=False)
    try:
        check_opened(file.id.get_vfd_handle(), path, path.parent)
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def reading(path: Path, what: str = "") -> Iterator[None]:
    """Turn whatever h5py raises into a `FormatError` that names the file.

    Parameters
    ----------
    path : Path
        The file that is read.
    what : str
        The dataset in it.

    Raises
    ------
    FormatError
        libhdf5 cannot read it.
    RunNotFoundError
        The file has vanished.
    PermissionError
        It may not be read.
    """
    where = f"{path}: {what}" if what else str(path)
    try:
        yield
    except (LclsError, PermissionError, MemoryError):
        raise
    except FileNotFoundError:
        raise RunNotFoundError(f"{path}: there is no such file; see what is there with lcls-dask ls") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, UnicodeError) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())[:200]
        raise FormatError(f"{where}: damaged or truncated HDF5 ({text}); copy the file again") from error
