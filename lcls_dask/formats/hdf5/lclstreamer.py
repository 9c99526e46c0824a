"""LCLStreamer's files: one dataset for each field, the batch first, a chunk for each event, no attributes.

Each MPI rank writes files of its own, ``<prefix_>r<rank>_<n>.h5``: all of a directory are one run, put in the
order of time. The format has no mark for an event that a rank has lost, and none for a missing reading: such
values are as LCLStreamer wrote them (NaN, -999 or "None").
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .clock import clock_of
from .columns import Absent, Column, Held, Index, joined
from .datafile import Stored
from .entries import Entry, load
from .nodes import Field, Tree, build
from .smalldata import part, with_scan


def recognised(entries: Mapping[str, Entry]) -> bool:
    """Whether every dataset has the same length, and chunks of one event."""
    columns = [entry.column for entry in entries.values()]
    numbers = [column for column in columns if isinstance(column, Stored)]
    return (
        bool(numbers)
        and len({column.shape[:1] for column in columns}) == 1
        and all(column.chunks is not None and column.chunks[0] == 1 for column in numbers)
    )


def tree(files: Sequence[tuple[str, Mapping[str, Entry]]]) -> tuple[Tree, dict[str, str]]:
    """Nodes of the files of a run.

    Parameters
    ----------
    files : sequence of (str, mapping of str to Entry)
        Name and datasets of each file.

    Returns
    -------
    tree : Tree
    remarks : dict of str to str
        By path, what the files should have but have not.

    Raises
    ------
    ValueError
        The files do not fit together.
    """
    lengths = [_length(name, entries) for name, entries in files]
    paths = sorted({path for _, entries in files for path in entries})
    remarks: dict[str, str] = {}
    stamps = [path for path in paths if path.rpartition("/")[2].rpartition(".")[2] == "timestamp"]
    stamps = [path for path in stamps if all(path in entries for _, entries in files)]
    clock, order = None, None
    if stamps:
        entry = _joined(files, lengths, stamps[0], None)
        for _, entries in files:
            load(entries[stamps[0]])
        clock = clock_of(entry.column, stamps[0])
        values = clock.column.read(slice(0, sum(lengths)))
        if np.any(values[1:] < values[:-1]):
            order = np.argsort(values, kind="stable").astype(np.int64)
            clock = replace(clock, column=Held(values[order]))
    elif len(files) > 1:
        remarks["/timestamp"] = "there is none: events stand in the order of the files"
    whole = {path: _joined(files, lengths, path, order) for path in paths if path not in stamps[:1]}
    made = part(whole, clock, remarks, length=sum(lengths))
    made = replace(made, fields=(*made.fields, *_presence(files, lengths, paths, order)))
    made, scan = with_scan(made)
    result = build(made)
    if scan:
        result.add("/steps", scan, {})
    return result, remarks


def _length(name: str, entries: Mapping[str, Entry]) -> int:
    lengths = {entry.column.shape[0] if entry.column.shape else -1 for entry in entries.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(f"the datasets of {name} have several lengths")
    return lengths.pop()


def _joined(
    files: Sequence[tuple[str, Mapping[str, Entry]]], lengths: Sequence[int], path: str, order: Index | None
) -> Entry:
    """A dataset of all files as one, in an order of events; zeros where a file has none."""
    there = [entries[path] for _, entries in files if path in entries]
    first = there[0].column
    dtype = np.result_type(*(entry.column.dtype for entry in there)) if first.dtype.kind == "U" else first.dtype
    parts: list[Column] = []
    for (name, entries), length in zip(files, lengths, strict=True):
        if path not in entries:
            parts.append(Absent(dtype, (length, *first.shape[1:])))
            continue
        column = entries[path].column
        if column.shape[1:] != first.shape[1:] or (column.dtype != dtype and dtype.kind != "U"):
            raise ValueError(
                f"{path} is {column.dtype} {column.shape[1:]} in {name}, but {dtype} {first.shape[1:]} in {files[0][0]}"
            )
        parts.append(column)
    return Entry(path, joined(parts, order), there[0].attrs)


def _presence(
    files: Sequence[tuple[str, Mapping[str, Entry]]],
    lengths: Sequence[int],
    paths: Sequence[str],
    order: Index | None,
) -> list[Field]:
    """Masks for the datasets that some of the files do not have."""
    found: dict[str, Field] = {}
    for path in paths:
        if all(path in entries for _, entries in files):
            continue
        values = np.repeat([path in entries for _, entries in files], lengths)
        detector = path[1:].replace("/", ".").rpartition(".")
        name = f"{detector[0] or detector[2]}.present"
        values = values if order is None else values[order]
        if name in found:
            values &= found[name].column.read(slice(0, len(values)))
        found[name] = Field(name, Held(values), {"long_name": "whether the event's file has these fields"})
    return list(found.values())
