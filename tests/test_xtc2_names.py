"""Detectors that are called like our own nodes and coordinates, or like what is no detector."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from xtc2_runs import CHUNK, EPICS, GMD, INFO, SCAN, begin, ended, read_all, same, ts, writer

import lcls_dask
from lcls_dask.access.export import export
from lcls_dask.formats import open_source
from lcls_dask.formats.xtc2.detectors import OWN_NAMES, shown
from lcls_dask.formats.xtc2.layout import BEGIN_STEP, NOT_DETECTORS, SLOW_UPDATE
from lcls_dask.formats.xtc2.writer import declare, shapes_data
from lcls_dask.stores.store import LclsStore

EVENTS = 9


def odd_run(path: Path, *names: str) -> Path:
    """A run with steps, slow variables, and detectors of these names: a number, and arrays of any length."""
    declared = [
        declare(name, "gmd", "raw", (1, 0, 0), {"value": "float64", "x": ("uint16", 1)}, id=10 + k)
        for k, name in enumerate(names)
    ]
    configured = [
        declare(name, "gmd", "config", (1, 0, 0), {"gain": "int32"}, id=100 + k) for k, name in enumerate(names)
    ]
    with writer(path) as w:
        values = [shapes_data(c, {"gain": k}) for k, c in enumerate(configured)]
        w.configure(ts(-9), [*declared, *configured, SCAN, EPICS, INFO, CHUNK], values)
        w.begin_run(ts(-8), names=INFO)
        for i in range(EVENTS):
            if i % 3 == 0:
                w.transition(BEGIN_STEP, ts(i) - 9, shapes_data(SCAN, {"motor": i / 4, "label": "x"}))
                w.transition(SLOW_UPDATE, ts(i) - 8, shapes_data(EPICS, {"HX2:GCC:01:PMON": i / 8, "T.RBV": i}))
            of = (
                shapes_data(d, {"value": 100.0 * k + i, "x": np.full(i % 3, i, np.uint16)})
                for k, d in enumerate(declared)
            )
            w.event(ts(i), *of)
        ended(w, 99)
    return path


@pytest.mark.parametrize("name", sorted(OWN_NAMES | NOT_DETECTORS))
def test_a_detector_of_such_a_name_opens(tmp_path: Path, name: str) -> None:
    """By every face, with its values, beside our own node or coordinate of that name; psana's name is kept."""
    path = odd_run(tmp_path / "run", name)
    here = f"{name}_detector" if name in OWN_NAMES else name
    run = lcls_dask.open_run(path)
    assert list(run.detectors) == [here]
    values = read_all(run.source)
    assert values["/"][f"{here}.raw.value"].tolist() == list(map(float, range(EVENTS)))
    assert values["/"]["step"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert values["/steps"]["motor"].tolist() == [0.0, 0.75, 1.5]
    assert values["/epics"]["T.RBV"].tolist() == [0, 3, 6]
    assert values[f"/{here}"][f"{here}.raw.x"].tolist() == [i for i in range(EVENTS) for _ in range(i % 3)]
    attrs = run.index.nodes[f"/{here}"].attrs
    assert (attrs["detector"], attrs["config.gain"]) == (name, 0)
    assert run.index.nodes["/"].variables[f"{here}.raw.value"].attrs["detector"] == name
    assert run.validate().ok
    assert here in run.info()
    with xr.open_datatree(path, engine="lcls") as tree, xr.open_datatree(LclsStore(run.source), engine="zarr") as zarr:
        for node, expected in values.items():
            for variable, array in expected.items():
                np.testing.assert_array_equal(tree[node].dataset[variable].values, array)
                np.testing.assert_array_equal(zarr[node].dataset[variable].values, array)
    cut = run.dataset(f"{here}.*", group=f"/{here}", events=[2, 5])
    assert cut[f"{here}.raw.x"].values.tolist() == [2, 2, 5, 5]
    same(read_all(open_source(export(run, tmp_path / "copy.zarr"))), values)


def test_all_at_once(tmp_path: Path) -> None:
    names = [*sorted(OWN_NAMES), "time_detector"]
    run = lcls_dask.open_run(odd_run(tmp_path, *names))
    called = shown(names)
    assert called["time"] == "time_detector_detector"  # its first choice is there already
    assert called["time_detector"] == "time_detector"
    root = run.dataset("*.raw.value")
    assert sorted(root.data_vars) == sorted(f"{name}.raw.value" for name in called.values())
    for k, name in enumerate(names):
        np.testing.assert_array_equal(root[f"{called[name]}.raw.value"].values, 100.0 * k + np.arange(EVENTS))
    assert set(run.tree().children) == {*called.values(), "steps", "epics"}


def test_the_daqs_own_are_no_detectors(tmp_path: Path) -> None:
    with writer(tmp_path) as w:
        begin(w, GMD, SCAN, EPICS)
        w.event(ts(0), shapes_data(GMD, {"energy": 1.0}))
        ended(w, 99)
    assert list(open_source(tmp_path).index.detectors) == ["gmd"]
