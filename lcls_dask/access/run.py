"""`Run`: what people hold in their hands."""

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SelectionError
from ..formats import RunSource, SourceRef, reopen
from ..model import Detector, Finding, RunIndex
from ..uri import is_uri
from .resolve import open_at

if TYPE_CHECKING:
    import xarray as xr

#: Blocks of a Dataset: the run's own, as xarray has it.
OWN: dict[str, int] = {}

#: What `Run.dataset` takes for ``events``: positions, a mask, timestamps or times.
Events = slice | Sequence[int] | np.ndarray[Any, Any] | None


@dataclass(frozen=True)
class Report:
    """What `Run.validate` found.

    Attributes
    ----------
    findings : tuple of Finding
    events : int
        Events of the run.
    """

    findings: tuple[Finding, ...]
    events: int

    @property
    def ok(self) -> bool:
        """Whether everything can be read."""
        return not any(finding.fatal for finding in self.findings)

    def __str__(self) -> str:
        if not self.findings:
            return f"{self.events} events, nothing to report"
        return "\n".join(f"{f.kind:10} {f.where}: {f.message}" for f in self.findings)


class Run:
    """A run, finished or live, as of one snapshot.

    Made by `open_run`. Nothing but the index is read until values are asked for.

    Parameters
    ----------
    source : RunSource
    location : str
        The URI or path that it was opened by.

    Examples
    --------
    >>> run = lcls_dask.open_run(run_path)
    >>> run.experiment, run.number, run.events
    ('rixsim01', 1, 20)
    >>> run.dataset("archon.*").sizes["event"]
    20
    """

    def __init__(self, source: RunSource, location: str) -> None:
        self._source, self._location = source, location

    @property
    def source(self) -> RunSource:
        """The run's files."""
        return self._source

    @property
    def index(self) -> RunIndex:
        """What is there."""
        return self._source.index

    @property
    def path(self) -> str:
        """Where it was opened."""
        return self._location

    @property
    def experiment(self) -> str:
        """The experiment that owns the run."""
        return self.index.experiment

    @property
    def number(self) -> int:
        """The run's number within its experiment."""
        return self.index.run

    @property
    def state(self) -> str:
        """``"ended"``, ``"live"`` or ``"cut"``; see `RunIndex`."""
        return self.index.state

    @property
    def snapshot(self) -> str:
        """Digest of what was there; pins an unfinished run."""
        return self.index.snapshot

    @property
    def detectors(self) -> dict[str, Detector]:
        """The run's detectors by name."""
        return dict(self.index.detectors)

    @property
    def events(self) -> int:
        """How many events there are."""
        return self.index.events

    @property
    def steps(self) -> int:
        """How many steps the scan has."""
        return int(self.index.attrs.get("steps", 0))

    def span(self) -> tuple[int, int] | None:
        """Timestamps of the first and the last event; None where there are none."""
        if not self.events or "timestamp" not in self.index.nodes["/"].variables:
            return None
        first, last = (int(self._source.read("/", "timestamp", slice(i, i + 1))[0]) for i in (0, self.events - 1))
        return first, last

    def dataset(self, *select: str, events: Events = None, group: str = "/", chunks: Any = OWN) -> "xr.Dataset":
        """Variables of the run as a lazy Dataset.

        Parameters
        ----------
        *select : str
            Names or globs: ``"hsd.*"``, ``"gmd.raw.energy"``; all without any. Coordinates always come along.
        events : slice, sequence of int, (events,) bool, (n,) uint64 or (n,) datetime64, optional
            Which events of the node: by position, by mask, by timestamp or by time. Those that are asked for by
            timestamp or time must be there. Ragged fields are cut with them.
        group : str
            The node: ``"/"`` for all events, ``"/<detector>"`` for a detector's own, with its ragged fields.
        chunks : optional
            As in `xarray.open_dataset`: by default the run's own blocks; None for no Dask, when values are read where
            they are used, again each time.

        Returns
        -------
        xarray.Dataset

        Raises
        ------
        SelectionError
            Nothing has such a name, or an event is not there.

        Examples
        --------
        >>> run.dataset("archon.*", events=slice(0, 5)).sizes["event"]
        5
        """
        import xarray as xr

        whole = xr.open_dataset(
            self.path,
            engine="lcls",
            # events are chosen before there are blocks: a block would read all of its events, damaged ones too
            chunks=None if events is not None else chunks,
            cache=False,
            group=group,
            run=self.number if not is_uri(self.path) else None,
            snapshot=self.snapshot,
            gateway=self._source.ref.gateway,
        )
        if select:
            names = [name for name in whole.data_vars if any(fnmatch.fnmatchcase(str(name), glob) for glob in select)]
            if not names:
                raise SelectionError(self._nothing(select, group))
            whole = whole[names]
        if events is None:
            return whole
        chosen = self._at(events, whole, "/" + group.strip("/"))
        if chunks is None:
            return chosen
        if chunks != OWN:
            return chosen.chunk(chunks)
        blocks = {name: v.encoding.get("preferred_chunks", {}) for name, v in whole.data_vars.items()}
        lazy = {name: v for name, v in chosen.data_vars.items() if not v.variable._in_memory}
        return chosen.assign({name: v.chunk(blocks[name]) for name, v in lazy.items()})

    def tree(self, chunks: Any = OWN) -> "xr.DataTree":
        """Every node of the run: all events, each detector's own, steps, slow variables; `chunks` as in `dataset`."""
        import xarray as xr

        return xr.open_datatree(
            self.path,
            engine="lcls",
            chunks=chunks,
            run=self.number if not is_uri(self.path) else None,
            snapshot=self.snapshot,
            gateway=self._source.ref.gateway,
        )

    def validate(self) -> Report:
        """Read everything once: gaps, duplicates, damage, truncated files.

        Returns
        -------
        Report
        """
        return Report(tuple(self._source.validate()), self.events)

    def info(self) -> str:
        """What the run holds, as text; no event data is read.

        Returns
        -------
        str
        """
        from ..display import run_text

        return run_text(self.index, self.span(), self.steps)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._source.ref, self._location)

    def __repr__(self) -> str:
        return f"<lcls_dask.Run {self.experiment} r{self.number:04d}, {self.events} events, {self.state}>"

    def _repr_html_(self) -> str:
        from ..display import run_html

        return run_html(self.index, self.span(), self.steps)

    def __getitem__(self, name: str) -> "xr.DataArray":
        """One variable of the root node."""
        if name not in self.index.nodes["/"].variables:
            raise SelectionError(self._nothing((name,), "/"))
        whole = self.dataset()
        return whole[name]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.index.nodes["/"].variables)

    def _nothing(self, select: Sequence[str], group: str) -> str:
        wanted = ", ".join(select)
        for detector in self.index.detectors:
            mine = [name for name in self.index.nodes["/"].variables if name.startswith(f"{detector}.")]
            if detector in select:
                return f"{detector}: is a detector; run.dataset('{detector}.*') takes its variables: {', '.join(mine)}"
            if group == "/" and any(glob.split(".")[0] == detector for glob in select):
                return (
                    f"{wanted}: no such variable over all events; {detector} has {', '.join(mine)}; "
                    f"what is ragged is in group='/{detector}'"
                )
        known = ", ".join(self.index.detectors)
        return f"{wanted}: no such variable in {group}; the run's detectors are {known}; run.info() lists all"

    def _at(self, events: Any, whole: "xr.Dataset", path: str) -> "xr.Dataset":
        """A node at some of its events."""
        from .cutting import is_ragged
        from .engine import cut_dataset

        node = self.index.nodes[path]
        dim = "event" if path == "/" else f"{path[1:]}.event"
        # a node that has nothing but ragged fields, and no timestamps, has the run's events
        count = whole.sizes.get(dim, self.events if is_ragged(node) else None)
        if count is None:
            raise SelectionError(f"{path}: has no events to choose from; only / and the detectors' nodes have")
        positions = self._positions(events, whole, count)
        if not is_ragged(node):
            return whole.isel({dim: positions})
        rows = np.arange(count)[positions]
        return cut_dataset(whole, self._source, path, dim, rows)

    def _positions(self, events: Any, whole: "xr.Dataset", count: int) -> Any:
        if isinstance(events, slice):
            return events
        wanted = np.atleast_1d(np.asarray(events))
        if not wanted.size and wanted.dtype.kind != "b":
            return np.empty(0, np.int64)
        if wanted.dtype.kind == "b":
            if wanted.shape != (count,):
                raise SelectionError(f"the mask has shape {wanted.shape}, the run has {count} events")
            return np.flatnonzero(wanted)
        if wanted.dtype == np.uint64 or wanted.dtype.kind == "M":
            name = "timestamp" if wanted.dtype.kind == "u" else "time"
            if name not in whole.coords:
                raise SelectionError(f"{self.path}: has no {name} to choose events by; choose them by position")
            column = np.asarray(whole[name])
            wanted = wanted.astype(column.dtype)
            at = np.minimum(np.searchsorted(column, wanted), max(0, count - 1))
            missing = wanted[column[at] != wanted] if count else wanted
            if missing.size:
                raise SelectionError(f"{missing.size} of the events asked for are not there, the first is {missing[0]}")
            return at
        if wanted.dtype.kind not in "iu" or wanted.ndim > 1:
            raise SelectionError(
                "events are chosen by a slice, positions, a mask, timestamps or times, "
                f"not by an array of {wanted.dtype} of shape {wanted.shape}"
            )
        wrong = wanted[(wanted < -count) | (wanted >= count)]
        if wrong.size:
            raise SelectionError(f"event {wrong.ravel()[0]} was asked for, the run has {count}")
        return wanted


def _reopen(ref: SourceRef, location: str) -> Run:
    return Run(reopen(ref), location)


def open_run(
    uri_or_path: str | os.PathLike[Any],
    run: int | None = None,
    snapshot: str | None = None,
    gateway: str | None = None,
) -> Run:
    """Open a run, finished or live.

    Parameters
    ----------
    uri_or_path : str or PathLike
        ``lcls://<experiment>/r<NNNN>[@<snapshot>]``, or a file or directory.
    run : int, optional
        Which run, where there are several.
    snapshot : str, optional
        Pins the run to what it was; by default it is what is there now.
    gateway : str, optional
        Address that an ``lcls://`` URI is read from, ``https://host:port``; ``lcls.gateway`` by default.

    Returns
    -------
    Run

    Raises
    ------
    UriError, RunNotFoundError, SeveralRunsError, SnapshotError, FormatError
    AccessError, UnreachableError
        The gateway refuses, or does not answer.

    Examples
    --------
    >>> run = lcls_dask.open_run(run_path)
    >>> run
    <lcls_dask.Run rixsim01 r0001, 20 events, ended>
    """
    text = os.fspath(uri_or_path)
    source = open_at(text, run, snapshot, gateway)
    return Run(source, text if is_uri(text) else source.ref.path)
