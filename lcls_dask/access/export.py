"""Write a run to a zarr store or an HDF5 (netCDF-4) file: in parallel, resumable, and never half under its name.

Chunks go from `RunSource.read` through the codecs into one file each, in ``<target>.partial``. Whether a chunk is
done is whether its file is there. A zarr store is finished by adding the metadata and renaming; an
HDF5 file is put together from the same chunks, already encoded as HDF5 wants them, and then renamed.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SelectionError, UnsupportedError, UriError
from ..formats import open_source
from ..formats.codecs import Codec, encode
from ..formats.source import RunSource
from ..model import RunIndex, Variable
from . import export_hdf5, export_zarr
from .cutting import Index
from .journal import SCRATCH, partial, write
from .layout import chunk_file
from .subset import Events, SubsetSource, event_rows

#: Decoded bytes that one task reads and writes.
TASK_BYTES = 64 << 20
#: Chunks that one task writes at most.
TASK_CHUNKS = 256

#: These mean something else to a file system, or to zarr.
_NO_NAMES = frozenset({"", ".", "..", "zarr.json"})

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Block:
    """Consecutive chunks of a variable: what one task does."""

    path: str
    variable: Variable
    first: int
    last: int

    @property
    def nbytes(self) -> int:
        rows = min(self.last * self.variable.chunk, self.variable.shape[0]) - self.first * self.variable.chunk
        return rows * self.variable.item_bytes


def export(
    run: RunSource | str | Path | Any,
    target: str | Path,
    *,
    events: Events | None = None,
    variables: str | Sequence[str] | None = None,
    compression: str | None = "auto",
    progress: Progress | None = None,
    scheduler: Any = None,
) -> Path:
    """Copy a run, or part of it, to a zarr store or an HDF5 file.

    Call it again after a kill, with the same arguments, and it goes on where it was.

    Parameters
    ----------
    run : RunSource, Run, str or Path
        A source, anything that has one as ``source``, or what `open_source` takes.
    target : str or Path
        Ends in ``.zarr`` (zarr v3), ``.h5``, ``.hdf5`` or ``.nc`` (HDF5, also netCDF-4).
    events : slice, (events,) bool, (n,) int or (n,) uint64 timestamps, optional
        Which events; all by default. Detectors with events of their own keep those with the same timestamps.
    variables : str or sequence of str, optional
        Patterns of names, such as ``"hsd.*"``; all by default. Coordinates are always kept.
    compression : {"auto", "blosc", "zstd", "gzip", None}
        For zarr, ``"auto"`` is blosc (zstd, level 1, bits shuffled). HDF5 takes ``"gzip"`` (its ``"auto"``: level 1,
        bytes shuffled) or None, so that every HDF5 library can read it.
    progress : callable, optional
        Called with bytes done and bytes in all, from the calling thread.
    scheduler : optional
        A `distributed.Client`; ``"threads"``; ``"synchronous"``. By default the client of this process
        if it has one, and threads if not.

    Returns
    -------
    Path
        The target. A detector's variables that equal those of ``/``, since it has every event, are
        links to the same bytes. Attributes of the root say what it was made of and how: ``source_snapshot``,
        ``export_versions``, ``export_events``, ``export_variables``, ``export_compression``.

    Raises
    ------
    TargetExistsError
        The target is there already, or somebody is writing it.
    SelectionError
        There are no such events or variables.
    UriError
        The target's suffix is not known.

    Examples
    --------
    >>> export("/data/xpptut15/r0014", "/scratch/r0014.zarr", variables="hsd.*")  # doctest: +SKIP
    PosixPath('/scratch/r0014.zarr')
    """
    goal = Path(os.path.abspath(target))
    chain = chain_for(goal, compression)
    hdf5 = goal.suffix in export_hdf5.SUFFIXES
    base = open_source(run) if isinstance(run, str | Path) else getattr(run, "source", run)
    patterns = [variables] if isinstance(variables, str) else variables
    rows = None if events is None else event_rows(base, events)
    source = SubsetSource(base, rows, patterns)
    index, links = _planned(source, chain)
    about = provenance(base.index, events, rows, patterns, compression)
    index = replace(index, attrs={**index.attrs, **about})
    with partial(goal, _plan(index, links, goal.suffix)) as place:
        data = place / "data"
        data.mkdir(exist_ok=True)
        blocks = [block for block in _blocks(index, links) if not _done(data, block)]
        total = sum(block.nbytes for block in _blocks(index, links))
        done = total - sum(block.nbytes for block in blocks)
        if progress is not None:
            progress(done, total)
        for block in _run(source, data, blocks, hdf5, scheduler):
            done += block.nbytes
            if progress is not None:
                progress(done, total)
        if hdf5:
            finished = export_hdf5.assemble(place / f"result{goal.suffix}", index, links, data)
        else:
            finished = export_zarr.assemble(data, index, links, place / SCRATCH)
        finished.rename(goal)
        _sync(goal.parent)
    return goal


def provenance(
    source: RunIndex, events: Events | None, rows: Index | None, patterns: Sequence[str] | None, compression: str | None
) -> dict[str, str]:
    """Where a copy comes from and how it was made, as attributes of its root.

    Parameters
    ----------
    source : RunIndex
        What it was made of.
    events : optional
        As `export` takes them.
    rows : (n,) int64, optional
        The events that were meant.
    patterns : sequence of str, optional
    compression : str, optional

    Returns
    -------
    dict of str to str
    """
    if rows is None:
        told = "all"
    elif isinstance(events, slice):
        told = ":".join(str(number) for number in events.indices(source.events))
    else:
        told = f"{len(rows)} of {source.events}"
    return {
        "source_snapshot": source.snapshot,
        "export_versions": ", ".join(f"{name} {version(name)}" for name in ("lcls_dask", "numpy", "zarr", "h5py")),
        "export_events": told,
        "export_variables": "all" if patterns is None else " ".join(patterns),
        "export_compression": compression or "none",
    }


def chain_for(target: Path, compression: str | None) -> Callable[[np.dtype[Any]], tuple[Codec, ...]]:
    """The codecs of a target's format, as a function of a variable's dtype.

    Parameters
    ----------
    target : Path
        Its suffix tells the format.
    compression : str or None
        As in `export`.

    Returns
    -------
    callable

    Raises
    ------
    UriError
        The suffix is not known.
    UnsupportedError
        The format has no such compression.
    """
    if target.suffix in export_hdf5.SUFFIXES:
        return export_hdf5.chain(compression)
    if target.suffix == ".zarr":
        return export_zarr.chain(compression)
    raise UriError(f"{target}: export writes .zarr, .h5, .hdf5 or .nc; choose one of these names")


def _planned(
    source: SubsetSource, chain: Callable[[np.dtype[Any]], tuple[Codec, ...]]
) -> tuple[RunIndex, frozenset[tuple[str, str]]]:
    """The run as it will be stored, and which variables of detectors will be links to those of ``/``."""
    nodes, links = {}, set()
    root = source.index.nodes["/"].variables
    for path, node in source.index.nodes.items():
        same = path != "/" and _same_events(source, path)
        variables = {}
        for name, variable in node.variables.items():
            if not variable.shape:
                raise SelectionError(f"{name} in node {path} has no dimension to store chunks along")
            chunk = max(1, min(variable.chunk, variable.shape[0]))
            variables[name] = replace(variable, chunk=chunk, codecs=chain(variable.dtype))
            other = root.get(name)
            if same and other is not None and (other.shape, other.dtype) == (variable.shape, variable.dtype):
                variables[name] = replace(variables[name], chunk=max(1, min(other.chunk, other.shape[0])))
                links.add((path, name))
        for name in (*variables, *(path.split("/")[1:] if path != "/" else ())):
            if name in _NO_NAMES or "/" in name or "\0" in name:
                raise SelectionError(f"a variable or node of the name {name!r} cannot be stored; leave it out")
        nodes[path] = replace(node, variables=variables)
    # the copy will not grow: to a reader a live run is one that stopped without saying so
    state = "cut" if source.index.state == "live" else source.index.state
    return replace(source.index, nodes=nodes, state=state), frozenset(links)


def _same_events(source: SubsetSource, path: str) -> bool:
    """Whether a detector has exactly the events of ``/``: then both views hold the same values."""
    own = source.index.nodes[path].variables.get("timestamp")
    root = source.index.nodes["/"].variables.get("timestamp")
    if own is None or root is None or own.shape != root.shape or own.dims[0] != f"{path[1:]}.event":
        return False
    step = 1 << 20
    spans = [slice(start, min(start + step, own.shape[0])) for start in range(0, own.shape[0], step)]
    return all(
        np.array_equal(source.read(path, "timestamp", span), source.read("/", "timestamp", span)) for span in spans
    )


def _plan(index: RunIndex, links: Iterable[tuple[str, str]], suffix: str) -> dict[str, Any]:
    """What decides the bytes of the result."""
    return {
        "format": 1,
        "suffix": suffix,
        "snapshot": index.snapshot,
        "links": sorted(map(list, links)),
        "variables": {
            f"{path} {name}": [list(v.shape), v.dtype.str, v.chunk, [dict(codec) for codec in v.codecs]]
            for path, node in index.nodes.items()
            for name, v in node.variables.items()
        },
    }


def _blocks(index: RunIndex, links: frozenset[tuple[str, str]]) -> Iterator[_Block]:
    for path, node in index.nodes.items():
        for name, variable in node.variables.items():
            if (path, name) in links:
                continue
            each = max(1, min(TASK_CHUNKS, TASK_BYTES // max(1, variable.chunk * variable.item_bytes)))
            count = variable.chunk_count
            for first in range(0, count, each):
                yield _Block(path, variable, first, min(first + each, count))


def _done(data: Path, block: _Block) -> bool:
    return all(
        chunk_file(data, block.path, block.variable, number).exists() for number in range(block.first, block.last)
    )


def write_block(source: RunSource, data: Path, block: _Block, hdf5: bool) -> None:
    """Write those chunks of a block that are not there.

    Parameters
    ----------
    source : RunSource
    data : Path
    block : _Block
    hdf5 : bool
        Whether chunks are for HDF5, which has other types than zarr.
    """
    variable, length = block.variable, block.variable.chunk
    for number in range(block.first, block.last):
        file = chunk_file(data, block.path, variable, number)
        if file.exists():
            continue
        start, stop = number * length, min((number + 1) * length, variable.shape[0])
        values = source.read(block.path, variable.name, slice(start, stop))
        if hdf5:
            values = export_hdf5.stored(values)
        if stop - start < length:  # both formats store the last chunk in full
            full = np.zeros((length, *values.shape[1:]), values.dtype)
            full[: stop - start] = values
            values = full
        write(file, encode(variable.codecs, values), data.parent / SCRATCH)


def _run(source: SubsetSource, data: Path, blocks: Sequence[_Block], hdf5: bool, scheduler: Any) -> Iterator[_Block]:
    """Write blocks, and give each one when it is done; only a few are under way at a time."""
    client = _client() if scheduler is None else scheduler
    if not blocks:
        return
    if client == "synchronous":
        for block in blocks:
            write_block(source, data, block, hdf5)
            yield block
        return
    if client is None or client == "threads":
        workers = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers, thread_name_prefix="export") as pool:
            yield from _windowed(pool, source, data, blocks, hdf5, 2 * workers)
        return
    if not hasattr(client, "get_executor"):
        raise UnsupportedError(f"scheduler {scheduler!r} is not known; give a Client, 'threads' or 'synchronous'")
    # the source is opened once in each worker, by its reference, not once for each task
    there = client.scatter(source, broadcast=True, hash=False)
    threads = sum(client.nthreads().values())
    yield from _windowed(client.get_executor(pure=False), there, data, blocks, hdf5, 4 * max(1, threads))


def _windowed(
    pool: Executor, source: Any, data: Path, blocks: Sequence[_Block], hdf5: bool, most: int
) -> Iterator[_Block]:
    waiting = iter(blocks)
    running: dict[Future[None], _Block] = {}
    try:
        while True:
            for block in islice(waiting, most - len(running)):
                running[pool.submit(write_block, source, data, block, hdf5)] = block
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                block = running.pop(future)
                future.result()
                yield block
    finally:
        for future in running:
            future.cancel()


def _client() -> Any:
    """The Dask client of this process, if there is one; distributed is not imported for it."""
    if "distributed" not in sys.modules:
        return None
    from distributed import Client

    try:
        return Client.current()
    except ValueError:
        return None


def _sync(directory: Path) -> None:
    """Make a rename last through a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
