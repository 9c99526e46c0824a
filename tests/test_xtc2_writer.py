"""The xtc2 writer, byte by byte, against a reader of the tests' own."""

from pathlib import Path

import numpy as np
import pytest
from xtc2_walk import read_values, walk

from lcls_dask.formats.xtc2.bulk import Contribution, Ragged, pack_events
from lcls_dask.formats.xtc2.layout import (
    BEGIN_STEP,
    CONFIGURE,
    DISABLE,
    ENABLE,
    END_RUN,
    SLOW_UPDATE,
    UNCONFIGURE,
    Field,
)
from lcls_dask.formats.xtc2.writer import (
    L1_ACCEPT,
    StreamWriter,
    chunkinfo_names,
    datagram,
    declare,
    enum_fields,
    names_xtc,
    parent,
    runinfo_names,
    shapes_data,
    timestamp,
    xtc,
)

_FIELDS = {"image": ("uint16", 2), "gain": "float64", "note": "str"}
CAMERA = declare("cam", "opal", "raw", (2, 3, 42), _FIELDS, id=5, segment=3, serial="s-1")
IMAGE = np.arange(6, dtype=np.uint16).reshape(2, 3)


def stream(path: Path, **options: bool) -> StreamWriter:
    return StreamWriter(path, "tmosim01", 7, 2, **options)


def test_names_say_what_the_format_says() -> None:
    (dgram,) = walk(datagram(CONFIGURE, timestamp(9, 4), names_xtc(CAMERA)))
    assert dgram["timestamp"] == 9 << 32 | 4
    assert dgram["names"] == [
        {
            "kind": "opal", "detector": "cam", "serial": "s-1", "alg": "raw", "version": (2, 3, 42), "segment": 3,
            "fields": [("image", 1, 2), ("gain", 9, 0), ("note", 10, 1)],
        }
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"data_first": True}, {"spare": 4}, {"data_first": True, "spare": 4}])
def test_values_come_back_in_every_layout(options: dict[str, int]) -> None:
    data = shapes_data(CAMERA, {"note": "three", "image": IMAGE, "gain": 1.25}, damage=1 << 5, **options)
    values = read_values(data, 0, [(f.name, f.type, f.rank) for f in CAMERA.fields])
    np.testing.assert_array_equal(values["image"], IMAGE)
    assert (values["gain"], values["note"]) == (1.25, "three")
    assert data[4] == 1 << 5
    assert data[12 + 6] == (3 if "data_first" in options else 2)


def test_shapes_may_be_left_out_only_without_arrays() -> None:
    gmd = declare("gmd", "gmd", "raw", (2, 1, 0), {"energy": "float64"}, id=1)
    with_shapes, without = shapes_data(gmd, (2.0,)), shapes_data(gmd, (2.0,), shapes=False)
    assert len(with_shapes) - len(without) == 12
    assert read_values(without, 0, [("energy", 9, 0)]) == {"energy": 2.0}
    with pytest.raises(ValueError, match=r"cam\.raw has arrays"):
        shapes_data(CAMERA, (IMAGE, 1.0, ""), shapes=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": IMAGE, "gain": 1.0}, "has"),
        ((IMAGE[0], 1.0, ""), "rank 2"),
        ((IMAGE, [1.0], ""), "rank 0"),
        ((IMAGE, 1.0), "shorter"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes_data(CAMERA, values)  # type: ignore[arg-type]


def test_enumerations_strings_and_names_with_dots_and_colons() -> None:
    fields = (Field("a.b", 9, 0), Field("HX2:PMON", 10, 1), *enum_fields("gainEnum", ["low", "high"], "user.gain"))
    names = declare("det", "det", "config", (1, 0, 0), fields, id=0)
    (dgram,) = walk(datagram(CONFIGURE, 1, names_xtc(names), shapes_data(names, (1.5, "ten chars.", 1, 0, 1))))
    assert dgram["values"]["det", 0, "config"] == {
        "a.b": 1.5, "HX2:PMON": "ten chars.", "user.gain:gainEnum": 1, "low:gainEnum": 0, "high:gainEnum": 1
    }  # fmt: skip


def test_parents_nest_and_carry_damage() -> None:
    inner = parent(shapes_data(CAMERA, (IMAGE, 1.0, "x")), src=3)
    dgram = walk(datagram(CONFIGURE, 1, names_xtc(CAMERA)) + datagram(L1_ACCEPT, 2, parent(inner), damage=1 << 4))[1]
    assert dgram["damage"] == 1 << 4
    assert dgram["values"]["cam", 3, "raw"]["note"] == "x"


def test_an_extent_can_be_wrong_on_purpose() -> None:
    assert xtc(1, 1, b"abcd", extent=5)[8:12] == b"\5\0\0\0"


def test_smalldata_is_what_the_daq_writes(tmp_path: Path) -> None:
    info, chunk = runinfo_names(), chunkinfo_names()
    with stream(tmp_path) as writer:
        writer.configure(timestamp(1, 0), [CAMERA, info, chunk])
        writer.begin_run(timestamp(1, 1), names=info)
        writer.event(timestamp(1, 2), shapes_data(CAMERA, (IMAGE, 1.0, "a")), damage=1 << 4)
        writer.event(timestamp(1, 3), shapes_data(CAMERA, (IMAGE, 2.0, "b")))
        writer.next_chunk(timestamp(1, 4), chunk)
        writer.event(timestamp(1, 5), shapes_data(CAMERA, (IMAGE, 3.0, "c")))
        writer.transition(END_RUN, timestamp(1, 6), shapes_data(CAMERA, (IMAGE, 4.0, "cube")))
    big = (tmp_path / "tmosim01-r0007-s002-c000.xtc2").read_bytes()
    second = (tmp_path / "tmosim01-r0007-s002-c001.xtc2").read_bytes()
    smd = walk((tmp_path / "smalldata" / "tmosim01-r0007-s002-c000.smd.xtc2").read_bytes())

    assert [dgram["service"] for dgram in smd] == [2, 4, 12, 12, ENABLE, 12, END_RUN]
    assert smd[0]["names"][-1] == {
        "kind": "offset", "detector": "smdinfo", "serial": "", "alg": "offsetAlg", "version": (0, 0, 0), "segment": 0,
        "fields": [("intOffset", 3, 0), ("intDgramSize", 3, 0)],
    }  # fmt: skip
    assert smd[0]["names"][:-1] == walk(big)[0]["names"]
    assert smd[1]["values"]["runinfo", 0, "runinfo"] == {"expt": "tmosim01", "runnum": 7}
    events = [dgram for dgram in smd if dgram["service"] == L1_ACCEPT]
    assert [dgram["size"] for dgram in events] == [76, 76, 76]
    places = [tuple(dgram["values"]["smdinfo", 0, "offsetAlg"].values()) for dgram in events]
    assert places[:2] == [(d["offset"], d["size"]) for d in walk(big) if d["service"] == L1_ACCEPT]
    assert places[2] == (0, len(second) - 24 - len(shapes_data(CAMERA, (IMAGE, 4.0, "cube"))))
    switch = {"filename": "tmosim01-r0007-s002-c001.xtc2", "chunkid": 1}
    assert walk(big)[-1]["values"]["chunkinfo", 0, "chunkinfo"] == switch
    assert smd[-1]["size"] == 24


def test_the_smalldata_of_a_real_stream_would_be_the_same(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "lcls2" / "mixed_rate"
    real = (folder / "smalldata" / "xpptut15-r0014-s001-c000.smd.xtc2").read_bytes()
    with stream(tmp_path) as writer:
        data = (folder / "xpptut15-r0014-s001-c000.xtc2").read_bytes()
        for dgram in walk(data):
            writer.write(data[dgram["offset"] : dgram["offset"] + dgram["size"]])
    ours = walk((tmp_path / "smalldata" / "tmosim01-r0007-s002-c000.smd.xtc2").read_bytes())
    theirs = walk(real)
    # bytes that nobody reads (behind a NUL, of dimensions above the rank) are whatever was in the tool's memory
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("timestamp", "service", "damage", "size", "bits"):
            assert mine[key] == other[key], key
        assert mine["values"].get(("smdinfo", 0, "offsetAlg")) == other["values"].get(("smdinfo", 0, "offsetAlg"))
        assert mine["names"] == other["names"]


def test_odd_files(tmp_path: Path) -> None:
    writer = stream(tmp_path, smalldata=False, inprogress=True)
    info = runinfo_names()
    writer.configure(timestamp(1, 0), [CAMERA, info])
    for run in (1, 2):
        writer.begin_run(timestamp(run, 1), names=info, run=run)
        writer.transition(BEGIN_STEP, timestamp(run, 2))
        writer.event(timestamp(run, 3))
        writer.transition(SLOW_UPDATE, timestamp(run, 4))
        writer.transition(DISABLE, timestamp(run, 5), damage=1)
        if run == 1:
            writer.transition(END_RUN, timestamp(run, 6))
            writer.transition(UNCONFIGURE, timestamp(run, 7))
            writer.configure(timestamp(run, 8), [info])
    writer.flush()
    path = tmp_path / "tmosim01-r0007-s002-c000.xtc2.inprogress"
    assert writer.path == path
    dgrams = walk(path.read_bytes())
    assert [d["service"] for d in dgrams] == [2, 4, 6, 12, 10, 9, 5, 3, 2, 4, 6, 12, 10, 9]
    assert [d["values"]["runinfo", 0, "runinfo"]["runnum"] for d in dgrams if d["service"] == 4] == [1, 2]
    assert [len(d["names"]) for d in dgrams if d["service"] == CONFIGURE] == [2, 1]
    writer.close(rename=False)
    assert path.exists()
    assert not (tmp_path / "smalldata").exists()


def test_inprogress_files_get_their_names_at_the_end_but_not_after_an_error(tmp_path: Path) -> None:
    with stream(tmp_path / "good", inprogress=True) as writer:
        writer.configure(1, [])
    assert sorted(p.name for p in (tmp_path / "good").rglob("*.xtc2*")) == [
        "tmosim01-r0007-s002-c000.smd.xtc2",
        "tmosim01-r0007-s002-c000.xtc2",
    ]
    with pytest.raises(KeyboardInterrupt), stream(tmp_path / "bad", inprogress=True):
        raise KeyboardInterrupt
    assert all(p.suffix == ".inprogress" for p in (tmp_path / "bad").rglob("*.xtc2*"))


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    stream(tmp_path).close()
    with pytest.raises(FileExistsError):
        stream(tmp_path)


HSD = declare("hsd", "hsd", "raw", (2, 0, 0), {"eventHeader": ("uint32", 1), "chan00": ("uint8", 1)}, id=1)


def test_bulk_gives_the_same_bytes_as_one_by_one(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    n = 50
    offset = np.concatenate([[0], np.cumsum(random.integers(0, 400, n))])
    flat = random.integers(0, 256, offset[-1]).astype(np.uint8)
    images = random.integers(0, 65536, (n, 11, 13)).astype(np.uint16)  # larger than what is joined
    gains, present, keep = random.random(n), random.random(n) < 0.8, random.random(n) < 0.9
    damage, root = random.integers(0, 1 << 16, (2, n)).astype(np.uint16)
    times = np.array([timestamp(5, int(i)) for i in range(n)], np.uint64)
    parts = [
        Contribution(HSD, {"eventHeader": np.full((n, 2), 7), "chan00": Ragged(flat, offset)}, present, damage),
        Contribution(CAMERA, {"image": images, "gain": gains, "note": np.array([b"e%d" % i for i in range(n)])}),
    ]
    expected = [
        datagram(
            L1_ACCEPT,
            int(times[i]),
            shapes_data(HSD, ([7, 7], flat[offset[i] : offset[i + 1]]), damage=int(damage[i])) if present[i] else b"",
            shapes_data(CAMERA, (images[i], gains[i], f"e{i}")),
            damage=int(root[i]),
        )
        for i in range(n)
        if keep[i]
    ]
    block = pack_events(times, parts, damage=root, present=keep)
    assert block.data.tobytes() == b"".join(expected)
    assert block.offset.tolist() == [0, *np.cumsum([len(dgram) for dgram in expected])]

    for folder, one_by_one in (("bulk", False), ("single", True)):
        with stream(tmp_path / folder) as writer:
            writer.configure(1, [HSD, CAMERA])
            if one_by_one:
                for dgram in expected:
                    writer.write(dgram)
            else:
                writer.write_block(block)
    for name in ("tmosim01-r0007-s002-c000.xtc2", "smalldata/tmosim01-r0007-s002-c000.smd.xtc2"):
        assert (tmp_path / "bulk" / name).read_bytes() == (tmp_path / "single" / name).read_bytes()


def test_bulk_of_no_events_is_empty() -> None:
    values = {"eventHeader": np.zeros((0, 2)), "chan00": Ragged(np.zeros(0, np.uint8), np.zeros(1, int))}
    block = pack_events(np.zeros(0, np.uint64), [Contribution(HSD, values)])
    assert len(block.data) == len(block.smalldata(0)) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eventHeader": np.zeros((2, 2))}, "has"),
        ({"eventHeader": np.zeros(2), "chan00": np.zeros((2, 1))}, "rank 1"),
        ({"eventHeader": np.zeros((3, 2)), "chan00": np.zeros((2, 1))}, "over 2 events"),
        ({"eventHeader": np.zeros((2, 2)), "chan00": Ragged(np.zeros(4), np.array([0, 4]))}, "3 offsets"),
    ],
)
def test_bulk_refuses_values_that_do_not_fit(values: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_events(np.zeros(2, np.uint64), [Contribution(HSD, values)])
