"""Mutated files are read or refused, quickly, in bounded memory, and never read past the end of a buffer."""

import os
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xtc2_runs import full_run, read_all, same

from lcls_dask.formats import open_source

#: Files tried by `make test`; `make test-long`, or `python -m tests.fuzz`, tries ten thousand.
SOME, MANY = 150, 10_000


def test_some_mutated_files() -> None:
    outcomes = fuzz.fuzz(SOME)
    assert sum(outcomes.values()) == SOME
    assert outcomes["read"] > SOME // 10  # otherwise the mutations are too coarse to reach the loops
    assert outcomes["FormatError"] > SOME // 10


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_mutated_files() -> None:
    assert sum(fuzz.fuzz(MANY, SOME).values()) == MANY


@pytest.mark.long
@pytest.mark.timeout(1000)
def test_loops_stay_within_their_buffers(tmp_path: Path) -> None:
    """The same with every index checked, compiled again with numba's bounds checking, and guards about the buffers."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "1000", "--seed", "500", "--guard"],
        cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("1000 files")


def test_fuzzer_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lets another exception out, takes long, or takes memory fails."""

    def broken(path: Path) -> str:
        raise IndexError("out of bounds")

    def slow(path: Path) -> str:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return "read"

    monkeypatch.setattr(fuzz, "PER_BYTE", 0)
    monkeypatch.setattr(fuzz, "read_original", lambda files, folder: None)
    for wrong, seconds, word in (
        (broken, 60, "IndexError"),
        (slow, 0.1, r"took .* s$"),
        (lambda path: str(np.ones(1 << 23).size), 60, "MiB of memory"),
    ):
        monkeypatch.setattr(fuzz, "SECONDS", seconds)
        monkeypatch.setattr(fuzz, "read_everything", wrong)
        with pytest.raises(fuzz.FuzzError, match=word):
            fuzz.fuzz(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_run(tmp_path_factory.mktemp("whole"), 30, hsd=(3, 0, 0))


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_are_those_of_the_whole(whole: Path, data: st.DataObject) -> None:
    """Slices, and rows in any order with repeats, of any variable of any node."""
    source = open_source(whole)
    path = data.draw(st.sampled_from(list(source.index.nodes)))
    name = data.draw(st.sampled_from(list(source.index.nodes[path].variables)))
    size = source.index.nodes[path].variables[name].shape[0]
    values = source.read(path, name, slice(0, size))
    first = data.draw(st.integers(0, size))
    last = data.draw(st.integers(first, size))
    np.testing.assert_array_equal(source.read(path, name, slice(first, last)), values[first:last])
    if size:
        rows = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=20)), np.int64)
        np.testing.assert_array_equal(source.read(path, name, rows), values[rows])


@given(
    seed=st.integers(0, 2**32), events=st.integers(0, 25), version=st.sampled_from([(1, 2, 3), (2, 0, 0), (3, 0, 0)])
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_smalldata_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, events: int, version: object
) -> None:
    base = tmp_path_factory.mktemp("pair")
    with_it = full_run(base / "with", events, seed=seed, smalldata=True, hsd=version)
    without = full_run(base / "without", events, seed=seed, hsd=version)
    same(read_all(open_source(with_it)), read_all(open_source(without)))
