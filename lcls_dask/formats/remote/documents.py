"""A run's documents, as a gateway writes them, made into a `RunIndex`."""

from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np

from ...errors import FormatError, SelectionError
from ...model import Detector, Node, RunIndex, Variable

#: Of numbers, bool, times and fixed-width text. Anything else, objects above all, is no data of a run.
_KINDS = frozenset("biufcMmSU")


def run_index(document: Mapping[str, Any], node: Callable[[str], Mapping[str, Any]]) -> RunIndex:
    """The index of a run.

    Parameters
    ----------
    document : mapping
        Of the run.
    node : callable
        Fetches the document of a node other than the root.

    Returns
    -------
    RunIndex

    Raises
    ------
    FormatError
        It is not what a gateway writes.
    """
    try:
        root = parse_node(document["root"])
        detectors = {
            str(found["name"]): Detector(
                str(found["name"]),
                str(found["kind"]),
                str(found["serial"]),
                tuple(int(number) for number in found["segments"]),
                {str(name): str(version) for name, version in found["algorithms"].items()},
            )
            for found in document["detectors"]
        }
        paths = tuple(str(path) for path in document["nodes"])
        return RunIndex(
            str(document["experiment"]),
            int(document["run"]),
            str(document["state"]),
            str(document["snapshot"]),
            _Nodes(paths, root, node),
            MappingProxyType(detectors),
            dict(document["attrs"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"what the gateway says of the run cannot be understood ({error!r:.200})") from error


def parse_node(document: Mapping[str, Any]) -> Node:
    """One node."""
    variables = (_variable(found) for found in document["variables"])
    return Node(str(document["path"]), {v.name: v for v in variables}, dict(document["attrs"]))


def _variable(found: Mapping[str, Any]) -> Variable:
    dtype = np.dtype(str(found["dtype"]))
    shape = tuple(int(length) for length in found["shape"])
    dims = tuple(str(dim) for dim in found["dims"])
    if dtype.kind not in _KINDS or len(dims) != len(shape) or min(shape, default=0) < 0 or int(found["chunk"]) < 1:
        raise ValueError(f"no variable of a run: {found['name']!r}, {dtype}, {shape}")
    codecs = tuple(dict(codec) for codec in found["codecs"])
    attrs = dict(found["attrs"])
    return Variable(
        str(found["name"]), dims, shape, dtype, int(found["chunk"]), attrs, bool(found["coordinate"]), codecs
    )


class _Nodes(Mapping[str, Node]):
    """Nodes that are asked for when they are looked up: to make one, the gateway may have to read its detector."""

    def __init__(self, paths: tuple[str, ...], root: Node, fetch: Callable[[str], Mapping[str, Any]]) -> None:
        self._paths, self._fetch = paths, fetch
        self._known = {"/": root}
        self._lock = Lock()

    def __getitem__(self, path: str) -> Node:
        if path not in self._paths:
            raise SelectionError(f"there is no node {path!r}; there are {', '.join(self._paths)}")
        with self._lock:
            if path not in self._known:
                try:
                    self._known[path] = parse_node(self._fetch(path))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    if isinstance(error, FormatError):
                        raise
                    raise FormatError(
                        f"what the gateway says of {path} cannot be understood ({error!r:.200})"
                    ) from error
            return self._known[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
