"""Delay-line detectors: where and when each particle hit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError
from ..reduce.ragged import Ragged, as_ragged

#: Ends of the wires, and the plate.
SIGNALS = ("u1", "u2", "v1", "v2", "mcp")


def dld_reconstruct(
    hits: "Ragged | xr.Dataset",
    channels: Mapping[str, Any],
    tsum_u: float,
    tsum_v: float,
    tsum_halfwidth: float,
    f_u: float = 1.0,
    f_v: float = 1.0,
    *,
    radius: float = np.inf,
    recover: bool = True,
) -> Ragged:
    """Positions on a detector with two crossed delay lines (quad).

    A signal runs to both ends of a wire, so that the sum of its delays behind the plate's is always the same, ``u1 + u2
    - 2 mcp = tsum_u``, and their difference tells the place, ``x = f_u (u1 - u2)``. For each hit of the plate the pairs
    nearest to the sums are taken, each signal once. Where one signal of the four is missing, the other end tells it.

    Parameters
    ----------
    hits : Ragged or xarray.Dataset
        What `find_hits` gave.
    channels : mapping of str to label
        Which channel is ``u1``, ``u2``, ``v1``, ``v2`` and ``mcp``.
    tsum_u, tsum_v : float
        Sums of the delays [ns].
    tsum_halfwidth : float
        How far a sum may be off [ns].
    f_u, f_v : float
        Millimetres by ns of difference.
    radius : float
        Of the detector; what lies beyond is left out [mm].
    recover : bool
        Whether to take particles that lack one signal.

    Returns
    -------
    Ragged
        `x`, `y` [mm], `time` [ns] float64 and `complete` (no signal was missing); one channel, labelled as the plate's.

    Raises
    ------
    ArgumentError
        A signal has no channel, or a number is out of range.

    References
    ----------
    O. Jagutzki et al., Nucl. Instrum. Methods A 477 (2002) 244.

    Examples
    --------
    >>> times = [60.0, 50.0, 40.0, 70.0, 5.0]
    >>> hits = xr.Dataset(
    ...     {"offset": ("row_edge", np.arange(6)), "time": ("hit", times)}, {"channel": ["u1", "u2", "v1", "v2", "mcp"]}
    ... )
    >>> found = dld_reconstruct(hits, {name: name for name in SIGNALS}, 100, 100, 1, 0.5, 0.5).compute()
    >>> found["x"].values, found["y"].values, found["complete"].values
    (array([5.]), array([-15.]), array([ True]))
    """
    ragged = as_ragged(hits)
    labels = ragged.meta["channel"].values.tolist()
    missing = [name for name in SIGNALS if name not in channels or channels[name] not in labels]
    if missing:
        raise ArgumentError(f"channels: {', '.join(missing)} must be given and be among {labels}")
    if not (tsum_u > 0 and tsum_v > 0 and tsum_halfwidth > 0 and radius > 0 and f_u != 0 and f_v != 0):
        raise ArgumentError("sums, half width and radius must be positive, and f_u and f_v not 0")
    wires = np.array([labels.index(channels[name]) for name in SIGNALS])
    return ragged.map_blocks(
        _reconstruct, wires, (float(tsum_u), float(tsum_v)), float(tsum_halfwidth), (float(f_u), float(f_v)),
        float(radius), recover,
    )  # fmt: skip


def _reconstruct(
    block: xr.Dataset, wires: Any, sums: Any, window: float, scale: Any, radius: float, recover: bool
) -> xr.Dataset:
    from .kernels.delayline import reconstruct

    offset, channels = block["offset"].values, block.sizes["channel"]
    count = np.zeros((len(offset) - 1) // channels, np.int64)
    room = block.sizes["hit"]
    x, y, t, complete = np.empty(room), np.empty(room), np.empty(room), np.empty(room, np.bool_)
    found = reconstruct(
        offset, block["time"].values.astype(np.float64), channels, wires, np.array(sums), window, np.array(scale),
        radius, recover, count, x, y, t, complete,
    )  # fmt: skip
    events = {str(name): c.variable for name, c in block.coords.items() if c.dims == ("event",)}
    edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
    return xr.Dataset(
        {
            "offset": ("row_edge", edges, {"units": "1", "long_name": "first particle of each event"}),
            "x": ("hit", x[:found].copy(), {"units": "mm", "long_name": "position along u"}),
            "y": ("hit", y[:found].copy(), {"units": "mm", "long_name": "position along v"}),
            "time": ("hit", t[:found].copy(), {"units": "ns", "long_name": "time at the plate"}),
            "complete": ("hit", complete[:found].copy(), {"units": "1", "long_name": "no signal was missing"}),
        },
        {"channel": block["channel"][wires[4:]].variable, **events},
    )
