"""What the configuration does not say: array shapes, string lengths, labels of enumerations.

A few events are looked at, of each stream the first ones and some spread over the run; the answer is kept with
the index.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import FormatError
from . import kernels
from .detectors import Part
from .events import ByRow, Events, Loop
from .layout import Names

FIRST, SPREAD = 64, 64
#: Longer strings are ragged bytes: as text of fixed width they would take their length for every event.
MOST_CHARACTERS = 4096


@dataclass(frozen=True)
class Shape:
    """What is known of one field.

    Attributes
    ----------
    item : tuple of int or None
        Shape of one segment's array; None where it varies or was not seen, which makes the field ragged.
    characters : int
        Room for a string, in bytes.
    labels : mapping of str to int
        Of an enumeration.
    """

    item: tuple[int, ...] | None = ()
    characters: int = 0
    labels: Mapping[str, int] = ()  # type: ignore[assignment]


def probe(events: Events, parts: Mapping[str, Part]) -> dict[str, Shape]:
    """Shapes of every field that events carry, by ``<detector>.<algorithm>.<field>``."""
    cache = events.tables.directory / "shapes.json"
    with suppress(OSError, ValueError):
        return {
            name: Shape(None if item is None else tuple(item), characters, labels)
            for name, (item, characters, labels) in json.loads(cache.read_text()).items()
        }
    shapes = {f"{part.name}.{title}": _shape(events, part, title) for part in parts.values() for title in part.fields}
    text = json.dumps({name: (s.item, s.characters, dict(s.labels)) for name, s in shapes.items()})
    with suppress(OSError):  # an index that can't be written to any more is only slower
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, cache)
    return shapes


def _shape(events: Events, part: Part, title: str) -> Shape:
    field = part.fields[title]
    if not field.rank:
        return Shape(labels=_labels(events, part, field.enum) if field.enum else {})
    seen = {shape for stream in part.streams for shape in _seen(events, part, stream, title, field.rank)}
    if not seen:
        seen = {
            np.shape(values[field.name])
            for stream, all_names in part.streams.items()
            for names, values in events.configurations[stream].values
            if names in all_names and not field.is_string and field.name in values
        }
    if field.is_string:
        longest = max((shape[0] for shape in seen), default=1)
        characters = max(16, 1 << (longest - 1).bit_length())
        return Shape(() if characters <= MOST_CHARACTERS else None, characters)
    return Shape(seen.pop() if len(seen) == 1 else None)


def _sample(count: int) -> np.ndarray[Any, Any]:
    return np.unique(
        np.r_[np.arange(min(FIRST, count)), np.linspace(0, max(count - 1, 0), min(SPREAD, count)).astype(int)]
    )


def _tolerantly(events: Events, stream: int, rows: np.ndarray[Any, Any], loop: Loop, *arguments: Any) -> None:
    """Run a loop over those events that are whole: damage is for reading to report, and must not hide the others."""
    try:
        events.run(stream, rows, loop, *arguments)
    except FormatError:
        for i in range(rows.size):
            one = (ByRow(a.values[i : i + 1]) if isinstance(a, ByRow) else a for a in arguments)
            with suppress(FormatError):
                events.run(stream, rows[i : i + 1], loop, *one)


def _seen(events: Events, part: Part, stream: int, title: str, rank: int) -> set[tuple[int, ...]]:
    """Shapes of a field in a stream's sample, over all its segments."""
    table = events.tables.streams[stream]
    chosen = _sample(len(table.places))
    if not chosen.size:
        return set()
    rows = chosen if table.events is None else np.asarray(table.events[chosen]).astype(np.int64)
    tables, _ = part.tables(stream, events.configurations[stream], (title,))
    shapes = np.full((rows.size, len(tables.names), 5), -1, np.int64)

    _tolerantly(events, stream, rows, kernels.survey_shapes, *tables.arrays, tables.fields[:, 0], ByRow(shapes))
    flat = shapes.reshape(-1, 5)
    return {tuple(int(n) for n in row[:rank]) for row in np.unique(flat[flat[:, 0] >= 0], axis=0)}


def _labels(events: Events, part: Part, enum: str) -> dict[str, int]:
    """Integers of an enumeration's labels: from the configuration's values, else from the first event that has them."""
    for stream, all_names in part.streams.items():
        for names, values in events.configurations[stream].values:
            if names in all_names:
                found = {
                    f.title: int(values[f.name])
                    for f in names.fields
                    if f.is_label and f.enum == enum and f.name in values
                }
                if found:
                    return found
    for stream, all_names in part.streams.items():
        for slot, names in enumerate(all_names):
            found = _labels_in_events(events, part, stream, slot, names, enum)
            if found:
                return found
    return {}


def _labels_in_events(events: Events, part: Part, stream: int, slot: int, names: Names, enum: str) -> dict[str, int]:
    table = events.tables.streams[stream]
    chosen = _sample(len(table.places))
    rows = chosen if table.events is None else np.asarray(table.events[chosen]).astype(np.int64)
    tables, _ = part.tables(stream, events.configurations[stream], ())
    found = {}
    for position, field in enumerate(names.fields):
        if not field.is_label or field.enum != enum:
            continue
        fields = np.full(len(tables.names), -1, np.int64)
        fields[slot] = position
        there, out = np.zeros((rows.size, 1), np.bool_), np.empty((rows.size, 4), np.uint8)
        scalar, places = np.empty(0, np.int64), np.zeros(len(tables.names), np.int64)
        asked = (fields, places, scalar, 4, False, ByRow(there), ByRow(out))
        _tolerantly(events, stream, rows, kernels.read_dense, *tables.arrays, *asked)
        values = out.view("<i4")[there]
        if values.size:
            found[field.title] = int(values[0])
    return found
