"""How long a Dask block of a variable is."""

from ..model import Variable

#: A task costs some 0.4 ms: blocks of this many bytes make that a few per cent of reading them.
BLOCK_BYTES = 64 << 20
#: Small values cost their datagrams' headers, not their bytes: more events than this gain nothing.
BLOCK_EVENTS = 1 << 18


def block_length(variable: Variable) -> int:
    """Rows of one Dask block: a power of two times the variable's storage chunk.

    Blocks of large and small variables nest, so that nothing is rechunked when they meet.

    Parameters
    ----------
    variable : Variable

    Returns
    -------
    int
        At least `BLOCK_BYTES` worth of rows, or `BLOCK_EVENTS`, whichever is less; at least a storage chunk.

    Examples
    --------
    >>> import numpy as np
    >>> frames = Variable("jungfrau.raw.raw", ("event", "row"), (300, 4 << 20), np.dtype("u2"), chunk=2)
    >>> block_length(frames)
    8
    """
    length = max(1, variable.chunk)
    most = BLOCK_EVENTS if variable.dims and variable.dims[0].endswith("event") else 1 << 62
    while length * max(1, variable.item_bytes) < BLOCK_BYTES and 2 * length <= most:
        length *= 2
    return length
