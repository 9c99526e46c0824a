"""What a run looks like: to people one summary of its index, as text or as HTML; to programs its facts, as values.

Reads no event data.
"""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from .model import RunIndex, Variable, time_of

#: What each state means, for somebody who has not read the documentation.
STATES = {
    "ended": "ended",
    "live": "live: it may still grow",
    "cut": "cut: it stopped without saying so",
}
COLUMNS = ("detector", "kind", "segments", "algorithms", "variable", "shape", "dtype", "chunk", "size")
_MASKS = (".present", ".damage")


@dataclass(frozen=True)
class RunSummary:
    """All that is shown of a run, already in words.

    Attributes
    ----------
    facts : tuple of (str, str)
        What is said of the whole run, in order.
    rows : tuple of tuple of str
        One for each variable, under `COLUMNS`.
    hint : str
        The next line to try.
    """

    facts: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    hint: str


def size_text(nbytes: int) -> str:
    """Bytes in the largest binary unit that keeps the number at least 1.

    Parameters
    ----------
    nbytes : int

    Returns
    -------
    str

    Examples
    --------
    >>> size_text(0), size_text(1536), size_text(5 << 30)
    ('0 B', '1.5 KiB', '5.0 GiB')
    """
    value = float(nbytes)
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{nbytes} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def duration_text(seconds: float) -> str:
    """A duration with as many units as people need.

    Parameters
    ----------
    seconds : float

    Returns
    -------
    str

    Examples
    --------
    >>> duration_text(0.25), duration_text(12.3), duration_text(4000)
    ('250.0 ms', '12.3 s', '1 h 06 min 40 s')
    """
    for factor, unit in ((1e9, "ns"), (1e6, "us"), (1e3, "ms")):
        if 0 < seconds * factor < 1000:
            return f"{seconds * factor:.1f} {unit}"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min {rest:02d} s" if hours else f"{minutes} min {rest:02d} s"


def segments_text(segments: tuple[int, ...]) -> str:
    """Segment numbers, consecutive ones as a range.

    Parameters
    ----------
    segments : tuple of int
        Ascending.

    Returns
    -------
    str

    Examples
    --------
    >>> segments_text((0, 1, 2, 5)), segments_text((3,))
    ('0-2, 5', '3')
    """
    runs: list[list[int]] = []
    for segment in segments:
        if runs and segment == runs[-1][1] + 1:
            runs[-1][1] = segment
        else:
            runs.append([segment, segment])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def summarise(index: RunIndex, span: tuple[int, int] | None = None, steps: int = 0) -> RunSummary:
    """What there is to say about a run, from its index alone.

    Parameters
    ----------
    index : RunIndex
    span : (int, int), optional
        Timestamps of the first and the last event (``seconds << 32 | nanoseconds``); None where
        the run has no events.
    steps : int
        Steps of its scan; 0 says nothing about them.

    Returns
    -------
    RunSummary

    Examples
    --------
    >>> from lcls_dask.model import Node
    >>> index = RunIndex("xpptut15", 14, "ended", "0a1b2c3d", {"/": Node("/", {})})
    >>> summarise(index).facts[0]
    ('experiment', 'xpptut15')
    """
    facts = [
        ("experiment", index.experiment),
        ("run", str(index.run)),
        ("state", STATES.get(index.state, index.state)),
        ("snapshot", index.snapshot),
        ("events", f"{index.events:,}"),
    ]
    if steps:
        facts.append(("steps", f"{steps:,}"))
    if span is not None:
        start, stop = time_of(np.array(span, np.uint64))
        seconds = float((stop - start) / np.timedelta64(1, "s"))
        facts.append(("start", f"{np.datetime_as_string(start, unit='ms').replace('T', ' ')} UTC"))
        facts.append(("duration", duration_text(seconds)))
        if seconds > 0:
            facts.append(("rate", f"{(index.events - 1) / seconds:,.1f} events/s"))
    rows = tuple(_rows(index))
    return RunSummary(tuple(facts), rows, _hint(index))


def facts_of(index: RunIndex, span: tuple[int, int] | None = None, steps: int = 0) -> dict[str, Any]:
    """A run as JSON-able values: of the command line and of the gateway alike.

    Parameters
    ----------
    index : RunIndex
    span : (int, int), optional
        First and last timestamp, where there are events.
    steps : int

    Returns
    -------
    dict

    Examples
    --------
    >>> facts_of(run.index, run.span(), run.steps)["events"]
    20
    """
    times = time_of(np.array(span, np.uint64)).astype(str).tolist() if span else (None, None)
    return {
        "experiment": index.experiment,
        "run": index.run,
        "state": index.state,
        "snapshot": index.snapshot,
        "events": index.events,
        "steps": steps,
        "first_timestamp": span[0] if span else None,
        "last_timestamp": span[1] if span else None,
        "start": times[0],
        "stop": times[1],
        "detectors": [
            {
                "name": detector.name,
                "kind": detector.kind,
                "serial": detector.serial,
                "segments": list(detector.segments),
                "algorithms": dict(detector.algorithms),
            }
            for detector in index.detectors.values()
        ],
    }


def facts_of_variable(variable: Variable) -> dict[str, Any]:
    """All about a variable but its values, as JSON-able values.

    Parameters
    ----------
    variable : Variable

    Returns
    -------
    dict
    """
    return {
        "name": variable.name,
        "dims": list(variable.dims),
        "shape": list(variable.shape),
        "dtype": str(variable.dtype),
        "chunk": variable.chunk,
        "nbytes": variable.nbytes,
        "attrs": dict(variable.attrs),
    }


def run_text(index: RunIndex, span: tuple[int, int] | None = None, steps: int = 0) -> str:
    """A run as text; the arguments are those of `summarise`.

    Parameters
    ----------
    index : RunIndex
    span : (int, int), optional
    steps : int

    Returns
    -------
    str
        Lines, without a newline at the end.

    Examples
    --------
    >>> from lcls_dask.model import Node
    >>> index = RunIndex("xpptut15", 14, "ended", "0a1b2c3d", {"/": Node("/", {})})
    >>> print(run_text(index).splitlines()[0])
    experiment  xpptut15
    """
    summary = summarise(index, span, steps)
    lines = _aligned(summary.facts)
    if summary.rows:
        lines += ["", *_aligned((COLUMNS, *summary.rows))]
    return "\n".join([*lines, "", f"try: {summary.hint}"])


def run_html(index: RunIndex, span: tuple[int, int] | None = None, steps: int = 0) -> str:
    """A run as HTML with the content of `run_text`; it brings no colours, so any theme fits.

    Parameters
    ----------
    index : RunIndex
    span : (int, int), optional
    steps : int

    Returns
    -------
    str
        One ``<div>``; everything that comes from files is escaped.

    Examples
    --------
    >>> from lcls_dask.model import Node
    >>> index = RunIndex("<b>", 14, "ended", "0a1b2c3d", {"/": Node("/", {})})
    >>> "&lt;b&gt;" in run_html(index)
    True
    """
    summary = summarise(index, span, steps)
    facts = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in summary.facts
    )
    html = f"<table>{facts}</table>"
    if summary.rows:
        head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in summary.rows
        )
        html += f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='lcls-run'>{html}<p>try: <code>{escape(summary.hint)}</code></p></div>"


def detector_of(index: RunIndex, name: str) -> str | None:
    """The detector that a variable belongs to, None for the run's own coordinates.

    Parameters
    ----------
    index : RunIndex
    name : str
        A variable's name.

    Returns
    -------
    str or None

    Examples
    --------
    >>> from lcls_dask.model import Detector, Node
    >>> hsd = Detector("hsd", "hsd", "", (0,), {"raw": "3.0.0"})
    >>> index = RunIndex("x", 1, "ended", "", {"/": Node("/", {})}, {"hsd": hsd})
    >>> detector_of(index, "hsd.raw.eventHeader"), detector_of(index, "timestamp")
    ('hsd', None)
    """
    # detector names may hold dots themselves: the longest that fits is the one
    fitting = [detector for detector in index.detectors if name.startswith(f"{detector}.")]
    return max(fitting, key=len, default=None)


def _rows(index: RunIndex) -> list[tuple[str, ...]]:
    # only the root node: looking up a detector's node may scan its payloads
    of: dict[str | None, list[Variable]] = {name: [] for name in index.detectors}
    for variable in index.nodes["/"].variables.values():
        if not variable.coordinate:
            of.setdefault(detector_of(index, variable.name), []).append(variable)
    rows = []
    for name, variables in of.items():
        detector = index.detectors.get(name) if name is not None else None
        about: tuple[str, ...] = ("", "", "", "")
        if detector is not None:
            algorithms = ", ".join(f"{key} {version}" for key, version in detector.algorithms.items())
            about = (detector.name, detector.kind, segments_text(detector.segments), algorithms)
        told = [variable for variable in variables if not variable.name.endswith(_MASKS)]
        cells = [_cells(variable, name) for variable in told or variables]
        if detector is not None and len(told) == 0:
            cells.append((f'run.dataset(group="/{detector.name}")', "ragged", "", "", ""))
        for number, cell in enumerate(cells):
            rows.append((*(about if number == 0 else ("",) * 4), *cell))
    return rows


def _cells(variable: Variable, detector: str | None) -> tuple[str, ...]:
    name = variable.name.removeprefix(f"{detector}.") if detector else variable.name
    shape = " x ".join(str(size) for size in variable.shape)
    return name, shape, str(variable.dtype), str(variable.chunk), size_text(variable.nbytes)


def _hint(index: RunIndex) -> str:
    detector = next(iter(index.detectors), None)
    if detector is None:
        return "run.validate()"
    return (
        f'run.dataset("{detector}.*", events=slice(0, 100)); '
        f'run.dataset(group="/{detector}") has its own events, with the ragged fields'
    )


def _aligned(rows: tuple[tuple[str, ...], ...]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
