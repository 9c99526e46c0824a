"""zarr v3 codec chains applied to plain bytes, without zarr: what a chunk is encoded with and how.

Only chains of ``bytes`` followed by bytes-to-bytes codecs are known, and of these the ones that
HDF5 filters and our own export produce. A chain is written as zarr's metadata has it::

    ({"name": "bytes", "configuration": {"endian": "little"}},
     {"name": "zstd", "configuration": {"level": 3, "checksum": False}})

``blosc``, ``zstd`` and ``gzip`` stand in the zarr v3 specification. The ``numcodecs.*`` ones
do not: zarr reads them, and older releases (3.1 does, 3.4 does not) warn with ``ZarrUserWarning``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import numpy as np

from ..errors import UnsupportedError

Codec = Mapping[str, Any]
_BLOSC_SHUFFLE = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_SAME_IN_NUMCODECS = {"zstd", "gzip", "zlib", "shuffle", "fletcher32"}


class _BytesCodec(Protocol):
    def encode(self, buf: Any) -> Any: ...
    def decode(self, buf: Any) -> Any: ...


def bytes_codec(dtype: np.dtype[Any]) -> Codec:
    """The array-to-bytes codec of a dtype as it lies on disk."""
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    # NumPy writes strings of UTF-32 in the order of the dtype, like numbers
    return {"name": "bytes", "configuration": {"endian": "big" if dtype.byteorder == ">" else "little"}}


def byte_order(codecs: Sequence[Codec]) -> Literal["<", ">"]:
    """NumPy's sign for the byte order of a chain's ``bytes`` codec."""
    return ">" if codecs[0].get("configuration", {}).get("endian") == "big" else "<"


def is_plain(codecs: Sequence[Codec]) -> bool:
    """Whether chunks are the array's bytes as NumPy has them, little end first: nothing is to be decoded.

    Examples
    --------
    >>> is_plain(()), is_plain([bytes_codec(np.dtype("<u2"))]), is_plain([bytes_codec(np.dtype(">u2"))])
    (True, True, False)
    """
    return not codecs or (len(codecs) == 1 and codecs[0]["name"] == "bytes" and byte_order(codecs) == "<")


def _open(codec: Codec) -> _BytesCodec:
    import numcodecs

    name = str(codec["name"])
    known = name.removeprefix("numcodecs.")
    given = dict(codec.get("configuration", {}))
    if known == "blosc":
        shuffle = given.get("shuffle", 0)
        given["shuffle"] = _BLOSC_SHUFFLE.get(shuffle, shuffle)
        # numcodecs takes the item size from the buffer that it is given
        given.pop("typesize", None)
    elif known not in _SAME_IN_NUMCODECS:
        raise UnsupportedError(f"zarr codec {name!r} is not one that runs are stored with; use zarr itself")
    return cast(_BytesCodec, numcodecs.get_codec({"id": known, **given}))


def encode(codecs: Sequence[Codec], chunk: np.ndarray[Any, Any]) -> bytes:
    """Encode a chunk.

    Parameters
    ----------
    codecs : sequence of mapping
        ``bytes`` first.
    chunk : ndarray
        C-contiguous and of the full size of a chunk.

    Returns
    -------
    bytes

    Raises
    ------
    UnsupportedError
        A codec is not known here.

    Examples
    --------
    >>> chain = (bytes_codec(np.dtype("u2")), {"name": "zstd", "configuration": {"level": 1}})
    >>> decode(chain, encode(chain, np.arange(3, dtype="u2")), np.dtype("u2"))
    array([0, 1, 2], dtype=uint16)
    """
    order = chunk.dtype.newbyteorder(byte_order(codecs))
    data: Any = np.ascontiguousarray(chunk, dtype=order)
    if data.dtype.kind in "UMm":
        data = data.view(f"u{4 if data.dtype.kind == 'U' else 8}")
    for codec in codecs[1:]:
        if isinstance(data, np.ndarray) and codec["name"] != "blosc":
            data = data.reshape(-1).view(np.uint8)
        data = _open(codec).encode(data)
    return data.tobytes() if isinstance(data, np.ndarray) else bytes(data)


def decode(codecs: Sequence[Codec], payload: bytes, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Decode a chunk to a flat array of native byte order; the opposite of `encode`."""
    data: Any = payload
    for codec in reversed(codecs[1:]):
        data = _open(codec).decode(data)
    stored = np.frombuffer(data, dtype=dtype.newbyteorder(byte_order(codecs)))
    return stored.astype(dtype, copy=False)
