"""CXI, smalldata and LCLStreamer's files, each as its programs write it, in the data model."""

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcls_dask.errors import FormatError, RunNotFoundError, SelectionError, SeveralRunsError, SnapshotError
from lcls_dask.formats.hdf5 import Hdf5Source, open_hdf5
from lcls_dask.formats.hdf5.clock import from_digits, from_floats
from lcls_dask.formats.hdf5.columns import Held, Joined, Packed, Taken, joined, offsets_of
from lcls_dask.formats.source import SourceRef
from lcls_dask.model import LCLS_EPOCH, time_of

SECONDS = 1_150_000_000  # since 1990: in June 2026


def stamps(count: int, first: int = 0) -> np.ndarray[Any, Any]:
    """psana's timestamps of pulses that are 1077 ns apart."""
    return (np.uint64(SECONDS) << np.uint64(32)) + np.arange(first, first + count, dtype=np.uint64) * np.uint64(1077)


def read(source: Hdf5Source, path: str, name: str) -> np.ndarray[Any, Any]:
    return source.read(path, name, slice(0, source.index.nodes[path].variables[name].shape[0]))


def opened(path: Path) -> Hdf5Source:
    """A source, after a check that all of its index agrees with what it reads."""
    source = open_hdf5(SourceRef(str(path)))
    for node, members in source.index.nodes.items():
        members.sizes  # noqa: B018  (raises where dimensions disagree)
        lengths: dict[str, int] = {}
        for name, variable in members.variables.items():
            values = read(source, node, name)
            assert (values.shape, values.dtype) == (variable.shape, variable.dtype), name
            assert values.flags.c_contiguous
            assert {"units", "long_name"} <= variable.attrs.keys()
            for dim, size in zip(variable.dims, variable.shape, strict=True):
                assert lengths.setdefault(dim, size) == size, (node, dim)
            rows = np.array([variable.shape[0] - 1, 0], np.int64) if variable.shape[0] else np.empty(0, np.int64)
            np.testing.assert_array_equal(source.read(node, name, rows), values[rows])
    assert source.index.state == "ended"
    assert len(source.index.snapshot) == 32
    return source


# --- CXI


def write_cxi(path: Path, panels: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    counts = np.array([3, 0, 5, 1], np.int32)
    images = rng.normal(size=(4, 2, 8, 6) if panels else (4, 16, 6)).astype("f4")
    x = np.zeros((4, 5), "f4")
    y = np.zeros((4, 5), "f4")
    for event, count in enumerate(counts):
        x[event, :count] = rng.uniform(0, 6, count)
        y[event, :count] = rng.uniform(0, 16, count)
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 140
        file.create_dataset("entry_1/data_1/data", data=images, chunks=(1, *images.shape[1:]), compression="gzip")
        file["entry_1/instrument_1/detector_1/data"] = h5py.SoftLink("/entry_1/data_1/data")
        file["entry_1/data_1/mask"] = np.ones((16, 6), "i1")
        file["entry_1/data_1/powderHits"] = images.max(axis=0).reshape(16, 6)
        file["entry_1/result_1/nPeaks"] = counts
        file["entry_1/result_1/peakXPosRaw"] = x
        file["entry_1/result_1/peakYPosRaw"] = y
        file["LCLS/photon_energy_eV"] = np.full(4, 9500.0)
        file["LCLS/detector_1/EncoderValue"] = np.full(4, -450.0)
        file["LCLS/machineTime"] = np.full(4, 1_600_000_000)
        file["LCLS/machineTimeNanoSeconds"] = np.arange(4) * 8_333_333
    return {"images": images, "x": x, "y": y, "counts": counts}


def test_cxi(tmp_path: Path) -> None:
    truth = write_cxi(tmp_path / "cxily1121_r0021.cxi")
    source = opened(tmp_path / "cxily1121_r0021.cxi")
    assert (source.index.experiment, source.index.run, source.index.events) == ("cxily1121", 21, 4)
    root = source.index.nodes["/"].variables
    image = root["detector_1.data.data"]
    assert image.dims == ("event", "detector_1.row", "detector_1.column")
    assert image.codecs[-1]["name"] == "numcodecs.zlib"
    assert root["LCLS.photon_energy_eV"].attrs["units"] == "eV"
    np.testing.assert_array_equal(read(source, "/", "detector_1.data.data"), truth["images"])
    np.testing.assert_array_equal(read(source, "/", "detector_1.result.peakXPosRaw"), truth["x"])
    assert read(source, "/", "detector_1.LCLS.EncoderValue").tolist() == [-450.0] * 4
    assert str(read(source, "/", "time")[1]) == "2020-09-13T12:26:40.008333333"

    node = source.index.nodes["/detector_1"].variables
    assert node["detector_1.data.mask"].dims == ("detector_1.row", "detector_1.column")
    assert node["detector_1.data.powderHits"].dims == ("detector_1.row", "detector_1.column")
    assert node["detector_1.data.data"].dims[0] == "detector_1.event"
    assert read(source, "/detector_1", "detector_1.peaks.offset").tolist() == [0, 3, 3, 8, 9]
    flat = np.concatenate([row[:n] for row, n in zip(truth["y"], truth["counts"], strict=True)])
    np.testing.assert_array_equal(read(source, "/detector_1", "detector_1.peaks.peakYPosRaw"), flat)
    assert node["detector_1.peaks.peakXPosRaw"].dims == ("detector_1.peaks.index",)
    assert "hdf5_unread" not in source.index.attrs
    assert source.index.nodes["/"].attrs["cxi_version"] == 140


def test_cxi_panels_and_no_timestamps(tmp_path: Path) -> None:
    truth = write_cxi(tmp_path / "a.cxi", panels=True)
    with h5py.File(tmp_path / "a.cxi", "a") as file:
        del file["LCLS/machineTime"]
        file["entry_1/result_1/nPeaks"][1] = 9
    source = opened(tmp_path / "a.cxi")
    assert source.index.nodes["/"].variables["detector_1.data.data"].dims == (
        "event", "detector_1.segment", "detector_1.row", "detector_1.column",
    )  # fmt: skip
    assert read(source, "/", "detector_1.segment").tolist() == [0, 1]
    np.testing.assert_array_equal(read(source, "/", "detector_1.data.data"), truth["images"])
    assert "timestamp" not in source.index.nodes["/"].variables
    assert (source.index.experiment, source.index.run) == ("unknown", 0)
    kinds = {finding.kind for finding in source.validate()}
    assert kinds == {"missing", "corrupt"}  # no timestamps; more peaks counted than there is room for
    assert read(source, "/detector_1", "detector_1.peaks.offset").tolist() == [0, 3, 8, 13, 14]


# --- smalldata


def write_smalldata(path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    lengths = np.array([2, 0, 3, 1, 0, 4])
    truth = {
        "lengths": lengths,
        "times": rng.uniform(0, 1, lengths.sum()),
        "image": rng.integers(0, 99, (6, 12, 10)).astype("u2"),
        "hits": rng.uniform(0, 1, (lengths.sum(), 2)),
    }
    with h5py.File(path, "w") as file:
        file["timestamp"] = stamps(6)
        file["gmd/energy"] = np.arange(6.0)
        file["gmd/energy"].attrs["units"] = "mJ"
        file.create_dataset("epix/ROI_0", data=truth["image"], chunks=(2, 12, 10), compression="gzip", shuffle=True)
        file["epix/ROI_1"] = truth["image"][:, :3, :3]
        file["epix/azav"] = np.arange(6 * 200.0).reshape(6, 200)
        file["hsd/var_peaks/times"] = truth["times"]
        file["hsd/var_peaks/pairs"] = truth["hits"]
        file["hsd/var_peaks_len"] = lengths
        file["mcp/tof"] = truth["times"]
        file["mcp/tof_len"] = lengths
        file["broken/flat"] = np.arange(7)
        file["broken/flat_len"] = lengths
        file["Sums/epix_calib"] = np.ones((12, 10))
        file["UserDataCfg/epix/bounds"] = np.arange(6)  # as long as there are events, by chance
        file["UserDataCfg/epix/mask"] = np.ones((12, 10), bool)
        file["UserDataCfg/epix/name"] = "epix100"
        file["scan/lxt"] = np.array([1.0, 1.0, 2.5, 2.5, 2.5, 1.0])
        file["lightStatus/xray"] = np.array([True, True, False, True, True, True])
        file["evr/state"] = np.array([0, 1, 0, 1, 0, 1], h5py.enum_dtype({"OFF": 0, "ON": 1}, "i4"))
        file["tag"] = np.array([b"a", b"bb", b"ccc", b"a", b"bb", b"ccc"])
        file["note"] = np.array(["ä", "", "zwei", "c", "d", "e"], dtype=h5py.string_dtype())
        file["names/pair"] = np.array([["a", "öö"]] * 6, dtype=h5py.string_dtype())
        file.create_dataset("things/vlen", (6,), h5py.vlen_dtype("i4"))
        file["things/pair"] = np.zeros(6, dtype=[("a", "i4"), ("b", "f4")])
        file["integrated/timestamp"] = stamps(6)[[1, 4]]
        file["integrated/andor/full"] = np.arange(2 * 5 * 7.0).reshape(2, 5, 7) + 1
    return truth


def test_smalldata(tmp_path: Path) -> None:
    truth = write_smalldata(tmp_path / "tmox42619_Run0014.h5")
    source = opened(tmp_path / "tmox42619_Run0014.h5")
    assert (source.index.experiment, source.index.run, source.index.events) == ("tmox42619", 14, 6)
    root = source.index.nodes["/"].variables
    np.testing.assert_array_equal(read(source, "/", "timestamp"), stamps(6))
    np.testing.assert_array_equal(read(source, "/", "time"), time_of(stamps(6)))
    assert root["timestamp"].attrs["timestamp_exact"] is True
    assert root["gmd.energy"].attrs["units"] == "mJ"
    assert root["epix.ROI_0"].dims == ("event", "epix.row", "epix.column")
    assert root["epix.ROI_1"].dims == ("event", "epix.ROI_1.dim_0", "epix.ROI_1.dim_1")
    assert root["epix.azav"].dims == ("event", "epix.azav.dim_0")
    assert [codec["name"] for codec in root["epix.ROI_0"].codecs] == ["bytes", "numcodecs.shuffle", "numcodecs.zlib"]
    np.testing.assert_array_equal(read(source, "/epix", "epix.ROI_0"), truth["image"])
    assert read(source, "/", "lightStatus.xray").dtype == bool
    assert root["evr.state"].attrs["flag_meanings"] == ["OFF", "ON"]
    assert read(source, "/", "evr.state").tolist() == [0, 1, 0, 1, 0, 1]
    assert read(source, "/", "tag").tolist() == ["a", "bb", "ccc", "a", "bb", "ccc"]
    assert read(source, "/", "names.pair").tolist() == [["a", "öö"]] * 6
    assert read(source, "/", "note").tolist() == ["ä", "", "zwei", "c", "d", "e"]

    offsets = [0, 2, 2, 5, 6, 6, 10]
    assert read(source, "/hsd", "hsd.var_peaks.offset").tolist() == offsets
    np.testing.assert_array_equal(read(source, "/hsd", "hsd.var_peaks.times"), truth["times"])
    np.testing.assert_array_equal(read(source, "/hsd", "hsd.var_peaks.pairs"), truth["hits"])
    assert source.index.nodes["/hsd"].variables["hsd.var_peaks.times"].dims == ("hsd.var_peaks.index",)
    assert read(source, "/mcp", "mcp.tof.offset").tolist() == offsets
    np.testing.assert_array_equal(read(source, "/mcp", "mcp.tof"), truth["times"])
    assert read(source, "/", "mcp.tof_len").tolist() == truth["lengths"].tolist()

    # nothing is dropped without a word
    assert source.index.nodes["/broken"].attrs["flat"] == list(range(7))
    assert "add up to 10" in source.index.attrs["hdf5_remarks"]["/broken/flat"]
    assert set(source.index.attrs["hdf5_unread"]) == {"/things/vlen", "/things/pair"}
    assert source.index.nodes["/Sums"].variables["Sums.epix_calib"].shape == (12, 10)
    settings = source.index.nodes["/UserDataCfg"]
    assert settings.attrs == {"epix.bounds": [0, 1, 2, 3, 4, 5], "epix.name": "epix100"}
    assert settings.variables["UserDataCfg.epix.mask"].dtype == bool

    assert read(source, "/", "step").tolist() == [0, 0, 1, 1, 1, 2]
    assert read(source, "/steps", "lxt").tolist() == [1.0, 2.5, 1.0]
    np.testing.assert_array_equal(read(source, "/steps", "timestamp"), stamps(6)[[0, 2, 5]])

    # a detector with timestamps of its own: all of it in its node, zeros and a mask in /
    assert read(source, "/integrated", "timestamp").tolist() == stamps(6)[[1, 4]].tolist()
    assert read(source, "/", "integrated.present").tolist() == [False, True, False, False, True, False]
    full = read(source, "/", "integrated.andor.full")
    assert full.shape == (6, 5, 7)
    np.testing.assert_array_equal(full[[1, 4]], read(source, "/integrated", "integrated.andor.full"))
    assert not full[[0, 2, 3, 5]].any()

    kinds = [finding.kind for finding in source.validate()]
    assert sorted(kinds) == ["corrupt", "missing", "missing"]


def test_a_group_with_events_that_the_file_has_not(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["timestamp"] = stamps(3)
        file["gmd/energy"] = np.arange(3.0) + 1
        file["slow/timestamp"] = np.array([stamps(1)[0], stamps(9)[8]])
        file["slow/x"] = np.array([7, 8])
    source = opened(tmp_path / "a.h5")
    assert source.index.events == 4
    assert read(source, "/", "timestamp").tolist() == [*stamps(3).tolist(), int(stamps(9)[8])]
    assert read(source, "/", "gmd.energy").tolist() == [1, 2, 3, 0]
    assert read(source, "/", "gmd.present").tolist() == [True, True, True, False]
    assert read(source, "/", "slow.x").tolist() == [7, 0, 0, 8]
    assert read(source, "/gmd", "gmd.energy").tolist() == [1, 2, 3]


def test_event_time_of_lcls_1(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "xpplq1234_Run12.h5", "w") as file:
        file["event_time"] = np.uint64(1_500_000_000) << np.uint64(32) | np.arange(3, dtype=np.uint64)
        file["ipm2/sum"] = np.arange(3.0)
    source = opened(tmp_path / "xpplq1234_Run12.h5")
    assert str(read(source, "/", "time")[2]) == "2017-07-14T02:40:00.000000002"
    assert source.index.nodes["/"].variables["timestamp"].attrs["timestamp_exact"] is True


def test_psana_joins_the_files_of_its_servers(tmp_path: Path) -> None:
    """The layout of psana's `SmallData.join_files`, with its -99999 and its filler where a server saw nothing."""
    lengths = [np.array([1, 2]), np.array([3])]
    for part, (first, count) in enumerate([(0, 2), (2, 1), (3, 2)]):
        with h5py.File(tmp_path / f"xpptut15_r14_part{part}.h5", "w") as file:
            file["timestamp"] = stamps(count, first)
            if part < 2:
                file["det/var_x/a"] = np.arange(lengths[part].sum()) + 10 * part
                file["det/var_x_len"] = lengths[part]
    with h5py.File(tmp_path / "xpptut15_r14.h5", "w") as file:
        for name, shapes in {"timestamp": (2, 1, 2), "det/var_x/a": (3, 3, 2), "det/var_x_len": (2, 1, 2)}.items():
            dtype = np.uint64 if name == "timestamp" else np.int64
            layout = h5py.VirtualLayout((sum(shapes),), dtype)
            place = 0
            for part, size in enumerate(shapes):
                if name == "timestamp" or part < 2:
                    source = h5py.VirtualSource(f"xpptut15_r14_part{part}.h5", name, (size,))
                    layout[place : place + size] = source
                place += size
            file.create_virtual_dataset(name, layout, fillvalue=0 if name == "timestamp" else -99999)
    for where in (tmp_path, tmp_path / "xpptut15_r14.h5"):
        joined_run = opened(where)
        assert (joined_run.index.experiment, joined_run.index.run) == ("xpptut15", 14)
        np.testing.assert_array_equal(read(joined_run, "/", "timestamp"), stamps(5))
        assert read(joined_run, "/det", "det.var_x.offset").tolist() == [0, 1, 3, 6, 6, 6]
        assert read(joined_run, "/det", "det.var_x.a").tolist() == [0, 1, 2, 10, 11, 12]


def test_a_real_psana_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The referee writes the file: psana's own SmallData."""
    monkeypatch.setenv("PS_PARALLEL", "none")
    smalldata = pytest.importorskip("psana.smalldata", reason="psana is not installed: its files are NOT read")
    written = smalldata.SmallData()
    written.setup_parms(filename=str(tmp_path / "psana_r0007.h5"), batch_size=2, cache_size=3)
    truth = []
    for stamp in stamps(7).tolist():
        values = {
            "gmd": {"energy": float(stamp % 97)},
            "andor": {"image": np.full((3, 4), stamp % 11, "f4")},
            "hsd": {"var_hits": {"t": list(range(stamp % 4)), "a": [2.5] * (stamp % 4)}},
        }
        truth.append(values)
        written.event(stamp, values)
    written.done()
    source = opened(tmp_path / "psana_r0007.h5")
    np.testing.assert_array_equal(read(source, "/", "timestamp"), stamps(7))
    assert read(source, "/", "gmd.energy").tolist() == [value["gmd"]["energy"] for value in truth]
    np.testing.assert_array_equal(read(source, "/", "andor.image"), [value["andor"]["image"] for value in truth])
    flat = [t for value in truth for t in value["hsd"]["var_hits"]["t"]]
    assert read(source, "/hsd", "hsd.var_hits.t").tolist() == flat


# --- LCLStreamer


def write_batch(
    path: Path, order: list[int], *, timestamps: Any = None, leave_out: bool = False, **options: Any
) -> None:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 999, (20, 2, 16, 12)).astype("u2")[order]
    with h5py.File(path, "w") as file:
        values = stamps(20)[order] if timestamps is None else timestamps
        if values.dtype.kind == "S":
            file.create_dataset("timestamp", data=values)
        else:
            file.create_dataset("timestamp", data=values, chunks=(1,), **options)
        file.create_dataset("jungfrau.raw.raw", data=images, chunks=(1, 2, 16, 12), **options)
        if not leave_out:
            file.create_dataset("gmd.energy", data=np.arange(20.0)[order], chunks=(1,), **options)
        file.create_dataset("gmd", data=np.arange(20)[order], chunks=(1,), **options)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True}])
def test_the_files_of_all_ranks_are_one_run(tmp_path: Path, options: dict[str, Any]) -> None:
    orders = {"lcls_r0_0": [0, 3, 5], "lcls_r0_1": [6, 9], "lcls_r1_0": [1, 2, 4, 8], "lcls_r10_0": [7]}
    for name, order in orders.items():
        write_batch(tmp_path / f"{name}.h5", order, **options)
    source = opened(tmp_path)
    np.testing.assert_array_equal(read(source, "/", "timestamp"), stamps(10))
    assert read(source, "/", "gmd.energy").tolist() == list(range(10))
    assert read(source, "/", "gmd.value").tolist() == list(range(10))  # a node may not be called as a variable
    images = np.random.default_rng(5).integers(0, 999, (20, 2, 16, 12)).astype("u2")[:10]
    variable = source.index.nodes["/"].variables["jungfrau.raw.raw"]
    assert variable.dims == ("event", "jungfrau.segment", "jungfrau.row", "jungfrau.column")
    np.testing.assert_array_equal(read(source, "/", "jungfrau.raw.raw"), images)
    assert source.index.detectors["jungfrau"].segments == (0, 1)
    if options:
        from lcls_dask.formats.codecs import decode

        assert variable.chunk == 1
        for event in range(10):
            payload = source.read_encoded("/", "jungfrau.raw.raw", event)
            assert payload is not None
            found = decode(variable.codecs, payload, variable.dtype).reshape(2, 16, 12)
            np.testing.assert_array_equal(found, images[event])
        assert source.index.nodes["/"].variables["gmd.energy"].codecs == ()  # a chunk of 8 bytes helps nobody
    assert not list(source.validate())


def test_a_rank_without_a_field(tmp_path: Path) -> None:
    write_batch(tmp_path / "r0_0.h5", [0, 2])
    write_batch(tmp_path / "r1_0.h5", [1, 3], leave_out=True)
    source = opened(tmp_path)
    assert read(source, "/", "gmd.energy").tolist() == [0, 0, 2, 0]
    assert read(source, "/", "gmd.present").tolist() == [True, False, True, False]


def test_rounded_timestamps_say_so(tmp_path: Path) -> None:
    write_batch(tmp_path / "x_r0_0.h5", [0, 1, 2], timestamps=stamps(3).astype("f8"))
    source = opened(tmp_path / "x_r0_0.h5")
    attrs = source.index.nodes["/"].variables["timestamp"].attrs
    assert (attrs["timestamp_exact"], attrs["timestamp_resolution_ns"]) == (False, 1024)
    error = read(source, "/", "timestamp").astype("i8") - stamps(3).astype("i8")
    assert np.abs(error).max() <= 512
    assert "damage" in {finding.kind for finding in source.validate()}


def test_timestamps_as_text_are_exact(tmp_path: Path) -> None:
    seconds, nanoseconds = 1_600_000_000, np.array([5, 12_345_678, 987_654_321])
    digits = np.array([f"{seconds}{ns}" for ns in nanoseconds], dtype="S")
    write_batch(tmp_path / "x_r0_0.h5", [0, 1, 2], timestamps=digits)
    source = opened(tmp_path / "x_r0_0.h5")
    expected = np.uint64(seconds - LCLS_EPOCH) << np.uint64(32) | nanoseconds.astype(np.uint64)
    assert read(source, "/", "timestamp").tolist() == expected.tolist()
    assert str(read(source, "/", "time")[0]) == "2020-09-13T12:26:40.000000005"
    assert source.index.nodes["/"].variables["timestamp"].attrs["timestamp_exact"] is True


@given(seconds=st.integers(1_262_304_000, 2_145_916_800), nanoseconds=st.integers(0, 999_999_999), padded=st.booleans())
def test_any_time_as_text(seconds: int, nanoseconds: int, padded: bool) -> None:
    exact = (seconds - LCLS_EPOCH) << 32 | nanoseconds
    texts = [str(exact)] if exact >= 2_200_000_000_000_000_000 else []
    texts.append(f"{seconds}{nanoseconds:09d}" if padded else f"{seconds}{nanoseconds}")
    for text in texts:
        assert from_digits(np.array([text]))[0] == exact


@given(seconds=st.integers(1_262_304_000, 2_145_916_800), nanoseconds=st.integers(0, 999_999_999))
def test_any_time_as_float_is_near(seconds: int, nanoseconds: int) -> None:
    exact = (seconds - LCLS_EPOCH) * 1_000_000_000 + nanoseconds
    forms = [float(f"{seconds}{nanoseconds:09d}"), seconds + nanoseconds * 1e-9]
    if seconds - LCLS_EPOCH > 700_000_000:
        forms.append(float((seconds - LCLS_EPOCH) << 32 | nanoseconds))
    for form in forms:
        found, resolution, kind = from_floats(np.array([form]))
        error = int(time_of(found).view("i8")[0]) - LCLS_EPOCH * 1_000_000_000 - exact
        assert abs(error) <= resolution, kind


def test_no_timestamp(tmp_path: Path) -> None:
    for text in ("yesterday", "12", ""):
        with pytest.raises(ValueError, match="is not a timestamp"):
            from_digits(np.array([text]))
    with pytest.raises(ValueError, match="finite"):
        from_floats(np.array([np.nan]))


# --- what is common


def test_the_snapshot_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_smalldata(path)
    source = opened(path)
    same = pickle.loads(pickle.dumps(source))
    assert same.index.snapshot == source.index.snapshot
    assert len(pickle.dumps(source.ref)) < 1000
    source.close()
    np.testing.assert_array_equal(read(source, "/", "timestamp"), stamps(6))  # opened again
    source.close()
    same.close()
    with h5py.File(path, "a") as file:
        file["gmd/more"] = np.zeros(6)
    with pytest.raises(SnapshotError, match="open it again"):
        open_hdf5(source.ref)
    with pytest.raises(SelectionError, match="no variable"):
        opened(path).read("/", "gmd.less", slice(0, 1))


def test_which_files(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError):
        open_hdf5(SourceRef(str(tmp_path / "none.h5")))
    with pytest.raises(RunNotFoundError):
        open_hdf5(SourceRef(str(tmp_path)))
    write_smalldata(tmp_path / "xpptut15_Run0001.h5")
    write_smalldata(tmp_path / "xpptut15_Run0002.h5")
    with pytest.raises(SeveralRunsError, match="2 HDF5 files"):
        open_hdf5(SourceRef(str(tmp_path)))
    assert open_hdf5(SourceRef(str(tmp_path), run=2)).index.run == 2
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = np.arange(3)
    with pytest.raises(FormatError, match="LCLStreamer"):
        open_hdf5(SourceRef(str(tmp_path / "other.h5")))


@settings(max_examples=100)
@given(counts=st.lists(st.integers(0, 6), max_size=12), data=st.data())
def test_packed_is_the_padding_taken_off(counts: list[int], data: Any) -> None:
    padded = np.arange(len(counts) * 6, dtype="f4").reshape(-1, 6)
    packed = Packed(Held(padded), offsets_of(np.array(counts, dtype=np.int64)))
    flat = np.concatenate([np.empty(0, "f4"), *(row[:n] for row, n in zip(padded, counts, strict=True))])
    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    np.testing.assert_array_equal(packed.read(slice(start, stop)), flat[start:stop])
    if len(flat):
        rows = np.array(data.draw(st.lists(st.integers(0, len(flat) - 1), max_size=9)), dtype=np.int64)
        np.testing.assert_array_equal(packed.read(rows), flat[rows])


@settings(max_examples=100)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5), data=st.data())
def test_joined_is_concatenation(lengths: list[int], data: Any) -> None:
    values = np.arange(sum(lengths) * 2).reshape(-1, 2)
    parts = [Held(part) for part in np.split(values, np.cumsum(lengths)[:-1])]
    order = np.array(data.draw(st.permutations(range(len(values)))), dtype=np.int64)
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    np.testing.assert_array_equal(Joined(tuple(parts)).read(slice(start, stop)), values[start:stop])
    np.testing.assert_array_equal(joined(parts, order).read(slice(start, stop)), values[order][start:stop])
    absent = Taken(Held(values + 1), np.where(order % 2, order, -1))
    expected = np.where((order % 2)[:, None], (values + 1)[order], 0)
    np.testing.assert_array_equal(absent.read(slice(0, len(values))), expected)
