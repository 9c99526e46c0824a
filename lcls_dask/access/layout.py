"""What the zarr and the HDF5 side of an export have in common."""

from pathlib import Path
from typing import Any

from ..model import RunIndex, Variable


def chunk_file(data: Path, path: str, variable: Variable, number: int) -> Path:
    """Where a chunk lies: zarr's key.

    Parameters
    ----------
    data : Path
        Root of the store.
    path : str
        Node.
    variable : Variable
    number : int

    Returns
    -------
    Path
    """
    zeros = ("0" for _ in variable.shape[1:])
    return data.joinpath(path.strip("/"), variable.name, "c", str(number), *zeros)


def detectors_json(index: RunIndex) -> dict[str, Any]:
    """The detectors of a run as JSON.

    Parameters
    ----------
    index : RunIndex

    Returns
    -------
    dict
    """
    return {
        name: {
            "kind": detector.kind,
            "serial": detector.serial,
            "segments": list(detector.segments),
            "algorithms": dict(detector.algorithms),
        }
        for name, detector in index.detectors.items()
    }
