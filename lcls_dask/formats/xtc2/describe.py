"""The data model of a run: which variables its nodes have, by name, dimensions and type."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...model import Variable, chunk_length
from .detectors import Part
from .layout import Field
from .probe import Shape

#: Units of fields whose names tell them; everything else counts in ADU or is a plain number.
UNITS = {
    "raw": "ADU", "calib": "ADU", "timestamp": "1", "pulseId": "1", "energy": "mJ", "milliJoulesPerPulse": "mJ",
    "eventcodes": "1", "frame_cnt": "1", "times": "s",
}  # fmt: skip


def item_of(part: Part, field: Field, shape: Shape) -> tuple[tuple[str, ...], tuple[int, ...], np.dtype[Any]] | None:
    """Dimensions, shape and type of one segment's value; None for a ragged field."""
    if field.is_string:
        return (), (), np.dtype(f"<U{shape.characters}")
    if shape.item is None:
        return None
    if not field.rank:
        return (), (), field.dtype
    item = shape.item[1:] if len(shape.item) == 3 and shape.item[0] == 1 else shape.item
    if len(item) >= 2 and (part.is_area or min(item[-2:]) >= 32):
        names = [f"dim_{i}" for i in range(len(item) - 2)] + ["row", "column"]
    else:
        names = [f"dim_{i}" for i in range(len(item))]
    return tuple(names), item, field.dtype


def dense_variables(
    parts: Mapping[str, Part], shapes: Mapping[str, Shape], events: int, dim: str, detector: str | None = None
) -> dict[str, Variable]:
    """Every variable over `events` events that is not ragged, with its segment coordinates.

    Parameters
    ----------
    parts, shapes
        What the run has.
    events : int
        Length of the first dimension.
    dim : str
        Its name.
    detector : str or None
        Only this one's.
    """
    variables: dict[str, Variable] = {}
    sizes: dict[str, int] = {}
    for part in parts.values():
        if detector not in (None, part.detector):
            continue
        segment = f"{part.detector}.segment"
        several = len(part.segments) > 1
        described = {
            title: item_of(part, field, shapes[f"{part.name}.{title}"]) for title, field in part.fields.items()
        }
        arrays = any(item is not None and item[1] for item in described.values())
        if (several or arrays) and segment not in variables:
            variables[segment] = segments_of(part)
        for title, item in described.items():
            if item is None:
                continue
            dims, shape, dtype = item
            with_segments = several or bool(shape)
            names = [_dimension(part, title, name, size, sizes) for name, size in zip(dims, shape, strict=True)]
            full = (events, *([len(part.segments)] if with_segments else []), *shape)
            bytes_each = int(np.prod(full[1:], dtype=np.int64)) * dtype.itemsize
            variables[f"{part.name}.{title}"] = Variable(
                f"{part.name}.{title}",
                (dim, *([segment] if with_segments else []), *names),
                full,
                dtype,
                chunk_length(bytes_each),
                attributes(part, title, shapes[f"{part.name}.{title}"]),
            )
        for title, kind, text in (
            ("present", np.bool_, "whether there is a reading"),
            ("damage", np.uint16, "damage bits of the reading, or of the event's data where it is absent"),
        ):
            full = (events, len(part.segments)) if several else (events,)
            variables[f"{part.name}.{title}"] = Variable(
                f"{part.name}.{title}",
                (dim, segment) if several else (dim,),
                full,
                np.dtype(kind),
                chunk_length(int(np.prod(full[1:], dtype=np.int64)) * np.dtype(kind).itemsize),
                {"units": "1", "long_name": f"{part.detector} {part.algorithm}: {text}"},
            )
    return variables


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
        "units": UNITS.get(title, "1"),
        "long_name": f"{part.detector} {part.algorithm} {title}",
        "detector": part.detector,
        "kind": part.kind,
        "algorithm": f"{part.algorithm} {'.'.join(map(str, part.version))}",
    }
    if shape.labels:
        told["flag_values"] = list(shape.labels.values())
        told["flag_meanings"] = " ".join(shape.labels)
    return told


def event_coordinates(events: int, dim: str, *, steps: bool, pulse_id: bool) -> dict[str, Variable]:
    """Coordinates over events."""
    kinds: dict[str, tuple[Any, str]] = {
        "timestamp": (np.uint64, "seconds since 1990-01-01 UTC << 32 | nanoseconds"),
        "time": ("datetime64[ns]", "time of the event (UTC)"),
    }
    if steps:
        kinds["step"] = (np.int32, "number of the scan's step; -1 before the first")
    if pulse_id:
        kinds["pulse_id"] = (np.uint64, "number of the X-ray pulse")
    return {
        name: coordinate(
            name, dim, events, np.dtype(kind), {"long_name": text} | ({} if name == "time" else {"units": "1"})
        )
        for name, (kind, text) in kinds.items()
    }


def coordinate(name: str, dim: str, size: int, dtype: np.dtype[Any], attrs: Mapping[str, Any]) -> Variable:
    """A one-dimensional coordinate."""
    return Variable(name, (dim,), (size,), dtype, chunk_length(dtype.itemsize), attrs, coordinate=True)


def flat(name: str, dim: str, size: int, dtype: Any, units: str, text: str) -> Variable:
    """A one-dimensional column of a ragged field."""
    dtype = np.dtype(dtype)
    # columns are long and their items small: chunks of the usual bytes, not of the usual events
    chunk = chunk_length(dtype.itemsize, most=1 << 22)
    return Variable(name, (dim,), (size,), dtype, chunk, {"units": units, "long_name": text})
