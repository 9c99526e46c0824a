"""xtc2 as bytes: headers, the Names that describe data, and the values of single datagrams.

The format is that of slac-lcls/lcls2 (``xtcdata``). Everything is little-endian and nothing is
aligned. This module reads what a run has few of, in plain Python: configurations and transitions.
The events are read by the compiled `kernels`.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ...errors import FormatError

DGRAM = struct.Struct("<IIIIHHI")  # time low, time high, env, then the root Xtc
XTC = struct.Struct("<IHHI")  # src, damage, type, extent
XTC_BYTES = 12
DGRAM_BYTES = 24
NAME_INFO_BYTES = 1036
NAME_BYTES = 524
SHAPE_BYTES = 20  # five uint32 a field, whatever its rank
MAX_RANK = 5

PARENT, SHAPES_DATA, SHAPES, DATA, NAMES = 0, 1, 2, 3, 4
CORRUPTED = 1 << 3

CONFIGURE, UNCONFIGURE, BEGIN_RUN, END_RUN, BEGIN_STEP, END_STEP, ENABLE, DISABLE, SLOW_UPDATE = range(2, 11)
EVENT_SERVICES = (11, 12)
SERVICES = {
    0: "ClearReadout", 1: "Reset", 2: "Configure", 3: "Unconfigure", 4: "BeginRun", 5: "EndRun", 6: "BeginStep",
    7: "EndStep", 8: "Enable", 9: "Disable", 10: "SlowUpdate", 11: "L1Accept_EndOfBatch", 12: "L1Accept",
}  # fmt: skip

CHARSTR, ENUM_VALUE, ENUM_DICT = 10, 11, 12
DTYPES = tuple(
    np.dtype(f"<{c}") for c in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8", "u1", "i4", "i4")
)

#: Names that are not detectors: their values are attributes, steps or slow variables. The DAQ gives them the kinds.
NOT_DETECTORS = frozenset({"runinfo", "epics", "epicsinfo", "scan", "chunkinfo", "smdinfo"})
KINDS_OF_NO_DETECTOR = NOT_DETECTORS | {"offset", ""}

DAMAGE_BITS = {
    0: "Truncated", 1: "OutOfOrder", 2: "OutOfSynch", 3: "Corrupted", 4: "DroppedContribution", 5: "MissingData",
    6: "TimedOut", 12: "UserDefined",
}  # fmt: skip


class Dgram(NamedTuple):
    """Header of one datagram; `offset` and `end` count in its file."""

    offset: int
    end: int
    timestamp: int
    service: int
    damage: int


@dataclass(frozen=True)
class Field:
    """One field of a Names: what psana shows as ``<detector>.<algorithm>.<name>``."""

    name: str
    type: int
    rank: int

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Type of one element; bytes for strings."""
        return DTYPES[self.type]

    @property
    def is_string(self) -> bool:
        """Whether the value is text."""
        return self.type == CHARSTR

    @property
    def is_label(self) -> bool:
        """Whether it is the integer of an enumeration's label, not a value."""
        return self.type == ENUM_DICT

    @property
    def title(self) -> str:
        """The name that users see: without the enumeration's name."""
        return self.name.partition(":")[0] if self.type in (ENUM_VALUE, ENUM_DICT) else self.name

    @property
    def enum(self) -> str:
        """The enumeration's name, or empty."""
        return self.name.partition(":")[2] if self.type in (ENUM_VALUE, ENUM_DICT) else ""


@dataclass(frozen=True)
class Names:
    """What the data of one detector segment and algorithm looks like, within one stream."""

    id: int
    detector: str
    kind: str
    serial: str
    algorithm: str
    version: tuple[int, int, int]
    segment: int
    fields: tuple[Field, ...]

    @cached_property
    def is_config(self) -> bool:
        """Whether it holds configuration values, which only Configure carries."""
        return self.algorithm.lower().endswith("config")

    @cached_property
    def is_detector(self) -> bool:
        """Whether it describes a detector, be it one that is called like what is none."""
        return self.detector not in NOT_DETECTORS or self.kind not in KINDS_OF_NO_DETECTOR

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Index of each field by the name that users see; labels of enumerations left out."""
        return {field.title: i for i, field in enumerate(self.fields) if not field.is_label}


def dgram_at(data: bytes | memoryview, at: int, file: str, base: int = 0) -> Dgram:
    """Read a datagram's header.

    Parameters
    ----------
    data : bytes-like
    at : int
        Where in `data` it begins.
    file : str
        For messages.
    base : int
        Where in the file `data` begins.
    """
    low, high, env, _, damage, _, extent = DGRAM.unpack_from(data, at)
    if not XTC_BYTES <= extent < 1 << 31:
        raise FormatError(f"{file}: datagram at byte {base + at} has an extent of {extent} bytes")
    start = base + at
    return Dgram(start, start + XTC_BYTES + extent, high << 32 | low, env >> 24 & 15, damage)


class Xtc(NamedTuple):
    """One Xtc: its payload is ``data[start:end]``."""

    src: int
    damage: int
    type: int
    start: int
    end: int


def walk(data: bytes | memoryview, start: int, end: int, where: str) -> Iterator[Xtc]:
    """All Xtcs between two positions, the inside of Parents included, in the order of the file."""
    ends = [end]
    while ends:
        if start == ends[-1]:
            ends.pop()
            continue
        if start + XTC_BYTES > ends[-1]:
            raise FormatError(f"{where}: {ends[-1] - start} stray bytes where an Xtc should begin, at {start}")
        src, damage, kind, extent = XTC.unpack_from(data, start)
        stop = start + extent
        if extent < XTC_BYTES or stop > ends[-1]:
            raise FormatError(
                f"{where}: the Xtc at {start} has an extent of {extent} bytes, {ends[-1] - start} are left"
            )
        kind &= 0xFFF
        if kind > NAMES:
            raise FormatError(f"{where}: the Xtc at {start} has the unknown type {kind}")
        if kind == PARENT and not damage & CORRUPTED:
            ends.append(stop)
            start += XTC_BYTES
            if len(ends) > 64:
                raise FormatError(f"{where}: Xtcs are nested more than 64 deep at {start}")
            continue
        yield Xtc(src & 0xFFFFF, damage, kind, start + XTC_BYTES, stop)
        start = stop


def _text(data: bytes | memoryview) -> str:
    return bytes(data).partition(b"\0")[0].decode("utf-8", "replace")


def parse_names(data: memoryview, xtc: Xtc, where: str) -> Names:
    """Read a Names: what one detector segment's data will look like."""
    start, size = xtc.start, xtc.end - xtc.start
    count, rest = divmod(size - NAME_INFO_BYTES, NAME_BYTES)
    if size < NAME_INFO_BYTES or rest:
        raise FormatError(f"{where}: the Names at {start} has {size} bytes, not {NAME_INFO_BYTES} + n * {NAME_BYTES}")
    kind, detector, serial, algorithm = (_text(data[start + at : start + at + 256]) for at in (4, 260, 516, 772))
    version, segment = struct.unpack_from("<II", data, start + 1028)
    fields = []
    for i in range(count):
        at = start + NAME_INFO_BYTES + i * NAME_BYTES
        name = _text(data[at + 260 : at + 516])
        type_, rank = struct.unpack_from("<II", data, at + 516)
        if type_ >= len(DTYPES) or rank > MAX_RANK or (type_ == CHARSTR and rank != 1):
            raise FormatError(
                f"{where}: field {name!r} of {detector!r} at {at} has type {type_} and rank {rank}; "
                f"types go up to {len(DTYPES) - 1}, ranks to {MAX_RANK}, strings have rank 1"
            )
        fields.append(Field(name, type_, rank))
    for name in (detector, algorithm, *(field.name for field in fields)):
        if "/" in name or not name.isprintable() or not detector:
            raise FormatError(f"{where}: the Names at {start} calls something {name!r}, which is no name")
    if segment >= 1 << 31:
        raise FormatError(f"{where}: the Names at {start} is of segment {segment} of {detector!r}")
    return Names(
        xtc.src,
        detector,
        kind,
        serial,
        algorithm,
        (version >> 16, version >> 8 & 255, version & 255),
        segment,
        tuple(fields),
    )


def parse_values(data: memoryview, xtc: Xtc, names: Names, where: str) -> dict[str, Any]:
    """Read every field of a ShapesData.

    Parameters
    ----------
    data : memoryview
        Holds the datagram.
    xtc : Xtc
        The ShapesData.
    names : Names
        Its description.
    where : str
        For messages.

    Returns
    -------
    dict of str to (numpy scalar, str or ndarray)
        By the name in the file (``value:Enum`` for enumerations).
    """
    shapes = content = None
    for part in walk(data, xtc.start, xtc.end, where):
        if part.type == SHAPES:
            shapes = part
        elif part.type == DATA:
            content = part
    values: dict[str, Any] = {}
    if content is None:
        raise FormatError(f"{where}: the data of {names.detector!r} at {xtc.start} has no Data part")
    at, arrays = content.start, 0
    for field in names.fields:
        shape: tuple[int, ...] = ()
        if field.rank:
            begin = (shapes.start if shapes else 0) + SHAPE_BYTES * arrays
            if shapes is None or begin + SHAPE_BYTES > shapes.end:
                raise FormatError(f"{where}: no shape for {names.detector}.{names.algorithm}.{field.name}")
            shape = struct.unpack_from(f"<{field.rank}I", data, begin)
            arrays += 1
        count = 1
        for length in shape:
            count *= length
        size = count * field.dtype.itemsize
        if at + size > content.end:
            raise FormatError(
                f"{where}: {names.detector}.{names.algorithm}.{field.name} of shape {shape} reaches "
                f"{at + size - content.end} bytes past its Data part"
            )
        if field.is_string:
            values[field.name] = _text(data[at : at + size])
        elif field.rank:
            values[field.name] = np.frombuffer(data[at : at + size], field.dtype).reshape(shape).copy()
        else:
            values[field.name] = np.frombuffer(data[at : at + size], field.dtype)[0]
        at += size
    return values


@dataclass(frozen=True)
class Configuration:
    """A Configure datagram: every Names of a stream, and the values that came with it."""

    names: Mapping[int, Names]
    values: tuple[tuple[Names, Mapping[str, Any]], ...]


def parse_configuration(data: bytes | memoryview, dgram: Dgram, file: str) -> Configuration:
    """Read a Configure datagram.

    Parameters
    ----------
    data : bytes-like
        The whole datagram.
    dgram : Dgram
    file : str
        For messages.
    """
    view, where = memoryview(data), f"{file}: Configure at byte {dgram.offset}"
    parts = list(walk(view, DGRAM_BYTES, len(view), where))
    names = {part.src: parse_names(view, part, where) for part in parts if part.type == NAMES}
    values = tuple(
        (names[part.src], parse_values(view, part, names[part.src], where))
        for part in parts
        if part.type == SHAPES_DATA and part.src in names
    )
    return Configuration(names, values)


def parse_transition(
    data: bytes | memoryview, dgram: Dgram, names: Mapping[int, Names], file: str
) -> Iterator[tuple[Names, dict[str, Any]]]:
    """Values that a transition carries: run information, scan variables, slow variables."""
    if dgram.damage & CORRUPTED:  # the inside is not to be trusted
        return
    view, where = memoryview(data), f"{file}: {SERVICES.get(dgram.service, dgram.service)} at byte {dgram.offset}"
    for part in walk(view, DGRAM_BYTES, len(view), where):
        if part.type == SHAPES_DATA:
            if part.src not in names:
                raise FormatError(f"{where}: data of the unknown NamesId {part.src:#x}")
            yield names[part.src], parse_values(view, part, names[part.src], where)
