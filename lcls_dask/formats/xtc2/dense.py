"""Fields of fixed shape over events, and which of their readings are there."""

import numpy as np

from .. import memory
from ..source import Rows
from . import kernels
from .describe import item_of
from .detectors import Part
from .events import Array, ByRow, Events
from .probe import Shape


def _count(rows: Rows) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else rows.size


def read_field(events: Events, part: Part, title: str, shape: Shape, rows: Rows) -> Array:
    """Values of a field.

    Parameters
    ----------
    events : Events
    part : Part
    title : str
        The field, as users see it.
    shape : Shape
        What was found out about it.
    rows : slice or (n,) int64
        Events of the run.

    Returns
    -------
    (n, segments, *item) ndarray
        Zeros (or empty strings) where there is no reading.

    Raises
    ------
    FormatError
        A datagram is damaged, or an array has another shape than those of the first events.
    """
    field = part.fields[title]
    described = item_of(part, field, shape)
    if described is None:
        raise TypeError(f"{part.name}.{title} is ragged")
    expected = np.array(() if field.is_string else shape.item, np.int64)
    size = shape.characters if field.is_string else int(expected.prod()) * field.dtype.itemsize
    count, segments = _count(rows), len(part.segments)
    out = memory.empty(count * segments * size).reshape(count, segments * size)
    there = np.zeros((count, segments), np.bool_)
    for stream in part.streams:
        t, places = part.tables(stream, events.configurations[stream], (title,))
        asked = (t.fields[:, 0], places, expected, size, field.is_string, ByRow(there), ByRow(out))
        events.run(stream, rows, kernels.read_dense, *t.arrays, *asked)
    if not there.all():
        out.reshape(count, segments, size)[~there] = 0
    _, item, dtype = described
    if field.is_string:
        return np.char.decode(out.view(f"S{size}"), "utf-8", "replace").astype(dtype)
    return out.view(dtype).reshape(count, segments, *item)


def read_readings(events: Events, part: Part, rows: Rows) -> tuple[Array, Array]:
    """Which readings are there, and their damage.

    Parameters
    ----------
    events : Events
    part : Part
    rows : slice or (n,) int64
        Events of the run.

    Returns
    -------
    present : (n, segments) bool
    damage : (n, segments) uint16
        Of an absent reading the damage of the event's data; 0 where the stream has no datagram.
    """
    count = _count(rows)
    present = np.zeros((count, len(part.segments)), np.bool_)
    damage = np.zeros((count, len(part.segments)), np.uint16)
    for stream in part.streams:
        t, places = part.tables(stream, events.configurations[stream], ())
        there, damaged = np.zeros((count, len(places)), np.bool_), np.zeros((count, len(places)), np.uint16)
        events.run(stream, rows, kernels.survey, t.slots, ByRow(there), ByRow(damaged))
        known = there | (damaged != 0)  # a segment may come in several streams
        present[:, places] |= there
        damage[:, places] = np.where(known, damaged, damage[:, places])
    return present, damage
