"""What a datagram says: its forms, damage, strings, names, ragged arrays, shapes that change."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from xtc2_runs import (
    CAM,
    EPICS,
    GMD,
    NOTE,
    SCAN,
    Array,
    begin,
    cam,
    ended,
    energies,
    gmd,
    image_of,
    read,
    read_all,
    ts,
    writer,
)

import lcls_dask
from lcls_dask import cli
from lcls_dask.errors import FormatError
from lcls_dask.formats import open_source
from lcls_dask.formats.xtc2.layout import BEGIN_STEP, SLOW_UPDATE
from lcls_dask.formats.xtc2.writer import datagram, declare, parent, shapes_data, xtc

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


def test_event_of_another_shape_is_told_of_as_documented(tmp_path: Path) -> None:
    """docs/bad-data.md: reading that event raises and names it, reading the others does not, `validate` reports it."""
    with writer(tmp_path) as w:
        begin(w, CAM, GMD)
        for i in range(1000):
            w.event(ts(i), cam(image_of(i, (4, 6) if i != 901 else (2, 3))), gmd(float(i)))
        ended(w, 10**6)
    run = lcls_dask.open_run(tmp_path)
    with pytest.raises(FormatError) as told:
        run.dataset("cam.raw.image").compute()
    message = str(told.value)
    assert re.fullmatch(
        rf"{re.escape(str(w.path))}: event {ts(901)} at byte \d+: an array's shape is not that of the run's first "
        r"events; leave this event out \(events=\) \(byte \d+\); lcls-dask validate lists all such events",
        message,
    )
    before = run.dataset("cam.raw.image", events=slice(0, 901))["cam.raw.image"]
    np.testing.assert_array_equal(before.values[900, 0], image_of(900))
    assert run.dataset("gmd.raw.energy")["gmd.raw.energy"].values[901] == 901.0  # other detectors of the event
    report = run.validate()
    assert not report.ok
    (finding,) = report.findings
    assert (finding.kind, finding.where, finding.fatal) == ("corrupt", "cam.raw.image", True)
    assert finding.message == f"event 901 ({ts(901)}): the array's shape is not (4, 6); reading it raises"
    assert cli.main(["validate", str(tmp_path)]) == 1


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
