"""Reading the facility's own files, where the gateway allows it and this machine sees the same ones.

The gateway has decided and audited; what keeps others out of the files is then the file system alone.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import AccessError, LclsError, RunNotFoundError, SnapshotError
from ..identity import header_of
from ..source import RunSource
from ..xtc2.files import IN_PROGRESS
from .gateway import Gateway

_log = logging.getLogger(__name__)

#: Opens a path, run, snapshot and used bytes.
OpenFiles = Callable[[str, int | None, str | None, tuple[tuple[str, int], ...]], RunSource]


def open_directly(gateway: Gateway, target: str, snapshot: str, open_files: OpenFiles) -> RunSource | None:
    """Open a run's files, if they are the ones that the gateway reads.

    Parameters
    ----------
    gateway : Gateway
    target : str
        Where it tells of the files.
    snapshot : str
    open_files : callable

    Returns
    -------
    RunSource or None
        None where they may not be read directly, or cannot be seen from here.
    """
    try:
        document = gateway.document(target)
    except (AccessError, RunNotFoundError, SnapshotError):
        return None
    try:
        path = Path(document["path"])
        home = path if path.is_dir() else path.parent
        used = tuple((str(name), int(size)) for name, size in document["used"])
        sizes = dict(used)
        if not path.is_absolute() or not all(_is_same(home, found, sizes) for found in document["files"]):
            return None
        source = open_files(str(path), int(document["run"]), snapshot, used)
    except (KeyError, TypeError, ValueError, OSError, LclsError) as error:
        _log.info("%s is read through the gateway, since its files cannot be used here: %s", target, error)
        return None
    return source if source.index.snapshot == snapshot else None


def _is_same(home: Path, found: dict[str, Any], used: dict[str, int]) -> bool:
    path = home / str(found["name"])
    path = path if path.exists() else path.with_name(path.name + IN_PROGRESS)
    try:
        stat = os.stat(path)
        alike = (stat.st_size, stat.st_mtime_ns) == (found["size"], found["mtime_ns"])
        return alike and header_of(path, used.get(str(found["name"]), stat.st_size)) == found["header"]
    except OSError:
        return False
