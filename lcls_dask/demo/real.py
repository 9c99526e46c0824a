"""The demo on a real run: what it holds, what is missing or damaged, how it looks, and what psana makes of it."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from .. import open_run, plot
from ..access.run import Run
from ..display import COLUMNS, detector_of, summarise
from ..model import Variable
from .page import Picture, Section, Table, write_page
from .simulated import Say, referee_check
from .workers import two_workers

Array = np.ndarray[Any, Any]

NOTE = (
    "This page shows a run as its files hold it: raw values, not calibrated. "
    "Missing readings are counted and left out of every mean; damaged ones are counted."
)
#: Events that psana reads for comparison, pictures on the page, rows of findings, waveforms in a picture.
REFEREE_EVENTS, PICTURES, FINDINGS, WAVEFORMS = 20, 10, 50, 20
#: Means of fewer bytes than this are not worth two worker processes.
WORKERS_FROM = 256 << 20
#: An array of this many values or fewer needs no picture.
FEW = 8


def report(path: str, out: Path, say: Say, number: int | None = None) -> list[Section]:
    """Report on one run.

    Parameters
    ----------
    path : str
        The run, by path or ``lcls://`` URI.
    out : Path
        Directory for the page and the PNGs.
    say : callable
        Told what is being done.
    number : int, optional
        Which run, where the files hold several.

    Returns
    -------
    list of Section

    Raises
    ------
    LclsError
        The run cannot be opened.

    Examples
    --------
    >>> report("data/xpptut15-r0014", Path("demo-out"), print)  # doctest: +SKIP
    """
    run = open_run(path, run=number)
    out.mkdir(parents=True, exist_ok=True)
    summary = summarise(run.index, run.span(), run.steps)
    say(f"reading all of {path}")
    verdict = run.validate()
    findings = Table(
        ("kind", "where", "count", "message"),
        tuple((f.kind, f.where, f"{f.count:,}", f.message) for f in verdict.findings[:FINDINGS]),
    )
    told = "All of it can be read." if verdict.ok else "Some of it cannot be read."
    if not verdict.findings:
        told += " There is nothing to report."
    elif len(verdict.findings) > FINDINGS:
        told += f" The first {FINDINGS} of {len(verdict.findings):,} findings:"
    say("averaging and drawing")
    sections = [
        Section("The run", tables=(Table(("", ""), summary.facts), Table(COLUMNS, summary.rows))),
        Section("Missing and damaged readings", tables=(Table(_MASKS, tuple(_masks(run))),)),
        Section("Validation", told, tables=(findings,) if verdict.findings else ()),
        Section("Pictures", pictures=tuple(_pictures(run, out))),
        Section("Cross-check", checks=(referee_check(run, REFEREE_EVENTS, say),)),
    ]
    write_page(out / "index.html", f"{run.experiment} run {run.number}", NOTE, sections)
    return sections


_MASKS = ("detector", "readings", "present", "absent", "damaged")


def _masks(run: Run) -> Iterator[tuple[str, ...]]:
    variables = run.index.nodes["/"].variables
    for name in variables:
        if name.endswith(".present"):
            present = run.source.read("/", name, slice(0, run.events))
            base = name.removesuffix(".present")
            damage = run.source.read("/", f"{base}.damage", slice(0, run.events))
            there, damaged = np.count_nonzero(present), np.count_nonzero(damage)
            yield base, f"{present.size:,}", f"{there:,}", f"{present.size - there:,}", f"{damaged:,}"


def _pictures(run: Run, out: Path) -> Iterator[Picture]:
    """Images first, then digitizer waveforms, then other arrays, then scalars, as many as the page takes."""
    dense = [variable for variable in run.index.nodes["/"].variables.values() if _shown(run, variable)]
    dense.sort(key=lambda variable: _rank(variable), reverse=True)
    images = [variable for variable in dense if _rank(variable) > 1]
    left = PICTURES
    # run.dataset gives Dask arrays: a client computes them where there is one, and threads where not
    large = sum(variable.nbytes for variable in dense) > WORKERS_FROM
    with two_workers() if large else nullcontext():
        for variable in images[:left]:
            yield _dense(run, variable, out)
        left -= len(images)
        for detector in run.detectors:
            for name in run.index.nodes[f"/{detector}"].variables:
                if left > 0 and name.endswith(".waveforms"):
                    for picture in _waveforms(run, detector, name, out):
                        yield picture
                        left -= 1
        for variable in dense[len(images) :][: max(0, left)]:
            yield _dense(run, variable, out)


def _item(variable: Variable) -> tuple[int, ...]:
    """Shape of one segment's reading in one event."""
    return variable.shape[2:] if any(dim.endswith(".segment") for dim in variable.dims) else variable.shape[1:]


def _rank(variable: Variable) -> int:
    return len(_item(variable))


def _shown(run: Run, variable: Variable) -> bool:
    """Whether a picture of it says more than its numbers: no masks, no texts, no arrays of a few values."""
    item = _item(variable)
    return (
        run.events > 0
        and not variable.coordinate
        and detector_of(run.index, variable.name) is not None
        and variable.dtype.kind in "iuf"
        and not variable.name.endswith((".present", ".damage"))
        and (not item or int(np.prod(item)) > FEW)
    )


def _dense(run: Run, variable: Variable, out: Path) -> Picture:
    """Mean of an array over the events, or a scalar against the event."""
    name, item = variable.name, _item(variable)
    detector = detector_of(run.index, name) or ""
    algorithm = name.removeprefix(f"{detector}.").split(".")[0]
    there = f"{detector}.{algorithm}.present"
    dataset = run.dataset(name, there)
    values = dataset[name].where(dataset[there])
    units = str(variable.attrs.get("units", "")).removeprefix("1")
    title, caption = f"{name}: mean of {_events(run)}", f"{name}, mean over the events in which it is present."
    if item:
        mean = np.asarray(values.mean("event").compute())
        if len(item) > 1:
            figure = plot.image(mean, units, title)
            caption += " Segments one above the other."
        else:
            rows = {f"segment {i}": row for i, row in enumerate(mean.reshape(-1, item[-1]))}
            figure = plot.lines(np.arange(item[-1]), rows, "index", units, title)
    else:
        column = np.asarray(values.compute(), np.float64).reshape(run.events, -1)
        rows = {f"segment {i}": column[:, i] for i in range(column.shape[1])}
        figure = plot.lines(np.arange(run.events), rows, "event", units, name)
        caption = f"{name} by event; gaps are events in which it is absent."
    path = out / f"{_file_name(name)}.png"
    figure.savefig(path)
    return Picture(path, caption)


def _waveforms(run: Run, detector: str, name: str, out: Path) -> Iterator[Picture]:
    """The first whole waveforms, and where the windows begin."""
    node, base = run.dataset(group=f"/{detector}", chunks=None), name.removesuffix(".waveforms")
    segments = len(run.detectors[detector].segments)
    edge = node[f"{name}.offset"].values
    rows = np.flatnonzero(np.diff(edge))[:WAVEFORMS]
    period_ns = 1e9 * _period(node, base)
    if rows.size:
        figure = plot.figure()
        axes = figure.add_subplot()
        for row in rows:
            samples = node[name][int(edge[row]) : int(edge[row + 1])].values
            axes.plot(np.arange(samples.size) * period_ns, samples, linewidth=0.8, color=f"C{row % segments % 10}")
        axes.set(xlabel="time (ns)", ylabel="ADU", title=f"{name}: the first {rows.size} whole waveforms")
        path = out / f"{_file_name(name)}.png"
        figure.savefig(path)
        yield Picture(path, f"{name}, coloured by segment.")
    times = node[f"{base}.windows.time"].values * 1e9
    if times.size:
        counts, edges = np.histogram(times, bins=200)
        figure = plot.lines(
            edges, {"windows": counts}, "start of the window (ns)", "windows", f"{base}.windows: {times.size:,}"
        )
        path = out / f"{_file_name(base)}-windows.png"
        figure.savefig(path)
        yield Picture(path, f"{base}: where the digitizer's windows begin, all segments together.")


def _period(node: Any, base: str) -> float:
    """Seconds of one sample, from a window's start in both units."""
    start, time = node[f"{base}.windows.start"].values, node[f"{base}.windows.time"].values
    later = np.flatnonzero(start > 0)
    return float(time[later[0]] / start[later[0]]) if later.size else 1e-9


def _events(run: Run) -> str:
    return f"{run.events:,} event{'s' if run.events != 1 else ''}"


def _file_name(name: str) -> str:
    """A variable's name as a file's: anything odd becomes a dash."""
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in name)
