"""Write xtc2 files, whole ones and odd ones: the simulated facility and the tests use it.

Three levels. `names_xtc`, `shapes_data`, `parent` and `datagram` make bytes and know nothing of files.
`StreamWriter` puts datagrams into one stream: its chunk files and its smalldata. `bulk.pack_events` makes
many events at once, for `StreamWriter.write_block`.

Nothing here keeps a file from being wrong: unknown NamesIds, damage, events without a contribution and runs
without an end are what tests need.
"""

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .layout import (
    BEGIN_RUN,
    CHARSTR,
    CONFIGURE,
    DATA,
    DGRAM,
    DGRAM_BYTES,
    DTYPES,
    ENABLE,
    END_RUN,
    ENUM_DICT,
    ENUM_VALUE,
    EVENT_SERVICES,
    NAMES,
    PARENT,
    SHAPE_BYTES,
    SHAPES,
    SHAPES_DATA,
    XTC,
    XTC_BYTES,
    Field,
    Names,
)

if TYPE_CHECKING:
    from .bulk import EventBlock

L1_ACCEPT = 12

#: Type codes of fields by NumPy's name.
TYPES = {str(dtype): code for code, dtype in enumerate(DTYPES[:10])} | {"str": CHARSTR, "enum": ENUM_VALUE}

SMD_EVENT_BYTES = 76


def declare(
    detector: str,
    kind: str,
    algorithm: str,
    version: tuple[int, int, int],
    fields: Mapping[str, tuple[str, int] | str] | Sequence[Field],
    *,
    id: int,
    node: int = 1,
    segment: int = 0,
    serial: str = "",
) -> Names:
    """Declare what the data of one detector segment and algorithm looks like.

    Parameters
    ----------
    detector, kind, algorithm, serial : str
        The detector's name in the run, its type, the algorithm and the serial number.
    version : (int, int, int)
        Of the algorithm.
    fields : mapping or sequence of Field
        Field names to a NumPy type name, ``"str"`` or ``"enum"``, alone (a scalar; strings are always
        rank 1) or with a rank.
    id, node : int
        namesId (0-255) and nodeId (0-4095); together unique within a stream.
    segment : int

    Returns
    -------
    Names

    Examples
    --------
    >>> declare("gmd", "gmd", "raw", (2, 1, 0), {"energy": "float64"}, id=3).id
    259
    """
    if isinstance(fields, Mapping):
        pairs = [(name, (spec, 0) if isinstance(spec, str) else spec) for name, spec in fields.items()]
        fields = [Field(name, TYPES[kind_], 1 if kind_ == "str" else rank) for name, (kind_, rank) in pairs]
    return Names(node << 8 | id, detector, kind, serial, algorithm, version, segment, tuple(fields))


def enum_fields(enum: str, labels: Iterable[str], *values: str) -> tuple[Field, ...]:
    """Fields of an enumeration: one for each value that has it, then one for each label.

    Examples
    --------
    >>> [field.name for field in enum_fields("gainEnum", ["low", "high"], "user.gain")]
    ['user.gain:gainEnum', 'low:gainEnum', 'high:gainEnum']
    """
    return tuple(Field(f"{name}:{enum}", ENUM_VALUE, 0) for name in values) + tuple(
        Field(f"{label}:{enum}", ENUM_DICT, 0) for label in labels
    )


def runinfo_names(node: int = 1) -> Names:
    """Names of ``runinfo``, which BeginRun carries."""
    fields = {"expt": "str", "runnum": "uint32"}
    return declare("runinfo", "runinfo", "runinfo", (0, 0, 1), fields, id=255, node=node)


def chunkinfo_names(node: int = 1) -> Names:
    """Names of ``chunkinfo``, with which Enable switches to another chunk file."""
    fields = {"filename": "str", "chunkid": "uint32"}
    return declare("chunkinfo", "chunkinfo", "chunkinfo", (0, 0, 1), fields, id=252, node=node)


#: What smalldata says of an event in place of its data.
SMDINFO = declare(
    "smdinfo",
    "offset",
    "offsetAlg",
    (0, 0, 0),
    {"intOffset": "uint64", "intDgramSize": "uint64"},
    id=0,
    node=512,
)


def timestamp(seconds: int, nanoseconds: int) -> int:
    """Timestamp as psana shows it: seconds since 1990-01-01 UTC in the upper half.

    Examples
    --------
    >>> timestamp(1, 5)
    4294967301
    """
    return seconds << 32 | nanoseconds


def xtc(src: int, type: int, payload: bytes, *, damage: int = 0, extent: int | None = None) -> bytes:
    """One Xtc: header and payload. `extent` overrides the true one, to write a corrupt file."""
    return XTC.pack(src, damage, type, XTC_BYTES + len(payload) if extent is None else extent) + payload


def parent(*children: bytes, src: int = 0, damage: int = 0) -> bytes:
    """An Xtc that holds others; they may be nested."""
    return xtc(src, PARENT, b"".join(children), damage=damage)


def _text(value: str) -> bytes:
    return struct.pack("256s", value.encode())


def _alg(name: str, version: tuple[int, int, int]) -> bytes:
    return _text(name) + struct.pack("<I", version[0] << 16 | version[1] << 8 | version[2])


def names_xtc(names: Names) -> bytes:
    """Encode a Names, for Configure.

    Parameters
    ----------
    names : Names

    Returns
    -------
    bytes
        12 + 1036 + 524 bytes a field.

    Examples
    --------
    >>> len(names_xtc(runinfo_names()))
    2096
    """
    arrays = sum(field.rank > 0 for field in names.fields)
    info = struct.pack("<I", arrays) + _text(names.kind) + _text(names.detector) + _text(names.serial)
    info += _alg(names.algorithm, names.version) + struct.pack("<I", names.segment)
    for field in names.fields:
        info += _alg("", (0, 0, 0)) + _text(field.name) + struct.pack("<II", field.type, field.rank)
    return xtc(names.id, NAMES, info)


def field_bytes(field: Field, value: Any) -> tuple[tuple[int, ...], bytes]:
    """Shape and bytes of one value; strings get their NUL and are padded to four bytes."""
    if field.type == CHARSTR and isinstance(value, str):
        text = value.encode() + b"\0"
        text += bytes(-len(text) % 4)
        return (len(text),), text
    array = np.asarray(value, DTYPES[field.type])
    if array.ndim != field.rank:
        raise ValueError(f"{field.name!r} has rank {field.rank}, but the value's shape is {array.shape}")
    return array.shape, array.tobytes()


def shapes_data(
    names: Names,
    values: Mapping[str, Any] | Sequence[Any],
    *,
    damage: int = 0,
    data_first: bool = False,
    shapes: bool = True,
    spare: int = 0,
) -> bytes:
    """Encode the values that a Names describes.

    Parameters
    ----------
    names : Names
    values : mapping or sequence
        One for each field: by its full name (``"gain:gainEnum"``), or in order.
    damage : int
        Damage bits of this contribution.
    data_first : bool
        Put Data before Shapes, as the DAQ's DescribedData does.
    shapes : bool
        False leaves the Shapes out: only for Names without arrays.
    spare : int
        Unused bytes behind the shapes; the Python block writer leaves 4.

    Returns
    -------
    bytes

    Raises
    ------
    ValueError
        A value is missing, unknown or of another rank.

    Examples
    --------
    >>> len(shapes_data(runinfo_names(), {"expt": "tmosim01", "runnum": 1}))
    72
    """
    if isinstance(values, Mapping):
        expected = [field.name for field in names.fields]
        if set(values) != set(expected):
            raise ValueError(f"{names.detector}.{names.algorithm} has {expected}, not {list(values)}")
        values = [values[name] for name in expected]
    encoded = [field_bytes(field, value) for field, value in zip(names.fields, values, strict=True)]
    rows = b"".join(
        struct.pack("<5I", *shape, *(0,) * (SHAPE_BYTES // 4 - len(shape)))
        for field, (shape, _) in zip(names.fields, encoded, strict=True)
        if field.rank
    )
    if rows and not shapes:
        raise ValueError(f"{names.detector}.{names.algorithm} has arrays: its Shapes cannot be left out")
    parts = [xtc(0, SHAPES, rows + bytes(spare))] if shapes else []
    parts.insert(0 if data_first else len(parts), xtc(0, DATA, b"".join(data for _, data in encoded)))
    return xtc(names.id, SHAPES_DATA, b"".join(parts), damage=damage)


def datagram(
    service: int,
    timestamp: int,
    *children: bytes,
    env: int | None = None,
    damage: int = 0,
    src: int = 0,
) -> bytes:
    """One datagram.

    Parameters
    ----------
    service : int
        Transition, as in `layout`; 12 is an event.
    timestamp : int
    *children : bytes
        What `names_xtc`, `shapes_data` and `parent` gave.
    env : int, optional
        All 32 bits; left out, the service, and readout group 0.
    damage : int
        Damage bits of the whole datagram.
    src : int
        Of the root Xtc.

    Returns
    -------
    bytes

    Examples
    --------
    >>> len(datagram(L1_ACCEPT, timestamp(1, 0)))
    24
    """
    payload = b"".join(children)
    env = service << 24 | 1 if env is None else env
    extent = XTC_BYTES + len(payload)
    return DGRAM.pack(timestamp & 0xFFFFFFFF, timestamp >> 32, env, src, damage, PARENT, extent) + payload


def smd_event(event: bytes, offset: int) -> bytes:
    """The 76 bytes that stand for an event in smalldata: where it lies and how long it is."""
    low, high, env = struct.unpack_from("<III", event)
    info = shapes_data(SMDINFO, (offset, len(event)))
    return DGRAM.pack(low, high, env, 0, 0, PARENT, XTC_BYTES + len(info)) + info


class StreamWriter:
    """Writes one stream: its chunk files, and its smalldata beside them.

    Parameters
    ----------
    directory : path
        Of the run; it and ``smalldata`` in it are made.
    experiment : str
    run, stream : int
        For the file names ``<experiment>-rNNNN-sNNN-cNNN.xtc2``.
    smalldata : bool
        Whether to write ``smalldata/….smd.xtc2`` too.
    inprogress : bool
        Whether files are named ``….inprogress`` until `close`.

    Attributes
    ----------
    path : Path
        The chunk file that is being written.
    offset : int
        Bytes in it.

    Examples
    --------
    >>> import tempfile
    >>> gmd = declare("gmd", "gmd", "raw", (2, 1, 0), {"energy": "float64"}, id=1)
    >>> with tempfile.TemporaryDirectory() as folder, StreamWriter(folder, "tmosim01", 1, 0) as stream:
    ...     stream.configure(timestamp(1, 0), [gmd])
    ...     stream.begin_run(timestamp(1, 1))
    ...     stream.event(timestamp(1, 2), shapes_data(gmd, {"energy": 1.5}))
    ...     stream.transition(END_RUN, timestamp(1, 3))
    ...     stream.path.name
    'tmosim01-r0001-s000-c000.xtc2'
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        experiment: str,
        run: int,
        stream: int,
        *,
        smalldata: bool = True,
        inprogress: bool = False,
    ) -> None:
        self._directory = Path(directory)
        self._experiment, self._run, self._stream = experiment, run, stream
        self._suffix = ".inprogress" if inprogress else ""
        self._chunk = 0
        self._written: list[Path] = []
        self._directory.mkdir(parents=True, exist_ok=True)
        self._smd: IO[bytes] | None = None
        if smalldata:
            (self._directory / "smalldata").mkdir(exist_ok=True)
            stem = self._name(0).removesuffix(".xtc2")
            self._smd = self._create(self._directory / "smalldata" / f"{stem}.smd.xtc2")
        self._big = self._create(self._directory / self._name(0))
        self.offset = 0

    def _name(self, chunk: int) -> str:
        return f"{self._experiment}-r{self._run:04d}-s{self._stream:03d}-c{chunk:03d}.xtc2"

    def _create(self, path: Path) -> IO[bytes]:
        self._written.append(path)
        return open(f"{path}{self._suffix}", "xb")

    @property
    def path(self) -> Path:
        """The chunk file that is being written, by its name at the moment."""
        return Path(self._big.name)

    def write(self, dgram: bytes) -> None:
        """Append a datagram, whatever it holds; smalldata gets what belongs to it."""
        self._big.write(dgram)
        if self._smd is not None:
            service = dgram[11] & 0xF
            if service in EVENT_SERVICES:
                self._smd.write(smd_event(dgram, self.offset))
            elif service == END_RUN:
                self._smd.write(dgram[:20] + struct.pack("<I", XTC_BYTES))
            elif service == CONFIGURE:
                payload = dgram[DGRAM_BYTES:] + names_xtc(SMDINFO)
                self._smd.write(dgram[:20] + struct.pack("<I", XTC_BYTES + len(payload)) + payload)
            else:
                self._smd.write(dgram)
        self.offset += len(dgram)

    def write_block(self, block: "EventBlock") -> None:
        """Append many events, packed by `bulk.pack_events`."""
        self._big.write(block.data.data)
        if self._smd is not None:
            self._smd.write(block.smalldata(self.offset).data)
        self.offset += len(block.data)

    def configure(self, timestamp: int, names: Iterable[Names], values: Iterable[bytes] = ()) -> None:
        """Write Configure: all Names, then configuration values. May come again, before another run."""
        self.write(datagram(CONFIGURE, timestamp, *map(names_xtc, names), *values))

    def begin_run(self, timestamp: int, *, names: Names | None = None, run: int | None = None) -> None:
        """Write BeginRun, with experiment and run number where `names` (see `runinfo_names`) is given."""
        number = self._run if run is None else run
        info = [] if names is None else [shapes_data(names, (self._experiment, number))]
        self.write(datagram(BEGIN_RUN, timestamp, *info))

    def transition(self, service: int, timestamp: int, *children: bytes, damage: int = 0) -> None:
        """Write any other transition."""
        self.write(datagram(service, timestamp, *children, damage=damage))

    def event(self, timestamp: int, *children: bytes, damage: int = 0, env: int | None = None) -> None:
        """Write an event: one contribution a detector segment, those that are there."""
        self.write(datagram(L1_ACCEPT, timestamp, *children, damage=damage, env=env))

    def next_chunk(self, timestamp: int, names: Names, *, filename: str | None = None) -> None:
        """Write the Enable that ends this chunk file, and go on in the next one.

        Parameters
        ----------
        timestamp : int
        names : Names
            What `chunkinfo_names` gave, and Configure declared.
        filename : str, optional
            Of the next file; left out, the usual one.
        """
        self._chunk += 1
        filename = filename or self._name(self._chunk)
        self.write(datagram(ENABLE, timestamp, shapes_data(names, (filename, self._chunk))))
        self._big.close()
        self._big = self._create(self._directory / filename)
        self.offset = 0

    def flush(self) -> None:
        """Show readers what has been written; events before the smalldata that names them."""
        self._big.flush()
        if self._smd is not None:
            self._smd.flush()

    def close(self, *, rename: bool = True) -> None:
        """Close the files and give them their final names (`rename` False leaves ``.inprogress``)."""
        self._big.close()
        if self._smd is not None:
            self._smd.close()
        if self._suffix and rename:
            for path in self._written:
                os.rename(f"{path}{self._suffix}", path)
        self._written.clear()

    def __enter__(self) -> "StreamWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(rename=error is None)
