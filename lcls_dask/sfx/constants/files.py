"""Constants from files: NumPy, HDF5, psana's calibration text and JSON, and a directory of them with run validity.

A directory holds, for each kind, ``<kind>.<suffix>`` for all runs, or ``<kind>/<first>-<last>.<suffix>``, as psana's
calibration directories do; the last run may be ``end``. Where several are valid, the one that begins last counts.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArgumentError, FormatError, RunNotFoundError
from .model import Constants, PixelConstants

Array = np.ndarray[Any, np.dtype[Any]]

#: Names that files have for each kind, psana's among them.
NAMES: Mapping[str, tuple[str, ...]] = {
    "pedestal": ("pedestal", "pedestals"),
    "offset": ("offset", "pixel_offset"),
    "gain": ("gain", "pixel_gain"),
    "bad": ("bad", "status", "pixel_status"),
    "good": ("mask", "good", "pixel_mask"),
}
_KINDS = {name: kind for kind, names in NAMES.items() for name in names}

#: Runs from the first to the last, as psana names files.
_VALIDITY = re.compile(r"(?P<first>\d+)-(?P<last>\d+|end)")

_TEXT = {".data", ".txt"}
_SUFFIXES = {".npy", ".json", *_TEXT}
_HDF5 = {".h5", ".hdf5", ".nxs", ".cxi"}


@dataclass(frozen=True)
class Directory:
    """Constants of a directory of files.

    Attributes
    ----------
    path : Path

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = Path(folder.name, "pedestals").mkdir()
    >>> np.save(Path(folder.name, "pedestals", "5-end.npy"), np.full((4, 6), 100.0))
    >>> Directory(Path(folder.name)).of_run(7).pedestal.shape
    (1, 1, 4, 6)
    >>> folder.cleanup()
    """

    path: Path

    def of_run(self, run: int | None) -> PixelConstants:
        """Constants of a run.

        Parameters
        ----------
        run : int or None
            None only where all files are for all runs.

        Returns
        -------
        PixelConstants

        Raises
        ------
        RunNotFoundError
            There are none for it.
        ArgumentError
            Files are for some runs, and no run was given.
        FormatError
            A file is not what its name says.
        """
        found: dict[str, Array] = {}
        for kind, valid in self._files().items():
            chosen = self._chosen(kind, valid, run)
            if chosen is not None:
                found[kind] = read_array(chosen)
        return _together(found, f"{self.path} for run {run}" if run is not None else str(self.path))

    def _files(self) -> dict[str, list[tuple[int, float, Path]]]:
        """For each kind first run, last run, and file."""
        made: dict[str, list[tuple[int, float, Path]]] = {}
        for path in sorted(self.path.iterdir()):
            if path.is_dir() and path.name in _KINDS:
                for file in sorted(path.iterdir()):
                    match = _VALIDITY.fullmatch(file.stem)
                    if match and file.suffix in _SUFFIXES:
                        last = np.inf if match["last"] == "end" else int(match["last"])
                        made.setdefault(_KINDS[path.name], []).append((int(match["first"]), last, file))
            elif path.stem in _KINDS and path.suffix in _SUFFIXES:
                made.setdefault(_KINDS[path.stem], []).append((-1, np.inf, path))
        return made

    def _chosen(self, kind: str, valid: list[tuple[int, float, Path]], run: int | None) -> Path | None:
        if run is None:
            if any(first >= 0 for first, _, _ in valid):
                raise ArgumentError(f"{self.path}: {kind} differs from run to run; say which by run=")
            return valid[-1][2]
        fitting = [(first, -last, file) for first, last, file in valid if first <= run <= last]
        return max(fitting)[2] if fitting else None


def read_constants(path: str | Path) -> Constants:
    """Read constants of a detector.

    Parameters
    ----------
    path : str or Path
        An HDF5 or ``.npz`` file with a dataset of each kind, a ``.npy``, psana text (``.data``) or JSON file of
        pedestals alone, or a directory of such files, see `lcls_dask.sfx.constants.files`. Kinds are ``pedestal``,
        ``gain`` (ADU/keV), ``offset`` (added to the pedestal), ``status`` (bad where it is not 0) and ``mask`` (bad
        where it is 0); psana's names will do.

    Returns
    -------
    Constants
        Give it to `calibrate`.

    Raises
    ------
    RunNotFoundError
        There is no such file.
    FormatError
        It is not what its name says, or has no pedestals.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.savez(f"{folder.name}/jungfrau.npz", pedestals=np.ones((3, 8, 512, 4)), pixel_gain=np.ones((3, 8, 512, 4)))
    >>> read_constants(f"{folder.name}/jungfrau.npz").of_run(None).gain.shape
    (3, 8, 512, 4)
    >>> folder.cleanup()
    """
    path = Path(path)
    if path.is_dir():
        return Directory(path)
    if not path.is_file():
        raise RunNotFoundError(f"{path}: there is no such file or directory of constants")
    if path.suffix in _HDF5 or path.suffix == ".npz":
        return _together(dict(_datasets(path)), str(path), path.absolute())
    if path.suffix in _SUFFIXES:
        return _together({"pedestal": read_array(path)}, str(path), path.absolute())
    raise FormatError(f"{path}: constants are .npy, .npz, .h5, .data or .json files, or a directory of them")


class Remembered:
    """Constants that were read from a file, and are by another process only when it needs them.

    Parameters
    ----------
    constants : PixelConstants
        With their `file`.

    Examples
    --------
    >>> Remembered(read_constants("jungfrau.npz")).of_run(None).gain.shape  # doctest: +SKIP
    (3, 8, 512, 1024)
    """

    def __init__(self, constants: PixelConstants) -> None:
        self._constants: PixelConstants | None = constants
        self._file, self._digests = constants.file, dict(constants.digests)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_constants": None}

    def __dask_tokenize__(self) -> object:
        return ("lcls_dask.PixelConstants", sorted(self._digests.items()))

    def of_run(self, run: int | None) -> PixelConstants:
        """The constants, for any run.

        Parameters
        ----------
        run : int or None

        Returns
        -------
        PixelConstants

        Raises
        ------
        RunNotFoundError
            There is no such file here.
        ArgumentError
            It holds other constants now.
        """
        if self._constants is not None:
            return self._constants
        path = Path(str(self._file))
        if not path.is_file():
            raise RunNotFoundError(
                f"{path}: there is no such file of constants here; all workers must see it, or make PixelConstants of "
                "its arrays, which then travel themselves"
            )
        constants = read_constants(path).of_run(run)
        if dict(constants.digests) != self._digests:
            raise ArgumentError(f"{path}: holds other constants than when it was read first; read it again")
        return constants


def _datasets(path: Path) -> Iterator[tuple[str, Array]]:
    """Kind and values of what a file of several has."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                yield from ((_KINDS[name], file[name]) for name in file.files if name in _KINDS)
            return
        import h5py

        with h5py.File(path) as file:
            found: list[tuple[str, Array]] = []
            file.visititems(
                lambda name, item: (
                    found.append((_KINDS[name.rpartition("/")[2]], item[()]))
                    if isinstance(item, h5py.Dataset) and name.rpartition("/")[2] in _KINDS
                    else None
                )
            )
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise FormatError(f"{path}: is no readable {path.suffix} file: {error}") from None
    yield from found


def read_array(path: Path, meaning: str = "constants") -> Array:
    """Values of a file of one kind.

    Parameters
    ----------
    path : Path
        ``.npy``, psana's text, or JSON: nested lists, or ``{"data": ..., "shape": ...}``.
    meaning : str
        What it is to be, for errors.

    Returns
    -------
    array

    Raises
    ------
    FormatError
        It holds something else.

    Examples
    --------
    >>> _ = Path("pedestals.data").write_text("# NDIM 2\\n# DIM:1 1\\n# DIM:2 3\\n1 2 3\\n")
    >>> read_array(Path("pedestals.data"))
    array([[1., 2., 3.]])
    """
    try:
        if path.suffix == ".npy":
            values: Array = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            told = json.loads(path.read_text())
            values = np.asarray(told["data"] if isinstance(told, dict) else told, np.float64)
            if isinstance(told, dict) and "shape" in told:
                values = values.reshape(told["shape"])
        else:
            lines = path.read_text().splitlines()
            shape = [int(line.split()[2]) for line in lines if re.match(r"#\s+DIM:\d+\s+\d+", line)]
            values = np.loadtxt([line for line in lines if not line.startswith("#")], np.float64, ndmin=2)
            values = values.reshape(shape) if shape else values
    except (OSError, ValueError, KeyError, TypeError, EOFError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read as {meaning}: {error}") from None
    if values.dtype.kind not in "biuf":
        raise FormatError(f"{path}: holds {values.dtype}, not numbers")
    return values


def _together(found: dict[str, Array], where: str, path: Path | None = None) -> PixelConstants:
    if "pedestal" not in found:
        raise RunNotFoundError(f"{where}: has no pedestals; `lcls-dask sfx darks` derives them from dark runs")
    try:
        pedestal = np.asarray(found["pedestal"], np.float32)
        if "offset" in found:
            pedestal = pedestal + np.asarray(found["offset"], np.float32)
        bad = found["bad"] != 0 if "bad" in found else None
        if "good" in found:
            not_good = found["good"] == 0
            bad = not_good if bad is None else bad | not_good
        made = PixelConstants(pedestal, found.get("gain"), bad)
    except ValueError as error:
        raise FormatError(f"{where}: constants do not fit each other: {error}") from None
    if path is not None:
        object.__setattr__(made, "file", str(path))
        for values in (made.pedestal, made.gain, made.bad):
            if values is not None:
                values.flags.writeable = False  # they must stay what the file holds
    return made
