"""Events chosen in a detector's node: its ragged fields are cut with them, lazily."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xtc2_runs import CHUNK, INFO, Array, ended, full_run, read_all, ts

import lcls_dask
from lcls_dask.access.run import Run
from lcls_dask.errors import SelectionError
from lcls_dask.formats.xtc2.events import Events
from lcls_dask.formats.xtc2.writer import StreamWriter, declare, shapes_data
from lcls_dask.model import time_of

EVENTS = 30


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return lcls_dask.open_run(full_run(tmp_path_factory.mktemp("run") / "run", EVENTS))


@pytest.fixture(scope="module")
def whole(run: Run) -> dict[str, dict[str, Array]]:
    return read_all(run.source)


def rows_of(positions: list[int], segments: int) -> list[int]:
    return [event * segments + segment for event in positions for segment in range(segments)]


def cut(flat: Array, offset: Array, rows: list[int]) -> tuple[Array, Array]:
    """Rows of a ragged array, one after the other, and where each begins."""
    parts = [flat[offset[row] : offset[row + 1]] for row in rows]
    edges = np.cumsum([0, *map(len, parts)])
    return np.concatenate([flat[:0], *parts]), edges


def expected(values: dict[str, Array], positions: list[int]) -> dict[str, Array]:
    """The digitizer's node at some events, by plain loops."""
    rows = rows_of(positions, 2)
    found: dict[str, Array] = {}
    for name in ("timestamp", "time", "step", "hsd.raw.present"):
        found[name] = values[name][positions]
    wave, win = "hsd.raw.waveforms", "hsd.raw.windows"
    found[wave], found[f"{wave}.offset"] = cut(values[wave], values[f"{wave}.offset"], rows)
    chosen, found[f"{win}.offset"] = cut(np.arange(len(values[f"{win}.start"])), values[f"{win}.offset"], rows)
    for name in ("start", "length", "time"):
        found[f"{win}.{name}"] = values[f"{win}.{name}"][chosen]
    samples = cut(values[f"{win}.samples"], values[f"{win}.sample_offset"], chosen.tolist())
    found[f"{win}.samples"], found[f"{win}.sample_offset"] = samples
    found["hsd.raw.stream_flags"] = values["hsd.raw.stream_flags"][rows]
    return found


CHOICES: dict[str, tuple[Any, list[int]]] = {
    "slice": (slice(3, 11), list(range(3, 11))),
    "steps": (slice(2, 25, 3), list(range(2, 25, 3))),
    "backwards": (slice(None, None, -4), list(range(29, -1, -4))),
    "mask": (np.arange(EVENTS) % 4 == 1, list(range(1, EVENTS, 4))),
    "positions": ([7, 2, 2, -1], [7, 2, 2, 29]),
    "timestamps": (np.array([ts(9), ts(3)], np.uint64), [9, 3]),
    "times": (time_of(np.array([ts(11)], np.uint64)), [11]),
    "none": ([], []),
    "all": (slice(None), list(range(EVENTS))),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("chunks", [{}, None, {"hsd.raw.windows.sample": 7, "hsd.event": 2}])
def test_ragged_fields_follow_the_events(run: Run, whole: Any, choice: str, chunks: Any) -> None:
    events, positions = CHOICES[choice]
    dataset = run.dataset("hsd.*", events=events, group="/hsd", chunks=chunks)
    assert (dataset["hsd.raw.windows.samples"].chunks is None) == (chunks is None)
    assert not dataset["hsd.raw.windows.samples"].variable._in_memory
    for name, values in expected(whole["/hsd"], positions).items():
        np.testing.assert_array_equal(dataset[name].values, values, err_msg=name)
        assert dataset[name].dtype == whole["/hsd"][name].dtype, name
        assert dataset[name].attrs["long_name"], name
    assert set(dataset.variables) == set(run.dataset("hsd.*", group="/hsd").variables)


@given(chosen=st.lists(st.integers(0, EVENTS - 1), max_size=8), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_of_any_events(run: Run, whole: Any, chosen: list[int], data: st.DataObject) -> None:
    dataset = run.dataset("hsd.*", events=chosen, group="/hsd")
    values = expected(whole["/hsd"], chosen)
    name = data.draw(st.sampled_from(["hsd.raw.windows.samples", "hsd.raw.waveforms", "hsd.raw.windows.start"]))
    size = values[name].size
    rows = data.draw(
        st.builds(slice, st.integers(0, size), st.integers(0, size))
        | st.lists(st.integers(0, max(0, size - 1)), max_size=6 if size else 0).map(lambda x: np.array(x, np.int64))
    )
    np.testing.assert_array_equal(dataset[name][rows].values, values[name][rows])


def test_fields_of_several_dimensions(run: Run, whole: Any) -> None:
    values, positions = whole["/peaks"], [1, 4, 5, 20]
    dataset = run.dataset(group="/peaks", events=positions)
    for name in ("peaks.fex.x", "peaks.fex.map"):
        flat, edges = cut(values[name], values[f"{name}.offset"], positions)
        np.testing.assert_array_equal(dataset[name].values, flat)
        np.testing.assert_array_equal(dataset[f"{name}.offset"].values, edges)
    np.testing.assert_array_equal(dataset["peaks.fex.map.shape"].values, values["peaks.fex.map.shape"][positions])
    np.testing.assert_array_equal(dataset["peaks.fex.n"].values, values["peaks.fex.n"][positions])


def test_flat_columns_without_their_offsets(run: Run, whole: Any) -> None:
    dataset = run.dataset("hsd.raw.windows.samples", group="hsd", events=[4, 5])
    assert set(dataset.data_vars) == {"hsd.raw.windows.samples"}
    values = expected(whole["/hsd"], [4, 5])["hsd.raw.windows.samples"]
    np.testing.assert_array_equal(dataset["hsd.raw.windows.samples"].values, values)


def test_a_mask_is_of_the_nodes_events(run: Run) -> None:
    with pytest.raises(SelectionError, match=r"mask.*31.*30 events"):
        run.dataset(group="/hsd", events=np.zeros(31, bool))
    with pytest.raises(SelectionError, match="event 30"):
        run.dataset(group="/hsd", events=[30])
    with pytest.raises(SelectionError, match="not there"):
        run.dataset(group="/hsd", events=np.array([ts(3) + 1], np.uint64))


def test_only_the_chosen_events_are_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = run.dataset("hsd.raw.windows.samples", group="/hsd", events=slice(10, 12))
    seen: list[Any] = []
    original = Events.run

    def counting(self: Events, stream: int, rows: Any, *more: Any) -> None:
        seen.extend(np.arange(EVENTS)[rows])
        original(self, stream, rows, *more)

    monkeypatch.setattr(Events, "run", counting)
    dataset["hsd.raw.windows.samples"].load()
    assert set(seen) <= {10, 11}


def test_what_travels_is_small(run: Run) -> None:
    lazy = run.dataset("hsd.raw.windows.samples", group="/hsd", events=slice(2, 28))["hsd.raw.windows.samples"]
    assert len(pickle.dumps(dict(lazy.__dask_graph__()))) < 5_000
    first, second = (run.dataset("hsd.raw.windows.samples", group="/hsd", events=[0, k]) for k in (1, 2))
    assert first["hsd.raw.windows.samples"].data.name != second["hsd.raw.windows.samples"].data.name


def test_a_field_called_offset_is_no_offset(tmp_path: Path) -> None:
    odd = declare("tt", "tt", "raw", (1, 0, 0), {"offset": "float64", "x": ("float32", 1)}, id=1)
    with StreamWriter(tmp_path, "tmosim01", 1, 0, smalldata=False) as w:
        w.configure(ts(-9), [odd, INFO, CHUNK])
        w.begin_run(ts(-8), names=INFO)
        for i in range(6):
            w.event(ts(i), shapes_data(odd, {"offset": i / 2, "x": np.full(i, i, np.float32)}))
        ended(w, 99)
    dataset: xr.Dataset = lcls_dask.open_run(tmp_path).dataset(group="/tt", events=[5, 2])
    assert dataset["tt.raw.offset"].values.tolist() == [2.5, 1.0]
    assert dataset["tt.raw.x"].values.tolist() == [5.0] * 5 + [2.0] * 2
