"""Pixels that count."""

from typing import Any

import numpy as np

from ..errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]


def good_pixels(mask: Any, shape: tuple[int, int, int]) -> Array | None:
    """A mask as (segment, row, column) of bool.

    Parameters
    ----------
    mask : array or None
        True, or anything but 0, for pixels that count.
    shape : (int, int, int)

    Returns
    -------
    (segment, row, column) bool, or None

    Raises
    ------
    ArgumentError
        It has another shape.

    Examples
    --------
    >>> good_pixels([[0, 1]], (1, 1, 2))
    array([[[False,  True]]])
    """
    if mask is None:
        return None
    good = np.asarray(mask)
    if good.shape not in (shape, shape[1:] if shape[0] == 1 else shape) or good.dtype.kind not in "biu":
        wanted = " x ".join(map(str, shape))
        raise ArgumentError(
            f"mask: is {good.dtype} of shape {good.shape}; booleans of {wanted} are wanted, True for good"
        )
    made: Array = good.reshape(shape) != 0
    return made
