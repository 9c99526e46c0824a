"""Many events at once: arrays over events in, the bytes of their datagrams out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit, types

from .layout import (
    CHARSTR,
    DATA,
    DGRAM_BYTES,
    DTYPES,
    PARENT,
    SHAPE_BYTES,
    SHAPES,
    SHAPES_DATA,
    XTC_BYTES,
    Field,
    Names,
)
from .writer import L1_ACCEPT, SMD_EVENT_BYTES, SMDINFO

Array = np.ndarray[Any, np.dtype[Any]]

_XTC = [("src", "<u4"), ("damage", "<u2"), ("type", "<u2"), ("extent", "<u4")]
_DGRAM = np.dtype([("low", "<u4"), ("high", "<u4"), ("env", "<u4"), *_XTC])
_SMD = np.dtype(
    [("dgram", _DGRAM), ("info", _XTC), ("shapes", _XTC), ("data", _XTC), ("offset", "<u8"), ("size", "<u8")]
)

#: Scalars and arrays up to this size are written together with what stands before them.
_SMALL = 256


@dataclass(frozen=True)
class Ragged:
    """A rank-1 field whose length differs: event i has ``flat[offset[i]:offset[i + 1]]``."""

    flat: Array
    offset: Array


@dataclass(frozen=True)
class Contribution:
    """What one Names contributes to a block of n events.

    Attributes
    ----------
    names : Names
    values : mapping of str to array or Ragged
        By full field name, over the n events: (n,) for scalars, (n, ...) for arrays, (n,) ``S`` for strings.
    present : (n,) bool, optional
        Which events have it; all by default.
    damage : (n,) uint16, optional
    """

    names: Names
    values: Mapping[str, Array | Ragged]
    present: Array | None = None
    damage: Array | None = None


@dataclass(frozen=True)
class EventBlock:
    """Datagrams of consecutive events.

    Attributes
    ----------
    data : (bytes,) uint8
    offset : (n + 1,) int64
        Where each event begins in `data`.
    header : (n,) structured
        Their datagram headers.
    """

    data: Array
    offset: Array
    header: Array = field(repr=False)

    def smalldata(self, base: int) -> Array:
        """The 76 bytes of each event, where the block begins at byte `base` of its file: (76 n,) uint8."""
        rows = np.zeros(len(self.header), _SMD)
        for name in ("low", "high", "env"):
            rows["dgram"][name] = self.header[name]
        rows["dgram"]["type"], rows["dgram"]["extent"] = PARENT, SMD_EVENT_BYTES - 12
        for part, src, kind, extent in (
            ("info", SMDINFO.id, SHAPES_DATA, SMD_EVENT_BYTES - DGRAM_BYTES),
            ("shapes", 0, SHAPES, XTC_BYTES),
            ("data", 0, DATA, XTC_BYTES + 16),
        ):
            rows[part]["src"], rows[part]["type"], rows[part]["extent"] = src, kind, extent
        rows["offset"] = base + self.offset[:-1]
        rows["size"] = np.diff(self.offset)
        return rows.view(np.uint8)


_memcpy = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))


@njit(cache=True, nogil=True)
def _scatter(out: Array, at: Array, flat: Array, start: Array, length: Array) -> None:
    # libc's copy: pieces are of any length and not aligned, where a compiled loop is 4 times slower
    target, source = out.ctypes.data, flat.ctypes.data
    for i in range(len(at)):
        _memcpy(target + at[i], source + start[i], length[i])


def _rows(array: Array) -> Array:
    """An array over n events as bytes: (n, size) uint8, without a copy where that can be."""
    array = np.ascontiguousarray(array)
    size = array.nbytes // max(1, len(array))
    return array.reshape(-1).view(np.uint8).reshape(len(array), size)


def _encoded(spec: Field, value: Array, n: int) -> Array:
    """Values of a field whose length is the same in all events: (n, ...) of its element type."""
    if spec.type == CHARSTR and value.dtype.kind == "S":
        width = (value.dtype.itemsize // 4 + 1) * 4  # at least one NUL
        value = np.ascontiguousarray(value.astype(f"S{width}")).view(np.uint8).reshape(n, width)
    value = np.asarray(value, DTYPES[spec.type])
    if value.ndim != spec.rank + 1 or len(value) != n:
        raise ValueError(f"{spec.name!r} has rank {spec.rank} over {n} events, not the shape {value.shape}")
    return value


def _pieces(part: Contribution, n: int) -> Iterator[Array | Ragged]:
    """What a contribution puts side by side into each event, as (n, size) uint8 or ragged uint8."""
    names = part.names
    if set(part.values) != {spec.name for spec in names.fields}:
        expected = [spec.name for spec in names.fields]
        raise ValueError(f"{names.detector}.{names.algorithm} has {expected}, not {list(part.values)}")
    arrays = sum(spec.rank > 0 for spec in names.fields)
    head = np.zeros(n, [("info", _XTC), ("shapes", _XTC), ("shape", "<u4", (arrays, 5)), ("data", _XTC)])
    size = np.zeros(n, np.int64)
    fields: list[Array | Ragged] = []
    row = 0
    for spec in names.fields:
        value = part.values[spec.name]
        if isinstance(value, Ragged):
            item = DTYPES[spec.type].itemsize
            offset = np.asarray(value.offset, np.int64)
            if spec.rank != 1 or len(offset) != n + 1:
                raise ValueError(f"{spec.name!r} must be of rank 1, with {n + 1} offsets, to be ragged")
            shape: Any = np.diff(offset)[:, None]
            flat = np.ascontiguousarray(value.flat, DTYPES[spec.type]).view(np.uint8)
            fields.append(Ragged(flat, offset * item))
            size += shape[:, 0] * item
        else:
            value = _encoded(spec, value, n)
            shape = value.shape[1:]
            rows = _rows(value)
            fields.append(rows)
            size += rows.shape[1]
        if spec.rank:
            head["shape"][:, row, : spec.rank] = shape
            row += 1
    shapes_bytes = XTC_BYTES + SHAPE_BYTES * arrays
    for name, src, kind, extent in (
        ("info", names.id, SHAPES_DATA, 2 * XTC_BYTES + shapes_bytes + size),
        ("shapes", 0, SHAPES, shapes_bytes),
        ("data", 0, DATA, XTC_BYTES + size),
    ):
        head[name]["src"], head[name]["type"], head[name]["extent"] = src, kind, extent
    if part.damage is not None:
        head["info"]["damage"] = part.damage
    yield _rows(head)
    yield from fields


def _joined(pieces: Iterable[Array | Ragged]) -> Iterator[Array | Ragged]:
    """Small neighbours made one, so that an event costs few copies."""
    small: list[Array] = []
    for piece in pieces:
        if not isinstance(piece, Ragged) and piece.shape[1] <= _SMALL:
            small.append(piece)
            continue
        if small:
            yield np.concatenate(small, axis=1)
            small = []
        yield piece
    if small:
        yield np.concatenate(small, axis=1)


def pack_events(
    timestamps: Array,
    contributions: Iterable[Contribution],
    *,
    env: int | Array = L1_ACCEPT << 24 | 1,
    damage: Array | None = None,
    present: Array | None = None,
) -> EventBlock:
    """Pack consecutive events of one stream.

    Parameters
    ----------
    timestamps : (n,) uint64
    contributions : iterable of Contribution
        In the order in which events hold them.
    env : int or (n,) uint32
    damage : (n,) uint16, optional
        Of the whole datagrams.
    present : (n,) bool, optional
        Which events have a datagram in this stream; all by default.

    Returns
    -------
    EventBlock
        Of the events that are present.

    Raises
    ------
    ValueError
        Values do not fit the Names, or are not over n events.

    Examples
    --------
    >>> from lcls_dask.formats.xtc2.writer import declare
    >>> gmd = declare("gmd", "gmd", "raw", (2, 1, 0), {"energy": "float64"}, id=1)
    >>> pack_events(np.array([1, 2], np.uint64), [Contribution(gmd, {"energy": np.ones(2)})]).offset
    array([  0,  68, 136])
    """
    timestamps = np.asarray(timestamps, np.uint64)
    n = len(timestamps)
    columns: list[tuple[Array, Array, Array]] = []
    for part in contributions:
        for piece in _joined(_pieces(part, n)):
            if isinstance(piece, Ragged):
                flat, start, length = piece.flat, piece.offset[:-1], np.diff(piece.offset)
            else:
                flat, width = piece.reshape(-1), piece.shape[1]
                start, length = np.arange(n) * width, np.full(n, width)
            columns.append((flat, start, length if part.present is None else length * (part.present != 0)))

    header = np.zeros(n, _DGRAM)
    size = sum((length for _, _, length in columns), np.full(n, DGRAM_BYTES))
    header["low"], header["high"] = timestamps & np.uint64(0xFFFFFFFF), timestamps >> np.uint64(32)
    header["env"], header["type"], header["extent"] = env, PARENT, size - 12
    if damage is not None:
        header["damage"] = damage
    columns.insert(0, (header.view(np.uint8), np.arange(n) * DGRAM_BYTES, np.full(n, DGRAM_BYTES)))

    keep = np.full(n, True) if present is None else np.asarray(present, bool)
    offset = np.concatenate([[0], np.cumsum(size * keep)]).astype(np.int64)
    data = np.empty(offset[-1], np.uint8)
    at = offset[:-1].copy()
    for flat, start, length in columns:
        _scatter(data, at, flat, start, length * keep)
        at += length * keep
    return EventBlock(data, np.append(offset[:-1][keep], offset[-1]), header[keep])
