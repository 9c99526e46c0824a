"""`Experiment`: its runs, and the table of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import config
from ..errors import FormatError, LclsError, RunNotFoundError, UriError
from ..formats import find_runs
from ..formats.discover import experiment_directory
from ..formats.remote.catalogue import run_table
from ..model import time_of
from ..uri import RunUri, is_uri, parse_uri
from .run import Run, open_run

if TYPE_CHECKING:
    import pandas as pd

#: Beside the runs: a table of the user's own, with a column ``run``.
NOTES = "runs.csv"


class Place(Protocol):
    """Where an experiment's runs are."""

    def runs(self) -> list[int]:
        """Numbers of the runs, ascending."""

    def open(self, number: int) -> Run:
        """Open one that is there."""

    def rows(self) -> list[dict[str, Any]]:
        """For each run the columns of the table."""

    def notes(self) -> "pd.DataFrame | None":
        """The user's own table."""


@dataclass(frozen=True)
class Directory:
    """A directory of runs."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def runs(self) -> list[int]:
        """Numbers of the runs, ascending."""
        return list(find_runs(self.path))

    def open(self, number: int) -> Run:
        """Open one that is there."""
        return open_run(find_runs(self.path)[number], run=number)

    def rows(self) -> list[dict[str, Any]]:
        """For each run the columns of the table."""
        return [_row(number, path) for number, path in find_runs(self.path).items()]

    def notes(self) -> "pd.DataFrame | None":
        """The user's own table, ``runs.csv`` beside the runs."""
        import pandas as pd

        path = self.path / NOTES
        if not path.exists():
            return None
        try:
            own = pd.read_csv(path)
        except (OSError, ValueError) as error:  # pandas' and the decoder's are ValueErrors
            raise FormatError(f"{path}: can't be read: {str(error).splitlines()[0]}") from error
        if "run" not in own:
            raise UriError(f"{path}: has no column 'run', so its rows belong to no run")
        return own.drop_duplicates("run", keep="last").set_index("run")


@dataclass(frozen=True)
class Served:
    """An experiment behind a gateway."""

    gateway: str
    name: str

    def __str__(self) -> str:
        return f"lcls://{self.name}"

    def runs(self) -> list[int]:
        """Numbers of the runs, ascending."""
        return [int(row["run"]) for row in run_table(self.gateway, self.name)]

    def open(self, number: int) -> Run:
        """Open one that is there."""
        return open_run(str(RunUri(self.name, number)), gateway=self.gateway)

    def rows(self) -> list[dict[str, Any]]:
        """For each run the columns of the table."""
        return [
            {
                **{name: row[name] for name in ("run", "events", "state", "problem")},
                "start": np.datetime64(row["start"] or "NaT", "ns"),
                "detectors": " ".join(row["detectors"]),
                "scan": _scan(row["steps"], row["scanned"]),
            }
            for row in run_table(self.gateway, self.name)
        ]

    def notes(self) -> "pd.DataFrame | None":
        """None: a gateway serves runs alone."""
        return None


class Experiment:
    """An experiment: its runs, in a directory or behind a gateway.

    Parameters
    ----------
    place : Place

    Examples
    --------
    >>> experiment = lcls_dask.open_experiment(run_path.parent)
    >>> list(experiment.table()["events"])
    [20]
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def path(self) -> str:
        """The directory, or the URI."""
        return str(self._place)

    def __repr__(self) -> str:
        return f"<lcls_dask.Experiment {self._place}, {len(self.runs())} runs>"

    def runs(self) -> list[int]:
        """Numbers of the runs that are there now, ascending."""
        return self._place.runs()

    def __getitem__(self, number: int) -> Run:
        """Open one run."""
        runs = self.runs()
        if number not in runs:
            known = ", ".join(map(str, runs)) or "none"
            raise RunNotFoundError(f"{self._place}: holds no run {number}; there are {known}")
        return self._place.open(number)

    def table(self) -> "pd.DataFrame":
        """One row a run.

        Returns
        -------
        pandas.DataFrame
            Index ``run``; columns ``start`` (UTC), ``events``, ``detectors``, ``scan`` (steps and scanned variables),
            ``state``, ``problem`` (why it could not be opened, else empty), and the user's own from ``runs.csv`` beside
            the runs of a directory.
        """
        import pandas as pd

        names = ["run", "start", "events", "detectors", "scan", "state", "problem"]
        table = pd.DataFrame(self._place.rows(), columns=pd.Index(names)).set_index("run")
        if (own := self._place.notes()) is not None:
            table = table.join(own.rename(columns={name: f"{name}_noted" for name in own if name in table}))
        return table


def _row(number: int, path: Path) -> dict[str, Any]:
    try:
        run = open_run(path, run=number)
        span = run.span()
        steps = run.index.nodes["/steps"].variables if "/steps" in run.index.nodes else {}
        return {
            "run": number,
            "start": time_of(np.array([span[0]], np.uint64))[0] if span else np.datetime64("NaT", "ns"),
            "events": run.events,
            "detectors": " ".join(run.detectors),
            "scan": _scan(run.steps, [name for name in steps if name not in ("timestamp", "time")]),
            "state": run.state,
            "problem": "",
        }
    except LclsError as error:  # a run that can't be opened is a row that says why
        nothing = {"start": np.datetime64("NaT", "ns"), "events": 0, "detectors": "", "scan": "", "state": "unreadable"}
        return {"run": number, **nothing, "problem": str(error)}


def _scan(steps: int, scanned: Sequence[str]) -> str:
    return f"{steps} x {' '.join(scanned)}" if scanned else ""


def open_experiment(uri_or_path: str | os.PathLike[Any], gateway: str | None = None) -> Experiment:
    """Open an experiment.

    Parameters
    ----------
    uri_or_path : str or PathLike
        ``lcls://<experiment>``, or the directory that holds its runs.
    gateway : str, optional
        Where a URI is read from; ``lcls.gateway`` by default.

    Returns
    -------
    Experiment

    Raises
    ------
    UriError, RunNotFoundError

    Examples
    --------
    >>> lcls_dask.open_experiment(run_path.parent).runs()
    [1]
    """
    text = os.fspath(uri_or_path)
    if is_uri(text):
        name, address = parse_uri(text).experiment, gateway or config.gateway()
        return Experiment(Directory(experiment_directory(name)) if address is None else Served(address, name))
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise UriError(f"{text!r}: {error}") from error
    if text and path.is_file():
        raise UriError(
            f"{path}: is a file, and an experiment is a directory of runs; see what the file holds with "
            "lcls-dask info or lcls_dask.open_run, or list its directory"
        )
    if not text or not path.is_dir():
        raise RunNotFoundError(f"{path}: no such directory")
    return Experiment(Directory(path))
