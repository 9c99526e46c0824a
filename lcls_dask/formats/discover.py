"""From a path to the format that reads it."""

import re
import threading
from collections import OrderedDict
from pathlib import Path

from .. import config
from ..errors import FormatError, LclsError, RunNotFoundError, UriError
from .source import RunSource, SourceRef
from .xtc2.files import NAME, is_xtc2, runs_in

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_HDF5_SUFFIXES = (".h5", ".hdf5", ".cxi", ".nc", ".nxs")

# Opened sources of this process: workers open the same run for every task. A few, as each holds files open.
_OPEN: "OrderedDict[SourceRef, RunSource]" = OrderedDict()
_MOST = 16
_LOCK = threading.RLock()


def format_of(path: Path) -> str:
    """``"xtc2"``, ``"hdf5"`` or ``"zarr"``, from names and, for files of no known name, the first bytes.

    Raises
    ------
    RunNotFoundError
        There is nothing, or nothing that is a run.
    FormatError
        It is none of them.
    """
    if not path.exists():
        raise RunNotFoundError(f"{path}: no such file or directory")
    if not path.is_dir() and not path.is_file():  # opening a pipe would wait for ever
        raise FormatError(f"{path}: is neither a file nor a directory")
    if path.is_dir():
        if (path / "zarr.json").exists():
            return "zarr"
        names = [entry for entry in path.iterdir() if entry.is_file()]
        if any(is_xtc2(entry) for entry in names):
            return "xtc2"
        if any(entry.suffix in _HDF5_SUFFIXES for entry in names):
            return "hdf5"
        raise RunNotFoundError(f"{path}: holds no run: no .xtc2 streams, no HDF5 files, no zarr.json")
    if is_xtc2(path):
        return "xtc2"
    with path.open("rb") as file:
        magic = file.read(8)
    if magic == _HDF5_MAGIC or path.suffix in _HDF5_SUFFIXES:
        return "hdf5"
    raise FormatError(f"{path}: is no run file: its name does not end in .xtc2 and it is no HDF5 file")


def open_source(
    path: str | Path, run: int | None = None, snapshot: str | None = None, used: tuple[tuple[str, int], ...] = ()
) -> RunSource:
    """Open a run's files.

    Parameters
    ----------
    path : str or Path
        A run file, a directory of streams, or an exported zarr store.
    run : int, optional
        Which run, where there are several.
    snapshot : str, optional
        What the files must be.
    used : tuple of (str, int), optional
        Bytes of each file that belong to the snapshot.

    Returns
    -------
    RunSource

    Raises
    ------
    RunNotFoundError, SeveralRunsError, FormatError, SnapshotError, ConfinementError

    Examples
    --------
    >>> source = open_source(run_path)
    >>> source.index.events
    20
    """
    text = str(path)
    if "\0" in text:
        raise UriError(f"{text!r} is no path")
    return _open(SourceRef(str(Path(text).expanduser().absolute()), run, snapshot, used))


def reopen(ref: SourceRef) -> RunSource:
    """Open what a reference names, once in each process.

    Examples
    --------
    >>> source = open_source(run_path)
    >>> reopen(source.ref) is reopen(source.ref)
    True
    """
    with _LOCK:
        if ref in _OPEN:
            _OPEN.move_to_end(ref)
            return _OPEN[ref]
    return _open(ref)


def _open(ref: SourceRef) -> RunSource:
    source = _read(ref)
    with _LOCK:  # under the reference that arrays carry, so that reading them opens nothing again
        _OPEN[source.ref] = source
        _OPEN.move_to_end(source.ref)
        while len(_OPEN) > _MOST:
            _OPEN.popitem(last=False)  # whoever still reads from it keeps it; its files close with its last user
    return source


def _read(ref: SourceRef) -> RunSource:
    try:
        return _read_as(format_of(Path(ref.path)), ref)
    except OSError as error:
        if isinstance(error, LclsError):
            raise
        raise RunNotFoundError(f"{str(error.filename or ref.path)[:300]}: can't be read: {error.strerror}") from error


def _read_as(kind: str, ref: SourceRef) -> RunSource:
    if kind == "xtc2":
        from .xtc2.source import Xtc2Source

        return Xtc2Source(ref)
    if kind == "hdf5":
        from .hdf5 import open_hdf5

        return open_hdf5(ref)
    from .zarr import open_zarr

    return open_zarr(ref)


def find_runs(directory: str | Path) -> dict[int, Path]:
    """The runs of an experiment's directory.

    Parameters
    ----------
    directory : str or Path
        Holds streams (directly, or in ``xtc/``), one directory a run, HDF5 files or exported stores.

    Returns
    -------
    dict of int to Path
        What `open_source` takes, by run number, ascending. Give it ``run=`` too: one directory may hold many.

    Examples
    --------
    >>> find_runs(run_path.parent)
    {1: PosixPath('...')}
    """
    base = Path(directory)
    if not base.is_dir():
        raise RunNotFoundError(f"{base}: no such directory")
    found: dict[int, Path] = {}
    for place in (base, base / "xtc"):
        if place.is_dir():
            for _, listed in runs_in(place):
                found.setdefault(listed, place)
    for entry in sorted(base.iterdir()):
        number = _number(entry)
        if number is not None:
            found.setdefault(number, entry)
        elif entry.is_dir() and entry.name not in ("xtc", "smalldata"):
            for _, inner in runs_in(entry):
                found.setdefault(inner, entry)
    return dict(sorted(found.items()))


def _number(entry: Path) -> int | None:
    """The run number that a directory, store or HDF5 file has in its name: r0014, run14, xpptut15-r0014.h5."""
    if entry.is_dir() and not (entry / "zarr.json").exists() and not runs_in(entry):
        return None
    if entry.is_file() and (entry.suffix not in _HDF5_SUFFIXES or NAME.fullmatch(entry.name)):
        return None
    match = re.search(r"(?:^|[-_])(?:r|run_?)(\d{1,6})(?=$|[-_.])", entry.name, re.IGNORECASE)
    return int(match[1]) if match else None


def experiment_directory(experiment: str) -> Path:
    """Directory of an experiment under ``lcls.root``: ``<root>/<experiment>`` or ``<root>/<hutch>/<experiment>``.

    Raises
    ------
    UriError
        ``lcls.root`` is not set.
    RunNotFoundError
        There is no such experiment.
    """
    root = config.root()
    if root is None:
        raise UriError(
            f"lcls://{experiment}: needs to know where experiments are; set lcls.root in dask.config or LCLS_ROOT "
            "(reading through a gateway is not in this version)"
        )
    for directory in (root / experiment, root / experiment[:3] / experiment):
        if directory.is_dir():
            return directory
    raise RunNotFoundError(f"{root}: holds no experiment {experiment}")


def locate(experiment: str, run: int) -> Path:
    """What `open_source` takes for a run of an experiment under ``lcls.root``.

    Raises
    ------
    UriError, RunNotFoundError
    """
    directory = experiment_directory(experiment)
    runs = find_runs(directory)
    if run not in runs:
        known = ", ".join(f"r{number:04d}" for number in runs) or "none"
        raise RunNotFoundError(f"{directory}: holds no run {run}; there are {known}")
    return runs[run]
