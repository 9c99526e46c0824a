"""Every benchmark runs and gives its ratios, with sizes so small that they mean nothing: no times are judged."""

import importlib
import re
from pathlib import Path

import pytest

from benchmarks import grow, timing
from benchmarks.__main__ import NAMES

#: What each must print; the second, where psana is the peer.
RATIOS = {
    "hsd": ["lcls_dask over a raw read", "events/s of lcls_dask over psana's"],
    "jungfrau": ["lcls_dask over np.memmap"],
    "opening": ["opening again over the first opening", "psana's loop over the first opening"],
    "index": ["on disk, bytes an event and stream"],
    "random_access": ["of 2000 events", "psana over lcls_dask, with opening"],
    "scalars": ["lcls_dask over a raw read", "events/s of lcls_dask over psana's"],
    "importing": ["CPU time of import lcls_dask"],
    "gateway": ["a cached decision takes"],
    "remote": ["throughput of open and sum over bare TLS"],
    "passthrough": ["server's CPU time over reading, decoding, sending"],
    "lclstreamer": ["throughput over LCLStreamer's path"],
    "tiled": ["throughput over tiled's"],
    "cluster": ["tiny tasks, speed of guarded over stock", "tasks for each block of 64 MiB", "reads stubbed"],
    "indexing": ["frames a second on one core"],
    "tof": ["bandwidth of cfd over reading once", "waveforms/s of cfd over psana's PyCFD"],
    "sfx": ["apart over one pass, full", "frames/s, full, over psana"],
}
#: Those that take long, much of it compiling loops that other tests compile too, or starting servers.
LONG = {"cluster", "gateway", "indexing", "sfx", "tof", "lclstreamer", "passthrough", "remote"}
REAL = {"hsd": grow.HSD, "jungfrau": grow.JUNGFRAU}


def test_all_are_here() -> None:
    assert set(RATIOS) == set(NAMES)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in NAMES])
def test_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name in REAL and not REAL[name].exists():
        pytest.skip(f"{REAL[name]} is not there: the benchmark was NOT tried; set LCLS_DASK_DATA to grow the real file")
    importlib.import_module(f"benchmarks.{name}").run(timing.Setting(tmp_path, quick=True, full=False, repeats=1))
    told = capsys.readouterr().out
    if "(pip install -e '.[bench]')" in told:
        pytest.skip(f"{name}: {told.strip()}")
    ours, *with_psana = RATIOS[name]
    assert re.search(rf"{re.escape(ours)}", told)
    if with_psana and timing.psana_version() is None:
        assert "SKIPPED: psana is not installed" in told
        pytest.skip("psana is not installed: there was no peer to compare with")
    for words in with_psana:
        assert re.search(rf"{re.escape(words)} +[0-9.e+]+", told)


def test_interleaved_takes_turns_and_believes_those_who_time_themselves() -> None:
    turns: list[str] = []

    def told() -> tuple[float, float]:
        turns.append("b")
        return 3.0, 2.0

    timings = timing.interleaved(2, {"a": lambda: turns.append("a"), "b": told})
    assert turns == ["a", "b", "a", "b"]
    assert timings["b"] == timing.Timing((3.0, 3.0), (2.0, 2.0))
    assert all(0 <= seconds < 1 for seconds in timings["a"].wall)


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [(9.0, False, "reached"), (11.0, False, "MISSED"), (9.0, True, "MISSED"), (11.0, True, "reached")],
)
def test_verdicts(value: float, at_least: bool, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    timing.compare("some figure", value, 10, at_least=at_least)
    assert capsys.readouterr().out.split()[-1] == verdict


def test_too_little_room(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="GB are free"):
        grow.require(tmp_path, 1 << 60)
