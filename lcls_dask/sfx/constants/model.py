"""Pedestals, gains and bad pixels, and where they come from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ...errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class PixelConstants:
    """Constants of one run.

    Attributes
    ----------
    pedestal : (ranges, segments, rows, columns) float32
        Of each range of gain [ADU]; one range, or one segment, may be left out.
    gain : (ranges, segments, rows, columns) float32, float or None
        [ADU/keV]; negative where the signal goes down. Without it, what is calibrated stays in ADU. One number is that
        of all pixels.
    bad : (segments, rows, columns) bool or None
        Pixels that do not count.
    file : str or None
        That they were read from, all of them.

    Raises
    ------
    ArgumentError
        Shapes do not fit.

    Examples
    --------
    >>> constants = PixelConstants(np.full((2, 4, 6), 100.0), gain=41.0)
    >>> constants.pedestal.shape, constants.shape
    ((1, 2, 4, 6), (2, 4, 6))
    >>> sorted(constants.digests)
    ['gain', 'pedestal']
    """

    pedestal: Array
    gain: Any = None
    bad: Array | None = field(default=None)
    file: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        pedestal = _four(self.pedestal, "pedestal", np.float32)
        object.__setattr__(self, "pedestal", pedestal)
        if self.gain is not None:
            gain = (
                np.full_like(pedestal, self.gain) if np.ndim(self.gain) == 0 else _four(self.gain, "gain", np.float32)
            )
            if gain.shape[1:] != pedestal.shape[1:]:
                raise ArgumentError(f"gain is of {gain.shape[1:]} pixels, and pedestal of {pedestal.shape[1:]}")
            object.__setattr__(self, "gain", gain)
        if self.bad is not None:
            bad = _four(self.bad, "bad", np.bool_).any(axis=0)
            if bad.shape != pedestal.shape[1:]:
                raise ArgumentError(f"bad is of {bad.shape} pixels, and pedestal of {pedestal.shape[1:]}")
            object.__setattr__(self, "bad", bad)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Segments, rows, columns."""
        _, segments, rows, columns = self.pedestal.shape
        return segments, rows, columns

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """Of the values of each kind: 16 hexadecimal digits of their SHA-256."""
        kinds = {"pedestal": self.pedestal, "gain": self.gain, "bad": self.bad}
        return {
            kind: hashlib.sha256(repr(values.shape).encode() + np.ascontiguousarray(values).data).hexdigest()[:16]
            for kind, values in kinds.items()
            if values is not None
        }

    def of_run(self, run: int | None) -> "PixelConstants":
        """Itself, for any run.

        Parameters
        ----------
        run : int or None

        Returns
        -------
        PixelConstants
        """
        return self

    def __dask_tokenize__(self) -> object:
        return ("lcls_dask.PixelConstants", sorted(self.digests.items()))


@runtime_checkable
class Constants(Protocol):
    """Where constants come from: files, a directory, a service, or `PixelConstants` themselves."""

    def of_run(self, run: int | None) -> PixelConstants:
        """Constants of a run.

        Parameters
        ----------
        run : int or None
            None where all runs have the same.

        Returns
        -------
        PixelConstants
        """


def _four(values: Any, kind: str, dtype: Any) -> Array:
    """As (ranges, segments, rows, columns)."""
    array = np.asarray(values)
    if not 2 <= array.ndim <= 4 or array.dtype.kind not in "biuf":
        raise ArgumentError(
            f"{kind}: is {array.dtype} of shape {array.shape}; numbers of (ranges, segments, rows, columns) are wanted"
        )
    return np.ascontiguousarray(array.reshape((1,) * (4 - array.ndim) + array.shape), dtype)
