"""What compiled loops are called with."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def read_only(array: Array) -> Array:
    """A view that cannot be written to: numba compiles anew for what can, and workers get both."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
