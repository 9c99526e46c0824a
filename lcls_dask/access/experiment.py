"""`Experiment`: its runs, and the table of them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, LclsError, RunNotFoundError, UriError
from ..formats import find_runs
from ..formats.discover import experiment_directory
from ..model import time_of
from ..uri import is_uri, parse_uri
from .run import Run, open_run

if TYPE_CHECKING:
    import pandas as pd

#: Beside the runs: a table of the user's own, with a column ``run``.
NOTES = "runs.csv"


class Experiment:
    """An experiment's directory of runs.

    Parameters
    ----------
    path : Path

    Examples
    --------
    >>> experiment = lcls_dask.open_experiment(run_path.parent)
    >>> list(experiment.table()["events"])
    [20]
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """The directory."""
        return self._path

    def __repr__(self) -> str:
        return f"<lcls_dask.Experiment {self._path}, {len(self.runs())} runs>"

    def runs(self) -> list[int]:
        """Numbers of the runs that are there now, ascending."""
        return list(find_runs(self._path))

    def __getitem__(self, number: int) -> Run:
        """Open one run."""
        runs = find_runs(self._path)
        if number not in runs:
            known = ", ".join(map(str, runs)) or "none"
            raise RunNotFoundError(f"{self._path}: holds no run {number}; there are {known}")
        return open_run(runs[number], run=number)

    def table(self) -> "pd.DataFrame":
        """One row a run.

        Returns
        -------
        pandas.DataFrame
            Index ``run``; columns ``start`` (UTC), ``events``, ``detectors``, ``scan`` (steps and scanned variables),
            ``state``, ``problem`` (why it could not be opened, else empty), and the user's own from ``runs.csv`` beside
            the runs.
        """
        import pandas as pd

        rows = [self._row(number, path) for number, path in find_runs(self._path).items()]
        names = ["run", "start", "events", "detectors", "scan", "state", "problem"]
        table = pd.DataFrame(rows, columns=pd.Index(names)).set_index("run")
        notes = self._path / NOTES
        if notes.exists():
            try:
                own = pd.read_csv(notes)
            except (OSError, ValueError) as error:  # pandas' and the decoder's are ValueErrors
                raise FormatError(f"{notes}: can't be read: {str(error).splitlines()[0]}") from error
            if "run" not in own:
                raise UriError(f"{notes}: has no column 'run', so its rows belong to no run")
            own = own.drop_duplicates("run", keep="last").set_index("run")
            table = table.join(own.rename(columns={name: f"{name}_noted" for name in own if name in table}))
        return table

    def _row(self, number: int, path: Path) -> dict[str, Any]:
        try:
            run = open_run(path, run=number)
            span = run.span()
            steps = run.index.nodes["/steps"].variables if "/steps" in run.index.nodes else {}
            scanned = [name for name in steps if name not in ("timestamp", "time")]
            return {
                "run": number,
                "start": time_of(np.array([span[0]], np.uint64))[0] if span else np.datetime64("NaT", "ns"),
                "events": run.events,
                "detectors": " ".join(run.detectors),
                "scan": f"{run.steps} x {' '.join(scanned)}" if scanned else "",
                "state": run.state,
                "problem": "",
            }
        except LclsError as error:  # a run that can't be opened is a row that says why
            nothing = {
                "start": np.datetime64("NaT", "ns"),
                "events": 0,
                "detectors": "",
                "scan": "",
                "state": "unreadable",
            }
            return {"run": number, **nothing, "problem": str(error)}


def open_experiment(uri_or_path: str | os.PathLike[Any]) -> Experiment:
    """Open an experiment.

    Parameters
    ----------
    uri_or_path : str or PathLike
        ``lcls://<experiment>``, or the directory that holds its runs.

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
        return Experiment(experiment_directory(parse_uri(text).experiment))
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
    return Experiment(path)
