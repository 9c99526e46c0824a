"""LCLS smalldata: datasets with the event first, groups are detectors; and what other layouts share with it.

psana's own (``timestamp``, ``var_<name>`` groups with ``var_<name>_len``, groups with timestamps of their own)
and smalldata_tools' (``event_time`` on LCLS-I, ``scan``, ``Sums``, ``UserDataCfg``).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...model import Variable
from .clock import Clock, clock_of
from .columns import Column, Held, Taken, offsets_of
from .entries import Entry, load, plain
from .nodes import Field, Part, Ragged, Tree, build, clock_variables, variable

CLOCKS = ("timestamp", "event_time")

#: Groups of smalldata_tools that hold no events, whatever lengths their datasets happen to have.
SETTINGS = frozenset({"UserDataCfg", "Config", "Sums"})

#: Groups that describe steps of a scan, if their datasets have one length that is not the events'.
STEPS = frozenset({"step", "steps", "scan"})

#: From the path of a dataset to the name of its variable.
Naming = Callable[[str], str]

#: A dataset without events that holds no more values than this is an attribute.
FEW = 64


def name_of(path: str) -> str:
    """The variable of a dataset: its path with dots."""
    return path[1:].replace("/", ".")


def recognised(entries: Mapping[str, Entry]) -> bool:
    """Whether a file has integer timestamps where smalldata has them."""
    return any(_is_clock(entry) and path.count("/") <= 2 for path, entry in entries.items())


def _is_clock(entry: Entry) -> bool:
    return entry.last in CLOCKS and entry.column.dtype.kind in "iu" and len(entry.column.shape) == 1


def tree(entries: Mapping[str, Entry]) -> tuple[Tree, dict[str, str]]:
    """Nodes of a smalldata file, and remarks on what it should have but has not."""
    rest = dict(entries)
    clock = next((rest.pop(f"/{name}") for name in CLOCKS if f"/{name}" in rest), None)
    remarks: dict[str, str] = {}
    groups: dict[str, Part] = {}
    for path, entry in entries.items():
        if entry.group not in STEPS and path.count("/") == 2 and _is_clock(entry):
            own = {name: rest.pop(name) for name in list(rest) if name.startswith(f"/{entry.group}/")}
            del own[path]
            groups[entry.group] = part(own, entry, remarks)
    steps = _steps(rest, 0 if clock is None else clock.column.shape[0])
    whole = part(rest, clock, remarks)
    whole, scan = with_scan(whole)
    made = build(whole, groups)
    if steps or scan:
        made.add("/steps", steps or scan, {})
    return made, remarks


def part(
    entries: Mapping[str, Entry],
    clock: Entry | Clock | None,
    remarks: dict[str, str],
    *,
    length: int = -1,
    naming: Naming = name_of,
) -> Part:
    """Sort datasets into fields of events, ragged ones, and the rest.

    Parameters
    ----------
    entries : mapping of str to Entry
    clock : Entry, Clock or None
        The timestamps.
    remarks : dict of str to str
        By path; what was found wrong is added.
    length : int
        Number of events where there is no clock.
    naming : callable
        From a path to the name of the variable.

    Returns
    -------
    Part
    """
    if isinstance(clock, Entry):
        load(clock)  # refuses a length that the file cannot hold
        clock = _clock(clock)
    if clock is not None:
        length = clock.column.shape[0]
    ragged, taken = ragged_fields(entries, length, remarks, naming)
    fields, loose = [], []
    constants: dict[str, dict[str, Any]] = {}
    for path, entry in entries.items():
        if path in taken:
            continue
        shape = entry.column.shape
        described = Field(naming(path), entry.column, {**entry.attrs, "hdf5_path": path})
        if shape and shape[0] == length and entry.group not in SETTINGS:
            fields.append(described)
        elif int(np.prod(shape, dtype=np.float64)) <= FEW:
            value = entry.column.read(slice(0, shape[0]) if shape else slice(None))
            owner, _, key = described.name.partition(".") if "." in described.name else ("", "", described.name)
            constants.setdefault(owner, {})[key] = plain(value)
        else:
            loose.append(described)
    return Part(length, clock, tuple(fields), tuple(ragged), tuple(loose), constants)


def _clock(entry: Entry) -> Clock:
    return clock_of(entry.column, entry.path)


def ragged_fields(
    entries: Mapping[str, Entry], length: int, remarks: dict[str, str], naming: Naming = name_of
) -> tuple[list[Ragged], set[str]]:
    """Flat datasets whose lengths stand in ``<name>_len``: ``<name>`` itself, or all in the group ``<name>``.

    Returns
    -------
    ragged : list of Ragged
    taken : set of str
        Paths of the flat datasets.
    """
    found: list[Ragged] = []
    taken: set[str] = set()
    for path, entry in entries.items():
        base = path.removesuffix("_len")
        if base == path or entry.column.shape != (length,) or entry.column.dtype.kind not in "iu":
            continue
        flat = [entries[base]] if base in entries else []
        flat += [other for name, other in entries.items() if name.startswith(f"{base}/")]
        if not flat:
            continue
        lengths = load(entry).astype(np.int64)
        matching = []
        for other in flat:
            column = _matching(other.column, lengths)
            if column is not None:
                matching.append((other, column))
            elif other.column.shape[:1] != (length,):
                remarks[other.path] = (
                    f"it has {other.column.shape[:1]} values, but the lengths in {path} add up to "
                    f"{int(np.maximum(lengths, 0).sum())}: it stands beside the events, not in them"
                )
        if not matching:
            continue
        name = naming(base)
        # the ragged field of a detector without a group of its own still needs one
        name = name if "." in name else f"{name}.{name}"
        fields = tuple(
            Field(
                naming(other.path) if other.path != base else name,
                column,
                {**other.attrs, "hdf5_path": other.path},
            )
            for other, column in matching
        )
        found.append(Ragged(name, offsets_of(np.maximum(lengths, 0)), fields))
        taken.update(other.path for other, _ in matching)
    return found, taken


def _matching(column: Column, lengths: np.ndarray[Any, Any]) -> Column | None:
    """The values of a flat dataset whose rows have these lengths; None where it cannot be."""
    rows = column.shape[0] if column.shape else -1
    if rows == int(np.maximum(lengths, 0).sum()):
        return column
    # psana joins files of servers: one that never saw the field has -99999 for each length, and a filler
    filled = np.where(lengths < 0, 1, lengths)
    if rows == int(filled.sum()):
        return Taken(column, np.flatnonzero(np.repeat(lengths >= 0, filled)))
    return None


def _steps(entries: dict[str, Entry], length: int) -> list[tuple[Variable, Column]]:
    """Variables of a group that describes steps; its datasets are taken out of `entries`."""
    for group in sorted(STEPS):
        own = {path: entry for path, entry in entries.items() if entry.group == group and entry.column.shape}
        if not own or {entry.column.shape[0] for entry in own.values()} in ({length}, {1}):
            continue
        if len({entry.column.shape[0] for entry in own.values()}) != 1:
            continue
        members: list[tuple[Variable, Column]] = []
        for path, entry in own.items():
            del entries[path]
            if entry.last in CLOCKS:
                members += clock_variables(_clock(entry), "step")
                continue
            name = ".".join(path.split("/")[2:])
            dims = ("step", *(f"{name}.dim_{k}" for k in range(len(entry.column.shape) - 1)))
            members.append(variable(name, dims, entry.column, entry.attrs, coordinate=name == "step"))
        return members
    return []


def with_scan(whole: Part) -> tuple[Part, list[tuple[Variable, Column]]]:
    """Find the steps of a scan whose values are written for each event.

    A step begins where, in the order of time, ``step``, else ``scan.varStep``, else any scalar of the group
    ``scan`` changes.

    Returns
    -------
    whole : Part
        With the field ``step`` (int32).
    members : list of (Variable, Column)
        Of the node ``/steps``; empty where there is no scan.
    """
    scalars = [entry for entry in whole.fields if len(entry.column.shape) == 1 and entry.column.dtype.kind in "biuf"]
    scan = [entry for entry in scalars if entry.detector == "scan"]
    given = [entry for entry in scalars if entry.name == "step"]
    marks = given or [entry for entry in scan if entry.name == "scan.varStep"] or scan
    if not marks or not whole.length:
        return whole, []
    everything = slice(0, whole.length)
    order = np.argsort(whole.clock.column.read(everything), kind="stable") if whole.clock else np.arange(whole.length)
    changed = np.zeros(whole.length, bool)
    for mark in marks:
        values = mark.column.read(everything)[order]
        changed[1:] |= (values[1:] != values[:-1]) & ~((values[1:] != values[1:]) & (values[:-1] != values[:-1]))
    step = np.empty(whole.length, np.int32)
    step[order] = np.cumsum(changed, dtype=np.int32)
    starts = order[np.concatenate([[0], np.flatnonzero(changed)])].astype(np.int64)

    members = (
        clock_variables(replace(whole.clock, column=Taken(whole.clock.column, starts)), "step") if whole.clock else []
    )
    for entry in scan:
        members.append(variable(entry.name.removeprefix("scan."), ("step",), Taken(entry.column, starts), entry.attrs))
    label = Field("step", Held(step), {"long_name": "step of the scan"})
    rest = tuple(entry for entry in whole.fields if entry not in given)
    return replace(whole, fields=(label, *rest)), members
