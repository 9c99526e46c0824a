"""Reading everything once, to say what is wrong with a run."""

from collections.abc import Iterator

import numpy as np

from ...model import Finding
from . import kernels
from .events import Array, ByRow, Events, in_blocks
from .layout import DAMAGE_BITS
from .names import tables as tables_of
from .tables import StreamTable

BLOCK = 1 << 14


def findings(events: Events) -> Iterator[Finding]:
    """Everything there is to say about a run, streams first, then readings.

    Parameters
    ----------
    events : Events

    Yields
    ------
    Finding
    """
    for number, stream in enumerate(events.tables.streams):
        yield from _files(stream)
        yield from _gaps(events, stream)
        yield from _readings(events, number, stream)
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
    configuration = events.configurations[number]
    chosen = tuple(n for n in configuration.names.values() if not n.is_config)
    t = tables_of(configuration, chosen, ())
    lasts = np.array([len(n.fields) - 1 for n in chosen], np.int64)
    total = len(events.tables.timestamps)

    def work(rows: slice) -> tuple[Array, Array, Array, Array]:
        size = rows.stop - rows.start
        present, bits = np.zeros(len(chosen), np.int64), np.zeros((len(chosen), 16), np.int64)
        statuses, positions = np.zeros(size, np.int64), np.zeros(size, np.int64)

        events.run(
            number, rows, kernels.check, *t.arrays, lasts, present, bits, ByRow(statuses), ByRow(positions)
        )  # fmt: skip
        return present, bits, statuses, positions

    present, bits = np.zeros(len(chosen), np.int64), np.zeros((len(chosen), 16), np.int64)
    for start, (some, some_bits, statuses, positions) in zip(
        range(0, total, BLOCK), in_blocks(total, BLOCK, work), strict=True
    ):
        present += some
        bits += some_bits
        for row in np.flatnonzero(statuses):
            yield Finding(
                "corrupt", stream.name,
                f"event {start + row} ({events.tables.timestamps[start + row]}): {kernels.REASONS[statuses[row]]}, "
                f"at byte {positions[row]} of its file", fatal=True,
            )  # fmt: skip
    for n, count, damaged in zip(chosen, present, bits, strict=True):
        where = f"{n.detector}.{n.algorithm} segment {n.segment}"
        if 0 < count < len(stream.places):
            lacking = len(stream.places) - int(count)
            yield Finding(
                "missing", where, f"no reading in {lacking} of {stream.name}'s {len(stream.places)} events", lacking
            )
        for bit in np.flatnonzero(damaged):
            name = DAMAGE_BITS.get(int(bit), f"bit {bit}")
            yield Finding("damage", where, f"{name} in {damaged[bit]} events", int(damaged[bit]))


def _pulses(events: Events) -> Iterator[Finding]:
    """Timestamps that come at a regular rate and skip some: pulses without any datagram."""
    stamps = np.asarray(events.tables.timestamps)
    if stamps.size < 8:
        return
    nanoseconds = (stamps >> np.uint64(32)).astype(np.int64) * 1_000_000_000 + (stamps & np.uint64(0xFFFFFFFF)).astype(
        np.int64
    )
    steps = np.diff(nanoseconds)
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
