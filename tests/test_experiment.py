"""`Experiment` and the table of its runs."""

import os
from pathlib import Path

import numpy as np
import pytest
from xtc2_runs import full_run, simple_run, ts

import lcls_dask
from lcls_dask.errors import LclsError, RunNotFoundError, UriError
from lcls_dask.model import time_of


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Runs 1 and 2 in one directory, 3 in a directory of its own, and 5 that is no run."""
    for run in (1, 2):
        simple_run(tmp_path, range(run), run=run)
    full_run(tmp_path / "r0003", 12)
    (tmp_path / "tmosim01-r0005-s000-c000.xtc2").write_bytes(b"rubbish" * 40)
    (tmp_path / "notes.txt").write_text("not a run")
    return tmp_path


def test_table(experiment: Path) -> None:
    table = lcls_dask.open_experiment(experiment).table()
    assert table.index.tolist() == [1, 2, 3, 5]
    assert table["events"].tolist() == [1, 2, 12, 0]
    assert table["state"].tolist() == ["ended", "ended", "ended", "unreadable"]
    assert table.loc[3, "detectors"] == "cam gmd hsd mode note peaks"
    assert "motor" in table.loc[3, "scan"]
    assert table.loc[1, "scan"] == ""
    assert table.loc[3, "start"] == time_of(np.array([ts(0)], np.uint64))[0]
    assert np.isnat(table.loc[5, "start"].to_datetime64())
    assert table.loc[1, "problem"] == ""
    assert "r0005" in table.loc[5, "problem"]


def test_own_columns(experiment: Path) -> None:
    (experiment / "runs.csv").write_text("run,sample,state\n1,argon,good\n3,neon,\n3,xenon,bad\n77,none,\n")
    table = lcls_dask.open_experiment(experiment).table()
    assert table.index.tolist() == [1, 2, 3, 5]
    assert table["sample"].fillna("-").tolist() == ["argon", "-", "xenon", "-"]
    assert table.loc[3, "state"] == "ended"
    assert table.loc[3, "state_noted"] == "bad"


def test_own_columns_without_runs(experiment: Path) -> None:
    (experiment / "runs.csv").write_text("sample\nargon\n")
    with pytest.raises(UriError, match=r"runs\.csv.*'run'"):
        lcls_dask.open_experiment(experiment).table()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01\n", b'run,a\n1,"unclosed', b"run,a\n1,2,3,4\n1,2\n"])
def test_own_columns_that_cannot_be_read(experiment: Path, content: bytes) -> None:
    (experiment / "runs.csv").write_bytes(content)
    try:
        table = lcls_dask.open_experiment(experiment).table()
    except LclsError as error:
        told = str(error)
    else:
        assert table.index.tolist() == [1, 2, 3, 5]
        return
    assert "runs.csv" in told
    assert "\n" not in told


def test_opening_runs(experiment: Path) -> None:
    opened = lcls_dask.open_experiment(experiment)
    assert opened.runs() == [1, 2, 3, 5]
    assert opened[2].dataset("gmd.raw.energy")["gmd.raw.energy"].values.tolist() == [0.0, 1.0]
    assert opened[3].events == 12
    with pytest.raises(RunNotFoundError, match="no run 4; there are 1, 2, 3, 5"):
        opened[4]


def test_live_run_in_the_table(tmp_path: Path) -> None:
    w = simple_run(tmp_path, end=False, inprogress=True, run=9)
    table = lcls_dask.open_experiment(tmp_path).table()
    assert table.loc[9, "state"] == "live"
    assert table.loc[9, "events"] == 8
    w.close()


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunNotFoundError, match="no such directory"):
        lcls_dask.open_experiment(tmp_path / "nothing")
    assert lcls_dask.open_experiment(tmp_path).table().empty
    monkeypatch.setenv("LCLS_ROOT", str(tmp_path))
    with pytest.raises(RunNotFoundError, match="tmosim01"):
        lcls_dask.open_experiment("lcls://tmosim01")
    simple_run(tmp_path / "tmo" / "tmosim01")
    assert lcls_dask.open_experiment("lcls://tmosim01").runs() == [1]


def test_real_experiment(real_data: Path) -> None:
    table = lcls_dask.open_experiment(real_data / "lcls2" / "mixed_rate").table()
    assert table.index.tolist() == [14]
    assert table.loc[14, "events"] == 100


def test_a_directory_of_many_runs_is_listed_a_few_times_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many streams there are: a flat directory of hundreds of runs has ten thousands of names."""
    for run in range(1, 6):
        for stream in range(6):
            simple_run(tmp_path, range(2), run=run, stream=stream)
    listed: list[object] = []
    for name in ("listdir", "scandir"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *of, original=original: listed.append(of) or original(*of))
    table = lcls_dask.open_experiment(tmp_path).table()
    assert table["events"].tolist() == [2] * 5
    there = [of for of in listed if of and str(of[0]) == str(tmp_path)]
    assert 0 < len(there) <= 3 * 5 + 3
