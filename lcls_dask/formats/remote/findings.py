"""Validation of a run that is only reached through a gateway: all its values, fetched and looked at once."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...errors import AccessError, LclsError, UnreachableError
from ...model import Finding, Variable
from ..source import RunSource

_BLOCK = 64 << 20
_BITS = 16


def findings(source: RunSource) -> Iterator[Finding]:
    """What is wrong with a run.

    Parameters
    ----------
    source : RunSource

    Yields
    ------
    Finding
        ``corrupt`` for values that the gateway cannot read; ``missing``, ``damage``, ``order``, ``duplicate``.
    """
    index = source.index
    if index.state != "ended":
        yield Finding("truncated", index.experiment, f"the run is {index.state}: it has no end", 1)
    for path in index.nodes:
        for variable in index.nodes[path].variables.values():
            yield from _of_variable(source, path, variable)


def _of_variable(source: RunSource, path: str, variable: Variable) -> Iterator[Finding]:
    where = f"{path.rstrip('/')}/{variable.name}"
    absent = damaged = behind = repeated = 0
    last: Any = None
    for rows in _blocks(variable):
        try:
            values = source.read(path, variable.name, rows)
        except (AccessError, UnreachableError):
            raise
        except LclsError as error:
            yield Finding("corrupt", where, str(error), rows.stop - rows.start, fatal=True)
            continue
        if variable.name.endswith(".present"):
            absent += int(values.size - np.count_nonzero(values))
        elif variable.name.endswith(".damage"):
            damaged += int(np.count_nonzero(values))
        elif variable.name == "timestamp" and values.size:
            before = values if last is None else np.concatenate([last, values])
            behind += int((before[1:] < before[:-1]).sum())
            repeated += int((before[1:] == before[:-1]).sum())
            last = values[-1:]
    for kind, count, what in (
        ("missing", absent, "readings are absent"),
        ("damage", damaged, "readings are marked as damaged"),
        ("order", behind, "timestamps are lower than the one before"),
        ("duplicate", repeated, "timestamps are repeated"),
    ):
        if count:
            yield Finding(kind, where, f"{count} {what}", count)


def _blocks(variable: Variable) -> Iterator[slice]:
    length = variable.shape[0] if variable.shape else 1
    step = max(1, _BLOCK // max(1, variable.item_bytes))
    if variable.codecs:
        step = max(variable.chunk, step // variable.chunk * variable.chunk)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
