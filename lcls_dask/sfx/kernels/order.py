"""The order of numbers by size, for loops of which numpy.argsort would take seconds to compile."""

from numba import njit


@njit(cache=True, nogil=True)
def by_size(values, n, order):
    """Places of the first `n` values by rising value (Shell's sort, with Ciura's steps).

    Parameters
    ----------
    values : (>= n,) float64
    n : int
    order : (>= n,) int64
        Out.
    """
    for i in range(n):
        order[i] = i
    for step in (1750, 701, 301, 132, 57, 23, 10, 4, 1):
        for i in range(step, n):
            place, j = order[i], i
            while j >= step and values[order[j - step]] > values[place]:
                order[j] = order[j - step]
                j -= step
            order[j] = place
