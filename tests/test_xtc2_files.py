"""Which file an event is in: chunks, several runs, order of time, smalldata, runs in progress."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from xtc2_runs import (
    CAM,
    CHUNK,
    GMD,
    INFO,
    SCAN,
    begin,
    cam,
    ended,
    energies,
    full_run,
    gmd,
    image_of,
    read,
    read_all,
    same,
    simple_run,
    ts,
    writer,
)

from lcls_dask.errors import FormatError, LclsError, RunNotFoundError, SeveralRunsError
from lcls_dask.formats import open_source
from lcls_dask.formats.xtc2.layout import BEGIN_STEP, ENABLE, UNCONFIGURE
from lcls_dask.formats.xtc2.writer import StreamWriter, datagram, declare, shapes_data

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
