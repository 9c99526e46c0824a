"""The directory beside a target in which an export grows, so that it can be taken up again after a kill."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import TargetExistsError

JOURNAL = "journal.json"
SCRATCH = "writing"


@contextmanager
def partial(target: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """The directory of an unfinished export, held against other processes.

    What an earlier call has left there is kept if it was of the same plan, and removed otherwise.

    Parameters
    ----------
    target : Path
        What the export shall be called in the end.
    plan : mapping
        JSON-able: all that decides what the result's bytes are.

    Yields
    ------
    Path
        ``<target>.partial``, removed when the body ends without an error.

    Raises
    ------
    TargetExistsError
        The target is there already, or another process is writing it.
    """
    if os.path.lexists(target):
        raise TargetExistsError(f"{target}: is there already; remove it or choose another name")
    place = target.with_name(target.name + ".partial")
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("a") as lock:
        _hold(lock.fileno(), target)
        if _read(place / JOURNAL) != json.loads(json.dumps(plan)):
            for old in place.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
                elif old.name != "lock":
                    old.unlink()
            write(place / JOURNAL, json.dumps(plan).encode(), place)
        shutil.rmtree(place / SCRATCH, ignore_errors=True)
        (place / SCRATCH).mkdir()
        yield place
        shutil.rmtree(place)


def _hold(descriptor: int, target: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TargetExistsError(f"{target}: another process is exporting to it; wait, or choose another name") from None
    except OSError:
        return  # a file system without locks: chunks are written so that two writers do no harm


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write(path: Path, data: bytes, scratch: Path) -> None:
    """Write a file so that it is there whole or not at all, whatever is killed when.

    Parameters
    ----------
    path : Path
    data : bytes
    scratch : Path
        Directory on the same file system, where what a kill leaves does no harm.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = scratch / f"{os.getpid()}-{os.urandom(8).hex()}"
    with own.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    own.replace(path)
