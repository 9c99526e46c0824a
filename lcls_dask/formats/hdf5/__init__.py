"""Runs in HDF5 files: CXI, LCLS smalldata, LCLStreamer's files, and those that our own export wrote."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import FormatError, RunNotFoundError, SeveralRunsError, SnapshotError
from ...model import RunIndex
from ..confine import real_home
from ..identity import snapshot_of
from ..source import SourceRef
from . import cxi, exported, lclstreamer, smalldata
from .confine import Confined, confine
from .datafile import DataFile
from .entries import Entry, entries, load
from .heaps import check_ends
from .nodes import Tree
from .reading import reading
from .source import Hdf5Source

SUFFIXES = frozenset({".h5", ".hdf5", ".cxi", ".nc", ".nxs"})

_RUN_IN_NAME = re.compile(r"(?P<experiment>[a-z]{3}[a-z0-9]{4,12})[_-](?:r|run_?|Run_?)?(?P<run>\d{1,6})(?!\d)")
_RANK_FILE = re.compile(r"(?:(?P<prefix>.*)_)?r(?P<rank>\d+)_(?P<number>\d+)")
_SERVER_FILE = re.compile(r"(?P<master>.*)_part\d+")

__all__ = ["SUFFIXES", "Hdf5Source", "open_hdf5"]


def open_hdf5(ref: SourceRef) -> Hdf5Source:
    """Open a run in HDF5.

    Parameters
    ----------
    ref : SourceRef
        A file; or a directory of files of one run, such as all ranks of LCLStreamer, or the file that psana's
        smalldata joins its servers' files in.

    Returns
    -------
    Hdf5Source
        Its state is ``"ended"``, or that of the run that was exported. The run's attribute ``hdf5_unread`` lists
        datasets that have no place in the model and why, ``hdf5_remarks`` what is inconsistent.

    Raises
    ------
    FormatError
        A file is damaged, or its layout is not known.
    ConfinementError
        A file points out of the run's directory.
    RunNotFoundError, SeveralRunsError
        The directory holds no run, or several.
    SnapshotError
        The files are not those of ``ref.snapshot``.

    Examples
    --------
    >>> source = open_hdf5(SourceRef("/data/xpplx1234_Run0012.h5"))  # doctest: +SKIP
    >>> source.read("/", "ipm2.sum", slice(0, 3))  # doctest: +SKIP
    array([0.1, 0.2, 0.3])
    """
    given = Path(os.path.abspath(ref.path))
    if not given.exists():
        raise RunNotFoundError(f"{given}: there is no such file or directory; see what is there with lcls-dask ls")
    directory = real_home(given if given.is_dir() else given.parent, ref.within)
    paths = _files(given, ref.run)
    confined = [confine(path, directory) for path in paths]
    snapshot, used = _snapshot(confined, given)
    if ref.snapshot not in (None, snapshot):
        raise SnapshotError(
            f"{given}: the files are no longer those of snapshot {ref.snapshot}, but of {snapshot}; open it again"
        )
    files = tuple(DataFile(found.path) for found in confined)
    try:
        made, about = _tree(files, confined)
    except BaseException:
        for file in files:
            file.close()
        raise
    index = RunIndex(
        experiment=about.pop("experiment"),
        run=about.pop("run"),
        state=about.pop("state"),
        snapshot=snapshot,
        nodes=made.nodes,
        detectors=made.detectors,
        attrs=about.pop("attrs"),
    )
    return Hdf5Source(index, SourceRef(str(given), ref.run, snapshot, used), made.columns, files, open_hdf5)


def _files(given: Path, run: int | None) -> list[Path]:
    """The files of a run: one, or all of LCLStreamer's ranks."""
    if not given.is_dir():
        return [given]
    found = sorted(path for path in given.iterdir() if path.suffix in SUFFIXES and path.is_file())
    names = {path.stem for path in found}
    # files of psana's servers are read through the one that joins them
    found = [path for path in found if not ((match := _SERVER_FILE.fullmatch(path.stem)) and match["master"] in names)]
    if run is not None and len(found) > 1:
        found = [path for path in found if (match := _RUN_IN_NAME.search(path.stem)) and int(match["run"]) == run]
    if not found:
        raise RunNotFoundError(f"{given}: no HDF5 file of this run is there; see what is there with lcls-dask ls")
    ranks = [_RANK_FILE.fullmatch(path.stem) for path in found]
    if len(found) > 1 and not (all(ranks) and len({match["prefix"] for match in ranks if match}) == 1):
        listed = ", ".join(path.name for path in found[:5]) + (" …" if len(found) > 5 else "")
        raise SeveralRunsError(f"{given}: {len(found)} HDF5 files are there ({listed}); open one of them")
    order = {path: (int(m["rank"]), int(m["number"])) for path, m in zip(found, ranks, strict=True) if m}
    return sorted(found, key=lambda path: order.get(path, (0, 0)))


def _snapshot(confined: list[Confined], given: Path) -> tuple[str, tuple[tuple[str, int], ...]]:
    with reading(given):
        sizes = {path: path.stat().st_size for found in confined for path in found.files}
        snapshot = snapshot_of(list(sizes.items()))
    # of a run of many files the snapshot alone travels: the reference stays small
    used = tuple((path.name, size) for path, size in sorted(sizes.items())) if len(sizes) == 1 else ()
    return snapshot, used


def _tree(files: tuple[DataFile, ...], confined: list[Confined]) -> tuple[Tree, dict[str, Any]]:
    """Nodes, and experiment, run and attributes of the run."""
    first = files[0]
    with reading(first.path):
        for path in {path for walked in confined for path in walked.files}:
            check_ends(path)
        run = exported.described(first) if len(files) == 1 else None
    if run is not None:
        return exported.tree(first, run, entries(first, list(confined[0].datasets))[0]), {
            "experiment": str(run["experiment"]),
            "run": int(run["run"]),
            "state": str(run["state"]),
            "attrs": {"source_snapshot": run["snapshot"], **run["attrs"]},
        }
    unread: dict[str, str] = {}
    found: list[dict[str, Entry]] = []
    for file, walked in zip(files, confined, strict=True):
        read, left_out = entries(file, _once(walked.datasets))
        found.append(read)
        unread |= left_out
    with reading(first.path):
        layout, made, remarks = _recognise(files, found, unread)
        experiment, number = _experiment(first.path, found[0])
        attrs: dict[str, Any] = {"hdf5_layout": layout}
        attrs |= {"hdf5_unread": unread} if unread else {}
        attrs |= {"hdf5_remarks": remarks} if remarks else {}
        return made, {"experiment": experiment, "run": number, "state": "ended", "attrs": attrs}


def _once(datasets: Mapping[str, tuple[int, int]]) -> list[str]:
    """One path for each dataset."""
    names: dict[tuple[int, int], str] = {}
    for path in sorted(datasets, key=cxi.preference):
        names.setdefault(datasets[path], path)
    return sorted(names.values())


def _recognise(
    files: tuple[DataFile, ...], found: list[dict[str, Entry]], unread: Mapping[str, str]
) -> tuple[str, Tree, dict[str, str]]:
    if all(map(lclstreamer.recognised, found)) and not any(map(cxi.recognised, found)):
        named = [(file.path.name, read) for file, read in zip(files, found, strict=True)]
        return "LCLStreamer", *lclstreamer.tree(named)
    if len(found) > 1:
        raise FormatError(f"{files[0].path.parent}: not all files there have LCLStreamer's layout; open one of them")
    if cxi.recognised(found[0]):
        return "CXI", *cxi.tree(found[0])
    if smalldata.recognised(found[0]):
        return "smalldata", *smalldata.tree(found[0])
    for path, reason in sorted(unread.items()):
        if path.rpartition("/")[2] in smalldata.CLOCKS:
            raise FormatError(f"{files[0].path}: {path} cannot be read: {reason}; copy the file again")
    raise FormatError(
        f"{files[0].path}: not CXI (/entry_1/data_1), smalldata (/timestamp or /event_time) or LCLStreamer "
        "(equal lengths, a chunk for each event); open it with xarray's own engines"
    )


def _experiment(path: Path, found: Mapping[str, Entry]) -> tuple[str, int]:
    """Experiment and run, from datasets of these names or from the file's name."""
    match = _RUN_IN_NAME.search(path.stem)
    experiment = match["experiment"] if match else "unknown"
    number = int(match["run"]) if match else 0
    for name, entry in found.items():
        last = name.rpartition("/")[2].rpartition(".")[2]
        if last not in ("experiment", "run", "run_number") or len(entry.column.shape) > 1:
            continue
        if entry.column.shape == (0,):
            continue
        value = load(entry)[0] if entry.column.shape else entry.column.read(slice(None))
        if last == "experiment" and entry.column.dtype.kind == "U":
            experiment = str(value)
        elif last != "experiment" and entry.column.dtype.kind in "iu":
            number = int(value)
    return experiment, number
