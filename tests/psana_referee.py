"""Read run files with psana and write every value to an ``.npz``: the referee, run in a process of its own.

``python psana_referee.py OUT FILE`` or ``OUT DIRECTORY EXPERIMENT RUN`` writes keys
``<event>|<detector>|<segment>|<algorithm>|<field>``; labels of
enumerations end in ``#<label>``, damage is the field ``~damage``, and the hsd interface gives ``~waveform``,
``~wavetimes``, ``~starts``, ``~lengths`` and ``~samples``; ``<event>|env|<name>`` are scan and slow variables.
``run|…`` holds the rest.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ["PS_PARALLEL"] = "none"

import numpy as np
from psana import DataSource
from psana.psexp.ds_base import DataSourceBase

#: Names that psana keeps for itself.
_HIDDEN = ("_xtc",)


def leaves(container: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below a container, by its dotted name."""
    for name, value in vars(container).items():
        if name in _HIDDEN:
            continue
        if hasattr(value, "names") and hasattr(value, "value"):  # an enumeration
            yield prefix + name, value.value
            for number, label in value.names.items():
                yield f"{prefix}{name}#{label}", number
        elif type(value).__name__ == "Container":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def contributions(dgrams: Any) -> Iterator[tuple[str, Any]]:
    for dgram in dgrams:
        if dgram is None:
            continue
        for detector, segments in vars(dgram).items():
            if not isinstance(segments, dict):
                continue
            for segment, algorithms in segments.items():
                damage = algorithms._xtc.damage
                for algorithm, container in vars(algorithms).items():
                    if algorithm in _HIDDEN:
                        continue
                    key = f"{detector}|{segment}|{algorithm}"
                    yield f"{key}|~damage", getattr(getattr(container, "_xtc", None), "damage", damage)
                    for name, value in leaves(container):
                        yield f"{key}|{name}", value


def digitizers(run: Any) -> dict[tuple[str, str], Any]:
    found = {}
    for (detector, algorithm), members in run.detinfo.items():
        if "peaks" in members and "waveforms" in members:
            found[detector, algorithm] = getattr(run.Detector(detector), algorithm)
    return found


def digitized(name: str, algorithm: str, interface: Any, event: Any) -> Iterator[tuple[str, Any]]:
    for segment, channels in (interface.waveforms(event) or {}).items():
        for channel, samples in channels.items():
            if isinstance(channel, int) and samples is not None:
                yield f"{name}|{segment}|{algorithm}|~waveform", samples
            elif channel == "times":
                yield f"{name}|{segment}|{algorithm}|~wavetimes", samples
    for segment, channels in (interface.peaks(event) or {}).items():
        for found in channels.values():
            if found is None:
                continue
            starts, peaks = found
            key = f"{name}|{segment}|{algorithm}"
            yield f"{key}|~starts", starts
            yield f"{key}|~lengths", [len(peak) for peak in peaks]
            yield f"{key}|~samples", np.concatenate(peaks) if len(peaks) else np.empty(0, np.uint16)


def open_source(where: list[str]) -> DataSource:
    if len(where) == 1:
        return DataSource(files=where, skip_calib_load="all")
    directory, experiment, run = where
    # it asks SLAC's logbook for the names of the files, and takes those of the directory when that has none
    DataSourceBase._get_file_info_from_db = lambda self, runnum: {}
    return DataSource(exp=experiment, run=int(run), dir=directory, skip_calib_load="all")


def main(out: str, where: list[str]) -> None:
    source = open_source(where)
    run = next(source.runs())
    told: dict[str, Any] = {
        "run|expt": run.expt or "",
        "run|runnum": -1 if run.runnum is None else run.runnum,
        "run|detnames": sorted(run.detnames),
    }
    environment = {name: run.Detector(name) for name, _ in [*run.epicsinfo, *run.scaninfo]}
    interfaces = digitizers(run)
    number = 0
    stamps = []
    for step in run.steps():
        for event in step.events():
            stamps.append(event.timestamp)
            for key, value in contributions(event._dgrams):
                told[f"{number}|{key}"] = value
            for (name, algorithm), interface in interfaces.items():
                for key, value in digitized(name, algorithm, interface, event):
                    told[f"{number}|{key}"] = value
            for name, slow in environment.items():
                value = slow(event)
                if value is not None:
                    told[f"{number}|env|{name}"] = value
            number += 1
    told["run|timestamps"] = np.array(stamps, np.uint64)
    np.savez(out, **{key: np.asarray(value) for key, value in told.items()})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # psana's threads and readers have nothing left to say
