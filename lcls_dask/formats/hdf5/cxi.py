"""CXI: images of an experiment with the peaks found in them, as Cheetah, OM, psocake and LUTE write it."""

import re
from collections.abc import Mapping

import numpy as np

from .clock import Clock
from .columns import Column, Held, Packed, offsets_of
from .entries import Entry, load
from .nodes import Field, Part, Ragged, Tree, build
from .smalldata import name_of, part

_DATA = re.compile(r"/entry_1/data_(\d+)/data")
_OF_DETECTOR = re.compile(r"/entry_1/(?:instrument_\d+/detector|(data|result|image))_(\d+)/(.+)")
_LCLS_DETECTOR = re.compile(r"/LCLS/detector_(\d+)/(.+)")

#: Units that the format implies, by the last component of a path.
UNITS = {
    "photon_energy_eV": "eV",
    "photon_wavelength_A": "angstrom",
    "electronBeamEnergy": "MeV",
    "EncoderValue": "mm",
    "peakXPosRaw": "px",
    "peakYPosRaw": "px",
    "peakNPixels": "px",
    "peakRadius": "px",
    "nPeaks": "1",
}


def recognised(entries: Mapping[str, Entry]) -> bool:
    """Whether a file has the groups of CXI."""
    return any(_DATA.fullmatch(path) for path in entries) or any("/entry_1/result_" in path for path in entries)


def variable_name(path: str) -> str:
    """The variable of a dataset.

    Parameters
    ----------
    path : str

    Returns
    -------
    str

    Examples
    --------
    >>> variable_name("/entry_1/result_1/peakXPosRaw"), variable_name("/LCLS/photon_energy_eV")
    ('detector_1.result.peakXPosRaw', 'LCLS.photon_energy_eV')
    """
    if match := _OF_DETECTOR.fullmatch(path):
        kind, number, rest = match[1] or "instrument", match[2], match[3]
        return f"detector_{number}.{kind}.{rest.replace('/', '.')}"
    if match := _LCLS_DETECTOR.fullmatch(path):
        return f"detector_{match[1]}.LCLS.{match[2].replace('/', '.')}"
    return name_of(path)


def preference(path: str) -> tuple[bool, int, str]:
    """Sorting key: which of several paths of one dataset names it."""
    return not path.startswith(("/entry_1/data_", "/entry_1/result_")), len(path), path


def tree(entries: Mapping[str, Entry]) -> tuple[Tree, dict[str, str]]:
    """Nodes of a CXI file, and remarks on what it should have but has not."""
    remarks: dict[str, str] = {}
    length = _length(entries)
    entries = {
        path: Entry(
            path,
            entry.column,
            {"units": UNITS[entry.last], **entry.attrs} if entry.last in UNITS else entry.attrs,
        )
        for path, entry in entries.items()
    }
    used, clock = _clock(entries, length)
    rest = {path: entry for path, entry in entries.items() if path not in used}
    whole = part(rest, clock, remarks, length=length, naming=variable_name)
    ragged = tuple(peaks for path in entries if (peaks := _peaks(entries, path, length, remarks)) is not None)
    return build(Part(length, whole.clock, whole.fields, whole.ragged + ragged, whole.loose, whole.constants)), remarks


def _length(entries: Mapping[str, Entry]) -> int:
    for wanted in (_DATA, re.compile(r"/entry_1/result_\d+/nPeaks")):
        for path, entry in entries.items():
            if wanted.fullmatch(path) and entry.column.shape:
                return entry.column.shape[0]
    raise ValueError("there is neither /entry_1/data_1/data nor /entry_1/result_1/nPeaks")


def _clock(entries: Mapping[str, Entry], length: int) -> tuple[set[str], Entry | Clock | None]:
    """Paths of the timestamps, and the timestamps, where the file has any."""
    if "/LCLS/timestamp" in entries and entries["/LCLS/timestamp"].column.shape == (length,):
        return {"/LCLS/timestamp"}, entries["/LCLS/timestamp"]
    paths = ("/LCLS/machineTime", "/LCLS/machineTimeNanoSeconds")
    if all(path in entries and entries[path].column.shape == (length,) for path in paths):
        seconds, nanoseconds = (load(entries[path]).astype(np.int64) for path in paths)
        stamps: Column = Held(seconds.astype(np.uint64) << np.uint64(32) | nanoseconds.astype(np.uint64))
        return set(), Entry("/LCLS/event_time", stamps)
    return set(), None


def _peaks(entries: Mapping[str, Entry], path: str, length: int, remarks: dict[str, str]) -> Ragged | None:
    """The peaks of a detector without their padding."""
    match = re.fullmatch(r"(/entry_1/result_(\d+))/nPeaks", path)
    if match is None or entries[path].column.shape != (length,) or entries[path].column.dtype.kind not in "iu":
        return None
    padded = {
        entry.last: entry
        for other, entry in entries.items()
        if other.rpartition("/")[0] == match[1] and len(entry.column.shape) == 2 and entry.column.shape[0] == length
    }
    if not padded:
        return None
    most = min(entry.column.shape[1] for entry in padded.values())
    counts = load(entries[path]).astype(np.int64)
    if counts.max(initial=0) > most:
        remarks[path] = f"it counts up to {counts.max()} peaks where {most} have room: the others were not written"
    offsets = offsets_of(np.clip(counts, 0, most))
    name = f"detector_{match[2]}.peaks"
    fields = tuple(
        Field(f"{name}.{last}", Packed(entry.column, offsets), {**entry.attrs, "hdf5_path": entry.path})
        for last, entry in padded.items()
    )
    return Ragged(name, offsets, fields)
