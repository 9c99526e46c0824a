"""Events in groups, by a scan variable or by bins of an intensity."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Groups:
    """Which group each event is in.

    Attributes
    ----------
    numbers : (events,) int64
        -1 for none.
    count : int
    coordinate : (str, xarray.Variable)
        Name and labels of the groups.
    """

    numbers: Array
    count: int
    coordinate: tuple[str, xr.Variable]

    @classmethod
    def of(cls, by: Any, bins: Any, events: int) -> "Groups":
        """Group events.

        Parameters
        ----------
        by : (events,) xarray.DataArray or array, or None
            None for one group of all.
        bins : (m + 1,) array or None
            Edges; without them each value is a group.
        events : int

        Returns
        -------
        Groups

        Raises
        ------
        ArgumentError
            `by` is not of these events, or the edges do not rise.

        Examples
        --------
        >>> Groups.of(np.array([0.1, 0.7, np.nan]), [0, 0.5, 1], 3).numbers
        array([ 0,  1, -1])
        """
        if by is None:
            return cls(np.zeros(events, np.int64), 1, ("group", xr.Variable("group", ["all"])))
        values, name = np.asarray(by), str(getattr(by, "name", None) or "group")
        if values.shape != (events,) or values.dtype.kind not in "iufb":
            raise ArgumentError(
                f"by: has shape {values.shape} of {values.dtype}; one number for each of {events} events is wanted"
            )
        name = name if name not in ("channel", "tof", "energy", "event") else f"{name}_group"
        attrs = {"units": getattr(by, "attrs", {}).get("units", "1"), "long_name": f"group of events by {name}"}
        there = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(events, np.bool_)
        if bins is None:
            labels, place = np.unique(values[there], return_inverse=True)
            numbers = np.full(events, -1, np.int64)
            numbers[there] = place
            return cls(numbers, len(labels), (name, xr.Variable(name, labels, attrs)))
        edges = np.asarray(bins, np.float64)
        if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ArgumentError("bins: two or more rising numbers are wanted")
        numbers = np.searchsorted(edges, values, side="right").astype(np.int64) - 1
        numbers[values == edges[-1]] = len(edges) - 2
        numbers[~there | (numbers < 0) | (numbers >= len(edges) - 1)] = -1
        return cls(numbers, len(edges) - 1, (name, xr.Variable(name, (edges[:-1] + edges[1:]) / 2, attrs)))
