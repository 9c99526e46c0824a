"""One pass over a stream's files: where its events are, and its transitions."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...errors import FormatError
from . import kernels
from .files import IN_PROGRESS, StreamFiles, inside, open_file
from .layout import (
    BEGIN_RUN,
    CONFIGURE,
    DGRAM_BYTES,
    ENABLE,
    END_RUN,
    UNCONFIGURE,
    Configuration,
    Dgram,
    dgram_at,
    parse_configuration,
    parse_transition,
)
from .names import Lookup, lookup

#: An event's place is ``chunk file << CHUNK_SHIFT | offset``: 128 TiB a file, 65,535 files a stream.
CHUNK_SHIFT = 47
BLOCK = 1 << 17


@dataclass(frozen=True)
class Transition:
    """A datagram that is no event, and where it lies; `file` counts in the stream's `files`."""

    service: int
    timestamp: int
    file: int
    offset: int
    end: int


@dataclass
class Section:
    """What one stream holds of one run, from its configuration to its end."""

    configure: Transition
    configuration: Configuration
    begin: int
    end: int = 0
    transitions: list[Transition] = field(default_factory=list)
    experiment: str = ""
    run: int | None = None

    @property
    def begun(self) -> bool:
        """Whether there was a BeginRun."""
        return any(t.service == BEGIN_RUN for t in self.transitions)

    @property
    def ended(self) -> bool:
        """Whether there was an EndRun."""
        return any(t.service == END_RUN for t in self.transitions)


@dataclass(frozen=True)
class Scan:
    """The result of a pass over one stream.

    Attributes
    ----------
    files : tuple of str
        Chunk files in order, then the smalldata file if there is one.
    sections : tuple of Section
    unread : int
        Bytes at the end that are no whole datagram.
    reason : str
        Why they are not, and where.
    disordered : bool
        Whether timestamps fall or repeat.
    sizes : mapping of str to int
        Bytes of each file that were looked at.
    """

    name: str
    files: tuple[str, ...]
    sections: tuple[Section, ...]
    unread: int
    reason: str
    disordered: bool
    sizes: Mapping[str, int]


def read_exactly(fd: int, size: int, offset: int, file: str) -> bytes:
    """Bytes of a file, all of them.

    Raises
    ------
    FormatError
        The file ends before.
    """
    parts, at, left = [], offset, size
    while left:
        part = os.pread(fd, left, at)
        if not part:
            raise FormatError(f"{file}: ends at byte {at}, {left} bytes early")
        parts.append(part)
        at, left = at + len(part), left - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class StreamScanner:
    """Walks over a stream and appends the place and time of every event to two files."""

    def __init__(
        self, directory: Path, stream: StreamFiles, used: Mapping[str, int], stamps: IO[bytes], places: IO[bytes]
    ) -> None:
        self._directory, self._used = directory, used
        self._stream, self._stamps, self._places = stream, stamps, places
        self._files = [stream.first]
        self._sizes: dict[str, int] = {}
        self._chunk = 0
        self._sections: list[Section] = []
        self._events = 0
        self._last = -1
        self._disordered = False
        self._stops = 0  # where the newest chunk's last event ends, as smalldata tells
        self._told = -1  # timestamp of the last transition that smalldata has

    def scan(self) -> Scan:
        """Walk to the end of the last file."""
        small = self._stream.smalldata
        unread, reason = self._file(small, 0, small=True) if small else (0, "")
        # what smalldata does not know yet, or has lost: from its last event on, or from the start of the chunk file
        while not self._still_to_come(self._chunk):
            rest, why = self._file(self._files[self._chunk], self._stops, small=False)
            unread, reason = (rest, why) if rest else (unread, reason)
            if self._chunk + 1 == len(self._files):
                break
            self._chunk += 1
            self._stops = 0
        names = (n for section in self._sections for n in section.configuration.names.values())
        if not small and any(n.detector == "smdinfo" and not n.is_detector for n in names):
            raise FormatError(f"{self._directory / self._files[0]}: is smalldata; open the run that it belongs to")
        if not self._sections:
            raise FormatError(
                f"{self._directory / self._files[0]}: no Configure datagram{': ' + reason if reason else ''}"
            )
        self._sections[-1].end = self._events
        for name in self._files[: self._chunk]:
            if name not in self._sizes:  # smalldata told all about it
                os.close(self._open(name)[0])
        files = (*self._files, small) if small else tuple(self._files)
        return Scan(self._stream.name, files, tuple(self._sections), unread, reason, self._disordered, self._sizes)

    def _file(self, name: str, position: int, small: bool) -> tuple[int, str]:
        """Walk over one file; how many bytes at its end are no whole datagram, and why."""
        fd, end = self._open(name)
        try:
            if position > end:
                raise FormatError(
                    f"{self._directory / name}: has {end} bytes, its smalldata tells of events up to byte "
                    f"{position}; copy the file again, or move the smalldata file away to read what is there"
                )
            _, unread, reason = self._walk(fd, end, name, small, position)
            return unread, reason
        finally:
            os.close(fd)

    def _still_to_come(self, number: int) -> bool:
        """Whether a run in progress has announced this chunk file, but not begun to write it."""
        if not number:
            return False
        before, name = self._files[number - 1], self._files[number]
        writing = (self._directory / (before + IN_PROGRESS)).exists()
        return writing and not any((self._directory / (name + suffix)).exists() for suffix in ("", IN_PROGRESS))

    def _open(self, name: str) -> tuple[int, int]:
        fd = open_file(self._directory, name)
        size = os.fstat(fd).st_size
        self._sizes[name] = min(size, self._used.get(name, size))
        return fd, self._sizes[name]

    def _walk(self, fd: int, end: int, name: str, small: bool, position: int = 0) -> tuple[int, int, str]:
        """One file; returns where its whole datagrams end, how many bytes are left, and why."""
        reader = kernels.reader(fd, end)
        stamps, offsets = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.int64)
        lengths = np.empty(BLOCK if small else 0, np.int64)
        table = None
        while True:
            if small and self._sections:
                table = table or self._smalldata_table(name)
                status, n, at = kernels.scan_smalldata(
                    reader, position, *table.arrays, table.fields[0], stamps, offsets, lengths
                )
                if n:
                    self._stops = max(self._stops, int((offsets[:n] + lengths[:n]).max()))
            else:
                status, n, at = kernels.scan(reader, position, stamps, offsets)
            position = at
            self._append(stamps[:n], offsets[:n])
            if status == kernels.FULL:
                continue
            if status == kernels.OK:
                dgram = dgram_at(read_exactly(fd, DGRAM_BYTES, position, name), 0, name, position)
                if self._transition(fd, dgram, name, small):
                    position = dgram.end
                    table = None if dgram.service == CONFIGURE else table
                    continue
                status = kernels.TRUNCATED
            if status == kernels.TRUNCATED and position == end:
                return position, 0, ""
            return position, end - position, f"{name}: byte {position}: {kernels.REASONS[status]}"

    def _smalldata_table(self, name: str) -> Lookup:
        table = lookup(self._sections[-1].configuration, "smdinfo", ("intOffset", "intDgramSize"))
        if not table.names or (table.fields[0] < 0).any():
            raise FormatError(f"{self._directory / name}: is no smalldata, its Configure has no smdinfo")
        return table

    def _append(self, stamps: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> None:
        if not stamps.size:
            return
        if not self._sections:
            raise FormatError(f"{self._directory / self._files[0]}: begins with events, not with Configure")
        if not self._disordered:
            rising = int(stamps[0]) > self._last and bool((stamps[1:] > stamps[:-1]).all())
            self._disordered = not rising
            self._last = int(stamps[-1])
        stamps.tofile(self._stamps)
        (offsets | self._chunk << CHUNK_SHIFT).tofile(self._places)
        self._events += stamps.size

    def _transition(self, fd: int, dgram: Dgram, name: str, small: bool) -> bool:
        """Take note of a transition; whether it was whole."""
        if dgram.end > self._sizes[name]:
            return False
        if small:
            self._told = dgram.timestamp
        elif dgram.timestamp <= self._told:
            return True
        # the smalldata file is the last of `files`, whose number is known only at the end
        place = Transition(dgram.service, dgram.timestamp, -1 if small else self._chunk, dgram.offset, dgram.end)
        if dgram.service == CONFIGURE:
            data = read_exactly(fd, dgram.end - dgram.offset, dgram.offset, name)
            self._close_section()
            self._sections.append(Section(place, parse_configuration(data, dgram, name), self._events))
            return True
        if not self._sections:
            raise FormatError(f"{self._directory / name}: begins with {dgram.service}, not with Configure (2)")
        section = self._sections[-1]
        if dgram.service == BEGIN_RUN:
            if section.begun:
                self._close_section()
                section = Section(section.configure, section.configuration, self._events)
                self._sections.append(section)
            self._run_information(fd, dgram, name, section)
        elif dgram.service == UNCONFIGURE:
            return True
        elif dgram.service == ENABLE:
            self._chunk_information(fd, dgram, name, section, small)
        section.transitions.append(place)
        return True

    def _close_section(self) -> None:
        """End the section in work; one that has neither a BeginRun nor events was only a configuration."""
        if self._sections:
            section = self._sections[-1]
            section.end = self._events
            if not section.begun and section.begin == section.end:
                self._sections.pop()

    def _values(self, fd: int, dgram: Dgram, name: str, section: Section, detector: str) -> dict[str, Any]:
        data = read_exactly(fd, dgram.end - dgram.offset, dgram.offset, name)
        found: dict[str, Any] = {}
        for names, values in parse_transition(data, dgram, section.configuration.names, name):
            if names.detector == detector:
                found |= values
        return found

    def _run_information(self, fd: int, dgram: Dgram, name: str, section: Section) -> None:
        values = self._values(fd, dgram, name, section, "runinfo")
        section.experiment = str(values.get("expt", ""))
        section.run = int(values["runnum"]) if "runnum" in values else None

    def _chunk_information(self, fd: int, dgram: Dgram, name: str, section: Section, small: bool) -> None:
        values = self._values(fd, dgram, name, section, "chunkinfo")
        if "filename" not in values or int(values.get("chunkid", 0)) <= len(self._files) - 1:
            return
        where = f"{name}: Enable at byte {dgram.offset}"
        following = inside(self._directory, str(values["filename"]), where)
        if following in self._files:
            raise FormatError(f"{where}: names {following} as its next file, which was read before")
        self._files.append(following)
        if small:  # events from here on count in the next file; else this file is read to its end first
            self._chunk += 1
            self._stops = 0
