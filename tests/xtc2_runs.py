"""What the tests of the xtc2 reader share: small runs, digitizer payloads, and everything that a source gives."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lcls_dask.formats import RunSource, open_source
from lcls_dask.formats.xtc2.layout import BEGIN_STEP, DISABLE, ENABLE, END_RUN, END_STEP, SLOW_UPDATE, Field
from lcls_dask.formats.xtc2.writer import (
    StreamWriter,
    chunkinfo_names,
    declare,
    enum_fields,
    runinfo_names,
    shapes_data,
    timestamp,
)

Array = np.ndarray[Any, Any]

INFO, CHUNK = runinfo_names(), chunkinfo_names()
GMD = declare("gmd", "gmd", "raw", (2, 1, 0), {"energy": "float64"}, id=1)
NOTE = declare("note", "ctl", "raw", (1, 0, 0), {"text": "str", "count": "uint16"}, id=2)
CAM = declare("cam", "opal", "raw", (1, 2, 0), {"image": ("uint16", 2), "gain": "uint8"}, id=3)
PEAKS = declare("peaks", "vls", "fex", (1, 0, 0), {"x": ("float32", 1), "map": ("int16", 2), "n": "uint32"}, id=4)
MODE = declare("mode", "ctl", "raw", (1, 0, 0), [Field("v", 9, 0), *enum_fields("onoff", ["off", "on"], "state")], id=5)
SCAN = declare("scan", "scan", "raw", (2, 0, 0), {"motor": "float64", "label": "str"}, id=250)
EPICS = declare("epics", "epics", "raw", (2, 0, 0), {"HX2:GCC:01:PMON": "float64", "T.RBV": "int32"}, id=251)


def ts(i: int) -> int:
    """Time of event `i`; transitions fit between."""
    return timestamp(100, 1_000_000 + 1000 * i)


def ended(w: StreamWriter, at: int) -> None:
    w.transition(END_RUN, ts(at))


def writer(path: Path, stream: int = 0, **more: Any) -> StreamWriter:
    return StreamWriter(path, "tmosim01", 1, stream, **({"smalldata": False} | more))


def begin(w: StreamWriter, *names: Any, info: bool = True) -> None:
    w.configure(ts(-9), [*names, INFO, CHUNK])
    w.begin_run(ts(-8), names=INFO if info else None)


def gmd(energy: float, **more: Any) -> bytes:
    return shapes_data(GMD, {"energy": energy}, **more)


def cam(image: Array, gain: int = 0, **more: Any) -> bytes:
    return shapes_data(CAM, {"image": image, "gain": gain}, **more)


def image_of(i: int, shape: tuple[int, int] = (4, 6)) -> Array:
    return (np.arange(shape[0] * shape[1]).reshape(shape) + 100 * i).astype(np.uint16)


def simple_run(
    path: Path,
    events: Iterable[int] = range(8),
    *,
    run: int = 1,
    stream: int = 0,
    end: bool = True,
    silent: tuple[Any, ...] = (),
    **more: Any,
) -> StreamWriter:
    """One stream whose only value is ``gmd.raw.energy``, the event's number; closed unless it goes on.

    Detectors in `silent` are configured, but have no readings.
    """
    w = StreamWriter(path, "tmosim01", run, stream, **({"smalldata": False} | more))
    w.configure(ts(0) - 2, [GMD, *silent, INFO, CHUNK])
    w.begin_run(ts(0) - 1, names=INFO)
    for i in events:
        w.event(ts(i), gmd(float(i)))
    if end:
        ended(w, 10**6)
        w.close()
    else:
        w.flush()
    return w


# digitizer ---------------------------------------------------------------------------------------------------------


def hsd_names(version: tuple[int, int, int], segment: int, id: int, detector: str = "hsd") -> Any:
    algorithm = "hsd" if version == (1, 2, 3) else "raw"
    fields = {"eventHeader": ("uint32", 1), "chan00": ("uint8", 1)}
    return declare(detector, "hsd", algorithm, version, fields, id=id, segment=segment)


def hsd_stream(kind: int, words: Array, flags: int = 0) -> bytes:
    """One stream of a digitizer channel: 16-byte header and words; kind 0 raw, 1 FEX."""
    return struct.pack("<4I", flags << 29 | len(words), kind << 24, 0, 0) + np.asarray(words, "<u2").tobytes()


def fex_words(windows: Sequence[tuple[int, Array]], length: int) -> Array:
    """Sparse words: windows (start, samples) of a waveform of `length` samples."""
    words: list[int] = []
    at = 0
    for start, samples in [*windows, (length, np.empty(0, np.uint16))]:
        left = start - at
        while left > 0:
            group = [min(0x7FFF, left), 0, 0, 0]
            left -= group[0]
            words += [0x8000 | n for n in group]
        words += [int(s) for s in samples]
        at = start + len(samples)
    return np.array(words, np.uint16)


def hsd_data(names: Any, raw: Array | None, fex: Array | None, flags: tuple[int, int] = (0, 0), **more: Any) -> bytes:
    """A digitizer contribution: an event header that tells which streams follow."""
    mask = (raw is not None) | (fex is not None) << 1
    payload = b"" if raw is None else hsd_stream(0, raw, flags[0])
    payload += b"" if fex is None else hsd_stream(1, fex, flags[1])
    header = np.array([0x01000000 | mask << 20, 0], np.uint32)
    return shapes_data(names, {"eventHeader": header, "chan00": np.frombuffer(payload, np.uint8)}, **more)


def random_windows(rng: np.random.Generator, length: int, lead: bool = False) -> list[tuple[int, Array]]:
    """Windows of a waveform, in groups of four, apart by more than nothing."""
    windows, at = [], 0
    for _ in range(int(rng.integers(0, 5))):
        start = at + 4 * int(rng.integers(1, 20))
        size = 4 * int(rng.integers(2 if lead else 1, 12))
        if start + size >= length:
            break
        windows.append((start, rng.integers(0, 0x4000, size).astype(np.uint16)))
        at = start + size
    if lead and windows:
        windows[0][1][:4] = 0x4000 + rng.integers(0, 64, 4)
    return windows


def full_run(path: Path, events: int = 12, *, seed: int = 0, smalldata: bool = False, hsd: Any = (2, 0, 0)) -> Path:
    """Two streams with everything in them: steps, slow variables, strings, enums, ragged arrays, digitizers, damage.

    Stream 0 has every event; stream 1 every third, and the second segments of camera and digitizer.
    """
    rng = np.random.default_rng(seed)
    for stream in (0, 1):
        cams = declare("cam", "opal", "raw", (1, 2, 0), {"image": ("uint16", 2), "gain": "uint8"}, id=3, segment=stream)
        digitizer = hsd_names(hsd, stream, 6)
        names = [cams, digitizer, INFO, *([GMD, NOTE, PEAKS, MODE, SCAN, EPICS] if stream == 0 else [])]
        with StreamWriter(path, "tmosim01", 3, stream, smalldata=smalldata) as w:
            w.configure(ts(-1), names)
            w.begin_run(ts(-1) + 1, names=INFO)
            for i in range(events):
                if i % 6 == 0:
                    if i:
                        w.transition(DISABLE, ts(i) - 9)
                        w.transition(END_STEP, ts(i) - 8)
                    values = [shapes_data(SCAN, {"motor": i / 4, "label": f"step {i}"})] if stream == 0 else []
                    w.transition(BEGIN_STEP, ts(i) - 7, *values)
                    w.transition(ENABLE, ts(i) - 6)
                if i % 5 == 2:
                    values = [shapes_data(EPICS, {"HX2:GCC:01:PMON": i / 8, "T.RBV": i})] if stream == 0 else []
                    w.transition(SLOW_UPDATE, ts(i) - 5, *values)
                if stream and i % 3:
                    continue
                lead = hsd == (3, 0, 0)
                raw = rng.integers(0, 4096, 64).astype(np.uint16) if i % 4 == 0 else None
                fex = fex_words(random_windows(rng, 400, lead), 400)
                parts = [hsd_data(digitizer, raw, fex)]
                if i % 4 != 3:
                    parts.append(shapes_data(cams, {"image": image_of(i + 50 * stream), "gain": i % 3}))
                if stream == 0:
                    x = rng.random(i % 4, dtype=np.float32)
                    parts.append(gmd(float(i), damage=1 << 4 if i == 5 else 0))
                    parts.append(shapes_data(NOTE, {"text": "µ" * (i % 7), "count": i}))
                    parts.append(shapes_data(PEAKS, {"x": x, "map": np.full((i % 3, 2), i, np.int16), "n": x.size}))
                    enum = {"v": i * 0.5, "state:onoff": i % 2, "off:onoff": 0, "on:onoff": 1}
                    parts.append(shapes_data(MODE, enum, data_first=bool(i % 2)))
                w.event(ts(i), *parts, damage=1 << 4 if i == 5 else 0)
            ended(w, 10**6)
    return path


# reading -----------------------------------------------------------------------------------------------------------


def read(source: RunSource, name: str, path: str = "/") -> Array:
    """The whole of a variable."""
    return source.read(path, name, slice(0, source.index.nodes[path].variables[name].shape[0]))


def read_all(source: RunSource) -> dict[str, dict[str, Array]]:
    """Every value of a run, by node and variable; each has what its variable says."""
    found: dict[str, dict[str, Array]] = {}
    for path, node in source.index.nodes.items():
        found[path] = {}
        for name, variable in node.variables.items():
            values = read(source, name, path) if variable.shape else source.read(path, name, slice(0, 1))
            assert values.shape == variable.shape, (path, name)
            assert values.dtype == variable.dtype, (path, name)
            found[path][name] = values
    return found


def energies(path: Path | str, **more: Any) -> list[float]:
    source = open_source(path, **more)
    return list(map(float, read(source, "gmd.raw.energy")))


def same(a: Mapping[str, Mapping[str, Array]], b: Mapping[str, Mapping[str, Array]]) -> None:
    """Both runs hold the same values, bit by bit."""
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].keys() == b[path].keys(), path
        for name in a[path]:
            np.testing.assert_array_equal(a[path][name], b[path][name], err_msg=f"{path} {name}")
