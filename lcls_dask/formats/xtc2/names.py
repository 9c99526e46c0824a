"""The tables with which the compiled loops find fields: from NamesId to slot, from slot to layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .layout import Configuration, Names


@dataclass(frozen=True)
class Lookup:
    """Where the loops find the fields of some Names of one stream.

    Attributes
    ----------
    names : tuple of Names
        One a slot, by ascending segment.
    slots : (ids,) int32
        By NamesId: -2 not in the configuration, -1 not asked for, else the slot.
    layout : (slots, fields, 2) int64
        Rank of each field, and bytes of one element.
    fields : (slots, asked) int64
        Position of each field that was asked for; -1 where a Names lacks it.
    """

    names: tuple[Names, ...]
    slots: np.ndarray[Any, np.dtype[np.int32]]
    layout: np.ndarray[Any, np.dtype[np.int64]]
    fields: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def arrays(self) -> tuple[Any, Any]:
        """`slots` and `layout`, as the loops take them."""
        return self.slots, self.layout


def lookup(configuration: Configuration, detector: str, fields: Sequence[str], algorithm: str | None = None) -> Lookup:
    """Tables for a detector's fields in one stream.

    Parameters
    ----------
    configuration : Configuration
    detector : str
    fields : sequence of str
        Fields to find, by the name that users see.
    algorithm : str or None
        Only this one; None takes all that are not configuration.
    """
    chosen = tuple(
        sorted(
            (
                names
                for names in configuration.names.values()
                if names.detector == detector and not names.is_config and algorithm in (None, names.algorithm)
            ),
            key=lambda names: (names.segment, names.id),
        )
    )
    return tables(configuration, chosen, fields)


def tables(configuration: Configuration, chosen: tuple[Names, ...], fields: Sequence[str]) -> Lookup:
    """Tables for given Names."""
    slots = np.full(max(configuration.names, default=0) + 1, -2, np.int32)
    slots[list(configuration.names)] = -1
    slots[[names.id for names in chosen]] = np.arange(len(chosen), dtype=np.int32)
    width = max((len(names.fields) for names in chosen), default=0)
    layout = np.zeros((len(chosen), width, 2), np.int64)
    for i, names in enumerate(chosen):
        layout[i, : len(names.fields), 0] = [field.rank for field in names.fields]
        layout[i, : len(names.fields), 1] = [field.dtype.itemsize for field in names.fields]
    positions = [[names.position.get(field, -1) for field in fields] for names in chosen]
    return Lookup(chosen, slots, layout, np.array(positions, np.int64).reshape(len(chosen), len(fields)))
