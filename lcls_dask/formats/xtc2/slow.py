"""What transitions carry: configuration, scan steps, slow variables. Read whole: a run has few of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .events import Array, Events
from .layout import BEGIN_STEP, DGRAM_BYTES, SLOW_UPDATE, parse_transition


@dataclass(frozen=True)
class Table:
    """Values at their own times: rows are transitions.

    Attributes
    ----------
    timestamps : (rows,) uint64
    columns : mapping of str to (rows, ...) ndarray
        A value holds until the next row; before the first one it is zero or empty.
    seen : mapping of str to (rows,) bool
        False where a value had not been given yet.
    """

    timestamps: Array
    columns: Mapping[str, Array]
    seen: Mapping[str, Array]


def steps(events: Events) -> Table:
    """Scan variables of each step; a step is a BeginStep of any stream, at its timestamp."""
    return _table(events, BEGIN_STEP, "scan", every=True)


def slow_variables(events: Events) -> Table:
    """EPICS variables at each SlowUpdate that carries some."""
    return _table(events, SLOW_UPDATE, "epics", every=False)


def has_slow_variables(events: Events) -> bool:
    """Whether any SlowUpdate carries one: found in the first that does, however many there are."""
    return any(True for _ in _readings(events, SLOW_UPDATE, "epics"))


def _readings(events: Events, service: int, detector: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """What transitions of a service carry: their timestamp and the values, by the names that users see."""
    for number, stream in enumerate(events.tables.streams):
        names = events.configurations[number].names
        if not any(n.detector == detector for n in names.values()):
            continue
        for place in stream.transitions:
            if place.service != service or place.end - place.offset == DGRAM_BYTES:
                continue
            data, dgram, file = events.transition(stream, place)
            for described, values in parse_transition(data, dgram, names, file):
                if described.detector == detector:
                    titles = {f.name: f.title for f in described.fields if not f.is_label}
                    yield place.timestamp, {titles[k]: v for k, v in values.items() if k in titles}


def _table(events: Events, service: int, detector: str, *, every: bool) -> Table:
    rows: dict[int, dict[str, Any]] = {}
    if every:
        places = (place for stream in events.tables.streams for place in stream.transitions)
        rows = {place.timestamp: {} for place in places if place.service == service}
    for stamp, found in _readings(events, service, detector):
        rows.setdefault(stamp, {}).update(found)
    stamps = sorted(rows)
    keys = list(dict.fromkeys(key for stamp in stamps for key in rows[stamp]))
    columns, seen = {}, {}
    for key in keys:
        column, there, held = [], [], None
        first = next(rows[stamp][key] for stamp in stamps if key in rows[stamp])
        for stamp in stamps:
            held = rows[stamp].get(key, held)
            there.append(held is not None)
            column.append(_blank(first) if held is None else held)
        columns[key], seen[key] = _column(column), np.array(there, np.bool_)
    return Table(np.array(stamps, np.uint64), columns, seen)


def _blank(like: Any) -> Any:
    return "" if isinstance(like, str) else np.zeros_like(like)


def _column(values: list[Any]) -> Array:
    if isinstance(values[0], str):
        return np.array(values, f"<U{max(1, *map(len, values))}")
    if len({np.shape(value) for value in values}) > 1:  # arrays that change shape from one update to the next
        shape = np.max([np.shape(value) for value in values], axis=0)
        return np.stack([np.pad(v, [(0, n - m) for n, m in zip(shape, v.shape, strict=True)]) for v in values])
    return np.array(values)


def slow_names(events: Events) -> dict[str, dict[str, str]]:
    """What ``epicsinfo`` says of each slow variable: its PV and description."""
    told: dict[str, dict[str, str]] = {}
    for configuration in events.configurations:
        for names, values in configuration.values:
            if names.detector == "epicsinfo":
                for key, value in values.items():
                    # "PV,description" in files of the DAQ; psana itself splits at a line's end
                    pv, _, description = str(value).replace("\n", ",", 1).partition(",")
                    told[key] = {"pv": pv, "description": description.strip()}
    return told


def settings(events: Events, detector: str | None = None) -> dict[str, dict[str, Any]]:
    """Configuration values by detector and ``<algorithm>.<field>``; a list over segments where they differ."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for names, values in _configured(events):
        if not names.is_detector or detector not in (None, names.detector):
            continue
        for field in names.fields:
            if not field.is_label and field.name in values:
                key = f"{names.algorithm}.{field.title}"
                found.setdefault(names.detector, {}).setdefault(key, {})[names.segment] = values[field.name]
    return {name: {key: _merged(by) for key, by in sorted(keys.items())} for name, keys in found.items()}


def _configured(events: Events) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    for configuration in events.configurations:
        for names, values in configuration.values:
            if names.is_config:
                yield names, values


def _merged(by_segment: Mapping[int, Any]) -> Any:
    values = [by_segment[segment] for segment in sorted(by_segment)]
    if all(np.array_equal(value, values[0]) for value in values[1:]):
        return values[0]
    if len({np.shape(value) for value in values}) == 1:
        return np.array(values)
    return [np.asarray(value).tolist() for value in values]
