"""Runs as JSON documents: what a client needs to rebuild a `RunIndex` node by node, and no event data."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..display import facts_of, facts_of_variable
from ..errors import LclsError
from ..formats import RunSource
from ..model import Node, Variable, time_of
from ..stores.keys import Entry
from ..stores.metadata import jsonable
from .files import identities


def run_document(source: RunSource) -> dict[str, Any]:
    """A run: its facts, its detectors, the paths of its nodes, and the root node.

    Other nodes have documents of their own (`node_document`), since making one may read a detector's headers.

    Parameters
    ----------
    source : RunSource

    Returns
    -------
    dict
        JSON-able.

    Examples
    --------
    >>> run_document(run.source)["nodes"]
    ['/', ...]
    """
    index = source.index
    return {
        **facts_of(index, _span(source), int(index.attrs.get("steps", 0))),
        "attrs": jsonable(index.attrs),
        "nodes": list(index.nodes),
        "root": node_document(index.nodes["/"]),
    }


def node_document(node: Node) -> dict[str, Any]:
    """A node: its attributes, and all about its variables but their values."""
    return {
        "path": node.path,
        "attrs": jsonable(node.attrs),
        "variables": [_variable_document(variable) for variable in node.variables.values()],
    }


def _variable_document(variable: Variable) -> dict[str, Any]:
    return {
        **facts_of_variable(variable),
        "dtype": variable.dtype.str,
        "attrs": jsonable(variable.attrs),
        "coordinate": variable.coordinate,
        "codecs": [dict(codec) for codec in variable.codecs],
    }


def table_row(source: RunSource) -> dict[str, Any]:
    """A run as a row of its experiment's table."""
    span = _span(source)
    index = source.index
    steps = index.nodes["/steps"].variables if "/steps" in index.nodes else {}
    scanned = [name for name in steps if name not in ("timestamp", "time")]
    return {
        "run": index.run,
        "state": index.state,
        "snapshot": index.snapshot,
        "events": index.events,
        "start": time_of(np.array(span[:1], np.uint64)).astype(str).tolist()[0] if span else None,
        "detectors": list(index.detectors),
        "steps": int(index.attrs.get("steps", 0)),
        "scanned": scanned,
        "problem": "",
    }


def unreadable_row(run: int, error: LclsError | OSError, root: str) -> dict[str, Any]:
    """The row of a run that cannot be opened: it says why."""
    nothing: dict[str, Any] = {"snapshot": None, "events": 0, "start": None, "detectors": [], "steps": 0, "scanned": []}
    return {"run": run, "state": "unreadable", **nothing, "problem": without_root(str(error), root)}


def without_root(message: str, root: str) -> str:
    """A message in which files are called as seen from the root: readers need not know where it is."""
    return message.replace(f"{root}{os.sep}", "").replace(root, "")


def listing_document(entries: list[Entry]) -> list[dict[str, Any]]:
    """What lies in a directory of the zarr hierarchy; a size of null must be asked for."""
    return [
        {"name": entry.name, "directory": entry.is_dir, "size": None if entry.is_dir else entry.size}
        for entry in entries
    ]


def direct_document(source: RunSource) -> Mapping[str, Any]:
    """What a client on the same file system needs to open the files itself and to see that they are the same."""
    ref = source.ref
    home = ref.path if os.path.isdir(ref.path) else os.path.dirname(ref.path)
    return {
        "path": ref.path,
        "run": ref.run,
        "snapshot": ref.snapshot,
        "used": [list(pair) for pair in ref.used],
        "files": [
            {
                "name": os.path.relpath(found.path, home),
                "size": found.size,
                "mtime_ns": found.mtime_ns,
                "header": found.header(),
            }
            for found in identities(source)
        ],
    }


def _span(source: RunSource) -> tuple[int, int] | None:
    index = source.index
    if not index.events or "timestamp" not in index.nodes["/"].variables:
        return None
    first, last = (int(source.read("/", "timestamp", slice(at, at + 1))[0]) for at in (0, index.events - 1))
    return first, last
