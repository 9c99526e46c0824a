"""psana as the referee: every value of every field of every event, of real and of generated runs."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xtc2_runs import CHUNK, INFO, Array, ended, full_run, image_of, read_all, ts

import lcls_dask
from lcls_dask.formats import RunSource, open_source
from lcls_dask.formats.xtc2.files import NAME
from lcls_dask.formats.xtc2.layout import BEGIN_STEP, DISABLE, ENABLE
from lcls_dask.formats.xtc2.writer import StreamWriter, declare, shapes_data

REFEREE = Path(__file__).with_name("psana_referee.py")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("psana") is None,
    reason="psana is not installed: NO value was compared with the referee (pip install -e '.[psana]')",
)


def told_by_psana(path: Path, out: Path) -> Mapping[str, Array]:
    """What psana reads in a file; or in a directory, which needs smalldata, with psana's own building of events."""
    where = [str(path)]
    if path.is_dir():
        match = NAME.fullmatch(next(path.glob("*.xtc2")).name)
        assert match
        where += [match["experiment"], match["run"]]
    done = subprocess.run(
        [sys.executable, str(REFEREE), str(out), *where],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PS_PARALLEL": "none"}, cwd=out.parent,
    )  # fmt: skip
    if done.returncode and "ImportError" in done.stderr:
        pytest.skip(f"psana can't be imported: NO value was compared with the referee: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as archive:
        return {key: archive[key] for key in archive.files}


class Ours:
    """The same questions, answered by us."""

    def __init__(self, source: RunSource) -> None:
        self.index = source.index
        self.values = read_all(source)
        self.timestamps = self.values["/"]["timestamp"]

    def segment(self, detector: str, segment: int) -> int:
        return self.index.detectors[detector].segments.index(segment)

    def at(self, event: int, detector: str, segment: int, name: str) -> Any:
        """A value of the root node, and of the detector's own node, which must agree."""
        found = []
        for path, row in (("/", event), (f"/{detector}", self.own(event, detector))):
            variable = self.index.nodes[path].variables[name]
            value = self.values[path][name][row]
            has_segments = f"{detector}.segment" in variable.dims
            found.append(value[self.segment(detector, segment)] if has_segments else value)
        np.testing.assert_array_equal(found[0], found[1], err_msg=name)
        return found[0]

    def own(self, event: int, detector: str) -> int:
        stamps = self.values[f"/{detector}"]["timestamp"]
        row = int(np.searchsorted(stamps, self.timestamps[event]))
        assert stamps[row] == self.timestamps[event]
        return row

    def row(self, event: int, detector: str, segment: int) -> int:
        segments = len(self.index.detectors[detector].segments)
        return self.own(event, detector) * segments + self.segment(detector, segment)

    def ragged(self, event: int, detector: str, segment: int, name: str) -> Array:
        node = self.values[f"/{detector}"]
        row = self.row(event, detector, segment)
        first, last = node[f"{name}.offset"][row : row + 2]
        flat = node[name][first:last]
        shape = node.get(f"{name}.shape")
        return flat if shape is None else flat.reshape(shape[row])

    def windows(self, event: int, detector: str, segment: int, base: str) -> tuple[Array, Array, Array, Array]:
        node = self.values[f"/{detector}"]
        row = self.row(event, detector, segment)
        first, last = node[f"{base}.windows.offset"][row : row + 2]
        edges = node[f"{base}.windows.sample_offset"]
        columns = [node[f"{base}.windows.{column}"][first:last] for column in ("start", "length", "time")]
        return columns[0], columns[1], columns[2], node[f"{base}.windows.samples"][edges[first] : edges[last]]


def compare(told: Mapping[str, Array], source: RunSource) -> dict[str, int]:
    """Hold everything that psana said against ours, and ours against psana's; counts of what was compared."""
    ours = Ours(source)
    np.testing.assert_array_equal(ours.timestamps, told["run|timestamps"])
    counts = dict.fromkeys(("fields", "labels", "waveforms", "windows", "env"), 0)
    seen: set[tuple[int, str, int, str]] = set()
    for key, value in told.items():
        event, _, rest = key.partition("|")
        if not event.isdigit():
            continue
        number = int(event)
        if rest.startswith("env|"):
            counts["env"] += 1
            _environment(ours, number, rest.removeprefix("env|"), value)
            continue
        detector, segment_text, algorithm, field = rest.split("|")
        segment, base = int(segment_text), f"{detector}.{algorithm}"
        name = f"{base}.{field}"
        if field == "~waveform":
            counts["waveforms"] += 1
            np.testing.assert_array_equal(ours.ragged(number, detector, segment, f"{base}.waveforms"), value, key)
        elif field == "~starts":
            starts, lengths, times, samples = ours.windows(number, detector, segment, base)
            prefix = key.removesuffix("~starts")
            np.testing.assert_array_equal(starts, value, key)
            np.testing.assert_array_equal(lengths, told[prefix + "~lengths"], key)
            np.testing.assert_array_equal(samples, told[prefix + "~samples"], key)
            np.testing.assert_allclose(times, value / (6.4e9 * 13 / 14), rtol=1e-15)
            counts["windows"] += len(value)
        elif field == "~wavetimes":
            interval = ours.index.nodes[f"/{detector}"].variables[f"{base}.waveforms"].attrs["sample_interval"]
            np.testing.assert_allclose(np.arange(len(value)) * interval, value, rtol=1e-12)
        elif field in ("~lengths", "~samples"):
            pass
        elif field == "~damage":
            seen.add((number, detector, segment, algorithm))
            assert ours.at(number, detector, segment, f"{base}.damage") == value, key
            assert ours.at(number, detector, segment, f"{base}.present"), key
        elif "#" in field:
            field, _, label = field.partition("#")
            attrs = ours.index.nodes["/"].variables[f"{base}.{field}"].attrs
            labels = dict(zip(attrs["flag_meanings"].split(), attrs["flag_values"], strict=True))
            assert labels[label] == value, key
            counts["labels"] += 1
        else:
            counts["fields"] += 1
            dense = name in ours.index.nodes["/"].variables
            mine = (ours.at if dense else ours.ragged)(number, detector, segment, name)
            if dense and np.ndim(value) == 3 and value.shape[0] == 1:
                value = value[0]
            assert np.shape(mine) == np.shape(value), key
            np.testing.assert_array_equal(mine, value, key)
    _nothing_more(ours, seen)
    return counts


def _environment(ours: Ours, event: int, name: str, value: Array) -> None:
    nodes = [node for node in ("/steps", "/epics") if name in ours.values.get(node, {})]
    assert nodes, name
    table = ours.values[nodes[0]]
    row = int(np.searchsorted(table["timestamp"], ours.timestamps[event], "right")) - 1
    assert table[name][row] == value, (event, name)


def _nothing_more(ours: Ours, seen: set[tuple[int, str, int, str]]) -> None:
    """We show as present exactly what psana has."""
    present = set()
    for detector, told in ours.index.detectors.items():
        for algorithm in told.algorithms:
            mask = ours.values["/"][f"{detector}.{algorithm}.present"].reshape(len(ours.timestamps), -1)
            present |= {
                (int(event), detector, told.segments[at], algorithm) for event, at in zip(*mask.nonzero(), strict=True)
            }
    assert present == seen


def test_hsd(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "lcls2" / "test_hsd.xtc2"
    told = told_by_psana(path, tmp_path / "told.npz")
    counts = compare(told, open_source(path))
    assert counts == {"fields": 84 * 5, "labels": 0, "waveforms": 40, "windows": 504, "env": 0}


def test_jungfrau(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "lcls2" / "test_jungfrau05M_calib.xtc2"
    counts = compare(told_by_psana(path, tmp_path / "told.npz"), open_source(path))
    assert counts["fields"] == 2 * 6


def test_mixed_rate(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "lcls2" / "mixed_rate"
    told = told_by_psana(path, tmp_path / "told.npz")
    source = open_source(path)
    counts = compare(told, source)
    assert counts["fields"] == (100 * 2 + 10 * 2) * (4 + 7 + 1)
    assert counts["labels"] == (100 * 2 + 10 * 2) * 6
    assert counts["env"] == 100 * 2 + 75 * 2
    assert str(told["run|expt"]) == source.index.experiment
    assert int(told["run|runnum"]) == source.index.run


@pytest.mark.parametrize("version", [(1, 2, 3), (2, 0, 0), (3, 0, 0)], ids=lambda v: ".".join(map(str, v)))
def test_generated_run(tmp_path: Path, version: tuple[int, int, int]) -> None:
    path = full_run(tmp_path / "run", 36, seed=version[0], hsd=version, smalldata=True)
    told = told_by_psana(path, tmp_path / "told.npz")
    counts = compare(told, open_source(path))
    assert counts["fields"] > 400
    # psana's hsd interface gives nothing for events that lack a segment: every third event has both
    assert counts["waveforms"] > 3
    assert counts["windows"] > 20


def test_chunks(tmp_path: Path) -> None:
    """Events on both sides of a switch of files, in two streams that switch at different times."""
    path = tmp_path / "run"
    for stream, turns in ((0, (3, 9)), (1, (5,))):
        names = declare(
            "cam", "opal", "raw", (1, 2, 0), {"image": ("uint16", 2), "gain": "uint8"}, id=3, segment=stream
        )
        with StreamWriter(path, "tmosim01", 3, stream) as w:
            w.configure(ts(-9), [names, INFO, CHUNK])
            w.begin_run(ts(-8), names=INFO)
            w.transition(BEGIN_STEP, ts(-7))
            w.transition(ENABLE, ts(-6))
            for i in range(12):
                if i in (3, 5, 9):
                    w.transition(DISABLE, ts(i) - 3)
                    if i in turns:
                        w.next_chunk(ts(i) - 2, CHUNK)
                    else:
                        w.transition(ENABLE, ts(i) - 2)
                w.event(ts(i), shapes_data(names, {"image": image_of(20 * stream + i), "gain": i}))
            ended(w, 99)
    told = told_by_psana(path, tmp_path / "told.npz")
    assert compare(told, open_source(path))["fields"] == 12 * 2 * 2


@pytest.mark.parametrize(("kind", "events"), [("tof", 150), ("scan", 60), ("sfx", 2)])
def test_simulated_run(tmp_path: Path, kind: str, events: int) -> None:
    made = lcls_dask.simulate(tmp_path / "run", kind, events=events, seed=4)
    told = told_by_psana(made.path, tmp_path / "told.npz")
    counts = compare(told, open_source(made.path))
    assert counts["fields"] > events
    if kind == "tof":
        assert counts["windows"] > 100


def test_referee_would_notice(tmp_path: Path) -> None:
    path = full_run(tmp_path / "run", 6, smalldata=True)
    told = dict(told_by_psana(path, tmp_path / "told.npz"))
    source = open_source(path)
    assert compare(told, source)["fields"]
    for key in ("3|gmd|0|raw|energy", "0|hsd|0|raw|~waveform", "2|cam|0|raw|image", "4|note|0|raw|text"):
        wrong = told[key] + 1 if told[key].dtype.kind != "U" else np.array("other")
        with pytest.raises(AssertionError):
            compare({**told, key: wrong}, source)
    with pytest.raises(AssertionError):
        compare({key: value for key, value in told.items() if not key.startswith("3|gmd")}, source)
    assert told["run|timestamps"][0] == ts(0)
