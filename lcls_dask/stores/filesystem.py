"""Runs as an fsspec filesystem, protocol ``lcls``: the keys of the zarr store as files."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractBufferedFile

from .. import config
from ..errors import LiveRunError, RunNotFoundError, SnapshotError, UnsupportedError, UriError
from ..formats import discover
from ..formats.remote.catalogue import experiments, run_table
from ..formats.source import RunSource
from ..uri import RunUri, parse_uri
from .keys import METADATA, Keys, RunKeys

#: Runs that one filesystem keeps open.
_OPEN_RUNS = 32

#: Path, run and snapshot, as asked for.
Wanted = tuple[str, int | None, str | None]

#: What changes when a run's files do: their names, sizes and times.
Fingerprint = tuple[tuple[str, int, int], ...]

#: What fsspec itself may put among an instance's options.
_FSSPEC_OPTIONS = {"use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache"}


class LclsFileSystem(AsyncFileSystem):  # type: ignore[misc]
    """Runs as read-only files: each key of a run's zarr v3 hierarchy is one.

    Paths are ``lcls://<experiment>/r<NNNN>[@<snapshot>]/<key>``, read through the gateway that `gateway` or
    ``lcls.gateway`` names, or else from the directory of experiments in ``lcls.root``; with `run`, paths are the
    keys of that one run. A run keeps the snapshot it had when this filesystem first opened it.

    Parameters
    ----------
    run : str or path, optional
        File or directory of a single run.
    number : int, optional
        Which run, where the files of `run` hold several.
    snapshot : str, optional
        Which snapshot of `run`; needed while it is still being taken.
    gateway : str, optional
        Address of the gateway, ``https://host:port``.
    **options
        fsspec's own. Anything else is refused: credentials are found on each machine and never
        travel with a filesystem.

    Raises
    ------
    UriError
        An option that this filesystem does not have.

    Examples
    --------
    >>> import fsspec
    >>> fs = fsspec.filesystem("lcls", run=run_path)
    >>> fs.ls("timestamp", detail=False)
    ['timestamp/zarr.json', 'timestamp/c']
    """

    protocol = "lcls"
    root_marker = ""

    def __init__(
        self,
        run: str | os.PathLike[str] | None = None,
        *,
        number: int | None = None,
        snapshot: str | None = None,
        gateway: str | None = None,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if unknown := sorted(set(options) - _FSSPEC_OPTIONS):
            raise UriError(
                f"the lcls filesystem has no option {', '.join(unknown)}; it takes run, number, snapshot "
                "and gateway, and finds credentials on the machine it runs on"
            )
        options["use_listings_cache"] = False
        super().__init__(asynchronous=asynchronous, loop=loop, batch_size=batch_size, **options)
        self._run = None if run is None else os.fspath(run)
        self._number = number
        self._snapshot = snapshot
        self._gateway = gateway
        self._places: dict[tuple[str, int], str] = {}
        self._sources: dict[Wanted, tuple[RunSource, Fingerprint]] = {}
        self._snapshots: dict[Wanted, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return os.fspath(path).removeprefix("lcls://").rstrip("/")

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes | memoryview:
        """Bytes of a file.

        Parameters
        ----------
        path : str
        start, end : int, optional
            As Python slices.

        Returns
        -------
        memoryview or bytes
            Of a chunk a memoryview: a copy here makes a 16 MiB read several times slower. Of metadata
            bytes, which `json.loads` takes.
        """
        return await asyncio.to_thread(self._read, path, slice(start, end))

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return await asyncio.to_thread(self._describe, path)

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        return await asyncio.to_thread(self._listing, path, detail)

    async def _isfile(self, path: str) -> bool:
        return await self._is(path, "file")

    async def _isdir(self, path: str) -> bool:
        return await self._is(path, "directory")

    async def _is(self, path: str, kind: str) -> bool:
        # fsspec's own also take "no rights" and "server down" for "no such file"
        try:
            return bool((await self._info(path))["type"] == kind)
        except FileNotFoundError:
            return False

    async def _walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: str | Callable[[OSError], None] = "omit",
        **kwargs: Any,
    ) -> Any:
        # fsspec's "omit" drops every OSError from a listing, not only missing directories
        handler = _only_missing if on_error == "omit" else on_error
        async for level in super()._walk(path, maxdepth, topdown, on_error=handler, **kwargs):
            yield level

    async def _get_file(self, rpath: str, lpath: str, callback: Any = DEFAULT_CALLBACK, **kwargs: Any) -> None:
        info = await self._info(rpath)
        if info["type"] == "directory":
            os.makedirs(lpath, exist_ok=True)
            return
        data = await self._cat_file(rpath)
        callback.set_size(len(data))
        await asyncio.to_thread(Path(lpath).write_bytes, data)
        callback.relative_update(len(data))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> "LclsFile":
        if mode != "rb":
            raise UnsupportedError(f"{path} cannot be opened with mode {mode!r}: runs are read-only, use 'rb'")
        return LclsFile(self, path, mode, **kwargs)

    def _keys(self, path: str) -> tuple[Keys, str]:
        """The run of a path, and the key in it.

        Raises
        ------
        RunNotFoundError
            There is no such run.
        LiveRunError
            It is still being taken and no snapshot was chosen.
        SnapshotError
            It is not what it was when this filesystem first opened it.
        """
        path = self._strip_protocol(path).lstrip("/")
        if self._run is not None:
            return RunKeys(self._source((self._run, self._number, self._snapshot))), path
        uri = parse_uri(f"lcls://{path}")
        if uri.run is None:
            raise RunNotFoundError(f"lcls://{path} names no run; write lcls://{uri.experiment}/r<NNNN>")
        place = (uri.experiment, uri.run)
        if (address := self._address) is not None:
            return RunKeys(self._source((str(RunUri(*place)), uri.run, uri.snapshot), uri, address)), uri.key
        if place not in self._places:
            self._places[place] = str(discover.locate(*place))
        return RunKeys(self._source((self._places[place], uri.run, uri.snapshot), uri)), uri.key

    @property
    def _address(self) -> str | None:
        """Of the gateway that paths are read through, if they are."""
        return self._gateway or config.gateway()

    def _source(self, wanted: Wanted, uri: RunUri | None = None, address: str | None = None) -> RunSource:
        path, run, snapshot = wanted
        source, before = self._sources.get(wanted, (None, ()))
        if source is not None and (snapshot is not None or source.index.state == "ended"):
            return source
        # a run without an end may still grow: reads of two moments of it must not be mixed
        now = _fingerprint(path) if snapshot is None and address is None else ()
        if source is not None and now == before:
            return source
        if uri is not None and address is not None:
            source = discover.open_uri(uri, snapshot, address)
        else:
            source = discover.open_source(path, run, snapshot)
        index = source.index
        pinned = (
            f"LclsFileSystem(run={path!r}, snapshot={index.snapshot!r})"
            if uri is None
            else RunUri(uri.experiment, uri.run, index.snapshot)
        )
        if snapshot is None and (index.state == "live" or (uri is not None and index.state == "cut")):
            raise LiveRunError(f"{path} has no end and may still be written; open one moment of it: {pinned}")
        with self._lock:
            if self._snapshots.setdefault(wanted, index.snapshot) != index.snapshot:
                raise SnapshotError(f"{path} has changed since it was opened; open one moment of it: {pinned}")
            self._sources[wanted] = source, now
            while len(self._sources) > _OPEN_RUNS:
                del self._sources[next(iter(self._sources))]
        return source

    def _read(self, path: str, span: slice) -> bytes | memoryview:
        try:
            keys, key = self._keys(path)
        except FileNotFoundError as error:
            # a worker that does not see the run must not fill it with zeros, as zarr does for missing files
            raise SnapshotError(f"{path} cannot be read on this machine: {error}") from error
        data = keys.read(key, span)
        if data is None:
            raise FileNotFoundError(f"{path}: the run has no such key")
        return data.tobytes() if key.rpartition("/")[2] == METADATA else data

    def _describe(self, path: str) -> dict[str, Any]:
        path = self._strip_protocol(path)
        experiment, _, inside = path.strip("/").partition("/")
        if self._run is None and not inside:
            if experiment:
                self._runs(experiment)
            return _entry(path, True)
        keys, key = self._keys(path)
        if (size := keys.size(key)) is not None:
            return _entry(path, False, size)
        if not key or next(keys.list_dir(key), None) is not None:
            return _entry(path, True)
        raise FileNotFoundError(f"{path}: the run has no such key")

    def _listing(self, path: str, detail: bool) -> list[Any]:
        path = self._strip_protocol(path)
        entries = list(self._children(path))
        if not entries:
            entries = [self._describe(path)]  # a file lists itself; what does not exist raises
            entries = entries if entries[0]["type"] == "file" else []
        return entries if detail else [entry["name"] for entry in entries]

    def _children(self, path: str) -> Iterator[dict[str, Any]]:
        experiment, _, inside = path.strip("/").partition("/")
        beneath = f"{path}/" if path else ""
        if self._run is None and not experiment:
            for name in _experiments() if self._address is None else experiments(self._address):
                yield _entry(beneath + name, True)
        elif self._run is None and not inside:
            for number in self._runs(experiment):
                yield _entry(f"{beneath}r{number:04d}", True)
        else:
            keys, key = self._keys(path)
            for entry in keys.list_dir(key):
                yield _entry(beneath + entry.name, entry.is_dir, entry.size)

    def _runs(self, experiment: str) -> list[int]:
        """Runs of an experiment, which must be there."""
        name = parse_uri(f"lcls://{experiment}").experiment
        if (address := self._address) is not None:
            return [int(row["run"]) for row in run_table(address, name)]
        return list(discover.find_runs(discover.experiment_directory(name)))


class LclsFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of an `LclsFileSystem`, opened for reading."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        # fsspec's caches join pieces as bytes
        return bytes(self.fs.cat_file(self.path, start=start, end=end))


def _entry(name: str, is_dir: bool, size: int | None = 0) -> dict[str, Any]:
    return {"name": name, "size": 0 if is_dir else size, "type": "directory" if is_dir else "file"}


def _experiments() -> list[str]:
    """Experiments under ``lcls.root``, which holds them directly or in a directory for each hutch."""
    root = config.root()
    if root is None:
        raise UriError("lcls:// needs to know where experiments are; set lcls.root in dask.config or LCLS_ROOT")
    names = []
    for entry in root.iterdir():
        if entry.is_dir() and len(entry.name) == 3:
            names += [inner.name for inner in entry.iterdir() if inner.name.startswith(entry.name)]
        elif entry.is_dir():
            names.append(entry.name)
    return sorted(name for name in names if _is_experiment(name))


def _is_experiment(name: str) -> bool:
    try:
        return parse_uri(f"lcls://{name}") == RunUri(name)
    except UriError:
        return False


def _fingerprint(path: str) -> Fingerprint:
    entries = sorted(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
    stats = ((entry.name, entry.stat()) for entry in entries)
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _only_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
