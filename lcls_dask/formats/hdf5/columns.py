"""Where a variable's values come from: a dataset, memory, or one of these rearranged.

A column is all that the layouts make and all that the source reads. Each one is read by rows of its
first dimension; most hold nothing but other columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..codecs import Codec
from ..source import Rows

Array = np.ndarray[Any, Any]
Index = np.ndarray[Any, np.dtype[np.int64]]


class Column(Protocol):
    """Values that can be read by rows."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def codecs(self) -> tuple[Codec, ...]:
        """zarr codecs of `encoded`; empty where there is no such thing."""

    @property
    def chunk(self) -> int:
        """Rows in an encoded chunk; 0 where the length is free."""

    def read(self, rows: Rows) -> Array:
        """Values of these rows, C-contiguous, of `dtype`."""

    def encoded(self, chunk: int) -> bytes:
        """A chunk as it is stored; only for columns with codecs."""


class _Decoded:
    """What columns have in common that only give values."""

    @property
    def codecs(self) -> tuple[Codec, ...]:
        return ()

    @property
    def chunk(self) -> int:
        return 0

    def encoded(self, chunk: int) -> bytes:
        raise LookupError(f"chunk {chunk} is not stored in one piece")


def positions(rows: Rows) -> Index:
    """Rows as explicit indices."""
    return np.arange(rows.start, rows.stop, dtype=np.int64) if isinstance(rows, slice) else rows


@dataclass(frozen=True)
class Held(_Decoded):
    """Values in memory: only for what is small, such as offsets."""

    values: Array = field(repr=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.values.dtype
        return dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def read(self, rows: Rows) -> Array:
        return np.array(self.values[rows] if self.values.ndim else self.values, order="C")


@dataclass(frozen=True)
class Absent(_Decoded):
    """Zeros, where one of several files has no such dataset."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self, rows: Rows) -> Array:
        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        return np.zeros((count, *self.shape[1:]), self.dtype)


@dataclass(frozen=True)
class Mapped(_Decoded):
    """A function of another column's values, such as the UTC time of a timestamp."""

    column: Column
    function: Callable[[Array], Array]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.column.shape

    def read(self, rows: Rows) -> Array:
        return np.ascontiguousarray(self.function(self.column.read(rows)), dtype=self.dtype)


@dataclass(frozen=True)
class Taken(_Decoded):
    """Rows of another column in another order; -1 is an absent row and reads as zeros."""

    column: Column
    index: Index = field(repr=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.column.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.column.shape[1:])

    def read(self, rows: Rows) -> Array:
        wanted = self.index[rows]
        there = wanted >= 0
        if there.all():
            return self.column.read(np.ascontiguousarray(wanted))
        values = np.zeros((len(wanted), *self.shape[1:]), self.dtype)
        values[there] = self.column.read(wanted[there])
        return values


@dataclass(frozen=True)
class Joined(_Decoded):
    """Columns of several files, one after the other."""

    parts: tuple[Column, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        # strings may be of different lengths
        return np.result_type(*(part.dtype for part in self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def read(self, rows: Rows) -> Array:
        wanted = positions(rows)
        ends = np.cumsum([part.shape[0] for part in self.parts])
        values = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        owner = np.searchsorted(ends, wanted, side="right")
        for number in np.unique(owner):
            here = owner == number
            part = self.parts[number]
            values[here] = part.read(wanted[here] - (ends[number] - part.shape[0]))
        return values


@dataclass(frozen=True)
class EventChunks:
    """Events of several files in the order of time, where each event is a stored chunk of its own."""

    parts: tuple[Column, ...]
    order: Index = field(repr=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.order), *self.parts[0].shape[1:])

    @property
    def codecs(self) -> tuple[Codec, ...]:
        return self.parts[0].codecs

    @property
    def chunk(self) -> int:
        return 1

    def read(self, rows: Rows) -> Array:
        return Taken(Joined(self.parts), self.order).read(rows)

    def encoded(self, chunk: int) -> bytes:
        event = int(self.order[chunk])
        for part in self.parts:
            if event < part.shape[0]:
                return part.encoded(event)
            event -= part.shape[0]
        raise LookupError(f"there is no chunk {chunk}")


@dataclass(frozen=True)
class Packed(_Decoded):
    """The filled part of a padded (events, most) column, flat: the values of a ragged field.

    Attributes
    ----------
    padded : Column
    offsets : (events + 1,) int64
        Where each event's values begin in the flat column.
    """

    padded: Column
    offsets: Index = field(repr=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.padded.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.offsets[-1]),)

    def read(self, rows: Rows) -> Array:
        wanted = positions(rows)
        if not len(wanted):
            return np.empty(0, self.dtype)
        event = np.searchsorted(self.offsets, wanted, side="right") - 1
        events, where = np.unique(event, return_inverse=True)
        return np.ascontiguousarray(self.padded.read(events)[where, wanted - self.offsets[event]])


def joined(parts: Sequence[Column], order: Index | None) -> Column:
    """One column out of those of several files, in an order of events.

    Parameters
    ----------
    parts : sequence of Column
        Of the same dtype and the same shape but for the first dimension.
    order : (n,) int64 or None
        Which of the events, counted through all files, stands at each place.

    Returns
    -------
    Column
        Stored chunks are passed through if there is only one file, or if each chunk is one event.
    """
    if len(parts) == 1 and order is None:
        return parts[0]
    whole = Joined(tuple(parts))
    if order is None:
        order = np.arange(whole.shape[0], dtype=np.int64)
    if parts[0].codecs and all(part.chunk == 1 and part.codecs == parts[0].codecs for part in parts):
        return EventChunks(tuple(parts), order)
    return Taken(whole, order)


def offsets_of(lengths: Array) -> Index:
    """Exclusive sums: where each row of a ragged field begins, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
