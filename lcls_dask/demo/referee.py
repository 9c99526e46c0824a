"""psana's own reading of the first events, in a process of its own, against ours.

psana is optional: it writes to its standard output, takes over signals and may load MPI, so it is never
imported here. ``python -m lcls_dask.demo.referee OUT.npz EVENTS FILE...`` is that process.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError

if TYPE_CHECKING:
    from ..access.run import Run

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes
    ----------
    events : int
        Events that psana read.
    values : int
        Arrays and scalars that both have, compared bit by bit.
    different : tuple of str
        Those that are not equal, ``<variable> of event <timestamp>, segment <n>``.
    unmatched : tuple of str
        psana's variables that this package names or shapes in another way.
    """

    events: int
    values: int
    different: tuple[str, ...]
    unmatched: tuple[str, ...]


def available() -> bool:
    """Whether psana is installed."""
    return importlib.util.find_spec("psana") is not None


def referee(run: "Run", events: int, timeout: float = 120, files: Path | None = None) -> Verdict:
    """Compare the first events of every stream of a run with what psana reads in them.

    Parameters
    ----------
    run : Run
    events : int
        How many of each stream.
    timeout : float
        Seconds that psana may take.
    files : Path, optional
        The run's xtc2 files on this machine; where the run was opened by default.

    Returns
    -------
    Verdict

    Raises
    ------
    FormatError
        psana failed, or took too long.

    Examples
    --------
    >>> referee(open_run("data/xpptut15-r0014"), 10).different  # doctest: +SKIP
    ()
    """
    path = files or Path(run.path)
    streams = sorted(path.glob("*-c000.xtc2")) or sorted(path.glob("*.xtc2")) if path.is_dir() else [path]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "psana.npz"
        command = [sys.executable, "-m", __spec__.name, str(out), str(events), *map(str, streams)]
        environment = {**os.environ, "PS_PARALLEL": "none"}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise FormatError(f"{path}: psana read no {events} events within {timeout:g} s") from error
        if not out.exists():
            told = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise FormatError(f"{path}: psana failed: {told[-1] if told else f'exit {done.returncode}'}")
        with np.load(out, allow_pickle=False) as found:
            return compare(run, {key: found[key] for key in found.files})


def compare(run: "Run", found: dict[str, Array]) -> Verdict:
    """Compare values by ``<timestamp>|<variable>|<segment>`` with what this package reads.

    Parameters
    ----------
    run : Run
    found : dict of str to ndarray

    Returns
    -------
    Verdict

    Examples
    --------
    >>> compare(run, {}).values
    0
    """
    values = 0
    different: list[str] = []
    unmatched: set[str] = set()
    stamps: set[int] = set()
    chunks = _Chunks(run)
    timestamps = run.source.read("/", "timestamp", slice(0, run.events))
    for key, theirs in found.items():
        stamp, name, segment = key.split("|")
        timestamp, number = np.uint64(stamp), int(segment)
        stamps.add(int(stamp))
        event = int(np.searchsorted(timestamps, timestamp))
        if event == run.events or timestamps[event] != timestamp:
            different.append(f"event {stamp} is missing")
            continue
        detector = name.split(".")[0]
        if name in run.index.nodes["/"].variables:
            ours = chunks.dense(event, name, detector, number)
        elif name in run.index.nodes[f"/{detector}"].variables:
            ours = chunks.ragged(timestamp, name, detector, number)
        else:
            unmatched.add(name)
            continue
        values += 1
        if not np.array_equal(np.ravel(ours), np.ravel(theirs)):
            different.append(f"{name} of event {stamp}, segment {segment}")
    return Verdict(len(stamps), values, tuple(different), tuple(sorted(unmatched)))


def _segment(run: "Run", detector: str, number: int) -> int:
    """Position of a segment along the detector's dimension."""
    return run.detectors[detector].segments.index(number)


class _Chunks:
    """Rows of a run's variables; the chunks that were read last are kept, as neighbours are asked for next."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._kept: dict[tuple[str, str], tuple[int, Array]] = {}

    def rows(self, node: str, name: str, first: int, last: int) -> Array:
        begin, values = self._kept.get((node, name), (0, np.empty(0)))
        if not begin <= first <= last <= begin + len(values):
            variable = self._run.index.nodes[node].variables[name]
            begin = first // variable.chunk * variable.chunk
            end = min(-(-last // variable.chunk) * variable.chunk, variable.shape[0])
            values = self._run.source.read(node, name, slice(begin, end))
            self._kept[node, name] = begin, values
        return values[first - begin : last - begin]

    def dense(self, event: int, name: str, detector: str, segment: int) -> Array:
        values = self.rows("/", name, event, event + 1)[0]
        if f"{detector}.segment" in self._run.index.nodes["/"].variables[name].dims:
            values = values[_segment(self._run, detector, segment)]
        return np.asarray(values)

    def ragged(self, timestamp: np.uint64, name: str, detector: str, segment: int) -> Array:
        node = f"/{detector}"
        stamps = self.rows(node, "timestamp", 0, self._run.index.nodes[node].variables["timestamp"].shape[0])
        event = int(np.searchsorted(stamps, timestamp))
        row = event * len(self._run.detectors[detector].segments) + _segment(self._run, detector, segment)

        def bounds(offset: str, first: int, last: int) -> tuple[int, int]:
            edges = self.rows(node, offset, first, last + 1)
            return int(edges[0]), int(edges[-1])

        base = name.rpartition(".")[0] if ".windows." in name else name
        begin, end = bounds(f"{base}.offset", row, row + 1)
        if name.endswith(".windows.samples"):
            begin, end = bounds(f"{base}.sample_offset", begin, end)
        return self.rows(node, name, begin, end)


def _collect(events: int, files: list[str]) -> dict[str, Array]:
    """What psana reads in the first events of each file; runs in the process that has psana."""
    from psana import DataSource

    found: dict[str, Array] = {}
    for file in files:
        run = next(DataSource(files=file, skip_calib_load="all").runs())
        algorithms = {(detector, algorithm) for detector, algorithm in run.detinfo if detector in run.detnames}
        detectors = {name: run.Detector(name) for name, _ in algorithms}
        for number, event in enumerate(run.events()):
            if number == events:
                break
            for detector, algorithm in algorithms:
                interface: Any = getattr(detectors[detector], algorithm, None)
                segments = interface._segments(event) if hasattr(interface, "_segments") else None
                for segment, values in (segments or {}).items():
                    for field, value in _fields(values):
                        found[f"{event.timestamp}|{detector}.{algorithm}.{field}|{segment}"] = np.asarray(value)
                if hasattr(interface, "peaks"):
                    for name, segment, value in _digitizer(interface, event):
                        found[f"{event.timestamp}|{detector}.{algorithm}.{name}|{segment}"] = value
    return found


def _fields(values: Any) -> Iterator[tuple[str, Any]]:
    for field in (name for name in dir(values) if not name.startswith("_")):
        value = getattr(values, field)
        value = getattr(value, "value", value)  # an enumeration
        if isinstance(value, int | float | str | np.ndarray) and not field.startswith("chan"):
            yield field, value


def _digitizer(interface: Any, event: Any) -> Iterator[tuple[str, int, Array]]:
    for segment, channels in (interface.peaks(event) or {}).items():
        for starts, samples in channels.values():
            yield "windows.start", segment, np.array(starts, np.int64)
            yield "windows.length", segment, np.array([len(part) for part in samples], np.int64)
            yield "windows.samples", segment, np.concatenate([np.asarray(part) for part in samples])
    for segment, channels in (interface.waveforms(event) or {}).items():
        for channel, samples in channels.items():
            if channel != "times":
                yield "waveforms", segment, np.asarray(samples)


if __name__ == "__main__":
    np.savez(sys.argv[1], allow_pickle=False, **_collect(int(sys.argv[2]), sys.argv[3:]))
