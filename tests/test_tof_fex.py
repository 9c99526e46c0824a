"""FEX streams, windows and baselines: exact, and against the real digitizer and psana."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from tof_pulses import BASE, digitised

import lcls_dask
from lcls_dask import tof
from lcls_dask.errors import ArgumentError, FormatError


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(0, 20), st.integers(0, 20), st.floats(0, 0.3))
def test_streams_and_windows_are_inverse(seed: int, groups: int, xpre: int, xpost: int, often: float) -> None:
    random = np.random.default_rng(seed)
    waveforms = np.full((2, 3, 4 * groups), 2048, np.uint16)
    out = random.random(waveforms.shape) < often
    waveforms[out] = random.integers(0, 1 << 15, int(out.sum()))
    out = (waveforms < 2008) | (waveforms > 2088)
    stream = tof.fex_sparsify(waveforms, 2008, 2088, xpre, xpost)
    windows = tof.decode_fex(stream)
    block = windows.compute()
    for row in range(6):
        whole = waveforms.reshape(6, -1)[row]
        for w in range(*block["offset"].values[row : row + 2]):
            begin, edges = block["start"].values[w], block["sample_offset"].values[w : w + 2]
            np.testing.assert_array_equal(
                block["samples"].values[slice(*edges)], whole[begin : begin + edges[1] - edges[0]]
            )
    full = tof.padded(windows, 2048)
    keep = (full != 2048) | (waveforms == 2048)
    np.testing.assert_array_equal(full.values[keep.values], waveforms[keep.values])
    assert keep.values[out].all()
    again = tof.fex_sparsify(full, 2008, 2088, xpre, xpost).compute()
    xr.testing.assert_equal(again[["offset", "words"]], stream.compute()[["offset", "words"]])


def test_long_skips_and_baselines_of_cores() -> None:
    waveform = np.full(200_000, 2048, np.uint16)
    waveform[150_000] = 5
    stream = tof.fex_sparsify(waveform, 2000, 2100).compute()
    assert int(tof.decode_fex(stream).compute()["length"][0]) == 200_000
    np.testing.assert_array_equal(tof.padded(tof.decode_fex(stream), 2048).squeeze(), waveform)
    words = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.uint16)
    block = tof.decode_fex(words, baselines=True).compute()
    assert block["start"].values.tolist() == [4]
    assert block["samples"].values.tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("words", [[1, 2, 3], [0x8004, 0x8000]])
def test_malformed_streams(words: list[int]) -> None:
    with pytest.raises(FormatError, match="malformed"):
        tof.decode_fex(np.array(words, np.uint16)).compute()


def test_what_cannot_be_coded() -> None:
    with pytest.raises(ArgumentError, match="multiple of 4"):
        tof.fex_sparsify(np.zeros(402, np.uint16), 0, 1)
    with pytest.raises(ArgumentError, match="uint16 or int16"):
        tof.fex_sparsify(np.zeros(400), 0, 1)
    with pytest.raises(ArgumentError, match="ymin"):
        tof.fex_sparsify(np.zeros(400, np.uint16), 2, 1)
    with pytest.raises(ArgumentError, match="bit 15"):
        tof.fex_sparsify(np.full(400, 40000, np.uint16), 0, 1).compute()
    with pytest.raises(ArgumentError, match="does not fit"):
        tof.padded(tof.decode_fex(np.array([0x8008, 0x8000, 0x8000, 0x8000, 1, 2, 3, 4], np.uint16)), 0, 8)


def test_windows_of_the_real_digitizer_are_slices_of_its_waveforms(real_data: Path) -> None:
    node = lcls_dask.open_run(real_data / "lcls2" / "test_hsd.xtc2").dataset(group="/xpphsd", chunks=None)
    windows, whole = tof.windows(node).compute(), tof.windows(node, waveforms=True).compute()
    assert windows.sizes["window"] == 504
    assert whole.sizes["window"] == 40
    compared = 0
    for row in np.flatnonzero(np.diff(whole["offset"])):
        begin, end = whole["sample_offset"].values[whole["offset"].values[row] :][:2]
        waveform = whole["samples"].values[begin:end]
        assert len(waveform) == 800
        for w in range(*windows["offset"].values[row : row + 2]):
            first, last = windows["sample_offset"].values[w : w + 2]
            start = windows["start"].values[w]
            np.testing.assert_array_equal(windows["samples"].values[first:last], waveform[start : start + last - first])
            compared += 1
    assert compared == 120
    hits = tof.find_hits(node, threshold=60, baseline=tof.baseline_of(tof.windows(node, waveforms=True))[:, :1])
    assert hits.compute().sizes["hit"] >= 0


def test_wrapped_fractional_samples() -> None:
    # format 3.0.0: 16 counts to the ADU about 2**14, 15 bits that run over below
    pulse = 1500 * np.exp(-0.5 * ((np.arange(120) - 60.2) / 3.5) ** 2)
    samples = (np.rint((1 << 14) - 16 * pulse).astype(np.int64) % (1 << 15)).astype(np.uint16)
    assert samples.max() > 1 << 14
    windows = tof.decode_fex(np.concatenate([[0x8190, 0x8000, 0x8000, 0x8000], samples]).astype(np.uint16)).compute()
    windows["samples"].attrs["fractional_bits"] = 4
    hits = tof.find_hits(windows, "matched", threshold=50).compute()
    assert hits["amplitude"].values == pytest.approx([1500], rel=2e-3)
    assert hits["time"].values / (1e9 / (6.4e9 * 13 / 14)) == pytest.approx([400 + 60.2], abs=0.01)


@pytest.mark.parametrize("fractional", [False, True])
def test_windows_without_samples(fractional: bool) -> None:
    windows = tof.decode_fex(tof.fex_sparsify(np.full((3, 1, 96), 2048, np.uint16), 2000, 2100)).compute()
    assert windows.sizes["window"] == 0
    empty = {"samples": ("sample", np.empty(0, np.uint16), windows["samples"].attrs),
             "start": ("window", np.zeros(2, np.int32)), "sample_offset": ("window_edge", np.zeros(3, np.int64)),
             "offset": ("row_edge", np.array([0, 0, 2, 2]))}  # fmt: skip
    windows = xr.Dataset({**empty}, windows.coords, windows.attrs)
    if fractional:
        windows["samples"].attrs["fractional_bits"] = 4
    hits = tof.find_hits(windows, threshold=50, baseline=None if fractional else 2048.0).compute()
    assert hits["offset"].values.tolist() == [0, 0, 0, 0]


def test_pulses_higher_than_fractional_samples_reach() -> None:
    # a threshold beyond what 15 bits hold above the baseline: samples have run over where they are beyond it
    pulse = 1500 * np.exp(-0.5 * ((np.arange(120) - 60.2) / 3.5) ** 2)
    samples = (np.rint((1 << 14) - 16 * pulse).astype(np.int64) % (1 << 15)).astype(np.uint16)
    windows = tof.decode_fex(np.concatenate([[0x8190, 0x8000, 0x8000, 0x8000], samples]).astype(np.uint16)).compute()
    windows["samples"].attrs["fractional_bits"] = 4
    for threshold, many in ((1000, 1), (1100, 1), (1600, 0)):
        assert tof.find_hits(windows, "matched", threshold=threshold).compute().sizes["hit"] == many


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_windows_of_other_types(dtype: Any) -> None:
    values = digitised(np.array([[40.0], [70.3]]), np.full((2, 1), 500.0), 96)
    windows = tof.decode_fex(tof.fex_sparsify(values[:, None], 2000, 2100)).compute()
    right = tof.find_hits(windows, threshold=50, baseline=BASE[None]).compute()
    assert right.sizes["hit"] == 2
    other = windows.assign(samples=windows["samples"].astype(dtype, keep_attrs=True))
    xr.testing.assert_allclose(tof.find_hits(other, threshold=50, baseline=BASE[None]).compute(), right)


def test_subtract_baseline() -> None:
    random = np.random.default_rng(0)
    times = np.stack([random.uniform(10, 50, 40), random.uniform(90, 230, 40)], axis=1)
    values = digitised(times, random.uniform(200, 3000, (40, 2)), 241, dtype=np.int64).reshape(10, 4, 241)
    values = np.clip(values, 0, 4095).astype(np.uint16)
    array = xr.DataArray(values, dims=("event", "channel", "sample"))
    signal = tof.subtract_baseline(array)
    assert signal.dtype == np.float32
    np.testing.assert_array_equal(signal["saturated"], (values == 0).any(axis=-1))
    # a third of the window is of a pulse
    off = (signal.values - (np.tile(BASE, 61)[:241] - values)).mean(axis=-1)
    assert np.abs(off).max() < 12
    assert np.median(np.abs(off)) < 4
    lazy = tof.subtract_baseline(array.chunk({"event": 3, "sample": 50}))
    assert lazy.chunks is not None
    xr.testing.assert_allclose(lazy.compute(), signal)
    given = tof.subtract_baseline(array, baseline=xr.DataArray(np.tile(BASE, (4, 1)), dims=("channel", "core")))
    np.testing.assert_array_equal(given.values, (np.tile(BASE, 61)[:241] - values).astype(np.float32))
    quiet = tof.subtract_baseline(digitised(times[:, 1:], np.full((40, 1), 900.0), 241)[:, None])
    assert float(np.abs(quiet[..., :60].mean("sample")).max()) < 0.5
    assert float(np.abs(quiet[..., :60].std()) - 4) < 0.5
    up = tof.subtract_baseline(4095 - values.astype(np.int16), polarity=1)
    np.testing.assert_allclose(up.values, signal.values, atol=1e-3)
    for bad in ({"pretrigger": 300}, {"pretrigger": 2}, {"cores": 0}, {"polarity": 3}, {"baseline": np.inf}):
        with pytest.raises(ArgumentError):
            tof.subtract_baseline(array, **bad)  # type: ignore[arg-type]


def test_baseline_of_many_waveforms() -> None:
    random = np.random.default_rng(1)
    values = digitised(random.uniform(0, 400, (200, 2)), random.uniform(100, 900, (200, 2)), 400).reshape(50, 4, 400)
    array = xr.DataArray(values, dims=("event", "channel", "sample"))
    found = tof.baseline_of(array)
    np.testing.assert_allclose(found, np.tile(BASE, (4, 1)), atol=0.5)  # every tenth sample is of a pulse
    np.testing.assert_array_equal(tof.baseline_of(array.chunk({"event": 7})), found)
    wide: dict[str, Any] = {"int16": values.astype(np.int16) - 9000, "uint16": values + np.uint16(60000)}
    np.testing.assert_allclose(tof.baseline_of(wide["int16"]), found - 9000)
    np.testing.assert_allclose(tof.baseline_of(wide["uint16"]), found + 60000)
    with pytest.raises(ArgumentError, match="int16"):
        tof.baseline_of(values.astype(float))
