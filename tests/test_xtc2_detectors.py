"""Detectors of many segments and of different rates; steps, slow variables, configuration; digitizers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from xtc2_runs import (
    CAM,
    EPICS,
    GMD,
    INFO,
    PEAKS,
    SCAN,
    begin,
    cam,
    ended,
    gmd,
    hsd_data,
    hsd_names,
    hsd_stream,
    image_of,
    read,
    read_all,
    simple_run,
    ts,
    writer,
)

import lcls_dask
from lcls_dask.errors import FormatError
from lcls_dask.formats import open_source
from lcls_dask.formats.xtc2.events import Events
from lcls_dask.formats.xtc2.layout import BEGIN_STEP, CONFIGURE, SLOW_UPDATE
from lcls_dask.formats.xtc2.writer import declare, shapes_data, timestamp

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


def test_opening_reads_one_slow_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be very many: they are read when they are asked for."""
    with writer(tmp_path) as w:
        begin(w, GMD, EPICS)
        for i in range(50):
            w.transition(SLOW_UPDATE, ts(i) - 5)
            w.transition(SLOW_UPDATE, ts(i) - 4, shapes_data(EPICS, {"HX2:GCC:01:PMON": i / 8, "T.RBV": i}))
            w.event(ts(i), gmd(float(i)))
        ended(w, 99)
    seen: list[int] = []
    original = Events.transition

    def counting(self: Events, stream: Any, place: Any) -> Any:
        seen.append(place.service)
        return original(self, stream, place)

    monkeypatch.setattr(Events, "transition", counting)
    run = lcls_dask.open_run(tmp_path)
    run.info()
    run.dataset()
    assert "/epics" in run.index.nodes
    assert seen.count(SLOW_UPDATE) == 1
    assert run.dataset(group="/epics")["T.RBV"].values.tolist() == list(range(50))


def test_updates_that_carry_nothing(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        begin(w, GMD, EPICS)
        for i in range(3):
            w.transition(SLOW_UPDATE, ts(i) - 5)
            w.event(ts(i), gmd(float(i)))
        ended(w, 99)
    assert set(open_source(tmp_path).index.nodes) == {"/", "/gmd"}


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
