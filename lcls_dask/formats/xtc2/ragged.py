"""Ragged fields as CSR: how many elements each (event, segment) row has, and the elements one behind the other.

The lengths are found once, by threads, and kept with the index; the elements stay in the run's files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...errors import FormatError
from . import kernels
from .detectors import Part
from .events import Array, ByRow, Events, Loop, in_blocks
from .tables import kept, map_file, published

#: In a row's flags: its payload makes no sense, so that it counts as empty.
MALFORMED = 128

#: Rows of events surveyed at a time by one thread.
BLOCK = 1 << 14

#: Time between samples of the digitizer, in seconds: 6.4 GHz * 13/14 (psana's constant for all models).
SAMPLE_INTERVAL = 1 / (6.4e9 * 13 / 14)


def _cumulative(file: IO[bytes], counts: Array, total: int) -> int:
    """Append running ends of `counts`, which begin at `total`; the new total."""
    ends = np.cumsum(counts, dtype=np.int64)
    ends += total
    ends.tofile(file)
    return int(ends[-1]) if ends.size else total


@dataclass(frozen=True)
class Ragged:
    """One ragged field of a detector, over the events that are its own.

    Attributes
    ----------
    offset : (rows + 1,) int64
        Where each (event, segment) begins among the elements.
    shapes : (rows, rank) int32 or None
        Of each row's array, for fields of rank above one.
    """

    events: Events
    part: Part
    field: str
    own: "OwnEvents"
    directory: Path

    @cached_property
    def offset(self) -> Array:
        return map_file(self.directory / "offset", "<i8")

    @cached_property
    def shapes(self) -> Array:
        rank = self.part.fields[self.field].rank
        return map_file(self.directory / "shapes", "<i4").reshape(-1, rank)

    def elements(self, first: int, last: int) -> Array:
        """Elements `first` to `last`."""
        dtype = self.part.fields[self.field].dtype
        rows, starts, ends, skip, total = _cover(self.offset, first, last, len(self.part.segments))
        out = np.zeros(total * dtype.itemsize, np.uint8)
        for stream in self.part.streams:
            t, places = self.part.tables(stream, self.events.configurations[stream], (self.field,))
            self.events.run(
                stream,
                self.own.among_all(rows),
                kernels.read_ragged,
                *t.arrays,
                t.fields[:, 0],
                places,
                ByRow(starts * dtype.itemsize),
                ByRow(ends * dtype.itemsize),
                out,
            )
        return out.view(dtype)[skip : skip + last - first]


def _cover(offset: Any, first: int, last: int, segments: int) -> tuple[slice, Array, Array, int, int]:
    """Events whose rows hold elements `first` to `last`: with each row's place in what is read, and what to skip."""
    rows = _rows(offset, first, last, segments)
    edges = np.asarray(offset[rows.start * segments : rows.stop * segments + 1])
    base = int(edges[0])
    starts = (edges[:-1] - base).reshape(-1, segments)
    ends = (edges[1:] - base).reshape(-1, segments)
    return rows, starts, ends, first - base, int(edges[-1]) - base


def _rows(offset: Any, first: int, last: int, segments: int) -> slice:
    """Events whose rows hold elements `first` to `last`."""
    begin = (int(offset.searchsorted(first, "right")) - 1) // segments
    return slice(begin, -(-int(offset.searchsorted(last, "left")) // segments) if last > first else begin)


@dataclass(frozen=True)
class OwnEvents:
    """The events of a detector among all: `rows` is None where it has every one."""

    count: int
    rows: Array | None

    def among_all(self, mine: "slice | Array") -> "slice | Array":
        """Numbers among all events of events counted among the detector's own."""
        return mine if self.rows is None else np.asarray(self.rows[mine]).astype(np.int64)


def own_events(events: Events, parts: Mapping[str, Part], detector: str) -> OwnEvents:
    """Events at which a detector's streams have a datagram that, in streams of several detectors, holds this one."""
    total = len(events.tables.timestamps)
    mine = [part for part in parts.values() if part.detector == detector]
    streams = sorted({stream for part in mine for stream in part.streams})
    shared = {
        stream
        for stream in streams
        if any(part.detector != detector and stream in part.streams for part in parts.values())
    }
    for stream in streams:
        if stream not in shared and events.tables.streams[stream].events is None:
            return OwnEvents(total, None)
    target = kept(events.tables.directory, f"own-{detector}")
    if not target.is_dir() and any(_always(events, part, field, total) for part in mine for field in part.channels):
        return OwnEvents(total, None)
    if not target.is_dir():
        with published(target) as making, (making / "events").open("wb") as out:
            for numbers in in_blocks(total, BLOCK, lambda rows: _present(events, mine, streams, shared, rows)):
                numbers.tofile(out)
    rows = map_file(target / "events", "<u4")
    return OwnEvents(total, None) if rows.size == total else OwnEvents(rows.size, rows)


def _always(events: Events, part: Part, field: str, total: int) -> bool:
    """Whether a digitizer has a payload in every event: its survey, needed anyway, tells it without another pass."""
    offset = survey_digitizer(events, part, field, OwnEvents(total, None)).payload.offset
    segments = len(part.segments)
    edges = (offset[start * segments : (start + BLOCK) * segments + 1 : segments] for start in range(0, total, BLOCK))
    return all((np.diff(block) > 0).all() for block in edges)


def _present(events: Events, mine: list[Part], streams: list[int], shared: set[int], rows: slice) -> Array:
    there = np.zeros(rows.stop - rows.start, np.bool_)
    for stream in streams:
        if stream not in shared:
            there |= events.places(stream, rows) >= 0
            continue
        for part in mine:
            if stream in part.streams:
                t, _ = part.tables(stream, events.configurations[stream], ())
                present = np.zeros((there.size, len(t.names)), np.bool_)
                damage = np.zeros(present.shape, np.uint16)
                events.run(stream, rows, kernels.survey, t.slots, ByRow(present), ByRow(damage))
                there |= present.any(1)
    return np.asarray(np.flatnonzero(there) + rows.start, "<u4")


def survey_field(events: Events, part: Part, field: str, own: OwnEvents) -> Ragged:
    """Find the lengths of a variable-length field."""
    target = kept(events.tables.directory, f"{part.name}.{field}")
    rank = part.fields[field].rank
    if not target.is_dir():
        with published(target) as making, (making / "offset").open("wb") as out, (making / "shapes").open("wb") as more:
            total = 0
            np.zeros(1, np.int64).tofile(out)
            for shapes in in_blocks(own.count, BLOCK, lambda rows: shapes_block(events, part, field, own, rows)):
                flat = shapes.reshape(-1, 5)[:, :rank]
                total = _cumulative(out, np.where(flat[:, 0] < 0, 0, flat.prod(1, dtype=np.int64)), total)
                if rank > 1:
                    np.maximum(flat, 0).astype("<i4").tofile(more)
    return Ragged(events, part, field, own, target)


def shapes_block(events: Events, part: Part, field: str, own: OwnEvents, rows: slice) -> Array:
    out = np.full((rows.stop - rows.start, len(part.segments), 5), -1, np.int64)
    for stream in part.streams:
        t, places = part.tables(stream, events.configurations[stream], (field,))
        found = np.full((out.shape[0], len(t.names), 5), -1, np.int64)
        events.run(stream, own.among_all(rows), kernels.survey_shapes, *t.arrays, t.fields[:, 0], ByRow(found))
        out[:, places] = np.where(found[..., :1] >= 0, found, out[:, places])
    return out


@dataclass(frozen=True)
class Digitizer:
    """One channel field of a digitizer: waveforms and FEX windows, over the detector's own events.

    Attributes
    ----------
    offset : (rows + 1,) int64
        Where each row's waveform begins among all samples of waveforms.
    windows : (rows + 1,) int64
        Where each row's windows begin among all windows.
    starts : (windows,) int32
        In samples of the full waveform.
    samples : (windows + 1,) int64
        Where each window's samples begin.
    flags : (rows,) uint8
        Bits 0-2 raw, 3-5 FEX: out of range, unlocked, overflow.
    """

    events: Events
    part: Part
    field: str
    own: OwnEvents
    directory: Path

    @cached_property
    def offset(self) -> Array:
        return map_file(self.directory / "offset", "<i8")

    @cached_property
    def windows(self) -> Array:
        return map_file(self.directory / "windows", "<i8")

    @cached_property
    def starts(self) -> Array:
        return map_file(self.directory / "starts", "<i4")

    @cached_property
    def samples(self) -> Array:
        return map_file(self.directory / "samples", "<i8")

    @cached_property
    def flags(self) -> Array:
        return map_file(self.directory / "flags", "|u1")

    @property
    def payload(self) -> Ragged:
        """The channel's bytes as they are."""
        return Ragged(self.events, self.part, self.field, self.own, self.directory / "payload")

    def lengths(self, first: int, last: int) -> Array:
        """Samples in the windows `first` to `last`, int32."""
        return np.asarray(np.diff(self.samples[first : last + 1]), np.int32)

    def waveforms(self, first: int, last: int) -> Array:
        """Samples of waveforms, uint16."""
        rows, starts, ends, skip, total = _cover(self.offset, first, last, len(self.part.segments))
        out = self._read(kernels.read_waveforms, rows, 0, (ByRow(starts), ByRow(ends)), total)
        return out[skip : skip + last - first]

    def window_samples(self, first: int, last: int) -> Array:
        """Samples of FEX windows, uint16."""
        segments = len(self.part.segments)
        # rows do not know their samples, but their windows do
        rows = _rows(_Composed(self.samples, self.windows), first, last, segments)
        numbers = np.asarray(self.windows[rows.start * segments : rows.stop * segments + 1])
        edges = np.asarray(self.samples[numbers[0] : numbers[-1] + 1])
        firsts, lasts = (ByRow(n.reshape(-1, segments)) for n in (numbers[:-1], numbers[1:]))
        where = (lead(self.part), firsts, lasts, int(numbers[0]), edges)
        out = self._read(kernels.read_windows, rows, 1, where, int(edges[-1] - edges[0]))
        return out[first - edges[0] : last - edges[0]]

    def _read(self, loop: Loop, rows: slice, kind: int, where: tuple[Any, ...], total: int) -> Array:
        """Samples of these rows; `kind` is 0 for waveforms and 1 for windows, `where` they go, as the loop wants it."""
        out = np.zeros(total, np.uint16)
        for stream in self.part.streams:
            places = self.part.places(stream)
            words = np.asarray(map_file(self.directory / f"words-{stream}", "<u4")).reshape(-1, places.size, 2)
            mine = ByRow(words[rows, :, kind])
            self.events.run(stream, self.own.among_all(rows), loop, mine, places, *where, out.view(np.uint8))
        return out


@dataclass(frozen=True)
class _Composed:
    """``outer[inner]`` without making it: offsets of rows among samples, through windows."""

    outer: Array
    inner: Array

    def __getitem__(self, rows: slice) -> Array:
        values: Array = self.outer[np.asarray(self.inner[rows])]
        return values

    def searchsorted(self, value: int, side: str) -> int:
        """Like numpy's, by bisection."""
        low, high = 0, self.inner.size
        while low < high:
            middle = (low + high) // 2
            here = self.outer[self.inner[middle]]
            if here < value or (side == "right" and here == value):
                low = middle + 1
            else:
                high = middle
        return low


def lead(part: Part) -> int:
    """Samples at the start of an event's first window that are baselines of the ADC cores, no signal."""
    return 4 if part.version == (3, 0, 0) else 0


def survey_digitizer(events: Events, part: Part, field: str, own: OwnEvents) -> Digitizer:
    """Find waveforms and FEX windows: their lengths and starts."""
    target = kept(events.tables.directory, f"{part.name}.{field}.{'hsd' if own.rows is None else 'own.hsd'}")
    if not target.is_dir():
        with published(target) as making:
            (making / "payload").mkdir()
            sums = ("offset", "windows", "samples", "payload/offset")
            names = (*sums, "starts", "flags", *(f"words-{stream}" for stream in part.streams))
            files = {name: (making / name).open("wb") for name in names}
            try:
                for name in sums:
                    np.zeros(1, np.int64).tofile(files[name])
                waves = windows = samples = size = 0
                for block in in_blocks(own.count, BLOCK, lambda rows: digitizer_block(events, part, field, own, rows)):
                    waves = _cumulative(files["offset"], block.counts[..., 0].ravel(), waves)
                    windows = _cumulative(files["windows"], block.counts[..., 1].ravel(), windows)
                    samples = _cumulative(files["samples"], block.lengths, samples)
                    size = _cumulative(files["payload/offset"], block.counts[..., 2].ravel(), size)
                    block.starts.astype("<i4").tofile(files["starts"])
                    block.flags.tofile(files["flags"])
                    for stream, words in block.words.items():
                        words.astype("<u4").tofile(files[f"words-{stream}"])
            finally:
                for file in files.values():
                    file.close()
    return Digitizer(events, part, field, own, target)


@dataclass(frozen=True)
class DigitizerBlock:
    """What a survey found in some of a digitizer's events.

    Attributes
    ----------
    counts : (rows, segments, 3) int64
        Samples of the waveform, windows, and bytes of the payload.
    flags : (rows, segments) uint8
    starts, lengths : (windows,) int32
        In the order of rows and segments.
    words : mapping of int to (rows, segments of the stream, 2) uint32
        By stream: where in its datagrams a waveform and the windows begin, 0 where there are none.
    """

    counts: Array
    flags: Array
    starts: Array
    lengths: Array
    words: Mapping[int, Array]


def digitizer_block(events: Events, part: Part, field: str, own: OwnEvents, rows: slice) -> DigitizerBlock:
    """Survey the digitizer's events `rows`."""
    size, segments = rows.stop - rows.start, len(part.segments)
    counts = np.zeros((size, segments, 3), np.int64)
    flags = np.zeros((size, segments), np.uint8)
    found, words = [], {}
    for stream in part.streams:
        t, places = part.tables(stream, events.configurations[stream], (field, "eventHeader"))
        words[stream] = np.zeros((size, places.size, 2), np.uint32)
        windows: list[tuple[Array, Array]] = []
        events.run(
            stream,
            own.among_all(rows),
            _survey_windows,
            *t.arrays,
            t.fields[:, 0],
            t.fields[:, 1],
            places,
            lead(part),
            ByRow(counts),
            ByRow(flags),
            ByRow(words[stream]),
            windows,
        )
        found.append((places, windows))
    starts, lengths = _in_row_order(counts[..., 1], found, events.tables.home, part.name)
    return DigitizerBlock(counts, flags, starts, lengths, words)


def _in_row_order(
    counts: Array, found: list[tuple[Array, list[tuple[Array, Array]]]], home: Path, name: str
) -> tuple[Array, Array]:
    """Starts and lengths of windows, which streams found in the order of rows and *their* segments.

    Parameters
    ----------
    counts : (rows, segments) int64
        Windows of each row.
    found : list of (places, windows)
        For each stream its segments' places and the windows, in pieces.
    home, name : Path, str
        The run and the part, for the message of an error.
    """
    if len(found) == 1 and len(found[0][1]) == 1 and (np.diff(found[0][0]) > 0).all():
        return found[0][1][0]  # in order already
    total = int(counts.sum())
    order = (np.cumsum(counts.ravel()) - counts.ravel()).reshape(counts.shape)
    starts, lengths = np.empty(total, np.int32), np.empty(total, np.int32)
    for places, windows in found:
        if not windows:
            continue
        theirs, their_lengths = (np.concatenate(arrays) for arrays in zip(*windows, strict=True))
        mine = counts[:, places].ravel()
        if theirs.size != mine.sum():
            raise FormatError(f"{home}: two streams have readings of the same segment of {name}")
        targets = np.repeat(order[:, places].ravel() - (np.cumsum(mine) - mine), mine)
        targets += np.arange(theirs.size)
        starts[targets], lengths[targets] = theirs, their_lengths
    return starts, lengths


def _survey_windows(
    reader: np.void,
    offsets: Array,
    stamps: Array,
    slots: Array,
    layout: Array,
    fields: Array,
    headers: Array,
    places: Array,
    lead: int,
    counts: Array,
    flags: Array,
    words: Array,
    windows: list[tuple[Array, Array]],
) -> tuple[int, int, int]:
    """`kernels.survey_hsd` with as much room for windows as it takes; they are appended to `windows`."""
    first, room = 0, 16 * fields.size * offsets.size + 4096
    while True:
        starts, lengths = np.empty(room, np.int32), np.empty(room, np.int32)
        status, row, n = kernels.survey_hsd(
            reader,
            offsets,
            stamps,
            slots,
            layout,
            fields,
            headers,
            places,
            lead,
            first,
            counts,
            flags,
            words,
            starts,
            lengths,
        )
        if status not in (kernels.FULL, kernels.OK):
            return status, row, n
        windows.append((starts[:n].copy(), lengths[:n].copy()))
        if status == kernels.OK:
            return status, row, n
        room *= 1 if row > first else 2  # one event alone may need more than all the room
        first = row
