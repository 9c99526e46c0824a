"""The real LCLS files give what their provenance says psana gives."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from xtc2_runs import read, read_all

from lcls_dask.formats import RunSource, open_source

SAMPLE = 1 / (6.4e9 * 13 / 14)


@pytest.fixture
def hsd(real_data: Path) -> RunSource:
    return open_source(real_data / "lcls2" / "test_hsd.xtc2")


@pytest.fixture
def jungfrau(real_data: Path) -> RunSource:
    return open_source(real_data / "lcls2" / "test_jungfrau05M_calib.xtc2")


@pytest.fixture
def mixed(real_data: Path) -> RunSource:
    return open_source(real_data / "lcls2" / "mixed_rate")


def test_hsd_events(hsd: RunSource) -> None:
    stamps = read(hsd, "timestamp")
    assert (len(stamps), int(stamps[0]), int(stamps[-1])) == (84, 4061172331848056614, 4061172710005178662)
    assert hsd.index.state == "cut"  # no EndRun, and written long ago
    assert set(hsd.index.detectors) == {"xpphsd", "xppts"}
    assert hsd.index.detectors["xpphsd"].segments == (0, 1)
    assert hsd.index.detectors["xpphsd"].algorithms["hsd"] == "1.2.3"
    assert read(hsd, "xppts.ts.data").shape == (84, 1, 256)
    assert read(hsd, "xpphsd.hsd.eventHeader").shape == (84, 2, 2)
    assert any("430884" in reason for reason in hsd.index.attrs["unread"])


def test_hsd_windows(hsd: RunSource) -> None:
    def column(name: str) -> np.ndarray:
        return read(hsd, f"xpphsd.hsd.windows.{name}", "/xpphsd")

    offset = column("offset")
    assert offset.size == 84 * 2 + 1
    assert offset[-1] == 504
    for segment, lengths in ((0, [72, 64, 24]), (1, [72, 68, 24])):
        mine = slice(offset[segment], offset[segment + 1])
        assert column("start")[mine].tolist() == [280, 504, 752]
        assert column("length")[mine].tolist() == lengths
    assert column("time")[0] == pytest.approx(47.115385e-9, abs=1e-15)
    edges = column("sample_offset")
    np.testing.assert_array_equal(np.diff(edges), column("length"))
    assert column("samples").size == edges[-1]
    assert hsd.index.nodes["/xpphsd"].variables["xpphsd.hsd.windows.time"].attrs["units"] == "s"


def test_hsd_waveforms(hsd: RunSource) -> None:
    lengths = np.diff(read(hsd, "xpphsd.hsd.waveforms.offset", "/xpphsd"))
    assert np.unique(lengths).tolist() == [0, 800]
    assert (lengths == 800).sum() == 40
    samples = read(hsd, "xpphsd.hsd.waveforms", "/xpphsd")
    assert (samples.dtype, samples.min(), samples.max()) == (np.uint16, 1986, 3124)
    attrs = hsd.index.nodes["/xpphsd"].variables["xpphsd.hsd.waveforms"].attrs
    assert attrs["sample_interval"] == pytest.approx(SAMPLE, rel=1e-15)


def test_jungfrau(jungfrau: RunSource) -> None:
    index = jungfrau.index
    assert (index.experiment, index.run, index.events) == ("mfx101332224", 7, 2)
    assert read(jungfrau, "timestamp").tolist() == [4776162079372773723, 4776162079381031262]
    assert index.detectors["jungfrau"].serial.startswith("8000000020000-230920-20004002c")
    frames = index.nodes["/"].variables["jungfrau.raw.raw"]
    assert frames.shape == (2, 1, 512, 1024)
    assert frames.dims == ("event", "jungfrau.segment", "jungfrau.row", "jungfrau.column")
    assert read(jungfrau, "jungfrau.raw.frame_cnt").tolist()[0] == 7665
    assert index.attrs["steps"] == 2
    raw = read(jungfrau, "jungfrau.raw.raw")
    data = Path(jungfrau.ref.path).read_bytes()
    for event in range(2):  # the pixels are in the file, as they are
        assert data.count(raw[event].tobytes()) == 1


def test_mixed_rate_presence(mixed: RunSource) -> None:
    index = mixed.index
    assert (index.experiment, index.run, index.events, index.state) == ("xpptut15", 14, 100, "ended")
    stamps = read(mixed, "timestamp")
    assert (int(stamps[0]), int(stamps[-1])) == (4294967300, 4294967402)
    assert set(index.detectors) == {"xppcspad", "xpphsd"}
    expected = np.zeros((100, 4), bool)
    expected[:, :2] = True
    expected[::10, 2:] = True
    for name in ("xpphsd.raw", "xpphsd.fex", "xppcspad.raw"):
        np.testing.assert_array_equal(read(mixed, f"{name}.present"), expected)
        assert not read(mixed, f"{name}.damage").any()
    cspad = read(mixed, "xppcspad.raw.arrayRaw")
    assert cspad.shape == (100, 4, 3, 6)
    assert not cspad[~expected].any()  # absent values are zeros
    assert read(mixed, "xppcspad.segment").tolist() == [0, 1, 2, 3]


def test_mixed_rate_values(mixed: RunSource) -> None:
    present = read(mixed, "xpphsd.fex.present")
    text = read(mixed, "xpphsd.fex.charStrFex")
    assert set(text[present]) == {"Test String"}
    assert set(text[~present]) == {""}
    enum = mixed.index.nodes["/"].variables["xpphsd.fex.enumFex1"]
    assert dict(zip(enum.attrs["flag_meanings"].split(), enum.attrs["flag_values"], strict=True)) == {
        "HighGain": -2,
        "LowGain": 5,
    }
    assert set(read(mixed, "xpphsd.fex.enumFex1")[present]) == {-2}
    # the digitizer's "raw" 0.0.0 is no format with windows
    assert not any("windows" in name for name in mixed.index.nodes["/xpphsd"].variables)


def test_mixed_rate_slow(mixed: RunSource) -> None:
    values = read_all(mixed)
    assert values["/steps"]["motor1"].tolist() == [41.0]
    assert values["/steps"]["motor2"].tolist() == [42.0]
    epics = values["/epics"]
    assert set(epics["HX2:DVD:GCC:01:PMON"]) == {41.0}
    assert set(epics["HX2:DVD:GPI:01:PMON"]) == {"Test String"}
    first = np.searchsorted(values["/"]["timestamp"], epics["timestamp"][0])
    assert first == 25
    attrs = mixed.index.nodes["/epics"].variables["HX2:DVD:GPI:01:PMON"].attrs
    assert (attrs["pv"], attrs["description"]) == ("HX2:DVD:GPI:01:PMON", "hello2")
    assert (values["/"]["step"] == 0).all()


def test_smalldata_gives_the_same(mixed: RunSource, real_data: Path, tmp_path: Path) -> None:
    for path in (real_data / "lcls2" / "mixed_rate").glob("*.xtc2"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    without = read_all(open_source(tmp_path))
    for path, node in read_all(mixed).items():
        for name, values in node.items():
            np.testing.assert_array_equal(values, without[path][name], err_msg=f"{path} {name}")


def test_one_stream_of_a_run(real_data: Path) -> None:
    source = open_source(real_data / "lcls2" / "mixed_rate" / "xpptut15-r0014-s001-c000.xtc2")
    assert source.index.events == 10
    assert source.index.detectors["xpphsd"].segments == (2, 3)


@pytest.mark.parametrize("name", ["test_hsd.xtc2", "test_jungfrau05M_calib.xtc2", "mixed_rate"])
def test_every_node_opens(real_data: Path, name: str) -> None:
    path = str(real_data / "lcls2" / name)
    with xr.open_datatree(path, engine="lcls", chunks={}) as tree:
        for node in tree.subtree:
            for variable in node.dataset.variables.values():
                assert variable.attrs["long_name"], variable
                assert "units" in variable.attrs or variable.dtype.kind == "M"
            node.dataset.load()
        attrs = tree["/"].attrs
        assert {"experiment", "run", "state", "snapshot"} <= attrs.keys()
        assert re.fullmatch("[0-9a-f]{32}", attrs["snapshot"])


@pytest.mark.parametrize("name", ["test_hsd.xtc2", "test_jungfrau05M_calib.xtc2", "mixed_rate"])
def test_units_are_on_every_variable(real_data: Path, name: str) -> None:
    index = open_source(real_data / "lcls2" / name).index
    for node in index.nodes.values():
        for variable in node.variables.values():
            assert variable.attrs.get("long_name"), variable.name
            assert "units" in variable.attrs or variable.dtype.kind == "M", variable.name
