"""What every simulated run has beside its detectors: timing, pulse energy, slow variables, the scan."""

from collections.abc import Mapping

import numpy as np

from ..formats.xtc2.bulk import Ragged
from ..formats.xtc2.layout import Names
from ..formats.xtc2.writer import declare, shapes_data
from .plan import Array

#: Detector ``timing``: event codes are bits of `sequenceValues`, as psana's ``raw.eventcodes`` reads them.
TIMING_NAMES = declare(
    "timing",
    "ts",
    "raw",
    (2, 1, 0),
    {
        "pulseId": "uint64",
        "timeStamp": "uint64",
        "ebeamDestn": "uint8",
        "sequenceValues": ("uint16", 1),
        "inhibitCounts": ("uint32", 1),
    },
    id=240,
)

#: Event code of every event, of every second one, and of every tenth.
EVENT_CODES = {273: 1, 274: 2, 275: 10}


def timing_values(pulse: Array, event: Array) -> dict[str, Array | Ragged]:
    """Values of `TIMING_NAMES` for events: their pulse ids and numbers, (n,) each."""
    n = len(event)
    sequence = np.zeros((n, 18), np.uint16)
    for code, every in EVENT_CODES.items():
        sequence[:, code >> 4] |= np.where(event % every == 0, 1 << (code & 0xF), 0).astype(np.uint16)
    return {
        "pulseId": pulse,
        "timeStamp": pulse,
        "ebeamDestn": np.full(n, 4, np.uint8),
        "sequenceValues": sequence,
        "inhibitCounts": np.zeros((n, 8), np.uint32),
    }


def gmd_names() -> Names:
    """Detector ``gmd``: the gas monitor's pulse energy."""
    fields = {"milliJoulesPerPulse": "float64", "RMS_E": "float64"}
    return declare("gmd", "gmd", "raw", (2, 1, 0), fields, id=241)


def scan_names(motors: Mapping[str, str]) -> Names:
    """Scan variables that BeginStep carries: the motors, ``step_value`` and ``step_docstring``."""
    fields = {**motors, "step_value": "int64", "step_docstring": "str"}
    return declare("scan", "scan", "raw", (2, 0, 0), fields, id=242)


#: Slow variables: short name to type and full description.
_EPICS = {
    "chamber_pressure": ("float64", "SIM:VAC:GCC:01:PMON"),
    "SIM:TEMP:01": ("float64", "SIM:TEMP:01"),
    "comment": ("str", "SIM:COMMENT"),
}


def epics_names() -> tuple[Names, Names]:
    """The slow variables that SlowUpdate carries, and ``epicsinfo``, which Configure carries."""
    fields = {name: kind for name, (kind, _) in _EPICS.items()}
    info = dict.fromkeys(("keys", *_EPICS), "str")
    return (
        declare("epics", "epics", "raw", (2, 0, 0), fields, id=243),
        declare("epicsinfo", "epicsinfo", "epicsinfo", (1, 0, 0), info, id=244),
    )


def epics_values(info: Names) -> bytes:
    """Values of ``epicsinfo``: each variable's name at the control system, behind the keys."""
    return shapes_data(info, {"keys": "epicsname,description", **{k: f"{pv}\n{k}" for k, (_, pv) in _EPICS.items()}})
