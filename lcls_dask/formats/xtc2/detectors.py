"""Names of all streams, gathered by detector and algorithm."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .layout import Configuration, Field, Names
from .names import Lookup, tables

#: Kinds whose two-dimensional arrays are images even when they are small.
AREA = (
    "jungfrau", "epix", "cspad", "opal", "archon", "alvium", "andor", "axis", "rayonix", "pnccd", "princeton", "zyla",
    "uxi", "icarus", "timepix", "streak", "tt", "fim", "image",
)  # fmt: skip

#: Digitizer data that holds waveforms and FEX windows, by algorithm and version.
HSD = frozenset({("hsd", (1, 2, 3)), ("raw", (2, 0, 0)), ("raw", (3, 0, 0))})


#: What nodes and coordinates are called here: a detector of such a name gets another.
OWN_NAMES = frozenset({"event", "timestamp", "time", "step", "pulse_id", "steps", "epics"})


@dataclass(frozen=True)
class Part:
    """One detector and algorithm: which fields it has, and where its segments come from.

    Attributes
    ----------
    detector : str
        What it is called here, see `shown`.
    kind, algorithm : str
    version : tuple of int
    segments : tuple of int
        All segments of the *detector*, ascending.
    fields : mapping of str to Field
        By the name that users see; labels of enumerations left out.
    streams : mapping of int to tuple of Names
        The Names of each stream that has some, by ascending segment.
    """

    detector: str
    kind: str
    algorithm: str
    version: tuple[int, int, int]
    segments: tuple[int, ...]
    fields: Mapping[str, Field]
    streams: Mapping[int, tuple[Names, ...]]

    @property
    def name(self) -> str:
        """``<detector>.<algorithm>``."""
        return f"{self.detector}.{self.algorithm}"

    @property
    def written(self) -> str:
        """What the detector is called in the files."""
        return next(iter(self.streams.values()))[0].detector

    @property
    def is_area(self) -> bool:
        """Whether two-dimensional arrays of any size are images."""
        return self.kind.lower().startswith(AREA)

    @property
    def channels(self) -> tuple[str, ...]:
        """Fields that hold a digitizer's streams: bytes, of which the event header tells what they are."""
        if self.kind != "hsd" or (self.algorithm, self.version) not in HSD or "eventHeader" not in self.fields:
            return ()
        fields = self.fields.items()
        return tuple(name for name, f in fields if name.startswith("chan") and f.rank == 1 and f.dtype == np.uint8)

    def tables(
        self, stream: int, configuration: Configuration, fields: Sequence[str]
    ) -> tuple[Lookup, np.ndarray[Any, Any]]:
        """The loops' tables for some fields in one stream, and each slot's position among the segments."""
        return tables(configuration, self.streams[stream], fields), self.places(stream)

    def places(self, stream: int) -> np.ndarray[Any, Any]:
        """Each slot's position among the segments."""
        return np.array([self.segments.index(names.segment) for names in self.streams[stream]], np.int64)


def shown(detectors: Collection[str]) -> dict[str, str]:
    """What detectors are called here: psana's name, and ``_detector`` behind it where that name is one of `OWN_NAMES`.

    Parameters
    ----------
    detectors : collection of str
        All of the run.

    Returns
    -------
    dict of str to str
        No two have the same name.

    Examples
    --------
    >>> shown(["gmd", "time"])
    {'gmd': 'gmd', 'time': 'time_detector'}
    """
    names = {}
    for detector in detectors:
        name = detector
        while name in OWN_NAMES or (name != detector and name in detectors):
            name += "_detector"
        names[detector] = name
    return names


def parts_of(configurations: Sequence[Configuration]) -> dict[str, Part]:
    """Every detector and algorithm that events carry, by ``<detector>.<algorithm>``."""
    segments: dict[str, set[int]] = {}
    found: dict[tuple[str, str], dict[int, dict[int, Names]]] = {}
    for stream, names in event_names(configurations):
        segments.setdefault(names.detector, set()).add(names.segment)
        # a segment that one stream describes twice is what was said last, as in psana
        by_segment = found.setdefault((names.detector, names.algorithm), {}).setdefault(stream, {})
        by_segment[names.segment] = names
    called = shown(segments)
    return {
        f"{called[detector]}.{algorithm}": Part(
            called[detector],
            (first := next(iter(next(iter(streams.values())).values()))).kind,
            algorithm,
            first.version,
            tuple(sorted(segments[detector])),
            {
                field.title: field
                for all_names in streams.values()
                for names in all_names.values()
                for field in names.fields
                if not field.is_label
            },
            {stream: tuple(by[segment] for segment in sorted(by)) for stream, by in streams.items()},
        )
        for (detector, algorithm), streams in found.items()
    }


def event_names(configurations: Sequence[Configuration]) -> Iterator[tuple[int, Names]]:
    """Every Names that describes event data, with its stream."""
    for stream, configuration in enumerate(configurations):
        for names in configuration.names.values():
            if is_event_data(names):
                yield stream, names


def is_event_data(names: Names) -> bool:
    """Whether it describes readings of a detector: no configuration, scan, or slow variable."""
    return names.is_detector and not names.is_config
