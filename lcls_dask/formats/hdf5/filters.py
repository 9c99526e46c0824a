"""HDF5 filter pipelines: which of them zarr v3 can decode, and which package decodes the others.

==================  =====  ===========================  =====================================
HDF5 filter         id     zarr v3 codec                why not
==================  =====  ===========================  =====================================
deflate (gzip)      1      ``numcodecs.zlib``           (a zlib stream: not zarr's ``gzip``)
shuffle             2      ``numcodecs.shuffle``
fletcher32          3      ``numcodecs.fletcher32``
blosc               32001  ``blosc``
zstd                32015  ``zstd``
szip, n-bit, lzf    …                                   no zarr codec
bitshuffle          32008                               frames of its own round LZ4 or zstd
lz4                 32004                               frames of its own
zfp                 32013                               zfp's header lies in the dataset, not in the chunk
blosc2              32026                               a cframe, which c-blosc 1 cannot read
==================  =====  ===========================  =====================================
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ..codecs import Codec, bytes_codec

#: Id, flags, parameters and name, as h5py's ``get_filter`` gives them.
Filter = tuple[int, int, tuple[int, ...], bytes]

_BLOSC_NAMES = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
_BLOSC_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")


def _codec(filter_id: int, values: Sequence[int]) -> Codec | None:
    if filter_id == 1:
        return {"name": "numcodecs.zlib", "configuration": {"level": values[0] if values else 1}}
    if filter_id == 2 and values:
        return {"name": "numcodecs.shuffle", "configuration": {"elementsize": values[0]}}
    if filter_id == 3:
        return {"name": "numcodecs.fletcher32", "configuration": {}}
    if filter_id == 32015:
        return {"name": "zstd", "configuration": {"level": values[0] if values else 3, "checksum": False}}
    if filter_id == 32001 and len(values) >= 4:
        # a blosc frame says itself how it was made; this only describes it
        level, shuffle, name = (*values[4:7], *(5, 1, 0)[len(values) - 4 :])[:3]
        if shuffle < len(_BLOSC_SHUFFLES) and name < len(_BLOSC_NAMES) and _BLOSC_NAMES[name] != "snappy":
            return {
                "name": "blosc",
                "configuration": {
                    "typesize": values[2],
                    "cname": _BLOSC_NAMES[name],
                    "clevel": level,
                    "shuffle": _BLOSC_SHUFFLES[shuffle],
                    "blocksize": 0,
                },
            }
    return None


def zarr_codecs(filters: Sequence[Filter], dtype: np.dtype[Any]) -> tuple[Codec, ...]:
    """The zarr v3 codecs that decode a chunk which these filters made.

    Parameters
    ----------
    filters : sequence of (id, flags, parameters, name)
        In the order in which HDF5 applies them to write.
    dtype : numpy.dtype
        As it lies on disk, with its byte order.

    Returns
    -------
    tuple of dict
        Empty where there is no filter, or one that zarr has no codec for.

    Examples
    --------
    >>> [codec["name"] for codec in zarr_codecs([(1, 1, (4,), b"deflate")], np.dtype("<u2"))]
    ['bytes', 'numcodecs.zlib']
    """
    chain = [_codec(filter_id, values) for filter_id, _, values, _ in filters]
    found = [codec for codec in chain if codec is not None]
    return (bytes_codec(dtype), *found) if found and len(found) == len(chain) else ()


def require(filters: Sequence[Filter], where: str) -> None:
    """See to it that libhdf5 can decode these filters; hdf5plugin is imported only if it must be.

    Raises
    ------
    UnsupportedError
        It cannot; the message says which package to install.
    """
    import h5py

    missing = [entry for entry in filters if not h5py.h5z.filter_avail(entry[0])]
    if not missing:
        return
    try:
        import hdf5plugin  # noqa: F401  (registers its filters)
    except ImportError:
        names = ", ".join(f"{entry[0]} ({_text(entry[3])})" for entry in missing)
        raise UnsupportedError(
            f"{where} is compressed by HDF5 filter {names}; pip install hdf5plugin to read it"
        ) from None
    for entry in missing:
        if not h5py.h5z.filter_avail(entry[0]):
            raise UnsupportedError(
                f"{where} is compressed by HDF5 filter {entry[0]} ({_text(entry[3])}), which "
                "hdf5plugin does not have; put its plugin on HDF5_PLUGIN_PATH"
            )


def _text(name: bytes) -> str:
    return name.decode("ascii", "replace").split(";")[0][:40]
