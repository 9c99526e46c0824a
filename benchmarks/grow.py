"""Runs to measure with: real files grown by repeating their datagrams, and small events made by rule."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcls_dask.formats.xtc2.bulk import Contribution, EventBlock, pack_events
from lcls_dask.formats.xtc2.layout import (
    BEGIN_RUN,
    CONFIGURE,
    DGRAM_BYTES,
    ENABLE,
    END_RUN,
    EVENT_SERVICES,
    Dgram,
    Names,
    dgram_at,
)
from lcls_dask.formats.xtc2.writer import (
    L1_ACCEPT,
    SMDINFO,
    StreamWriter,
    datagram,
    declare,
    names_xtc,
    runinfo_names,
    shapes_data,
    timestamp,
)

Array = np.ndarray[Any, Any]

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LCLS_DASK_DATA", REPOSITORY.parent / "shared" / "data")) / "lcls2"
HSD, JUNGFRAU = DATA / "test_hsd.xtc2", DATA / "test_jungfrau05M_calib.xtc2"

#: Events made at a time.
BLOCK = 1 << 18

START = 1_100_000_000  # seconds since 1990 of the first small event


def require(directory: Path, size: int) -> None:
    """Stop before the disk is full rather than after.

    Raises
    ------
    SystemExit
        There is not twice the room.
    """
    free = shutil.disk_usage(directory).free
    if free < 2 * size:
        raise SystemExit(f"{directory}: needs {size / 1e9:.1f} GB and as much to spare, {free / 1e9:.1f} GB are free")


def stamps_of(first: int, count: int, start: int) -> Array:
    """Timestamps of events a microsecond apart, from number `first` on; `start` is event 0's, in seconds."""
    micro = np.arange(first, first + count, dtype=np.uint64)
    million = np.uint64(1_000_000)
    return ((micro // million + np.uint64(start)) << np.uint64(32)) + micro % million * np.uint64(1000)


def _split(path: Path) -> tuple[list[bytes], list[bytes]]:
    """A file's transitions before its first event, and its events."""
    data, at = path.read_bytes(), 0
    head: list[bytes] = []
    events: list[bytes] = []
    while at + DGRAM_BYTES <= len(data):
        dgram: Dgram = dgram_at(data, at, str(path))
        if dgram.end > len(data):
            break
        part = data[at : dgram.end]
        if dgram.service in EVENT_SERVICES:
            events.append(part)
        elif not events:
            head.append(part)
        at = dgram.end
    return head, events


def _repeated(events: Sequence[bytes], stamps: Array) -> EventBlock:
    """Copies of events, one behind the other, at new times."""
    sizes = np.array([len(event) for event in events])
    repeats = -(-len(stamps) // len(events))
    offset = np.concatenate([[0], np.cumsum(np.tile(sizes, repeats)[: len(stamps)])])
    data = np.tile(np.frombuffer(b"".join(events), np.uint8), repeats)[: offset[-1]]
    at = offset[:-1, None] + np.arange(DGRAM_BYTES)
    rows = data[at]
    rows[:, :8] = stamps.view(np.uint8).reshape(-1, 8)  # nanoseconds, then seconds: the timestamp as it is
    data[at] = rows
    return EventBlock(data, offset, rows.reshape(-1).view(_header_dtype()))


def _header_dtype() -> "np.dtype[Any]":
    empty = pack_events(np.zeros(0, np.uint64), [])
    return empty.header.dtype


def grow(source: Path, directory: Path, experiment: str, run: int, events: int, *, smalldata: bool) -> Path:
    """A run of one stream whose events are those of a real file, again and again, at rising times.

    Parameters
    ----------
    source : Path
    directory : Path
        Of the new run.
    experiment, run
        For its file names.
    events : int
    smalldata : bool
        Whether it gets a smalldata file.

    Returns
    -------
    Path
        The stream's file.
    """
    head, real = _split(source)
    start = (dgram_at(real[0], 0, str(source)).timestamp >> 32) + 1
    directory.mkdir(parents=True, exist_ok=True)
    require(directory, events * sum(map(len, real)) // len(real))
    whole = max(1, min(BLOCK, 256_000_000 // len(real[0])) // len(real)) * len(real)
    with StreamWriter(directory, experiment, run, 0, smalldata=smalldata) as stream:
        path = stream.path
        for dgram in head:
            stream.write(dgram)
        for first in range(0, events, whole):
            stream.write_block(_repeated(real, stamps_of(first, min(whole, events - first), start)))
        stream.transition(END_RUN, timestamp(start + events // 1_000_000 + 1, 0))
    return path


@dataclass(frozen=True)
class Small:
    """Scalars of one stream: a gas monitor and an electron beam, as psana knows them."""

    names: Names

    def contribution(self, stamps: Array) -> Contribution:
        """Values for some events."""
        value = (stamps & np.uint64(0xFFFF)).astype(np.float64)
        return Contribution(self.names, {field.name: value.astype(field.dtype) for field in self.names.fields})


_GMD = declare("gmd", "gmd", "raw", (2, 1, 0), {"milliJoulesPerPulse": "float64", "RMS_E": "float64"}, id=1)
_EBEAM = declare(
    "ebeam", "ebeam", "raw", (2, 0, 0),
    {"damageMask": "uint32", "ebeamCharge": "float64", "ebeamL3Energy": "float64", "ebeamPhotonEnergy": "float64"},
    id=2,
)  # fmt: skip
SMALL = (Small(_GMD), Small(_EBEAM))


def small_run(directory: Path, events: int) -> Path:
    """A run of two streams of scalars, with smalldata.

    Parameters
    ----------
    directory : Path
    events : int

    Returns
    -------
    Path
        Its directory.
    """
    info = runinfo_names()
    for number, small in enumerate(SMALL):
        with StreamWriter(directory, "bench", 1, number) as stream:
            stream.configure(timestamp(START - 1, 0), [small.names, info])
            stream.begin_run(timestamp(START - 1, 1), names=info)
            stream.transition(ENABLE, timestamp(START - 1, 2))
            for stamps in _in_blocks(events):
                stream.write_block(pack_events(stamps, [small.contribution(stamps)]))
            stream.transition(END_RUN, timestamp(START + events // 1_000_000 + 1, 0))
    return directory


def _in_blocks(events: int) -> Iterator[Array]:
    for first in range(0, events, BLOCK):
        yield stamps_of(first, min(BLOCK, events - first), START)


def smalldata_run(directory: Path, events: int, streams: int, event_bytes: int = 2048) -> Path:
    """A run of which only the smalldata is real: the big files are as long as they would be, but hold nothing.

    The last stream is slow, it has every seventh event. The others have the same smalldata, byte for byte: they are
    links to one file, so that many events need little disk.

    Parameters
    ----------
    directory : Path
    events, streams : int
    event_bytes : int
        Length of an event in the big files.

    Returns
    -------
    Path
        The run's directory.
    """
    (directory / "smalldata").mkdir(parents=True, exist_ok=True)
    require(directory, (76 * 8 // 7 + 8 * streams + 16 * streams) * events)  # smalldata, index, and while it is built
    names = [f"bench-r0001-s{number:03d}-c000" for number in range(streams)]
    for number in (0, streams - 1):
        small = directory / "smalldata" / f"{names[number]}.smd.xtc2"
        size = _write_smalldata(small, events, event_bytes, sparse=number > 0)
        for name in names[: streams - 1] if number == 0 else names[-1:]:
            (directory / f"{name}.xtc2").touch()
            os.truncate(directory / f"{name}.xtc2", size)
            if name != names[number]:
                os.link(small, directory / "smalldata" / f"{name}.smd.xtc2")
    return directory


def _write_smalldata(path: Path, events: int, event_bytes: int, *, sparse: bool) -> int:
    info, begin = runinfo_names(), START - 1
    dtype, at = _header_dtype(), 1 << 16
    with path.open("xb") as file:
        file.write(datagram(CONFIGURE, timestamp(begin, 0), *map(names_xtc, (_GMD, info, SMDINFO))))
        file.write(datagram(BEGIN_RUN, timestamp(begin, 1), shapes_data(info, ("bench", 1))))
        file.write(datagram(ENABLE, timestamp(begin, 2)))
        for stamps in _in_blocks(events):
            mine = stamps[::7] if sparse else stamps
            header = np.zeros(len(mine), dtype)
            header["low"], header["high"] = mine & np.uint64(0xFFFFFFFF), mine >> np.uint64(32)
            header["env"] = L1_ACCEPT << 24 | 1
            offset = np.arange(len(mine) + 1) * event_bytes
            file.write(EventBlock(np.empty(0, np.uint8), offset, header).smalldata(at).data)
            at += len(mine) * event_bytes
        file.write(datagram(END_RUN, timestamp(START + events // 1_000_000 + 1, 0)))
    return at + DGRAM_BYTES
