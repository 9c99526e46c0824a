"""Which files a run consists of, from their names alone."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import AccessError, ConfinementError, FormatError, RunNotFoundError, SeveralRunsError
from ..confine import open_inside

IN_PROGRESS = ".inprogress"
NAME = re.compile(r"(?P<experiment>\w+)-r(?P<run>\d+)-s(?P<stream>\d+)-c(?P<chunk>\d+)\.xtc2")


@dataclass(frozen=True)
class StreamFiles:
    """Where one stream begins.

    Attributes
    ----------
    name : str
        ``"s000"``, or the file's stem where its name says nothing.
    first : str
        Name of its first file, without ``.inprogress``.
    smalldata : str
        Name of its smalldata file, relative to the run's directory, or empty.
    """

    name: str
    first: str
    smalldata: str


def plain(name: str) -> str:
    """The file's name as it will be when the run has ended."""
    return name.removesuffix(IN_PROGRESS)


def is_xtc2(path: Path) -> bool:
    """Whether the name is that of an xtc2 file, finished or not."""
    return plain(path.name).endswith(".xtc2")


def find(directory: Path, name: str) -> Path:
    """The file of a run, finished or in progress; the directory is without symbolic links.

    Raises
    ------
    RunNotFoundError
        It is not there.
    ConfinementError
        A link leads out of the run's directory.
    FormatError
        It is no regular file: opening a pipe would wait for ever.
    """
    for candidate in (directory / name, directory / (name + IN_PROGRESS)):
        if candidate.exists():
            if not candidate.resolve().is_relative_to(directory):
                raise ConfinementError(f"{candidate}: a link leads out of the run's directory {directory}")
            if not candidate.is_file():
                raise FormatError(f"{candidate}: is no regular file")
            return candidate
    raise RunNotFoundError(f"{directory / name}: no such file; the run's other files name it")


def open_file(directory: Path, name: str) -> int:
    """Descriptor of a file of the run, to read.

    Raises
    ------
    RunNotFoundError
        It is not there.
    AccessError
        It may not be read.
    ConfinementError, FormatError
        As `find`, of what was opened.
    """
    path = find(directory, name)
    try:
        return open_inside(path, directory)
    except PermissionError as error:
        raise AccessError(f"{path}: may not be read: {error.strerror}") from error


def inside(directory: Path, name: str, source: str) -> str:
    """A file name that was read from a file, if it names something in the same directory.

    Raises
    ------
    ConfinementError
        It does not.
    """
    if not name or os.sep in name or name in (".", "..") or "\0" in name or not plain(name).endswith(".xtc2"):
        raise ConfinementError(f"{source}: names {name[:100]!r} as its next file; only .xtc2 files beside it are read")
    return plain(name)


def runs_in(directory: Path, run: int | None = None) -> dict[tuple[str, int], list[str]]:
    """Names of the xtc2 files of a directory, by the experiment and run in them; of one run, or all."""
    runs: dict[tuple[str, int], list[str]] = {}
    names = os.listdir(directory)
    # a directory may hold hundreds of runs, each of which is looked for in it
    for name in sorted(names if run is None else (name for name in names if f"{run}-s" in name)):
        match = NAME.fullmatch(plain(name))
        if match and run in (None, int(match["run"])):
            runs.setdefault((match["experiment"], int(match["run"])), []).append(name)
    return runs


def streams_of(path: Path, run: int | None) -> tuple[Path, list[StreamFiles]]:
    """The directory of a run and its streams.

    Parameters
    ----------
    path : Path
        A file, or a directory of streams.
    run : int or None
        Chooses, where the directory holds several runs.
    """
    if path.is_dir():
        directory = path
        runs = (runs_in(path, run) if run is not None else {}) or runs_in(path)
        if len(runs) > 1:
            known = ", ".join(f"{experiment} r{number:04d}" for experiment, number in runs)
            raise SeveralRunsError(f"{path}: holds several runs ({known}); choose one with run=")
        if runs:
            paths = [path / name for name in next(iter(runs.values()))]
        else:
            paths = [entry for entry in sorted(path.iterdir()) if is_xtc2(entry)]
        if not paths:
            raise RunNotFoundError(
                f"{path}: no xtc2 files; a run is a file or a directory of <expt>-rNNNN-sNNN-cNNN.xtc2"
            )
        if not runs and len(paths) > 1:
            raise SeveralRunsError(
                f"{path}: {len(paths)} xtc2 files whose names do not say that they are one run; open one of them, or "
                "name them <expt>-rNNNN-sNNN-cNNN.xtc2"
            )
    else:
        directory, paths = path.parent, [path]
    return directory, list(_first_chunks(directory, paths))


def _first_chunks(directory: Path, paths: Iterable[Path]) -> Iterable[StreamFiles]:
    lowest: dict[str, tuple[int, str]] = {}
    for path in paths:
        name = plain(path.name)
        match = NAME.fullmatch(name)
        stream, chunk = (f"s{match['stream']}", int(match["chunk"])) if match else (name.removesuffix(".xtc2"), 0)
        lowest[stream] = min(lowest.get(stream, (chunk, name)), (chunk, name))
    for stream, (_, name) in sorted(lowest.items()):
        small = f"smalldata/{name.removesuffix('.xtc2')}.smd.xtc2"
        there = any((directory / (small + suffix)).exists() for suffix in ("", IN_PROGRESS))
        yield StreamFiles(stream, name, small if there else "")


def listing(directory: Path, streams: Iterable[StreamFiles]) -> list[str]:
    """Names of all files that, by their names, belong to these streams: chunks and smalldata too."""
    stems = {stream: _stem(stream.first) for stream in streams}
    chunks: dict[str, set[str]] = {stem: set() for stem in stems.values()}
    # one look at the directory, which may hold many streams and many other runs
    runs = tuple({stem.rpartition("-s")[0] for stem in stems.values()})
    for name in (plain(name) for name in os.listdir(directory) if name.startswith(runs)):
        if (stem := _stem(name)) in chunks:
            chunks[stem].add(name)
    names = []
    for stream, stem in stems.items():
        names += sorted(chunks[stem]) if stem else [stream.first]
        if stream.smalldata:
            names.append(stream.smalldata)
    return names


def _stem(name: str) -> str:
    """What the names of a stream's chunk files begin with; empty where the name says nothing."""
    match = NAME.fullmatch(name)
    return name[: match.start("chunk")] if match else ""
