"""How loops are compiled that others call, millions of times a second."""

from typing import Any

from numba import njit

#: For the loops that others call. They make no arrays, so references to arrays need not be counted, which would take
#: longer than what is done for a hit.
compiled: Any = njit(cache=True, nogil=True, _nrt=False, error_model="numpy")  # type: ignore[call-overload]

#: The same for those that are called for each hit: handing arrays over costs as much again.
inlined: Any = njit(cache=True, nogil=True, _nrt=False, forceinline=True, error_model="numpy")  # type: ignore[call-overload]
