"""From a path to the format that reads it."""

import errno
import re
import threading
from collections import OrderedDict
from pathlib import Path

from .. import config
from ..errors import AccessError, FormatError, LclsError, RunNotFoundError, SnapshotError, UriError
from ..uri import RunUri
from .source import RunSource, SourceRef
from .xtc2.files import is_xtc2, runs_in
from .xtc2.snapshots import kept_snapshots

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
#: The run number in the name of a directory, store or HDF5 file: r0014, run14, xpptut15-r0014.h5.
_NUMBER = re.compile(r"(?:^|[-_])(?:r|run_?)(\d{1,6})(?=$|[-_.])", re.IGNORECASE)
#: The beginning of a snapshot's 32 digits, as URIs may have it.
_SHORT = re.compile(r"[0-9a-f]{8,31}")
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
        if any(is_xtc2(entry) and entry.is_file() for entry in path.iterdir()):
            return "xtc2"
        if any(entry.suffix in _HDF5_SUFFIXES and entry.is_file() for entry in path.iterdir()):
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
    path: str | Path,
    run: int | None = None,
    snapshot: str | None = None,
    used: tuple[tuple[str, int], ...] = (),
    within: str | None = None,
) -> RunSource:
    """Open a run's files.

    Parameters
    ----------
    path : str or Path
        A run file, a directory of streams, or an exported zarr store.
    run : int, optional
        Which run, where there are several.
    snapshot : str, optional
        What the files must be; its first eight digits or more are enough where no other one begins so.
    used : tuple of (str, int), optional
        Bytes of each file that belong to the snapshot.
    within : str, optional
        Directory, without symbolic links, that the run must lie in.

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
    try:
        path = str(Path(text).expanduser().absolute()) if text else ""
    except RuntimeError as error:
        raise UriError(f"{text!r}: {error}") from error
    if not path:
        raise UriError("an empty path names no run")
    if snapshot and _SHORT.fullmatch(snapshot):
        snapshot = _whole(path, run, snapshot, within)
    with _LOCK:  # what is pinned does not change: it need not be looked for again
        for ref, source in _OPEN.items():
            if snapshot and (ref.path, ref.snapshot) == (path, snapshot) and run in (None, ref.run):
                return source
    return _open(SourceRef(path, run, snapshot, used, within=within))


def _whole(path: str, run: int | None, digits: str, within: str | None) -> str:
    """The one snapshot, of what is there now and of those whose indexes are kept, that begins with these digits."""
    now = _open(SourceRef(path, run, within=within)).index.snapshot
    known = {now, *kept_snapshots(Path(path), run, digits)}
    match sorted(snapshot for snapshot in known if snapshot.startswith(digits)):
        case [snapshot]:
            return snapshot
        case []:
            raise SnapshotError(
                f"{path}: no snapshot that begins with {digits} is known; what is there now is {now}: open that, or "
                "write all 32 digits of the other"
            )
        case several:
            raise SnapshotError(
                f"{path}: several snapshots begin with {digits}: {', '.join(several)}; write more digits"
            )


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
    if ref.gateway is not None:
        from .remote import RemoteSource

        return RemoteSource(ref, open_source)
    try:
        return _read_as(format_of(Path(ref.path)), ref)
    except LclsError:
        raise
    except PermissionError as error:
        raise AccessError(f"{str(error.filename or ref.path)[:300]}: may not be read: {error.strerror}") from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
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


def may_grow(source: RunSource) -> bool:
    """Whether opening the same path again may give more than this source holds.

    Of a single file that is not marked as being written, xarray itself notices when it was written to.

    Examples
    --------
    >>> may_grow(open_source(run_path))
    False
    """
    if source.ref.gateway is not None:
        return source.index.state != "ended"
    path = Path(source.ref.path)
    directory_of_streams = path.is_dir() and not (path / "zarr.json").exists()
    return source.index.state == "live" or (source.index.state == "cut" and directory_of_streams)


def open_uri(uri: RunUri, snapshot: str | None = None, gateway: str | None = None) -> RunSource:
    """Open a run by its URI: through a gateway, or under ``lcls.root`` where none is configured.

    Parameters
    ----------
    uri : RunUri
        Of a run.
    snapshot : str, optional
        What the URI itself does not pin.
    gateway : str, optional
        Address; ``lcls.gateway`` by default.

    Returns
    -------
    RunSource

    Raises
    ------
    UriError
        It names no run, or nobody knows where runs are.
    AccessError, RunNotFoundError, SnapshotError, UnreachableError, FormatError
    """
    if uri.run is None:
        raise UriError(f"{uri}: names no run; write lcls://{uri.experiment}/r<NNNN>")
    snapshot, address = uri.snapshot or snapshot, gateway or config.gateway()
    if address is None:
        return open_source(locate(uri.experiment, uri.run), uri.run, snapshot)
    from .remote.http import parse_address

    ref = SourceRef(str(RunUri(uri.experiment, uri.run)), uri.run, snapshot, (), str(parse_address(address)))
    return reopen(ref) if snapshot else _open(ref)


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
        named = _NUMBER.search(entry.name)
        try:
            numbers = _numbers(entry, int(named[1]) if named else None)
        except PermissionError:  # a run that may not be read is there all the same; opening it says so
            numbers = [int(named[1])] if named else []
        for number in numbers:
            found.setdefault(number, entry)
    return dict(sorted(found.items()))


def _numbers(entry: Path, named: int | None) -> list[int]:
    """Runs that an entry of an experiment's directory holds; `named` is the number in its name."""
    if entry.is_dir():
        if entry.name in ("xtc", "smalldata"):
            return []
        inside = [number for _, number in runs_in(entry)]
        if named is not None and (inside or (entry / "zarr.json").exists()):
            return [named]
        return inside
    if entry.suffix in _HDF5_SUFFIXES and named is not None:
        return [named]
    return []


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
            f"lcls://{experiment}: needs to know where experiments are; set lcls.gateway (or LCLS_GATEWAY) to the "
            "address of a gateway, or lcls.root (or LCLS_ROOT) to a directory of them"
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
