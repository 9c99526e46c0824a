"""Which experiments and runs there are; rows of runs that have not changed come from the state database."""

import logging
import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..errors import ConfinementError, LclsError, RunNotFoundError, StateError
from ..formats.xtc2.files import NAME, plain
from .describe import table_row, unreadable_row
from .runs import Runs
from .state import State

_log = logging.getLogger(__name__)


def experiments(runs: Runs, names: Iterable[str]) -> list[str]:
    """Those of the experiments that are there."""
    found = []
    for name in sorted(names):
        try:
            runs.experiment(name)
        except (RunNotFoundError, ConfinementError):
            continue
        found.append(name)
    return found


def table(runs: Runs, state: State, experiment: str) -> list[dict[str, Any]]:
    """A row for each run, ascending.

    Only runs whose files changed since they were last looked at are opened. Without its database the gateway
    is slower, not wrong.
    """
    try:
        known = state.rows(experiment)
    except StateError as error:
        _log.warning("the catalogue cannot be read", extra={"fields": {"error": str(error)}})
        known = {}
    rows = []
    for number, path in runs.numbers(experiment).items():
        try:
            now = stamp(path, number)
        except OSError:
            continue  # it went away since it was found
        before, row = known.get(number, ("", {}))
        if before != now:
            row, lasts = _row(runs, experiment, number)
            if lasts:
                _keep(state, experiment, number, now, row)
        rows.append(row)
    return rows


def stamp(path: Path, run: int) -> str:
    """A word that changes whenever a file of the run does."""
    digest = blake2b(digest_size=16)
    with os.scandir(path) if path.is_dir() else os.scandir(path.parent) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            match = NAME.fullmatch(plain(entry.name))
            if (match and int(match["run"]) != run) or (not path.is_dir() and entry.name != path.name):
                continue
            try:
                stat = entry.stat()
                told = f"{entry.name}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino};"
            except OSError as error:  # a link to nothing, or renamed at this moment: that is all there is to say of it
                told = f"{entry.name}:{error.errno};"
            digest.update(told.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _row(runs: Runs, experiment: str, number: int) -> tuple[dict[str, Any], bool]:
    """The row of a run, and whether it stays right as long as its files do."""
    try:
        opened = runs.open(experiment, number)
        row = table_row(opened.source)
    except (LclsError, OSError) as error:  # a run that cannot be opened is a row that says why
        return unreadable_row(number, error, str(runs.root)), False
    # a live run changes without a word, and a name that is not the files' own is forgotten with the gateway's processes
    return row, row["state"] in ("ended", "cut") and opened.snapshot == opened.source.ref.snapshot


def _keep(state: State, experiment: str, number: int, now: str, row: dict[str, Any]) -> None:
    try:
        state.remember(experiment, number, now, row)
    except StateError as error:
        _log.warning("the catalogue cannot be written", extra={"fields": {"error": str(error)}})
