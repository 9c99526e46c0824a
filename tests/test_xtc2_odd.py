"""Layouts that real files have and that most readers stumble over."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from xtc2_runs import (
    CAM,
    CHUNK,
    EPICS,
    GMD,
    INFO,
    NOTE,
    PEAKS,
    SCAN,
    Array,
    cam,
    ended,
    energies,
    full_run,
    gmd,
    hsd_data,
    hsd_names,
    hsd_stream,
    image_of,
    read,
    read_all,
    same,
    simple_run,
    ts,
)

import lcls_dask
from lcls_dask.errors import FormatError, LclsError, RunNotFoundError, SeveralRunsError
from lcls_dask.formats import open_source
from lcls_dask.formats.xtc2.layout import BEGIN_STEP, CONFIGURE, ENABLE, SLOW_UPDATE, UNCONFIGURE
from lcls_dask.formats.xtc2.writer import StreamWriter, datagram, declare, parent, shapes_data, timestamp, xtc


def writer(path: Path, stream: int = 0, **more: object) -> StreamWriter:
    return StreamWriter(path, "tmosim01", 1, stream, **({"smalldata": False} | more))  # type: ignore[arg-type]


def begin(w: StreamWriter, *names: object, info: bool = True) -> None:
    w.configure(ts(-9), [*names, INFO, CHUNK])  # type: ignore[list-item]
    w.begin_run(ts(-8), names=INFO if info else None)


# chunks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smalldata", [False, True])
@pytest.mark.parametrize("filename", [None, "odd.xtc2"])
def test_chunk_switch(tmp_path: Path, smalldata: bool, filename: str | None) -> None:
    """Events on both sides come from the right file, wherever that file is named (lcls2 #130)."""
    with writer(tmp_path, smalldata=smalldata) as w:
        begin(w, GMD, CAM)
        for i in range(5):
            w.event(ts(i), gmd(float(i)), cam(image_of(i)))
        w.next_chunk(ts(4) + 1, CHUNK, filename=filename)
        for i in range(5, 11):  # so that places in the second file are also places in the first
            w.event(ts(i), gmd(float(i)), cam(image_of(i)))
        w.next_chunk(ts(10) + 1, CHUNK)
        for i in range(11, 14):
            w.event(ts(i), gmd(float(i)), cam(image_of(i)))
        ended(w, 99)
    source = open_source(tmp_path)
    assert source.index.state == "ended"
    assert energies(tmp_path) == list(map(float, range(14)))
    images = read(source, "cam.raw.image")[:, 0]
    np.testing.assert_array_equal(images, [image_of(i) for i in range(14)])
    scattered = np.array([13, 0, 4, 5, 10, 11, 5], np.int64)
    np.testing.assert_array_equal(source.read("/", "gmd.raw.energy", scattered), scattered)
    assert not list(source.validate())


@pytest.mark.parametrize("smalldata", [False, True])
def test_second_chunk_begins_with_a_transition(tmp_path: Path, smalldata: bool) -> None:
    with writer(tmp_path, smalldata=smalldata) as w:
        begin(w, GMD, SCAN)
        w.event(ts(0), gmd(0.0))
        w.next_chunk(ts(0) + 1, CHUNK)
        w.transition(BEGIN_STEP, ts(0) + 2, shapes_data(SCAN, {"motor": 7.0, "label": "x"}))
        w.event(ts(1), gmd(1.0))
        ended(w, 99)
    values = read_all(open_source(tmp_path))
    assert values["/steps"]["motor"].tolist() == [7.0]
    assert values["/"]["step"].tolist() == [-1, 0]


def test_chunk_information_that_does_not_switch(tmp_path: Path) -> None:
    """An Enable may carry the chunk that is being read: nothing happens."""
    with writer(tmp_path) as w:
        begin(w, GMD)
        w.transition(ENABLE, ts(-1), shapes_data(CHUNK, {"filename": w.path.name, "chunkid": 0}))
        w.event(ts(0), gmd(0.0))
        ended(w, 99)
    assert energies(tmp_path) == [0.0]


def test_chunk_file_lost(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        begin(w, GMD)
        w.event(ts(0), gmd(0.0))
        w.next_chunk(ts(0) + 1, CHUNK)
        w.event(ts(1), gmd(1.0))
        ended(w, 99)
        lost = w.path
    lost.unlink()
    with pytest.raises(LclsError, match=lost.name):
        open_source(tmp_path)


# runs and configurations ---------------------------------------------------------------------------------------------


def several_runs(path: Path, *, configure_again: bool, smalldata: bool = False) -> Path:
    wide = declare("gmd", "gmd", "raw", (2, 1, 0), {"other": "uint8", "energy": "float64"}, id=1)
    with writer(path, smalldata=smalldata) as w:
        w.configure(ts(0), [GMD, INFO, CHUNK])
        for run in (1, 2, 5):
            names = GMD
            if configure_again and run > 1:
                names = wide if run == 2 else GMD
                w.transition(UNCONFIGURE, ts(100 * run) + 1)
                w.configure(ts(100 * run) + 2, [names, INFO, CHUNK])
            w.begin_run(ts(100 * run) + 3, names=INFO, run=run)
            for i in range(run + 2):
                more = {"other": run} if names is wide else {}
                w.event(ts(100 * run + i + 1), shapes_data(names, {**more, "energy": float(run * 10 + i)}))
            ended(w, 100 * run + 50)
        return w.path


@pytest.mark.parametrize("configure_again", [False, True])
@pytest.mark.parametrize("smalldata", [False, True])
def test_several_runs_in_one_file(tmp_path: Path, configure_again: bool, smalldata: bool) -> None:
    path = several_runs(tmp_path, configure_again=configure_again, smalldata=smalldata)
    for place in (path, tmp_path):
        with pytest.raises(SeveralRunsError, match="1, 2, 5"):
            open_source(place)
        with pytest.raises(RunNotFoundError, match=r"no run 3.* 1, 2, 5"):
            open_source(place, run=3)
        for run in (1, 2, 5):
            source = open_source(place, run=run)
            assert source.index.run == run
            assert energies(place, run=run) == [run * 10.0 + i for i in range(run + 2)]
            assert ("gmd.raw.other" in source.index.nodes["/"].variables) is (configure_again and run == 2)
    with pytest.raises(SeveralRunsError):  # also when all of them are in the cache
        open_source(path)
    assert len({open_source(path, run=run).index.snapshot for run in (1, 2, 5)}) <= 3


def test_runs_of_one_file_are_told_apart_by_dask(tmp_path: Path) -> None:
    path = str(several_runs(tmp_path, configure_again=False))
    means = [
        float(xr.open_dataset(path, engine="lcls", chunks={}, run=run)["gmd.raw.energy"].mean()) for run in (1, 2, 5)
    ]
    assert means == [11.0, 21.5, 53.0]


def test_several_runs_in_one_directory(tmp_path: Path) -> None:
    for run in (1, 2):
        simple_run(tmp_path, range(run), run=run)
    with pytest.raises(SeveralRunsError, match=r"r0001.*r0002"):
        open_source(tmp_path)
    assert energies(tmp_path, run=2) == [0.0, 1.0]


def test_configuration_repeated_before_the_run(tmp_path: Path) -> None:
    """Only the last Configure before BeginRun counts."""
    other = declare("gmd", "gmd", "raw", (2, 1, 0), {"wrong": "uint8"}, id=1)
    with writer(tmp_path) as w:
        w.configure(ts(-20), [other, INFO])
        w.transition(UNCONFIGURE, ts(-15))
        begin(w, GMD)
        w.event(ts(0), gmd(4.0))
        ended(w, 99)
    assert energies(tmp_path) == [4.0]


def test_no_end_of_run(tmp_path: Path) -> None:
    w = simple_run(tmp_path, end=False)
    w.close()
    source = open_source(w.path)
    assert (source.index.state, source.index.events) == ("cut", 8)
    assert [finding.kind for finding in source.validate()] == ["unended"]


def test_no_run_information_in_the_second_stream(tmp_path: Path) -> None:
    simple_run(tmp_path)
    with writer(tmp_path, 1) as w:
        begin(w, CAM, info=False)
        w.event(ts(2), cam(image_of(2)))
        ended(w, 10**6)
    source = open_source(tmp_path)
    assert (source.index.experiment, source.index.run, source.index.events) == ("tmosim01", 1, 8)
    assert read(source, "cam.raw.present").reshape(-1)[2]


def test_events_without_begin_run(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        w.configure(ts(-9), [GMD])
        w.event(ts(0), gmd(3.0))
    source = open_source(tmp_path)
    assert (source.index.experiment, source.index.run) == ("tmosim01", 1)  # from the file's name
    assert energies(tmp_path) == [3.0]
    nameless = tmp_path / "elsewhere" / "copy.xtc2"
    nameless.parent.mkdir()
    shutil.copy(source.ref.path + "/tmosim01-r0001-s000-c000.xtc2", nameless)
    assert energies(nameless) == [3.0]


def test_streams_of_different_runs(tmp_path: Path) -> None:
    simple_run(tmp_path)
    with StreamWriter(tmp_path, "tmosim01", 1, 1, smalldata=False) as w:
        w.configure(ts(-9), [GMD, INFO])
        w.begin_run(ts(-8), names=INFO, run=2)
        w.event(ts(0), gmd(1.0))
        ended(w, 99)
    with pytest.raises(FormatError, match="streams of different runs"):
        open_source(tmp_path)


@pytest.mark.parametrize("smalldata", [False, True])
def test_run_without_events(tmp_path: Path, smalldata: bool) -> None:
    simple_run(tmp_path, range(0), smalldata=smalldata, silent=(CAM,))
    source = open_source(tmp_path)
    assert source.index.events == 0
    values = read_all(source)
    assert values["/"]["gmd.raw.energy"].shape == (0,)
    assert values["/gmd"]["timestamp"].shape == (0,)
    dataset = xr.open_dataset(tmp_path, engine="lcls", chunks={})
    assert dataset["gmd.raw.energy"].compute().size == 0
    assert xr.open_datatree(tmp_path, engine="lcls", chunks={})["/cam"].sizes["cam.event"] == 0


def test_empty_digitizer_run(tmp_path: Path) -> None:
    full_run(tmp_path, 0)
    values = read_all(open_source(tmp_path))
    assert values["/hsd"]["hsd.raw.windows.offset"].tolist() == [0]


# datagrams -----------------------------------------------------------------------------------------------------------


def event_forms() -> dict[str, tuple[bytes, ...]]:
    """The same event, written in every way that is allowed."""
    values = {"energy": 2.5}
    image = {"image": image_of(3), "gain": 7}
    plain = (shapes_data(GMD, values), shapes_data(CAM, image))
    return {
        "plain": plain,
        "nested": (parent(parent(plain[0]), parent()), parent(parent(parent(plain[1])))),
        "data first": (shapes_data(GMD, values, data_first=True), shapes_data(CAM, image, data_first=True)),
        "no shapes": (shapes_data(GMD, values, shapes=False), plain[1]),
        "spare bytes": (shapes_data(GMD, values, spare=4), shapes_data(CAM, image, spare=4)),
        "spare and data first": (plain[0], shapes_data(CAM, image, spare=4, data_first=True)),
        "other order": plain[::-1],
    }


@pytest.mark.parametrize("form", event_forms())
def test_forms_of_an_event(tmp_path: Path, form: str) -> None:
    with writer(tmp_path) as w:
        begin(w, GMD, CAM)
        for i in range(3):
            w.event(ts(i), *event_forms()["plain" if i != 1 else form])
        ended(w, 99)
    source = open_source(tmp_path)
    assert read(source, "gmd.raw.energy").tolist() == [2.5] * 3
    assert read(source, "cam.raw.gain").ravel().tolist() == [7] * 3
    np.testing.assert_array_equal(read(source, "cam.raw.image")[:, 0], [image_of(3)] * 3)
    assert not list(source.validate())


def test_transitions_in_every_form(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        begin(w, GMD, SCAN, EPICS)
        step = shapes_data(SCAN, {"motor": 1.5, "label": "abc"}, data_first=True, spare=4)
        w.transition(BEGIN_STEP, ts(-2), parent(parent(step)))
        w.transition(
            SLOW_UPDATE, ts(-1), parent(shapes_data(EPICS, {"HX2:GCC:01:PMON": 2.5, "T.RBV": 3}, shapes=False))
        )
        w.event(ts(0), gmd(1.0))
        ended(w, 99)
    values = read_all(open_source(tmp_path))
    assert (values["/steps"]["motor"].tolist(), values["/steps"]["label"].tolist()) == ([1.5], ["abc"])
    assert values["/epics"]["HX2:GCC:01:PMON"].tolist() == [2.5]
    assert values["/epics"]["T.RBV"].tolist() == [3]


def test_service_11_is_an_event(tmp_path: Path) -> None:
    for smalldata in (False, True):
        place = tmp_path / str(smalldata)
        with writer(place, smalldata=smalldata) as w:
            begin(w, GMD)
            for i in range(4):
                w.write(datagram(11 + i % 2, ts(i), gmd(float(i))))
            ended(w, 99)
        assert energies(place) == [0.0, 1.0, 2.0, 3.0]


def test_corrupted_parent_is_not_entered(tmp_path: Path) -> None:
    garbage = b"\xff" * 30
    with writer(tmp_path) as w:
        begin(w, GMD, CAM)
        w.event(ts(0), gmd(1.0), xtc(0, 0, garbage, damage=1 << 3))
        w.event(ts(1), gmd(2.0), parent(cam(image_of(1)), damage=1 << 3))
        w.write(datagram(12, ts(2), garbage, damage=1 << 3))
        w.event(ts(3), gmd(4.0), cam(image_of(3)))
        ended(w, 99)
    source = open_source(tmp_path)
    assert energies(tmp_path) == [1.0, 2.0, 0.0, 4.0]
    assert read(source, "gmd.raw.present").tolist() == [True, True, False, True]
    assert read(source, "cam.raw.present").ravel().tolist() == [False, False, False, True]
    assert read(source, "gmd.raw.damage")[2] == 1 << 3


def test_corrupted_transition_is_not_entered(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        begin(w, GMD, EPICS)
        w.event(ts(0), gmd(1.0))
        w.write(datagram(SLOW_UPDATE, ts(0) + 1, b"\xff" * 40, damage=1 << 3))
        w.transition(SLOW_UPDATE, ts(0) + 2, shapes_data(EPICS, {"HX2:GCC:01:PMON": 2.5, "T.RBV": 3}))
        w.event(ts(1), gmd(2.0))
        ended(w, 99)
    source = open_source(tmp_path)
    assert energies(tmp_path) == [1.0, 2.0]
    assert 2.5 in read(source, "HX2:GCC:01:PMON", "/epics")


def test_damage(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        begin(w, GMD, CAM)
        w.event(ts(0), gmd(1.0, damage=1 << 1 | 0x8000), cam(image_of(0)), damage=1 << 1)
        w.event(ts(1), gmd(2.0), damage=1 << 4)  # the camera's contribution was dropped
        w.event(ts(2), damage=1 << 6)
        w.event(ts(3), gmd(3.0), cam(image_of(3)))
        ended(w, 99)
    source = open_source(tmp_path)
    assert read(source, "gmd.raw.damage").tolist() == [1 << 1 | 0x8000, 0, 1 << 6, 0]
    assert read(source, "gmd.raw.present").tolist() == [True, True, False, True]
    assert read(source, "cam.raw.damage").ravel().tolist() == [0, 1 << 4, 1 << 6, 0]
    assert read(source, "cam.raw.present").ravel().tolist() == [True, False, False, True]
    assert energies(tmp_path) == [1.0, 2.0, 0.0, 3.0]
    kinds = {(finding.kind, finding.where) for finding in source.validate()}
    assert {kind for kind, _ in kinds} >= {"damage", "missing"}


# values --------------------------------------------------------------------------------------------------------------


def test_strings(tmp_path: Path) -> None:
    """Short, empty, unterminated, padded, of several bytes a character; a longer one later is a clear error."""
    first = ["", "a", "abc", "abcd", "µ" * 5, "x" * 40]
    raw = np.frombuffer(b"full", np.uint8)  # no NUL at all
    with writer(tmp_path) as w:
        begin(w, NOTE)
        for i, text in enumerate(first):
            w.event(ts(i), shapes_data(NOTE, {"text": text, "count": i}))
        w.event(ts(6), shapes_data(NOTE, {"text": raw, "count": 6}))
        w.event(ts(7), shapes_data(NOTE, {"text": np.frombuffer(b"ab\0junk\xff", np.uint8), "count": 7}))
        ended(w, 99)
    text = read(open_source(tmp_path), "note.raw.text")
    assert text.tolist() == [*first, "full", "ab"]


def long_text_late(path: Path, events: int, size: int) -> Path:
    with writer(path) as w:
        begin(w, NOTE)
        for i in range(events):
            w.event(ts(i), shapes_data(NOTE, {"text": "x" * size if i == events - 2 else "short", "count": i}))
        ended(w, 10**6)
        return w.path


def test_string_longer_than_any_that_was_looked_at(tmp_path: Path) -> None:
    path = long_text_late(tmp_path, 1000, 300)
    source = open_source(path)
    assert read(source, "note.raw.count")[-2] == 998
    with pytest.raises(FormatError, match=f"{path.name}: event {ts(998)} .*string"):
        read(source, "note.raw.text")
    assert set(source.read("/", "note.raw.text", slice(0, 900))) == {"short"}


def test_names_with_colons_and_dots(tmp_path: Path) -> None:
    odd = declare(
        "det_1", "ctl", "raw", (1, 0, 0), {"HX2:DVD:01:P": "float64", "user.fex.ymin": "int32", "a.b": "uint8"}, id=1
    )
    with writer(tmp_path) as w:
        begin(w, odd)
        w.event(ts(0), shapes_data(odd, {"HX2:DVD:01:P": 1.5, "user.fex.ymin": -4, "a.b": 3}))
        ended(w, 99)
    source = open_source(tmp_path)
    assert read(source, "det_1.raw.HX2:DVD:01:P").tolist() == [1.5]
    assert read(source, "det_1.raw.user.fex.ymin").tolist() == [-4]
    assert read(source, "det_1.raw.a.b").tolist() == [3]
    with xr.open_dataset(tmp_path, engine="lcls") as dataset:
        assert float(dataset["det_1.raw.HX2:DVD:01:P"][0]) == 1.5


def test_fields_named_like_the_mask(tmp_path: Path) -> None:
    """A field called ``damage`` or ``present`` must not become the mask, nor break it."""
    odd = declare("det", "ctl", "raw", (1, 0, 0), {"damage": "float64", "present": "int32", "value": "uint8"}, id=1)
    with writer(tmp_path) as w:
        begin(w, odd)
        w.event(ts(0), shapes_data(odd, {"damage": 1.5, "present": -4, "value": 9}, damage=1 << 2))
        w.event(ts(1))
        ended(w, 99)
    source = open_source(tmp_path)
    read_all(source)  # dtypes and shapes are those that the variables have
    assert read(source, "det.raw.value").tolist() == [9, 0]
    assert read(source, "det.raw.present").tolist() == [True, False]
    assert read(source, "det.raw.damage").tolist() == [1 << 2, 0]


def test_all_number_types_and_ranks(tmp_path: Path) -> None:
    kinds = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64"]
    fields = {f"{kind}_{rank}": (kind, rank) for kind in kinds for rank in range(6)}
    odd = declare("det", "ctl", "raw", (1, 0, 0), fields, id=1)
    rng = np.random.default_rng(1)
    expected: list[dict[str, Array]] = []
    with writer(tmp_path) as w:
        begin(w, odd)
        for i in range(4):
            values = {
                name: np.frombuffer(rng.bytes(8 * 2**rank), kind)[: 2**rank].reshape((2,) * rank)
                for name, (kind, rank) in fields.items()
            }
            expected.append(values)
            w.event(ts(i), shapes_data(odd, values))
        ended(w, 99)
    source = open_source(tmp_path)
    for name in fields:
        mine = read(source, f"det.raw.{name}").reshape(4, -1)
        assert mine.tobytes() == np.stack([values[name].ravel() for values in expected]).tobytes(), name


def test_ragged(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    expected: list[tuple[int, int, Array, Array]] = []
    for stream in (0, 1):
        names = declare("peaks", "vls", "fex", (1, 0, 0), {"x": ("float32", 1), "map": ("int16", 2), "n": "uint32"},
                        id=4, segment=5 * stream)  # fmt: skip
        with writer(tmp_path, stream) as w:
            begin(w, names)
            for i in range(20):
                if (i + stream) % 3 == 0:
                    continue
                x = rng.random(int(rng.integers(0, 6)), dtype=np.float32)
                grid = rng.integers(-9, 9, (int(rng.integers(0, 4)), int(rng.integers(0, 4)))).astype(np.int16)
                expected.append((i, stream, x, grid))
                w.event(ts(i), shapes_data(names, {"x": x, "map": grid, "n": i}))
            ended(w, 99)
    source = open_source(tmp_path)
    assert "peaks.fex.x" not in source.index.nodes["/"].variables
    values = read_all(source)["/peaks"]
    assert values["peaks.segment"].tolist() == [0, 5]
    rows = {int(stamp): row for row, stamp in enumerate(values["timestamp"])}
    covered = 0
    for i, place, x, grid in expected:
        row = 2 * rows[ts(i)] + place
        for name, array in (("peaks.fex.x", x), ("peaks.fex.map", grid)):
            first, last = values[f"{name}.offset"][row : row + 2]
            np.testing.assert_array_equal(values[name][first:last], array.ravel())
            covered += array.size
        np.testing.assert_array_equal(values["peaks.fex.map.shape"][row], grid.shape)
    assert covered == values["peaks.fex.x"].size + values["peaks.fex.map"].size
    # any range of elements is what the whole has there
    for name in ("peaks.fex.x", "peaks.fex.map"):
        whole = values[name]
        for first in range(0, whole.size, 3):
            for last in (first, first + 1, min(first + 7, whole.size)):
                if last <= whole.size:
                    np.testing.assert_array_equal(source.read("/peaks", name, slice(first, last)), whole[first:last])
        some = rng.integers(0, whole.size, 30).astype(np.int64)
        np.testing.assert_array_equal(source.read("/peaks", name, some), whole[some])


def test_shape_that_changes_late(tmp_path: Path) -> None:
    """Beyond what was looked at when opening: an error that names the event and says how to read it."""
    with writer(tmp_path) as w:
        begin(w, CAM)
        for i in range(1000):
            w.event(ts(i), cam(image_of(i, (4, 6) if i != 901 else (2, 3)), 1))
        ended(w, 10**6)
    source = open_source(tmp_path)
    name = "cam.raw.image"
    assert name in source.index.nodes["/"].variables
    np.testing.assert_array_equal(source.read("/", name, slice(900, 901))[0, 0], image_of(900))
    with pytest.raises(FormatError, match=rf"{ts(901)}.*shape.*leave this event out"):
        read(source, name)
    # and what the message tells to do works
    others = np.delete(np.arange(1000), 901)
    values = lcls_dask.open_run(tmp_path).dataset(name, events=others)[name][:, 0].to_numpy()
    np.testing.assert_array_equal(values, [image_of(i) for i in others])


@pytest.mark.parametrize("what", ["shape", "string"])
def test_validate_tells_of_values_that_cannot_be_read(tmp_path: Path, what: str) -> None:
    if what == "string":
        long_text_late(tmp_path, 1000, 300)
    else:
        with writer(tmp_path) as w:
            begin(w, CAM)
            for i in range(1000):
                w.event(ts(i), cam(image_of(i, (4, 6) if i != 901 else (2, 3)), 1))
            ended(w, 10**6)
    run = lcls_dask.open_run(tmp_path)
    with pytest.raises(FormatError):
        read_all(run.source)
    assert any(finding.fatal for finding in run.validate().findings)


def test_first_event_is_damaged(tmp_path: Path) -> None:
    """A broken contribution in the first event does not hide the shapes of all others."""
    broken = shapes_data(CAM, {"image": image_of(0), "gain": 0})
    broken = broken[:24] + (10**6).to_bytes(4, "little") + broken[28:]  # the first length of the image
    with writer(tmp_path) as w:
        begin(w, CAM, NOTE)
        for i in range(8):
            w.event(ts(i), broken if i == 0 else cam(image_of(i)), shapes_data(NOTE, {"text": f"n{i}", "count": i}))
        ended(w, 99)
    source = open_source(tmp_path)
    np.testing.assert_array_equal(
        source.read("/", "cam.raw.image", slice(1, 8))[:, 0], [image_of(i) for i in range(1, 8)]
    )
    assert source.read("/", "note.raw.text", slice(1, 8)).tolist() == [f"n{i}" for i in range(1, 8)]
    with pytest.raises(FormatError, match=str(ts(0))):
        source.read("/", "cam.raw.image", slice(0, 1))
    assert [finding.fatal for finding in source.validate() if finding.kind == "corrupt"] == [True]


# detectors -----------------------------------------------------------------------------------------------------------


def test_16_and_8_segments_in_several_streams(tmp_path: Path) -> None:
    """One Dataset holds detectors of 16 and of 8 segments; segments of one detector lie in several streams."""
    for stream in range(4):
        names = [
            declare("hsd", "hsd", "fex", (1, 0, 0), {"sum": ("float32", 1)}, id=s + 1, segment=s)
            for s in range(stream, 16, 4)
        ]
        pixels = {"pixels": ("uint16", 2), "t": "uint8"}
        names += [declare("epix", "epix", "raw", (1, 0, 0), pixels, id=s + 50, segment=s) for s in range(stream, 8, 4)]
        with writer(tmp_path, stream) as w:
            begin(w, *names)
            for i in range(6):
                w.event(ts(i), *[
                    shapes_data(n, {"sum": np.full(3, 100 * i + n.segment, "f4")}) if n.detector == "hsd" else
                    shapes_data(n, {"pixels": np.full((2, 3), 10 * i + n.segment, "u2"), "t": n.segment})
                    for n in names
                ])  # fmt: skip
            ended(w, 99)
    with xr.open_dataset(tmp_path, engine="lcls", chunks={}) as dataset:
        assert dataset.sizes["hsd.segment"] == 16
        assert dataset.sizes["epix.segment"] == 8
        expected = 100 * np.arange(6)[:, None] + np.arange(16)
        np.testing.assert_array_equal(dataset["hsd.fex.sum"][..., 0], expected)
        np.testing.assert_array_equal(dataset["epix.raw.pixels"][..., 1, 2], 10 * np.arange(6)[:, None] + np.arange(8))
        np.testing.assert_array_equal(dataset["epix.raw.t"], np.broadcast_to(np.arange(8), (6, 8)))
        assert float(dataset["hsd.fex.sum"].sel({"hsd.segment": 11})[2, 0]) == 211
        assert dataset["epix.raw.pixels"].dims == ("event", "epix.segment", "epix.row", "epix.column")


def test_detectors_of_one_stream_at_different_rates(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        begin(w, GMD, CAM, PEAKS)
        for i in range(30):
            parts = [gmd(float(i))]
            parts += [cam(image_of(i))] if i % 10 == 3 else []
            parts += (
                [shapes_data(PEAKS, {"x": np.arange(i % 4, dtype="f4"), "map": np.zeros((1, 1), "i2"), "n": i})]
                if i % 2
                else []
            )
            w.event(ts(i), *parts)
        ended(w, 99)
    source = open_source(tmp_path)
    values = read_all(source)
    assert values["/cam"]["timestamp"].tolist() == [ts(3), ts(13), ts(23)]
    np.testing.assert_array_equal(values["/cam"]["cam.raw.image"][:, 0], [image_of(i) for i in (3, 13, 23)])
    assert np.flatnonzero(values["/"]["cam.raw.present"].ravel()).tolist() == [3, 13, 23]
    assert values["/peaks"]["peaks.fex.n"].tolist() == list(range(1, 30, 2))
    assert values["/gmd"]["timestamp"].size == 30


@pytest.mark.parametrize("rates", [(1, 3), (2, 3), (4, 6)])
def test_streams_of_different_rates(tmp_path: Path, rates: tuple[int, int]) -> None:
    """Also where no stream has every event."""
    for stream, (rate, names) in enumerate(zip(rates, (GMD, CAM), strict=True)):
        with writer(tmp_path, stream) as w:
            begin(w, names)
            for i in range(0, 48, rate):
                w.event(ts(i), gmd(float(i)) if stream == 0 else cam(image_of(i)))
            ended(w, 99)
    source = open_source(tmp_path)
    expected = sorted({*range(0, 48, rates[0]), *range(0, 48, rates[1])})
    assert read(source, "timestamp").tolist() == [ts(i) for i in expected]
    assert read(source, "gmd.raw.energy").tolist() == [float(i) if i % rates[0] == 0 else 0.0 for i in expected]
    present = read(source, "cam.raw.present").ravel()
    assert present.tolist() == [i % rates[1] == 0 for i in expected]
    own = read_all(source)["/cam"]
    np.testing.assert_array_equal(own["cam.raw.image"][:, 0], [image_of(i) for i in range(0, 48, rates[1])])
    rows = np.array([3, 0, 7, 3], np.int64)
    np.testing.assert_array_equal(source.read("/cam", "cam.raw.image", rows), own["cam.raw.image"][rows])


def test_dropped_contributions(tmp_path: Path) -> None:
    """Events that a stream lost altogether."""
    lost = {2, 3, 9}
    simple_run(tmp_path, range(10))
    with writer(tmp_path, 1) as w:
        begin(w, CAM)
        for i in range(10):
            if i not in lost:
                w.event(ts(i), cam(image_of(i)))
        ended(w, 10**6)
    source = open_source(tmp_path)
    assert set(np.flatnonzero(~read(source, "cam.raw.present").ravel())) == lost
    gaps = [finding for finding in source.validate() if finding.kind == "gap" and finding.where == "s001"]
    assert [finding.count for finding in gaps] == [3]


# order ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smalldata", [False, True])
def test_disordered_and_repeated_timestamps(tmp_path: Path, smalldata: bool) -> None:
    order = [0, 1, 4, 2, 3, 3, 5, 0, 6]
    with writer(tmp_path, smalldata=smalldata) as w:
        begin(w, GMD)
        for k, i in enumerate(order):
            w.event(ts(i), gmd(float(100 * k + i)))
        ended(w, 99)
    source = open_source(tmp_path)
    assert read(source, "timestamp").tolist() == [ts(i) for i in range(7)]
    assert energies(tmp_path) == [100.0 * order.index(i) + i for i in range(7)]  # the first of each
    found = {finding.kind: finding.count for finding in source.validate()}
    assert found["duplicate"] == 2
    assert "order" in found


# smalldata -----------------------------------------------------------------------------------------------------------


def small_of(path: Path) -> Path:
    return next((path / "smalldata").iterdir())


@pytest.mark.parametrize("keep", [0, 1, 3, 7, 8])
def test_smalldata_lags_behind(tmp_path: Path, keep: int) -> None:
    """The big file has events that smalldata does not know yet: they are read from it."""
    w = simple_run(tmp_path, range(keep), end=False, smalldata=True)
    small = small_of(tmp_path).read_bytes()
    for i in range(keep, 8):
        w.event(ts(i), gmd(float(i)))
    w.close()
    small_of(tmp_path).write_bytes(small)
    assert energies(tmp_path) == list(map(float, range(8)))
    assert open_source(tmp_path).index.state != "ended"


@pytest.mark.parametrize("lost", [1, 40, 76, 100, 76 * 3 + 5])
def test_smalldata_is_cut(tmp_path: Path, lost: int) -> None:
    simple_run(tmp_path, smalldata=True)
    small = small_of(tmp_path)
    small.write_bytes(small.read_bytes()[:-lost])
    assert energies(tmp_path) == list(map(float, range(8)))


def test_smalldata_lags_behind_steps(tmp_path: Path) -> None:
    """Transitions that smalldata has already are not counted again."""
    with writer(tmp_path, smalldata=True) as w:
        begin(w, GMD, SCAN)
        for i in range(3):
            w.event(ts(i), gmd(float(i)))
        w.transition(BEGIN_STEP, ts(2) + 1, shapes_data(SCAN, {"motor": 1.0, "label": ""}))
        w.flush()
        small = small_of(tmp_path).read_bytes()
        for i in range(3, 6):
            w.event(ts(i), gmd(float(i)))
        w.transition(BEGIN_STEP, ts(5) + 1, shapes_data(SCAN, {"motor": 2.0, "label": ""}))
        w.event(ts(6), gmd(6.0))
    small_of(tmp_path).write_bytes(small)
    values = read_all(open_source(tmp_path))
    assert values["/"]["gmd.raw.energy"].tolist() == list(map(float, range(7)))
    assert values["/steps"]["motor"].tolist() == [1.0, 2.0]
    assert values["/"]["step"].tolist() == [-1, -1, -1, 0, 0, 0, 1]


def test_smalldata_lags_behind_a_chunk_switch(tmp_path: Path) -> None:
    with writer(tmp_path, smalldata=True) as w:
        begin(w, GMD)
        for i in range(3):
            w.event(ts(i), gmd(float(i)))
        w.flush()
        small = small_of(tmp_path).read_bytes()
        w.event(ts(3), gmd(3.0))
        w.next_chunk(ts(3) + 1, CHUNK)
        for i in range(4, 6):
            w.event(ts(i), gmd(float(i)))
    small_of(tmp_path).write_bytes(small)
    assert energies(tmp_path) == list(map(float, range(6)))


def test_smalldata_of_several_runs_lags_behind(tmp_path: Path) -> None:
    with writer(tmp_path, smalldata=True) as w:
        w.configure(ts(-9), [GMD, INFO])
        w.begin_run(ts(-8), names=INFO, run=1)
        for i in range(3):
            w.event(ts(i), gmd(float(i)))
        ended(w, 10)
        w.begin_run(ts(11), names=INFO, run=2)
        w.flush()
        small = small_of(tmp_path).read_bytes()
        for i in range(12, 15):
            w.event(ts(i), gmd(float(i)))
    small_of(tmp_path).write_bytes(small)
    assert energies(tmp_path, run=1) == [0.0, 1.0, 2.0]
    assert energies(tmp_path, run=2) == [12.0, 13.0, 14.0]
    assert open_source(tmp_path, run=1).index.state == "ended"
    assert open_source(tmp_path, run=2).index.state != "ended"


def test_smalldata_knows_more_than_the_file_has(tmp_path: Path) -> None:
    path = simple_run(tmp_path, smalldata=True).path
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(FormatError, match=f"{path.name}.*smalldata"):
        open_source(tmp_path)


def test_smalldata_is_used(tmp_path: Path) -> None:
    """Events that only smalldata orders are found: the big file's datagrams are not walked through."""
    simple_run(tmp_path, smalldata=True)
    small = small_of(tmp_path)
    data = small.read_bytes()
    end = len(data) - 24
    order = [data[end - 76 * (8 - i) : end - 76 * (7 - i)] for i in range(8)]
    small.write_bytes(data[: end - 76 * 8] + b"".join(order[2:]) + data[end:])
    assert energies(tmp_path) == list(map(float, range(2, 8)))


# runs in progress ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smalldata", [False, True])
def test_in_progress(tmp_path: Path, smalldata: bool) -> None:
    w = simple_run(tmp_path, end=False, inprogress=True, smalldata=smalldata)
    source = open_source(tmp_path)
    assert (source.index.state, source.index.events) == ("live", 8)
    before = read_all(source)
    snapshot = source.index.snapshot
    w.close()  # the files get their final names
    after = open_source(tmp_path)
    assert after.index.snapshot == snapshot
    same(read_all(after), before)
    same(read_all(source), before)  # also with what was opened before


def test_in_progress_with_half_a_datagram(tmp_path: Path) -> None:
    w = simple_run(tmp_path, end=False, inprogress=True)
    w.close(rename=False)
    with w.path.open("ab") as file:
        file.write(datagram(12, ts(9), gmd(9.0))[:-3])
    source = open_source(tmp_path)
    assert source.index.events == 8
    assert energies(tmp_path) == list(map(float, range(8)))
    assert "truncated" in {finding.kind for finding in source.validate()}


def test_announced_chunk_that_is_not_there_yet(tmp_path: Path) -> None:
    w = simple_run(tmp_path, end=False, inprogress=True)
    w.next_chunk(ts(9), CHUNK)
    w.close(rename=False)
    w.path.unlink()
    source = open_source(tmp_path)
    assert (source.index.state, source.index.events) == ("live", 8)


# slow data -----------------------------------------------------------------------------------------------------------


def test_steps_and_slow_variables(tmp_path: Path) -> None:
    """They hold until the next; before the first there is none."""
    with writer(tmp_path) as w:
        begin(w, GMD, SCAN, EPICS)
        w.event(ts(0), gmd(0.0))
        for k in range(3):
            w.transition(BEGIN_STEP, ts(10 * k + 1), shapes_data(SCAN, {"motor": k * 0.5, "label": f"at {k}"}))
            w.transition(SLOW_UPDATE, ts(10 * k + 1) + 1, shapes_data(EPICS, {"HX2:GCC:01:PMON": k * 2.0, "T.RBV": k}))
            for i in range(2, 4):
                w.event(ts(10 * k + i), gmd(float(k)))
        w.transition(SLOW_UPDATE, ts(98))  # one that carries nothing
        ended(w, 99)
    source = open_source(tmp_path)
    values = read_all(source)
    assert values["/"]["step"].tolist() == [-1, 0, 0, 1, 1, 2, 2]
    assert values["/steps"]["motor"].tolist() == [0.0, 0.5, 1.0]
    assert values["/steps"]["label"].tolist() == ["at 0", "at 1", "at 2"]
    assert values["/steps"]["timestamp"].tolist() == [ts(1), ts(11), ts(21)]
    assert values["/epics"]["T.RBV"].tolist()[:3] == [0, 1, 2]
    assert values["/gmd"]["step"].tolist() == values["/"]["step"].tolist()


def test_slow_variables_before_they_are_known(tmp_path: Path) -> None:
    """What no update has told yet is not a number that somebody measured."""
    other = declare("epics", "epics", "raw", (2, 0, 0), {"LATE": "float64"}, id=249)
    with writer(tmp_path) as w:
        begin(w, GMD, EPICS, other)
        w.event(ts(0), gmd(0.0))
        w.transition(SLOW_UPDATE, ts(1), shapes_data(EPICS, {"HX2:GCC:01:PMON": 1.0, "T.RBV": 1}))
        w.transition(SLOW_UPDATE, ts(2), shapes_data(other, {"LATE": 5.0}))
        ended(w, 99)
    source = open_source(tmp_path)
    values = read_all(source)["/epics"]
    assert values["LATE"].tolist() == [0.0, 5.0]
    assert values["T.RBV"].tolist() == [1, 1]
    assert source.index.nodes["/epics"].variables["LATE"].attrs["first_seen"] == 1


def test_configuration_values(tmp_path: Path) -> None:
    """They are attributes of the detector; lists where segments differ."""
    configs = [
        declare("hsd", "hsd", "config", (3, 0, 0), {"user.fex.ymin": "int32", "name": "str", "gates": ("uint16", 1)},
                id=20 + s, segment=s)
        for s in range(2)
    ]  # fmt: skip
    data = [hsd_names((3, 0, 0), s, 10 + s) for s in range(2)]
    with writer(tmp_path) as w:
        values = [
            shapes_data(c, {"user.fex.ymin": c.segment, "name": "same", "gates": np.arange(3, dtype="u2")})
            for c in configs
        ]
        w.configure(ts(-9), [*data, *configs, INFO], values)
        w.begin_run(ts(-8), names=INFO)
        w.event(ts(0), hsd_data(data[0], np.arange(8), None))
        ended(w, 99)
    told = open_source(tmp_path).index.nodes["/hsd"].attrs
    assert told["config.user.fex.ymin"] == [0, 1]
    assert told["config.name"] == "same"
    assert told["config.gates"] == [0, 1, 2]


# digitizers ----------------------------------------------------------------------------------------------------------


def test_digitizer_flags_and_order_of_streams(tmp_path: Path) -> None:
    """FEX may come before raw; overflow bits are kept."""
    names = hsd_names((2, 0, 0), 0, 1)
    raw, fex = np.arange(8, dtype="u2"), np.array([0x8004, 0x8000, 0x8000, 0x8000, 1, 2, 3, 4], "u2")
    header = np.array([0x01300000, 0], np.uint32)
    with writer(tmp_path) as w:
        begin(w, names)
        for payload in (
            hsd_stream(0, raw, 1) + hsd_stream(1, fex, 4),
            hsd_stream(1, fex, 4) + hsd_stream(0, raw, 1),
        ):
            w.event(
                ts(int(w.offset)), shapes_data(names, {"eventHeader": header, "chan00": np.frombuffer(payload, "u1")})
            )
        ended(w, 10**7)
    values = read_all(open_source(tmp_path))["/hsd"]
    assert values["hsd.raw.waveforms"].tolist() == list(range(8)) * 2
    assert values["hsd.raw.windows.start"].tolist() == [4, 4]
    assert values["hsd.raw.windows.samples"].tolist() == [1, 2, 3, 4] * 2
    assert values["hsd.raw.stream_flags"].tolist() == [1 | 4 << 3] * 2


def test_digitizer_without_event_header(tmp_path: Path) -> None:
    """A configuration that lacks the header which tells the streams: an error, or bytes; never made-up windows."""
    names = declare("hsd", "hsd", "raw", (2, 0, 0), {"chan00": ("uint8", 1)}, id=1)
    payload = np.frombuffer(hsd_stream(0, np.arange(8, dtype="u2")), "u1")
    with writer(tmp_path) as w:
        begin(w, names)
        for i in range(3):
            w.event(ts(i), shapes_data(names, {"chan00": payload}))
        ended(w, 99)
    source = open_source(tmp_path)
    try:
        values = read_all(source)["/hsd"]
    except FormatError:
        return
    assert values["hsd.raw.chan00"].tobytes() == payload.tobytes() * 3
    assert "hsd.raw.windows.start" not in values


def test_configure_alone(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        w.configure(timestamp(1, 0), [GMD])
    source = open_source(tmp_path)
    assert source.index.events == 0
    assert source.index.detectors.keys() == {"gmd"}
    assert CONFIGURE == 2
