"""The zarr side of export: codecs, and the metadata that make a store of chunks."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from ..formats.codecs import Codec, bytes_codec
from ..formats.zarr import EXPORT, METADATA
from ..model import RunIndex
from ..stores.metadata import array_json, group_json
from .journal import write
from .layout import chunk_file, detectors_json


def chain(compression: str | None) -> Callable[[np.dtype[Any]], tuple[Codec, ...]]:
    """The codecs of a store's chunks.

    Parameters
    ----------
    compression : {"auto", "blosc", "zstd", "gzip", None}

    Returns
    -------
    callable
        From a variable's dtype to its codecs.

    Raises
    ------
    UnsupportedError
        It is none of these.
    """

    def codecs(dtype: np.dtype[Any]) -> tuple[Codec, ...]:
        """What is done to chunks of this type."""
        first = bytes_codec(dtype)
        item = dtype.itemsize if dtype.kind != "U" else 4
        match compression:
            case None:
                return (first,)
            case "auto" | "blosc":
                blosc = {"typesize": item, "cname": "zstd", "clevel": 1, "shuffle": "bitshuffle", "blocksize": 0}
                return first, {"name": "blosc", "configuration": blosc}
            case "zstd":
                return first, {"name": "zstd", "configuration": {"level": 1, "checksum": True}}
            case "gzip":
                return first, {"name": "gzip", "configuration": {"level": 1}}
        raise UnsupportedError(f"compression {compression!r} is not known; choose auto, blosc, zstd, gzip or None")

    codecs(np.dtype("u1"))  # an unknown name is told before anything is read
    return codecs


def assemble(data: Path, index: RunIndex, links: frozenset[tuple[str, str]], scratch: Path) -> Path:
    """Make a store of the chunks in a directory: links and metadata are added.

    Parameters
    ----------
    data : Path
        Root of the chunks.
    index : RunIndex
        With the chunks and codecs that were written.
    links : frozenset of (str, str)
        Variables of detectors that are those of ``/``.
    scratch : Path
        For files that are not complete.

    Returns
    -------
    Path
        `data`.
    """
    for path, name in sorted(links):
        variable = index.nodes[path].variables[name]
        for number in range(variable.chunk_count):
            _link(chunk_file(data, "/", variable, number), chunk_file(data, path, variable, number), scratch)
    written = {}
    for path, node in index.nodes.items():
        for name, variable in node.variables.items():
            written[f"{path}/{name}".strip("/")] = array_json(variable)
        if path != "/":
            written[path.strip("/")] = group_json(index, path)
    for key, document in written.items():
        write(data / key / METADATA, document, scratch)
    about = {**index.nodes["/"].attrs, EXPORT: _about(index)}
    described = replace(index, nodes={**index.nodes, "/": replace(index.nodes["/"], attrs=about)})
    root = json.loads(group_json(described, "/"))
    # all metadata in one place, as readers look for it
    inline = {key: json.loads(document) for key, document in written.items()}
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": inline}
    write(data / METADATA, json.dumps(root).encode(), scratch)
    return data


def _about(index: RunIndex) -> Mapping[str, Any]:
    """What zarr's metadata has no place for: the order of nodes and variables, and the detectors."""
    return {
        "version": 1,
        "nodes": {path: list(node.variables) for path, node in index.nodes.items()},
        "detectors": detectors_json(index),
    }


def _link(there: Path, here: Path, scratch: Path) -> None:
    here.parent.mkdir(parents=True, exist_ok=True)
    if here.exists():
        return
    try:
        here.hardlink_to(there)
    except OSError:  # a file system without hard links
        write(here, there.read_bytes(), scratch)
