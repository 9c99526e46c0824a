"""The data model of a run: which variables its nodes have, by name, dimensions and type."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...model import Variable, chunk_length
from .detectors import Part
from .layout import Field
from .probe import Shape

#: Of fields that neither the configuration nor their names give units: saying "1" would claim that they have none.
UNKNOWN = "unknown"
#: Fields whose names tell their units, and fields that only count or name something.
UNITS = {"milliJoulesPerPulse": "mJ"} | dict.fromkeys(
    ("timestamp", "timeStamp", "pulseId", "frame_cnt", "eventHeader", "eventcodes", "sequenceValues", "inhibitCounts"),
    "1",
)


def units_of(part: Part, field: Field) -> str:
    """Units of a field's values, or `UNKNOWN`."""
    if field.is_string or field.enum:
        return "1"
    if part.is_area and field.rank >= 2:
        return "ADU"
    return UNITS.get(field.title, UNKNOWN)


def item_of(part: Part, field: Field, shape: Shape) -> tuple[tuple[str, ...], tuple[int, ...], np.dtype[Any]] | None:
    """Dimensions, shape and type of one segment's value; None for a ragged field."""
    if shape.item is None:
        return None
    if field.is_string:
        return (), (), np.dtype(f"<U{shape.characters}")
    if not field.rank:
        return (), (), field.dtype
    item = shape.item[1:] if len(shape.item) == 3 and shape.item[0] == 1 else shape.item
    if len(item) >= 2 and (part.is_area or min(item[-2:]) >= 32):
        names = [f"dim_{i}" for i in range(len(item) - 2)] + ["row", "column"]
    else:
        names = [f"dim_{i}" for i in range(len(item))]
    return tuple(names), item, field.dtype


#: Over events, beside the fields of every detector and algorithm: type and meaning.
MASKS = {
    "present": (np.bool_, "whether there is a reading"),
    "damage": (np.uint16, "damage bits of the reading, or of the event's data where it is absent"),
}


@dataclass(frozen=True)
class Column:
    """A variable over events, and where its values come from: a field, or one of `MASKS`."""

    variable: Variable
    part: Part
    field: str = ""
    mask: str = ""


def columns_of(
    parts: Iterable[Part], shapes: Mapping[str, Shape], events: int, dim: str
) -> tuple[list[tuple[Part, Variable]], list[Column]]:
    """Every variable over events that is not ragged.

    Parameters
    ----------
    parts, shapes
        What the run has.
    events : int
        Length of the first dimension.
    dim : str
        Its name.

    Returns
    -------
    segments : list of (Part, Variable)
        The coordinates that hold segment numbers, each with a part of its detector.
    columns : list of Column
    """
    segments: dict[str, tuple[Part, Variable]] = {}
    columns: list[Column] = []
    sizes: dict[str, int] = {}
    for part in parts:
        several = len(part.segments) > 1
        for title, field in part.fields.items():
            shape = shapes[f"{part.name}.{title}"]
            item = item_of(part, field, shape)
            if item is None:
                continue
            names, lengths, dtype = item
            # a field that is called like a mask gives way to it
            name = f"{part.name}.{title}" if title not in MASKS else f"{part.name}.{title}_field"
            dims = [_dimension(part, title, dim_, size, sizes) for dim_, size in zip(names, lengths, strict=True)]
            over = _over(part, with_segments=several or bool(lengths))
            if over:
                segments[part.detector] = part, segments_of(part)
            variable = _variable(name, (dim, *over, *dims), (events, *over.values(), *lengths), dtype)
            columns.append(Column(replace(variable, attrs=attributes(part, title, shape)), part, field=title))
        for mask, (kind, text) in MASKS.items():
            over = _over(part, with_segments=several)
            if over:
                segments[part.detector] = part, segments_of(part)
            variable = _variable(f"{part.name}.{mask}", (dim, *over), (events, *over.values()), np.dtype(kind))
            told = {"units": "1", "long_name": f"{part.detector} {part.algorithm}: {text}"}
            columns.append(Column(replace(variable, attrs=told), part, mask=mask))
    return list(segments.values()), columns


def _over(part: Part, *, with_segments: bool) -> dict[str, int]:
    """The dimension over segments, if there is one, and its length."""
    return {f"{part.detector}.segment": len(part.segments)} if with_segments else {}


def _variable(name: str, dims: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Variable:
    item_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    return Variable(name, dims, shape, dtype, chunk_length(item_bytes))


def _dimension(part: Part, title: str, name: str, size: int, sizes: dict[str, int]) -> str:
    """A dimension's name: shared where lengths agree, more exact where another field has taken it."""
    if name in ("row", "column"):
        choices = [f"{part.detector}.{name}", f"{part.detector}.{title}.{name}", f"{part.name}.{title}.{name}"]
    else:
        choices = [f"{part.detector}.{title}.{name}", f"{part.name}.{title}.{name}"]
    for choice in choices:
        if sizes.setdefault(choice, size) == size:
            return choice
    raise AssertionError(f"{choices[-1]} is named twice")  # the last choice belongs to one field alone


def segments_of(part: Part) -> Variable:
    """The coordinate that holds a detector's segment numbers."""
    return Variable(
        f"{part.detector}.segment",
        (f"{part.detector}.segment",),
        (len(part.segments),),
        np.dtype(np.int32),
        len(part.segments),
        {"units": "1", "long_name": f"segment of {part.detector}"},
        coordinate=True,
    )


def attributes(part: Part, title: str, shape: Shape) -> dict[str, Any]:
    """Attributes of a field."""
    told: dict[str, Any] = {
        "units": units_of(part, part.fields[title]),
        "long_name": f"{part.detector} {part.algorithm} {title}",
        "detector": part.written,
        "kind": part.kind,
        "algorithm": f"{part.algorithm} {'.'.join(map(str, part.version))}",
    }
    if shape.labels:
        told["flag_values"] = list(shape.labels.values())
        told["flag_meanings"] = " ".join(shape.labels)
    return told


def event_coordinates(events: int, dim: str) -> dict[str, Variable]:
    """Coordinates over events."""
    kinds: dict[str, tuple[Any, dict[str, str]]] = {
        "timestamp": (np.uint64, {"units": "1", "long_name": "seconds since 1990-01-01 UTC << 32 | nanoseconds"}),
        "time": ("datetime64[ns]", {"long_name": "time of the event (UTC)"}),
        "step": (np.int32, {"units": "1", "long_name": "number of the scan's step; -1 before the first"}),
        "pulse_id": (np.uint64, {"units": "1", "long_name": "number of the X-ray pulse"}),
    }
    return {name: coordinate(name, dim, events, np.dtype(kind), words) for name, (kind, words) in kinds.items()}


def coordinate(name: str, dim: str, size: int, dtype: np.dtype[Any], attrs: Mapping[str, Any]) -> Variable:
    """A one-dimensional coordinate."""
    return Variable(name, (dim,), (size,), dtype, chunk_length(dtype.itemsize), attrs, coordinate=True)


def flat(name: str, dim: str, size: int, dtype: Any, units: str, text: str) -> Variable:
    """A one-dimensional column of a ragged field."""
    dtype = np.dtype(dtype)
    # columns are long and their items small: chunks of the usual bytes, not of the usual events
    chunk = chunk_length(dtype.itemsize, most=1 << 22)
    return Variable(name, (dim,), (size,), dtype, chunk, {"units": units, "long_name": text})
