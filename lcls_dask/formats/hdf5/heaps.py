"""Strings of variable length lie in global heaps; a damaged heap makes libhdf5 loop for ever, so we look first.

libhdf5 (2.0.0 and before) walks a heap from object to object by their sizes, and stands still at free space of size
0. A heap is therefore walked here before libhdf5 sees it: those that a dataset's strings refer to, and
those near both ends of the file, where the strings of attributes are.
"""

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import FormatError
from ..codecs import decode
from .filters import Filter, zarr_codecs

if TYPE_CHECKING:
    from .datafile import DataFile

_SIGNATURE = b"GCOL\x01\0\0\0"
_HEADER = 16
#: A string as it is stored: its bytes, the address of its heap, its number there.
_REFERENCE = np.dtype([("bytes", "<u4"), ("heap", "<u8"), ("object", "<u4")])
_NOWHERE = (0, (1 << 64) - 1)
#: Bytes at each end of a file in which heaps are looked for.
ENDS = 1 << 20


def check_ends(path: Path) -> None:
    """Walk the heaps near both ends of a file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    FormatError
        One of them is damaged.
    """
    with path.open("rb") as opened:
        size = opened.seek(0, 2)
        if not size:
            return
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for first, last in ((0, min(size, ENDS)), (max(ENDS, size - ENDS), size)):
                place = data.find(_SIGNATURE, first, last)
                while place >= 0:
                    _check(path, place, data[place : place + _length(data[place : place + _HEADER])])
                    place = data.find(_SIGNATURE, place + 1, last)


def longest(file: "DataFile", dataset: Any, filters: tuple[Filter, ...]) -> int | None:
    """Bytes of the longest of a dataset's strings, after a walk of all heaps that they are in.

    Parameters
    ----------
    file : DataFile
    dataset : h5py.Dataset
        Strings of variable length, in this file.
    filters : tuple

    Returns
    -------
    int or None
        None where the strings cannot be found in the file, and so cannot be checked.

    Raises
    ------
    FormatError
        A heap is damaged.
    """
    import h5py

    created = dataset.id.get_create_plist()
    sizes = dataset.file.id.get_create_plist().get_sizes()
    chain = zarr_codecs(filters, np.dtype("u1"))
    if sizes != (8, 8) or (filters and not chain) or created.get_layout() == h5py.h5d.COMPACT:
        return None
    base = dataset.file.userblock_size
    extents: list[tuple[int, int]] = []
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        extents = [] if offset is None else [(offset, dataset.size * _REFERENCE.itemsize)]
    else:
        dataset.id.chunk_iter(lambda info: extents.append((info.byte_offset, info.size)))
    most, heaps = 0, set[int]()
    for offset, size in extents:
        payload = bytearray(size)
        file.pread(memoryview(payload), offset, dataset.name)
        raw = decode(chain, bytes(payload), np.dtype("u1")).tobytes() if chain else bytes(payload)
        references = np.frombuffer(raw, _REFERENCE, count=len(raw) // _REFERENCE.itemsize)
        used = references[~np.isin(references["heap"], np.array(_NOWHERE, np.uint64))]
        most = max(most, int(used["bytes"].max(initial=0)))
        heaps.update(np.unique(used["heap"]).tolist())
    for heap in heaps:
        header = bytearray(_HEADER)
        file.pread(memoryview(header), base + heap, dataset.name)
        if header[:8] != _SIGNATURE or _length(header) > file.path.stat().st_size:
            raise FormatError(f"{file.path}: there is no heap of strings at byte {base + heap}; copy the file again")
        body = bytearray(_length(header))
        file.pread(memoryview(body), base + heap, dataset.name)
        _check(file.path, base + heap, body)
    return most


def _length(header: bytes | bytearray) -> int:
    return int.from_bytes(header[8:16], "little")


def _check(path: Path, place: int, heap: bytes | bytearray) -> None:
    """Walk a heap from object to object, as libhdf5 does."""
    at = _HEADER
    while at + _HEADER <= len(heap):
        number = int.from_bytes(heap[at : at + 2], "little")
        size = int.from_bytes(heap[at + 8 : at + 16], "little")
        step = size if number == 0 else _HEADER + -(-size // 8) * 8
        if step < _HEADER or at + step > len(heap):
            raise FormatError(
                f"{path}: the heap of strings at byte {place} is damaged {at} bytes on; copy the file again"
            )
        at += step
