"""Damaged and hostile files: an error of one line, or what can be read and a word about the rest."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pytest
import xarray as xr
from xtc2_runs import (
    CAM,
    CHUNK,
    GMD,
    INFO,
    NOTE,
    cam,
    ended,
    energies,
    fex_words,
    full_run,
    gmd,
    hsd_data,
    hsd_names,
    image_of,
    read,
    read_all,
    simple_run,
    ts,
)

import lcls_dask
from lcls_dask.errors import ConfinementError, FormatError, LclsError, RunNotFoundError, SeveralRunsError, UriError
from lcls_dask.formats import open_source
from lcls_dask.formats.xtc2.layout import ENABLE, NAMES, SLOW_UPDATE
from lcls_dask.formats.xtc2.writer import StreamWriter, datagram, declare, names_xtc, parent, shapes_data, xtc


def small_run(path: Path) -> Path:
    """A file of some 3 kB with two transitions before and two after its three events."""
    note = declare("note", "ctl", "raw", (1, 0, 0), {"text": "str"}, id=2)
    with StreamWriter(path, "tmosim01", 1, 0, smalldata=False) as w:
        w.configure(ts(-9), [note])
        w.begin_run(ts(-8))
        for i in range(3):
            w.event(ts(i), shapes_data(note, {"text": f"text {i}"}))
        w.transition(SLOW_UPDATE, ts(7))
        ended(w, 99)
        return w.path


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    path = small_run(tmp_path)
    data = path.read_bytes()
    marks = [0]
    while marks[-1] < len(data):
        marks.append(marks[-1] + 12 + struct.unpack_from("<I", data, marks[-1] + 20)[0])
    events = marks[2:6]  # where the events begin, and where the last one ends
    whole = [f"text {i}" for i in range(3)]
    for size in range(len(data)):
        os.truncate(path, size) if size < path.stat().st_size else path.write_bytes(data[:size])
        if size < marks[1]:
            with pytest.raises(FormatError, match=path.name) as told:
                open_source(path)
            assert "\n" not in str(told.value)
            continue
        source = open_source(path)
        count = sum(size >= end for end in events[1:])
        assert source.index.events == count, size
        assert read(source, "note.raw.text").tolist() == whole[:count], size
        kinds = {finding.kind for finding in source.validate()}
        assert ("truncated" in kinds) is (size not in marks), size
        assert "unended" in kinds, size


def test_truncated_full_run(tmp_path: Path) -> None:
    """A run with everything in it, its second stream cut at many places."""
    path = full_run(tmp_path, 7, hsd=(3, 0, 0))
    file = path / "tmosim01-r0003-s001-c000.xtc2"
    data = file.read_bytes()
    for size in range(len(data) - 1, 0, -len(data) // 150):
        file.write_bytes(data[:size])
        assert fuzz.read_everything(path) in ("read", "FormatError")


def extents() -> dict[str, tuple[bytes, str]]:
    """Datagrams that are wrong, and what the message has to say."""
    good = gmd(1.0)
    at = len(gmd(1.0))
    return {
        "zero": (datagram(12, ts(1), xtc(GMD.id, 1, b"", extent=0)), "extent"),
        "eleven": (datagram(12, ts(1), xtc(GMD.id, 1, b"", extent=11)), "extent"),
        "past the datagram": (datagram(12, ts(1), xtc(GMD.id, 1, bytes(20), extent=at + 999)), "extent"),
        "negative": (datagram(12, ts(1), xtc(GMD.id, 1, bytes(20), extent=0xFFFFFFF0)), "extent"),
        "most": (datagram(12, ts(1), xtc(GMD.id, 1, bytes(20), extent=0x7FFFFFFF)), "extent"),
        "stray bytes": (datagram(12, ts(1), good, b"\0" * 5), "extent"),
        "unknown NamesId": (datagram(12, ts(1), xtc(0x777, 1, bytes(40))), "NamesId"),
        "unknown NamesId, high": (datagram(12, ts(1), xtc(0xFFFFF, 1, bytes(40))), "NamesId"),
        "unknown type": (datagram(12, ts(1), xtc(0, 9, bytes(8))), "type"),
        "no Data": (datagram(12, ts(1), xtc(GMD.id, 1, xtc(0, 2, b""))), "data"),
        "empty": (datagram(12, ts(1), xtc(GMD.id, 1, b"")), "data"),
        "short Data": (datagram(12, ts(1), xtc(GMD.id, 1, xtc(0, 2, b"") + xtc(0, 3, bytes(7)))), "data"),
        "Data overflows": (
            datagram(12, ts(1), xtc(GMD.id, 1, xtc(0, 2, b"") + xtc(0, 3, bytes(7), extent=99))),
            "data|extent",
        ),
        "in a parent": (datagram(12, ts(1), parent(parent(xtc(GMD.id, 1, b"", extent=5)))), "extent"),
    }


@pytest.mark.parametrize("what", extents())
def test_wrong_datagram(tmp_path: Path, what: str) -> None:
    """One bad event does not cost the others; the error names file, event and byte; validate finds just it."""
    bad, word = extents()[what]
    with StreamWriter(tmp_path, "tmosim01", 1, 0, smalldata=False) as w:
        w.configure(ts(-9), [GMD, INFO])
        w.begin_run(ts(-8), names=INFO)
        w.event(ts(0), gmd(5.0))
        at = w.offset
        w.write(bad)
        w.event(ts(2), gmd(7.0))
        ended(w, 99)
    source = open_source(tmp_path)
    assert source.index.events == 3
    others = np.array([0, 2], np.int64)
    assert source.read("/", "gmd.raw.energy", others).tolist() == [5.0, 7.0]
    with pytest.raises(FormatError, match=rf"{w.path.name}: event {ts(1)} at byte {at}: .*({word})") as told:
        read(source, "gmd.raw.energy")
    assert "\n" not in str(told.value)
    corrupt = [finding for finding in source.validate() if finding.kind == "corrupt"]
    assert len(corrupt) == 1
    assert corrupt[0].fatal
    assert str(ts(1)) in corrupt[0].message


def shapes_in(image: bytes, *lengths: int) -> bytes:
    """A camera's contribution with other lengths in its Shapes."""
    return image[:24] + struct.pack(f"<{len(lengths)}I", *lengths) + image[24 + 4 * len(lengths) :]


@pytest.mark.parametrize(
    "lengths",
    [(2**31, 2), (2**32 - 1, 2**32 - 1), (65536, 65536), (0, 2**32 - 1), (2**32 - 1, 0), (4, 7), (5, 6), (0, 0)],
)
def test_wrong_shapes(tmp_path: Path, lengths: tuple[int, int]) -> None:
    """Products that overflow, zeros, more than the data holds; also where it is all that was ever seen."""
    for alone in (False, True):
        place = tmp_path / str(alone)
        with StreamWriter(place, "tmosim01", 1, 0, smalldata=False) as w:
            w.configure(ts(-9), [CAM, INFO])
            w.begin_run(ts(-8), names=INFO)
            for i in range(4):
                part = cam(image_of(i))
                w.event(ts(i), shapes_in(part, *lengths) if alone or i == 2 else part)
            ended(w, 99)
        outcome = fuzz.read_everything(place)
        assert outcome in ("read", "FormatError")
        with xr.open_dataset(place, engine="lcls", chunks={}) as dataset:
            assert dataset.sizes["event"] == 4
        if not alone and 0 not in lengths:
            source = open_source(place)
            for node in ("/", "/cam"):
                if "cam.raw.gain" in source.index.nodes[node].variables:
                    with pytest.raises(FormatError, match=str(ts(2))):
                        read(source, "cam.raw.gain", node)


@pytest.mark.parametrize(("type_", "rank"), [(0, 6), (0, 2**31), (13, 0), (2**32 - 1, 1), (10, 0), (10, 2)])
def test_wrong_types_and_ranks(tmp_path: Path, type_: int, rank: int) -> None:
    path = small_run(tmp_path)
    data = bytearray(path.read_bytes())
    at = 24 + 12 + 1036 + 516
    struct.pack_into("<II", data, at, type_, rank)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=rf"{path.name}: Configure at byte 0: field 'text' of 'note'.*type.*rank"):
        open_source(path)


@pytest.mark.parametrize("name", ["../../../evil", "/tmp/evil", "a/b", "a\nb", "", "\x07", "x" * 254])
@pytest.mark.parametrize("what", ["detector", "field"])
def test_hostile_names(tmp_path: Path, name: str, what: str, own_index_cache: Path) -> None:
    """Names from files become paths nowhere, and do not break lines."""
    names = declare(name if what == "detector" else "det", "ctl", "raw", (1, 0, 0),
                    {name if what == "field" else "x": ("float32", 1)}, id=1)  # fmt: skip
    with StreamWriter(tmp_path / "run", "tmosim01", 1, 0, smalldata=False) as w:
        w.configure(ts(-9), [names, INFO])
        w.begin_run(ts(-8), names=INFO)
        for i in range(3):
            w.event(ts(i), shapes_data(names, [np.zeros(i, np.float32)]))
        ended(w, 99)
    outcome = fuzz.read_everything(tmp_path / "run")
    assert outcome == ("read" if len(name) > 200 or (not name and what == "field") else "FormatError")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert all(len(p.name) < 60 for p in own_index_cache.iterdir())
    assert not Path("/tmp/evil").exists()
    if outcome == "read":
        with xr.open_datatree(tmp_path / "run", engine="lcls", chunks={}) as tree:
            assert tree["/"].sizes["event"] == 3


def test_same_segment_twice(tmp_path: Path) -> None:
    """Two streams may describe the same segment; where both have readings, an error or one of them."""
    for stream in (0, 1):
        names = hsd_names((2, 0, 0), 0, 6)
        with StreamWriter(tmp_path, "tmosim01", 1, stream, smalldata=False) as w:
            w.configure(ts(-9), [GMD, names, INFO])
            w.begin_run(ts(-8), names=INFO)
            for i in range(6):
                fex = fex_words([(8, np.full(4 + 4 * stream, i))] * (i > 2 or stream == 0), 64)
                w.event(
                    ts(i), *([gmd(float(i + 100 * stream))] if i > 3 or not stream else []), hsd_data(names, None, fex)
                )
            ended(w, 99)
    source = open_source(tmp_path)
    assert read(source, "gmd.raw.energy").tolist() == [0.0, 1.0, 2.0, 3.0, 104.0, 105.0]
    with pytest.raises(FormatError, match=r"same segment of hsd\.raw"):
        list(source.index.nodes["/hsd"].variables)
    simple_run(tmp_path / "other")
    simple_run(tmp_path / "other", range(0), stream=1)
    assert energies(tmp_path / "other") == list(map(float, range(8)))


def test_names_that_do_not_divide(tmp_path: Path) -> None:
    with StreamWriter(tmp_path, "tmosim01", 1, 0, smalldata=False) as w:
        w.write(datagram(2, ts(0), xtc(1, NAMES, names_xtc(GMD)[12:-3])))
    with pytest.raises(FormatError, match="Names"):
        open_source(tmp_path)


def test_deeply_nested(tmp_path: Path) -> None:
    """Many Parents in each other: read or refused, without recursion."""
    inner = gmd(1.0)
    for _ in range(5000):
        inner = parent(inner)
    with StreamWriter(tmp_path, "tmosim01", 1, 0, smalldata=False) as w:
        w.configure(ts(-9), [GMD, INFO])
        w.begin_run(ts(-8), names=INFO)
        w.event(ts(0), inner)
        w.transition(SLOW_UPDATE, ts(1), inner)
        ended(w, 99)
    assert fuzz.read_everything(tmp_path) in ("read", "FormatError")


# where runs are ------------------------------------------------------------------------------------------------------


def no_directory(path: Path) -> str:
    return str(path / "nothing")


def empty_directory(path: Path) -> str:
    return str(path)


def text_file(path: Path) -> str:
    (path / "notes.txt").write_text("not a run")
    return str(path / "notes.txt")


def empty_file(path: Path) -> str:
    (path / "empty.xtc2").touch()
    return str(path / "empty.xtc2")


def wrong_content(path: Path) -> str:
    (path / "page.xtc2").write_bytes(b"<!DOCTYPE html>" * 50)
    return str(path / "page.xtc2")


def dangling(path: Path) -> str:
    (path / "link.xtc2").symlink_to(path / "gone.xtc2")
    return str(path / "link.xtc2")


def loop(path: Path) -> str:
    (path / "loop.xtc2").symlink_to(path / "loop.xtc2")
    return str(path / "loop.xtc2")


def directory_called_xtc2(path: Path) -> str:
    (path / "x.xtc2").mkdir()
    return str(path)


def pipe(path: Path) -> str:
    os.mkfifo(path / "pipe.xtc2")
    return str(path / "pipe.xtc2")


def pipe_in_directory(path: Path) -> str:
    os.mkfifo(path / "tmosim01-r0001-s000-c000.xtc2")
    return str(path)


def two_unnamed(path: Path) -> str:
    simple_run(path / "x")
    for name in ("a.xtc2", "b.xtc2"):
        (path / name).write_bytes(next((path / "x").iterdir()).read_bytes())
    return str(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (no_directory, RunNotFoundError),
        (empty_directory, RunNotFoundError),
        (text_file, FormatError),
        (empty_file, FormatError),
        (wrong_content, FormatError),
        (dangling, RunNotFoundError),
        (loop, LclsError),
        (directory_called_xtc2, LclsError),
        (pipe, LclsError),
        (pipe_in_directory, LclsError),
        (two_unnamed, SeveralRunsError),
        (lambda path: "", LclsError),
        (lambda path: "a\0b", UriError),
        (lambda path: str(path / ("x" * 300)), LclsError),
        (lambda path: "lcls://", UriError),
        (lambda path: "lcls://tmosim01", UriError),
        (lambda path: "lcls://tmosim01/14", UriError),
        (lambda path: "lcls://tmosim01/r0001/../x", UriError),
        (lambda path: "lcls://tmosim01/r0001", UriError),
    ],
)
def test_wrong_places(tmp_path: Path, make: Callable[[Path], str], error: type[Exception], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    where = make(tmp_path)
    with pytest.raises(error) as told:
        lcls_dask.open_run(where)
    assert isinstance(told.value, LclsError)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) > 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything: files without rights are NOT tested")
@pytest.mark.parametrize("what", ["directory", "file"])
def test_no_permission(tmp_path: Path, what: str) -> None:
    path = simple_run(tmp_path / "run").path
    locked = path if what == "file" else path.parent
    locked.chmod(0)
    try:
        with pytest.raises(LclsError, match="ermission"):
            open_source(path.parent)
    finally:
        locked.chmod(0o700)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operating system refuses is an error of ours that says which file (root is refused nothing)."""
    path = simple_run(tmp_path).path
    real = os.open

    def refusing(name: Any, *more: Any, **keywords: Any) -> int:
        if str(name).endswith(".xtc2"):
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, *more, **keywords)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(LclsError, match=rf"{path.name}.*ermission|ermission.*{path.name}"):
        open_source(tmp_path)


# confinement ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Another experiment's run, beside the one that is read."""
    return simple_run(tmp_path / "other", range(40, 48), smalldata=True).path


@pytest.mark.parametrize("smalldata", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "../other/tmosim01-r0001-s000-c000.xtc2",
        "/etc/passwd",
        "{secret}",
        "..",
        ".",
        "",
        "smalldata/x.xtc2",
        "plain.txt",
        "a\0b.xtc2",
    ],
)
def test_chunk_information_that_leads_out(tmp_path: Path, secret: Path, name: str, smalldata: bool) -> None:
    name = name.format(secret=secret)
    with StreamWriter(tmp_path / "run", "tmosim01", 1, 0, smalldata=smalldata) as w:
        w.configure(ts(-9), [GMD, INFO, CHUNK])
        w.begin_run(ts(-8), names=INFO)
        w.event(ts(0), gmd(0.0))
        w.transition(ENABLE, ts(1), shapes_data(CHUNK, {"filename": name, "chunkid": 1}))
        ended(w, 99)
    with pytest.raises((ConfinementError, RunNotFoundError) if "\0" in name else ConfinementError) as told:
        open_source(tmp_path / "run")
    assert w.path.name in str(told.value) or "smd" in str(told.value) or "\0" in name
    assert "\n" not in str(told.value)


def chunk_run(path: Path, filename: str) -> None:
    with StreamWriter(path, "tmosim01", 1, 0, smalldata=False) as w:
        w.configure(ts(-9), [GMD, INFO, CHUNK])
        w.begin_run(ts(-8), names=INFO)
        w.event(ts(0), gmd(0.0))
        w.transition(ENABLE, ts(1), shapes_data(CHUNK, {"filename": filename, "chunkid": 1}))


def test_chunk_that_is_a_link_out(tmp_path: Path, secret: Path) -> None:
    chunk_run(tmp_path / "run", "next.xtc2")
    (tmp_path / "run" / "next.xtc2").symlink_to(secret)
    with pytest.raises(ConfinementError, match=r"next\.xtc2"):
        open_source(tmp_path / "run")


def test_stream_that_is_a_link_out(tmp_path: Path, secret: Path) -> None:
    simple_run(tmp_path / "run")
    (tmp_path / "run" / "tmosim01-r0001-s001-c000.xtc2").symlink_to(secret)
    with pytest.raises(ConfinementError, match="s001"):
        open_source(tmp_path / "run")


@pytest.mark.parametrize("what", ["file", "directory"])
def test_smalldata_that_is_a_link_out(tmp_path: Path, secret: Path, what: str) -> None:
    simple_run(tmp_path / "run")
    small = secret.parent / "smalldata"
    if what == "directory":
        (tmp_path / "run" / "smalldata").symlink_to(small)
    else:
        (tmp_path / "run" / "smalldata").mkdir()
        (tmp_path / "run" / "smalldata" / next(small.iterdir()).name).symlink_to(next(small.iterdir()))
    with pytest.raises(ConfinementError, match="smalldata"):
        open_source(tmp_path / "run")


def test_links_within_the_run(tmp_path: Path) -> None:
    path = simple_run(tmp_path / "run").path
    path.rename(path.with_name("moved.bin"))
    path.symlink_to("moved.bin")
    assert len(energies(tmp_path / "run")) == 8


def test_chunk_information_in_a_circle(tmp_path: Path) -> None:
    """Files that name each other, or themselves, end."""
    chunk_run(tmp_path, "tmosim01-r0001-s000-c000.xtc2")
    with pytest.raises(FormatError, match="read before"):
        open_source(tmp_path)


def test_many_chunks_announced_at_once(tmp_path: Path) -> None:
    with StreamWriter(tmp_path, "tmosim01", 1, 0, smalldata=False) as w:
        w.configure(ts(-9), [GMD, INFO, CHUNK])
        w.begin_run(ts(-8), names=INFO)
        for i in range(2000):
            w.transition(ENABLE, ts(i), shapes_data(CHUNK, {"filename": "tmosim01-r0001-s000-c000.xtc2", "chunkid": i}))
    with pytest.raises(FormatError, match="read before"):
        open_source(tmp_path)


def test_smalldata_that_lies(tmp_path: Path) -> None:
    """Offsets that lead nowhere, or to another event, are noticed when they are read."""
    w = simple_run(tmp_path, smalldata=True)
    small = next((tmp_path / "smalldata").iterdir())
    data = small.read_bytes()
    first = len(data) - 24 - 8 * 76
    place = struct.unpack_from("<Q", data, first + 76 + 60)[0]
    for wrong in (place + 1, place + 68, 0, 2**47, 2**62, 2**63, 2**64 - 1, w.path.stat().st_size - 30):
        changed = bytearray(data)
        struct.pack_into("<Q", changed, first + 76 + 60, wrong)
        small.write_bytes(changed)
        if wrong < 2**47:
            with pytest.raises(FormatError):
                read(open_source(tmp_path), "gmd.raw.energy")
        else:  # can't be a place at all: the big file is read from there on, and the reason is told
            assert energies(tmp_path) == list(map(float, range(8)))
            assert [f.kind for f in open_source(tmp_path).validate() if small.name in f.message] == ["corrupt"]
    for wrong in (0, 2**31, 2**63, 2**64 - 1):
        changed = bytearray(data)
        struct.pack_into("<Q", changed, first + 76 + 68, wrong)
        small.write_bytes(changed)
        if wrong == 2**31:  # past the end of the file
            with pytest.raises(FormatError, match="smalldata"):
                open_source(tmp_path)
        else:
            assert energies(tmp_path) == list(map(float, range(8)))


def test_long_strings_do_not_take_all_memory(tmp_path: Path) -> None:
    """One string of a megabyte among a thousand short ones."""
    with StreamWriter(tmp_path, "tmosim01", 1, 0, smalldata=False) as w:
        w.configure(ts(-9), [NOTE, INFO])
        w.begin_run(ts(-8), names=INFO)
        for i in range(1000):
            w.event(ts(i), shapes_data(NOTE, {"text": "x" * (1 << 20) if i == 0 else "short", "count": i}))
        ended(w, 10**6)
    source = open_source(tmp_path)
    values = read_all(source)
    assert sum(array.nbytes for node in values.values() for array in node.values()) < 4 << 20
    offset = values["/note"]["note.raw.text.offset"]
    assert values["/note"]["note.raw.text"][: 1 << 20].tobytes() == b"x" * (1 << 20)
    assert values["/note"]["note.raw.text"][offset[7] : offset[8]].tobytes().rstrip(b"\0") == b"short"


def test_many_tables_of_offsets(tmp_path: Path) -> None:
    """Of a hostile smalldata the first table counts; those behind it may not be written anywhere."""
    code = """if True:
        import gc, struct, sys
        from dataclasses import replace
        from lcls_dask.formats import open_source
        from lcls_dask.formats.xtc2 import writer
        from xtc2_runs import simple_run

        more = [replace(writer.SMDINFO, id=1000 + k, segment=k + 1) for k in range(300)]
        names, event = writer.names_xtc, writer.smd_event

        def with_more(data, offset):
            low, high, environment = struct.unpack_from("<III", data)
            tables = [writer.shapes_data(one, (offset, len(data))) for one in (writer.SMDINFO, *more[-200:])]
            body = b"".join(tables)
            return writer.DGRAM.pack(low, high, environment, 0, 0, 0, 12 + len(body)) + body

        writer.names_xtc = lambda one: b"".join(map(names, (one, *more))) if one is writer.SMDINFO else names(one)
        writer.smd_event = with_more
        simple_run(sys.argv[1], range(5), smalldata=True)
        source = open_source(sys.argv[1])
        gc.collect()
        print(source.index.events)
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "5\n"
