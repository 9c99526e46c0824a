"""What every kind of simulated run has in common: streams, steps, faults, and a clock."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from ..formats.xtc2.bulk import Contribution
from ..formats.xtc2.layout import Names

Array = np.ndarray[Any, np.dtype[Any]]

#: Pulses of the superconducting linac are 14/13 us apart.
PULSE_NS = (14_000, 13)
PULSE_RATE = 1e9 * PULSE_NS[1] / PULSE_NS[0]

#: Damage bits that faults set.
DROPPED, MISSING_DATA, TIMED_OUT = 1 << 4, 1 << 5, 1 << 6


@dataclass(frozen=True)
class Clock:
    """When things happen: event i belongs to pulse ``first + (i + 1) * stride``.

    Attributes
    ----------
    stride : int
        Pulses from one event to the next, at least 13, so that transitions fit in between.
    start : int
        Seconds since 1990 of the run's first pulse; fixed, so that a seed decides every byte.
    first : int
        Pulse id then.
    """

    stride: int
    start: int = 1_150_000_000
    first: int = 40_000_000_000_000

    def pulse(self, event: Array) -> Array:
        """Pulse ids of events: (n,) uint64."""
        return (self.first + (np.asarray(event, np.int64) + 1) * self.stride).astype(np.uint64)

    def timestamps(self, event: Array, *, before: int = 0) -> Array:
        """Timestamps of moments `before` nanoseconds ahead of events: (n,) uint64."""
        since = (np.asarray(event, np.int64) + 1) * self.stride * PULSE_NS[0] // PULSE_NS[1] - before
        seconds, nanoseconds = np.divmod(since, 1_000_000_000)
        return (self.start + seconds).astype(np.uint64) << np.uint64(32) | nanoseconds.astype(np.uint64)

    def timestamp(self, event: int, before: int) -> int:
        """Timestamp of a transition `before` nanoseconds ahead of an event."""
        return int(self.timestamps(np.array([event]), before=before)[0])


_Fault = TypeVar("_Fault", bound=tuple[int, ...])


def _within(faults: tuple[_Fault, ...], first: int, n: int) -> tuple[_Fault, ...]:
    """Faults of events ``first`` to ``first + n``; they are sorted by event."""
    return faults[bisect_left(faults, (first,)) : bisect_left(faults, (first + n,))]


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and where: a few events a thousand.

    Attributes
    ----------
    missing : tuple of (event, stream)
        The stream has no datagram for that event.
    dropped : tuple of (event, segment)
        The datagram lacks that segment, and has DroppedContribution set.
    damaged : tuple of (event, segment, bits)
        That segment's data has damage bits set (and so has its datagram); its values are good.
    """

    missing: tuple[tuple[int, int], ...] = ()
    dropped: tuple[tuple[int, int], ...] = ()
    damaged: tuple[tuple[int, int, int], ...] = ()

    def present(self, first: int, n: int, stream: int) -> Array:
        """Which events have a datagram in a stream: (n,) bool."""
        keep = np.full(n, True)
        keep[[event - first for event, where in _within(self.missing, first, n) if where == stream]] = False
        return keep

    def segment_present(self, first: int, n: int, segment: int) -> Array:
        """Which events have a segment, where they have its stream: (n,) bool."""
        keep = np.full(n, True)
        keep[[event - first for event, where in _within(self.dropped, first, n) if where == segment]] = False
        return keep

    def damage(self, first: int, n: int, segment: int) -> Array:
        """Damage bits of a segment's data: (n,) uint16."""
        bits = np.zeros(n, np.uint16)
        for event, where, value in _within(self.damaged, first, n):
            if where == segment:
                bits[event - first] = value
        return bits

    def as_json(self) -> dict[str, Any]:
        """For ``truth.json``."""
        return {
            "missing": [{"event": event, "stream": stream} for event, stream in self.missing],
            "dropped": [{"event": event, "segment": segment} for event, segment in self.dropped],
            "damaged": [
                {"event": event, "segment": segment, "damage": damage} for event, segment, damage in self.damaged
            ],
        }


def draw_faults(seed: int, events: int, streams: int, segments: int) -> Faults:
    """Choose faults: none in runs of under 8 events, else one of each kind for each 500 events."""
    if events < 8:
        return Faults()
    count = max(1, events // 500)
    random = np.random.default_rng([seed, 0xFA17])
    places = random.choice(events, 3 * count, replace=False).tolist()
    segment = random.integers(segments, size=3 * count).tolist()
    stream = random.integers(1, max(2, streams), size=count).tolist()
    bits = random.choice([MISSING_DATA, TIMED_OUT], size=count).tolist()
    return Faults(
        # stream 0 has the timing, and the only stream of a run cannot miss an event
        missing=tuple(sorted(zip(places[:count], stream, strict=True))) if streams > 1 else (),
        dropped=tuple(sorted(zip(places[count : 2 * count], segment[:count], strict=True))),
        damaged=tuple(sorted(zip(places[2 * count :], segment[count : 2 * count], bits, strict=True))),
    )


@dataclass(frozen=True)
class StreamPlan:
    """What one stream declares: its Names, and configuration values already encoded."""

    names: tuple[Names, ...]
    values: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class StreamEvents:
    """A block of events of one stream."""

    contributions: Sequence[Contribution]
    present: Array
    damage: Array


@dataclass(frozen=True)
class TruthArray:
    """What is known of an array of the truth, whose first dimension grows with the run.

    Attributes
    ----------
    dims : tuple of str
    dtype : str
    item : tuple of int
        Shape behind the first dimension.
    units, long_name : str
    counts : bool
        Given as counts, stored as offsets that begin with 0.
    """

    dims: tuple[str, ...]
    dtype: str
    units: str
    long_name: str
    item: tuple[int, ...] = ()
    counts: bool = False


@dataclass(frozen=True)
class Block:
    """A block of events: what each stream writes, and the truth of it."""

    streams: Sequence[StreamEvents]
    truth: Mapping[str, Array] = field(default_factory=dict)


class Plan(Protocol):
    """A kind of run."""

    clock: Clock
    faults: Faults
    streams: tuple[StreamPlan, ...]
    #: Scan variables of each step, encoded.
    steps: tuple[bytes, ...]
    #: Events made at once, at most.
    block: int
    truth_arrays: Mapping[str, TruthArray]

    def update(self, number: int) -> bytes:
        """Slow variables of a SlowUpdate, encoded; stream 0 carries them."""

    def events(self, first: int, n: int) -> Block:
        """Make events ``first`` to ``first + n``: the same ones whatever the block."""

    def truth(self) -> dict[str, Any]:
        """Parameters for ``truth.json``."""

    def constants(self) -> Mapping[str, tuple[TruthArray, Array]]:
        """Arrays of the truth that do not grow."""

    def files(self) -> Mapping[str, bytes]:
        """Files to write beside the streams, by name."""
