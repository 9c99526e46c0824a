"""A run as a read-only zarr v3 store."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from .. import formats
from ..formats.source import RunSource, SourceRef
from .keys import Entry, Keys, RunKeys

Reopen = Callable[[SourceRef], RunSource]


class LclsStore(Store):
    """The zarr v3 hierarchy of one snapshot of a run, for any reader that takes a zarr store.

    Chunks are views of the arrays that the run's format gave: zarr copies them once, into its result.
    What travels to another process is the `SourceRef` alone, and there the run is opened when it is
    first read. A chunk that exists but cannot be given raises; only keys that the run never had are
    absent.

    Parameters
    ----------
    source : RunSource or SourceRef
        The run, or how to open it.
    reopen : callable, optional
        Opens a `SourceRef`; must pickle. `lcls_dask.formats.reopen` by default.
    read_only : bool
        True: runs are never written.

    Raises
    ------
    ValueError
        `read_only` is False.

    Examples
    --------
    >>> import xarray as xr
    >>> from lcls_dask.formats import open_source
    >>> xr.open_zarr(LclsStore(open_source(run_path))).sizes["event"]
    20
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True
    # the run's nodes cannot be consolidated without scanning every detector; xarray need not look for it
    supports_consolidated_metadata = False

    def __init__(self, source: RunSource | SourceRef, reopen: Reopen | None = None, *, read_only: bool = True) -> None:
        if not read_only:
            raise ValueError("a run's store is read-only; write results to a store of their own")
        super().__init__(read_only=True)
        self._reopen = reopen
        self._given = source
        if isinstance(source, SourceRef):
            self.ref = source
        else:
            # pinned, so that what reopens elsewhere is this snapshot and not what is there by then
            self.ref = replace(source.ref, snapshot=source.ref.snapshot or source.index.snapshot)

    @cached_property
    def source(self) -> RunSource:
        """The run that is read, opened when first asked for."""
        if not isinstance(self._given, SourceRef):
            return self._given
        return (self._reopen or formats.reopen)(self._given)

    @cached_property
    def keys(self) -> Keys:
        """The run as keys and bytes."""
        return RunKeys(self.source)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.ref, self._reopen)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.ref == other.ref

    def __hash__(self) -> int:
        return hash(self.ref)

    def __dask_tokenize__(self) -> tuple[str, SourceRef]:
        return "lcls_dask.LclsStore", self.ref

    def __str__(self) -> str:
        run = "" if self.ref.run is None else f" run {self.ref.run}"
        return f"{self.ref.path}{run}@{self.ref.snapshot}"

    def __repr__(self) -> str:
        return f"LclsStore('{self}')"

    def with_read_only(self, read_only: bool = False) -> "LclsStore":
        """The same store, not opened.

        Parameters
        ----------
        read_only : bool
            True.

        Returns
        -------
        LclsStore

        Raises
        ------
        NotImplementedError
            `read_only` is False.
        """
        if not read_only:
            super().with_read_only(read_only=False)
        return type(self)(self._given, self._reopen)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Bytes under a key, read in the calling thread.

        Parameters
        ----------
        key : str
        prototype : BufferPrototype, optional
        byte_range : ByteRequest, optional

        Returns
        -------
        Buffer or None
            None where the run has no such key.

        Raises
        ------
        LclsError
            The key exists but its bytes cannot be given.
        """
        data = self.keys.read(key, _span(byte_range))
        buffer = (prototype or default_buffer_prototype()).buffer
        return None if data is None else buffer.from_bytes(data)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As `get_sync`, in a thread: zarr has one event loop for all that a process reads."""
        await self._ensure_open()
        return await asyncio.to_thread(self.get_sync, key, prototype=prototype, byte_range=byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several `get` at once."""
        return await asyncio.gather(*(self.get(key, prototype, span) for key, span in key_ranges))

    async def exists(self, key: str) -> bool:
        """Whether the run has the key; no event data is read."""
        return await asyncio.to_thread(self.keys.__contains__, key)

    async def getsize(self, key: str) -> int:
        """Bytes under a key; only encoded chunks are read to know it.

        Parameters
        ----------
        key : str

        Returns
        -------
        int

        Raises
        ------
        FileNotFoundError
            The run has no such key (zarr's contract).
        """
        size = await asyncio.to_thread(self.keys.size, key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys that begin with these characters."""
        directory, slash, _ = prefix.rpartition("/")
        pending = [directory + slash]
        while pending:
            here = pending.pop()
            for entry in await asyncio.to_thread(_listed, self.keys, here):
                key = here + entry.name
                if key.startswith(prefix) or (entry.is_dir and f"{key}/".startswith(prefix)):
                    if entry.is_dir:
                        pending.append(f"{key}/")
                    else:
                        yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly beneath a directory."""
        for entry in await asyncio.to_thread(_listed, self.keys, prefix):
            yield entry.name

    # zarr 3.3 and newer read synchronously only where these exist as well
    def set_sync(self, key: str, value: Buffer) -> None:
        """Refuse: runs are never written."""
        self._check_writable()

    def delete_sync(self, key: str) -> None:
        """Refuse: runs are never written."""
        self._check_writable()

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: runs are never written."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: runs are never written."""
        self._check_writable()


def _span(byte_range: ByteRequest | None) -> slice:
    match byte_range:
        case None:
            return slice(None)
        case RangeByteRequest(start, end):
            return slice(start, end)
        case OffsetByteRequest(offset):
            return slice(offset, None)
        case SuffixByteRequest(suffix):
            return slice(-suffix, None) if suffix else slice(0, 0)
    raise ValueError(f"Unexpected byte_range, got {byte_range}.")


def _listed(keys: Keys, prefix: str) -> list[Entry]:
    return list(keys.list_dir(prefix))
