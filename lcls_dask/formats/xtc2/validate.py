"""Reading everything once, to say what is wrong with a run."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from ...errors import FormatError
from ...model import Finding, time_of
from . import kernels
from .dense import read_field
from .detectors import Part, is_event_data
from .events import Array, ByRow, Events, in_blocks
from .layout import DAMAGE_BITS
from .names import tables as tables_of
from .probe import Shape
from .ragged import MALFORMED, OwnEvents, digitizer_block, shapes_block
from .tables import StreamTable

BLOCK = 1 << 14


def findings(events: Events, parts: Mapping[str, Part], shapes: Mapping[str, Shape]) -> Iterator[Finding]:
    """Everything there is to say about a run, streams first, then readings.

    Parameters
    ----------
    events : Events
    parts : mapping of str to Part
    shapes : mapping of str to Shape
        What the first events told of each field, by ``<detector>.<algorithm>.<field>``.

    Yields
    ------
    Finding
    """
    for number, stream in enumerate(events.tables.streams):
        yield from _files(stream)
        yield from _gaps(events, stream)
        yield from _readings(events, number, stream)
    for part in parts.values():
        yield from _shared(events, part)
        for title, field in part.fields.items():
            if field.rank:
                yield from _arrays(events, part, title, shapes[f"{part.name}.{title}"])
    yield from _pulses(events)
    yield from _strays(events)


def _files(stream: StreamTable) -> Iterator[Finding]:
    if stream.unread:
        cut = kernels.REASONS[kernels.TRUNCATED] in stream.reason
        yield Finding(
            "truncated" if cut else "corrupt",
            stream.name,
            f"{stream.reason}; {stream.unread} bytes from there on are not read",
            stream.unread,
            fatal=not cut,
        )
    if not stream.ended:
        yield Finding("unended", stream.name, "no EndRun: the run is still being written, or was cut")
    if stream.outside:
        text = f"{stream.outside} events follow a Configure without a BeginRun: they belong to no run and are not read"
        yield Finding("missing", stream.name, text, stream.outside, fatal=True)
    if stream.duplicates:
        yield Finding(
            "duplicate", stream.name, f"{stream.duplicates} events repeat a timestamp; the first are kept",
            stream.duplicates,
        )  # fmt: skip
    if stream.disordered:
        yield Finding("order", stream.name, "timestamps fall or repeat in the file; events are given in order of time")


def _gaps(events: Events, stream: StreamTable) -> Iterator[Finding]:
    """A stream that lacks some of the events that others have, unless it has every n-th."""
    total = len(events.tables.timestamps)
    if stream.events is None or not total:
        return
    mine = np.asarray(stream.events).astype(np.int64)
    if mine.size > 1 and mine[0] < (step := int(mine[1] - mine[0])) and total - mine[-1] <= step:
        if (np.diff(mine) == step).all():
            return  # a slower detector
    lacking = total - mine.size
    absent = np.setdiff1d(np.arange(min(total, mine.size + 2)), mine)
    first = int(absent[0]) if absent.size else int(mine.size)
    yield Finding(
        "gap", stream.name, f"has no datagram for {lacking} of {total} events, first event {first} "
        f"({events.tables.timestamps[first]})", lacking,
    )  # fmt: skip


def _readings(events: Events, number: int, stream: StreamTable) -> Iterator[Finding]:
    """Every field of every datagram of a stream, and what damage the data acquisition noted."""
    configuration = events.configurations[number]
    chosen = tuple(n for n in configuration.names.values() if is_event_data(n))
    t = tables_of(configuration, chosen, ())
    lasts = np.array([len(n.fields) - 1 for n in chosen], np.int64)
    total = len(events.tables.timestamps)

    def work(rows: slice) -> tuple[Array, ...]:
        size, slots = rows.stop - rows.start, len(chosen)
        counts = (np.zeros(slots, np.int64), np.zeros((slots, 16), np.int64), np.zeros(16, np.int64))
        statuses, positions = np.zeros(size, np.int64), np.zeros(size, np.int64)
        events.run(number, rows, kernels.check, *t.arrays, lasts, *counts, ByRow(statuses), ByRow(positions))
        return *counts, statuses, positions

    present, bits, whole = np.zeros(len(chosen), int), np.zeros((len(chosen), 16), int), np.zeros(16, int)
    blocks = in_blocks(total, BLOCK, work)
    for start, (some, some_bits, some_whole, statuses, positions) in zip(range(0, total, BLOCK), blocks, strict=True):
        present, bits, whole = present + some, bits + some_bits, whole + some_whole
        for row in np.flatnonzero(statuses):
            event = f"event {start + row} ({events.tables.timestamps[start + row]})"
            text = f"{event}: {kernels.REASONS[statuses[row]]}, at byte {positions[row]} of its file"
            yield Finding("corrupt", stream.name, text, fatal=True)
    for n, count, damaged in zip(chosen, present, bits, strict=True):
        where = f"{n.detector}.{n.algorithm} segment {n.segment}"
        if count < len(stream.places):
            text = f"no reading in {len(stream.places) - count} of {stream.name}'s {len(stream.places)} events"
            yield Finding("missing", where, text, len(stream.places) - int(count))
        yield from _damage(where, damaged)
    yield from _damage(stream.name, whole)


def _damage(where: str, counts: Array) -> Iterator[Finding]:
    for bit in np.flatnonzero(counts):
        name = DAMAGE_BITS.get(int(bit), f"bit {bit}")
        yield Finding("damage", where, f"{name} in {counts[bit]} events", int(counts[bit]))


def _shared(events: Events, part: Part) -> Iterator[Finding]:
    """Segments that several streams have: where both give a reading, there is only one place for it."""
    holders: dict[int, list[str]] = {}
    for stream, all_names in part.streams.items():
        for names in all_names:
            holders.setdefault(names.segment, []).append(events.tables.streams[stream].name)
    for segment, streams in holders.items():
        if len(set(streams)) > 1:
            text = f"{' and '.join(streams)} both have it; at events that both have, the last one's reading is given"
            yield Finding("duplicate", f"{part.name} segment {segment}", text)


def _arrays(events: Events, part: Part, title: str, shape: Shape) -> Iterator[Finding]:
    """Arrays and strings that do not fit the variable, and digitizer payloads that make no sense."""
    total, name = len(events.tables.timestamps), f"{part.name}.{title}"
    own, field = OwnEvents(total, None), part.fields[title]
    if title in part.channels:
        work = partial(_malformed, events, part, title, own)
        text = "the payload is malformed: no samples are given"
    elif shape.item is not None:
        work = partial(_misfits, events, part, title, shape, own)
        text = "the string is longer" if field.is_string else f"the array's shape is not {shape.item}"
        text += " than those of the run's first events; reading it raises" if field.is_string else "; reading it raises"
    else:
        return
    for start, rows in zip(range(0, total, BLOCK), in_blocks(total, BLOCK, work), strict=True):
        for row in rows:
            event = f"event {start + row} ({events.tables.timestamps[start + row]})"
            yield Finding("corrupt", name, f"{event}: {text}", fatal=True)


def _malformed(events: Events, part: Part, title: str, own: OwnEvents, rows: slice) -> Array:
    try:
        flags = digitizer_block(events, part, title, own, rows).flags
    except FormatError:  # such datagrams are reported one by one with the readings
        return np.empty(0, np.int64)
    return np.flatnonzero((flags & MALFORMED).any(1))


def _misfits(events: Events, part: Part, title: str, shape: Shape, own: OwnEvents, rows: slice) -> Array:
    try:
        found = shapes_block(events, part, title, own, rows)
    except FormatError:
        return np.empty(0, np.int64)
    there = found[..., 0] >= 0
    if part.fields[title].is_string:
        long = np.flatnonzero((there & (found[..., 0] > shape.characters)).any(1))
        return np.array([row for row in long if not _fits(events, part, title, shape, int(row) + rows.start)], np.int64)
    expected = np.array(shape.item)
    return np.flatnonzero((there & (found[..., : expected.size] != expected).any(-1)).any(1))


def _fits(events: Events, part: Part, title: str, shape: Shape, event: int) -> bool:
    """Whether a string that was given much room fits all the same."""
    try:
        read_field(events, part, title, shape, slice(event, event + 1))
    except FormatError:
        return False
    return True


def _pulses(events: Events) -> Iterator[Finding]:
    """Timestamps that come at a regular rate and skip some: pulses without any datagram."""
    stamps = np.asarray(events.tables.timestamps)
    if stamps.size < 8:
        return
    steps = np.diff(time_of(stamps)).astype(np.int64)
    usual = int(np.median(steps))
    regular = np.abs(steps - usual) <= 0.02 * usual
    if usual < 100 or regular.mean() < 0.9:
        return  # no fixed rate: nothing to miss
    pulses = np.rint(steps / usual).astype(np.int64) - 1
    lost = int(pulses[pulses > 0].sum())
    if lost:
        first = int(np.argmax(pulses > 0))
        yield Finding(
            "gap",
            "events",
            f"{lost} pulses of the usual {1e9 / usual:.6g} Hz have no event, the first after event {first}",
            lost,
        )


def _strays(events: Events) -> Iterator[Finding]:
    """Files that by their names belong to the run, but that no stream leads to."""
    read = {file for stream in events.tables.streams for file in stream.files}
    for name, _ in events.tables.used:
        if name not in read:
            yield Finding("missing", name, "no stream leads to this file: it is not read", fatal=True)
