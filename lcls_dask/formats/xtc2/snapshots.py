"""Which snapshots of a run are known: those whose indexes are kept."""

import json
from pathlib import Path

from ... import config


def kept_snapshots(path: Path, run: int | None, prefix: str) -> set[str]:
    """Snapshots of a run, kept in the cache of indexes, that begin with some digits.

    Parameters
    ----------
    path : Path
        The run's directory, or a file in it.
    run : int or None
        Which one, where there are several.
    prefix : str
        Hexadecimal digits.

    Returns
    -------
    set of str
    """
    home = path.resolve() if path.is_dir() else path.resolve().parent
    found = set()
    for file in config.index_cache().glob(f"{prefix}*-r*/index.json"):
        try:
            meta = json.loads(file.read_text())
            if meta["home"] == str(home) and run in (None, meta["run"]):
                found.add(str(meta["snapshot"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # somebody tidies the cache
    return {snapshot for snapshot in found if snapshot.startswith(prefix)}
