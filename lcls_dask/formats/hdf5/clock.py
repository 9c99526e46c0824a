"""Timestamps in the ways that LCLS files have written them, as psana has them, exactly where that can be.

psana's timestamp is ``seconds << 32 | nanoseconds`` with seconds since 1990-01-01 UTC. Found in files:

- integers of that kind (``timestamp`` of smalldata and of newer LCLStreamer files): exact;
- the same with seconds since 1970 (``event_time`` of LCLS-I smalldata): shifted, exact;
- the same as float64 (LCLStreamer's main branch): rounded to 1024 ns by whoever wrote it. Pulses
  are 1.08 µs apart, so neighbours may have become one;
- seconds and nanoseconds since 1970 as decimal digits one after the other, nanoseconds without leading
  zeros (LCLStreamer on psana1): as text exact, since there are ten digits of seconds; as float64 rounded.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...model import LCLS_EPOCH
from .columns import Array, Column, Held, Mapped

_NANO = 1_000_000_000
_DIGITS = re.compile(r"(\d{10})(?:[._-]?(\d{9})|(\d{1,9}))")


@dataclass(frozen=True)
class Clock:
    """Timestamps of events.

    Attributes
    ----------
    column : Column
        (events,) uint64, psana's encoding.
    attrs : dict
        ``timestamp_exact``, ``timestamp_source`` and, where it is not exact, ``timestamp_resolution_ns``.
    """

    column: Column
    attrs: dict[str, Any]


def _psana(seconds: Array, nanoseconds: Array) -> Array:
    return ((seconds.astype(np.int64) - LCLS_EPOCH) << 32 | nanoseconds.astype(np.int64)).view(np.uint64)


def _as_unsigned(values: Array) -> Array:
    return values.astype(np.uint64)


def _from_1970(values: Array) -> Array:
    return values.astype(np.uint64) - np.uint64(LCLS_EPOCH << 32)


def from_digits(values: Array) -> Array:
    """Timestamps written as text.

    Parameters
    ----------
    values : (n,) str
        ``seconds`` and ``nanoseconds`` since 1970 one after the other, or psana's integer.

    Returns
    -------
    (n,) uint64

    Raises
    ------
    ValueError
        One of them is neither.

    Examples
    --------
    >>> time = from_digits(np.array(["16000000005"]))[0]
    >>> int(time >> 32) + LCLS_EPOCH, int(time & 0xFFFFFFFF)
    (1600000000, 5)
    """
    parsed = np.empty(len(values), np.uint64)
    for k, text in enumerate(values.tolist()):
        # psana's integers have 19 digits too, from 2.9e18 (in 2011) on; seconds since 1970 end at 2.2e9
        if text.isdecimal() and 2_200_000_000 * _NANO <= int(text) < 1 << 64:
            parsed[k] = int(text)
            continue
        match = _DIGITS.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:40]!r} is not a timestamp")
        parsed[k] = (int(match[1]) - LCLS_EPOCH) << 32 | int(match[2] or match[3])
    return parsed


def from_floats(values: Array) -> tuple[Array, int, str]:
    """Timestamps that were rounded to float64.

    Parameters
    ----------
    values : (n,) float64

    Returns
    -------
    timestamps : (n,) uint64
    resolution : int
        Nanoseconds between neighbouring float64 there.
    kind : str
        What the numbers were taken for.

    Raises
    ------
    ValueError
        They are not finite, or negative.
    """
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError("timestamps are not all finite and positive")
    largest = float(values.max(initial=0.0))
    if 1e9 <= largest < 2.2e9:
        seconds = np.floor(values)
        fraction = np.round((values - seconds) * _NANO)
        return _psana(seconds, fraction), round(np.spacing(largest) * _NANO), "seconds since 1970"
    if 1e10 <= largest < 2.2e18 and _leading(values).min() >= 1e9:
        # ten digits of seconds, then as many of nanoseconds as there are
        scale = 10.0 ** (np.floor(np.log10(values)) - 9)
        seconds = np.floor(values / scale)
        nanoseconds = values.astype(np.int64) - seconds.astype(np.int64) * scale.astype(np.int64)
        return (
            _psana(seconds, nanoseconds),
            int(np.spacing(largest)),
            "digits of seconds and nanoseconds since 1970",
        )
    return values.astype(np.uint64), int(np.spacing(largest)), "psana's integer"


def _leading(values: Array) -> Array:
    """The first ten digits, as a number; 0 where they are no time between 2001 and 2039."""
    with np.errstate(divide="ignore"):
        scale = 10.0 ** (np.floor(np.log10(values)) - 9)
    first = np.floor(values / np.where(scale > 0, scale, 1))
    return np.where(first < 2.2e9, first, 0)


def clock_of(column: Column, name: str) -> Clock:
    """Read a dataset of timestamps.

    Parameters
    ----------
    column : Column
        (events,) integers, float64 or strings.
    name : str
        Name of its dataset; ``event_time`` counts from 1970.

    Returns
    -------
    Clock

    Raises
    ------
    ValueError
        The values are no timestamps.
    """
    attrs: dict[str, Any] = {"timestamp_exact": True, "timestamp_source": name}
    kind = column.dtype.kind
    if kind in "iu":
        if name.rpartition("/")[2] == "event_time":
            return Clock(Mapped(column, _from_1970, np.dtype(np.uint64)), attrs)
        same = column.dtype == np.uint64
        return Clock(column if same else Mapped(column, _as_unsigned, np.dtype(np.uint64)), attrs)
    values = column.read(slice(0, column.shape[0]))
    if kind == "U":
        return Clock(Held(from_digits(values)), attrs)
    timestamps, resolution, taken_for = from_floats(values.astype(np.float64))
    attrs.update(timestamp_exact=False, timestamp_resolution_ns=resolution, timestamp_taken_for=taken_for)
    return Clock(Held(timestamps), attrs)
