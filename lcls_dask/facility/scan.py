"""A motor scan with a fast detector, and a slow one that integrates ten events."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..formats.xtc2.bulk import Contribution
from ..formats.xtc2.layout import Field
from ..formats.xtc2.writer import declare, enum_fields, shapes_data
from . import generators
from .beamline import TIMING_NAMES, epics_names, epics_values, gmd_names, scan_names, timing_values
from .plan import DROPPED, Array, Block, Clock, StreamEvents, StreamPlan, TruthArray, draw_faults

#: The fast detector and the slow one.
SEGMENTS = 2
STEPS = 6
EVERY = 10
SAMPLES = 64
ROWS, COLUMNS = 16, 4800
#: Position of the resonance that the scan crosses, and its width [mm].
CENTRE, WIDTH = 2.3, 1.0


def motor(step: Array) -> Array:
    """Position of the motor at each step [mm]."""
    return np.asarray(step, np.float64)


class ScanPlan:
    """A run of ``kind="scan"``: ``fim`` (fast), ``archon`` (slow), ``shutter``, ``gmd``, ``timing``; six steps.

    Parameters
    ----------
    seed, events, streams : int
    clock : Clock
    """

    block = 200

    def __init__(self, seed: int, events: int, streams: int, clock: Clock) -> None:
        self.clock = clock
        # only the fast detector has an entry in every event, where a fault can be seen
        self.faults = draw_faults(seed, events, 1, 1)
        self._seed, self._events = seed, events
        waveforms = {"raw_0": ("uint16", 1), "raw_1": ("uint16", 1)}
        self._fim = declare("fim", "wave8", "raw", (0, 0, 1), waveforms, id=0, serial="simfim")
        self._slow = declare("archon", "archon", "raw", (1, 0, 0), {"value": ("uint16", 2)}, id=1, serial="simccd")
        shutter = (
            Field("value", 9, 0),
            Field("message", 10, 1),
            *enum_fields("stateEnum", ["closed", "open", "fault"], "state"),
        )
        self._shutter = declare("shutter", "pv", "raw", (1, 0, 0), shutter, id=2, serial="simshutter")
        self._gmd, self._scan, self._epics = gmd_names(), scan_names({"mono_energy": "float64"}), epics_names()
        first = (self._fim, self._shutter, TIMING_NAMES, self._gmd, self._scan, *self._epics)
        values = (epics_values(self._epics[1]),)
        self.streams: tuple[StreamPlan, ...] = (
            (StreamPlan((*first, self._slow), values),)
            if streams == 1
            else (StreamPlan(first, values), StreamPlan((self._slow,)))
        )
        self._count = min(STEPS, events)
        self.steps: tuple[bytes, ...] = tuple(
            shapes_data(self._scan, (float(motor(np.array(i))), i, f"step {i}")) for i in range(self._count)
        )
        self.truth_arrays: Mapping[str, TruthArray] = {
            "timestamp": TruthArray(("event",), "uint64", "1", "seconds << 32 | nanoseconds since 1990"),
            "pulse_energy": TruthArray(("event",), "float64", "mJ", "pulse energy"),
            "step": TruthArray(("event",), "int32", "1", "step of the scan"),
            "signal": TruthArray(("event",), "float64", "1", "response of the sample"),
            "written": TruthArray(("event", "detector"), "bool", "1", "fim, archon are in the files", (2,)),
        }

    def update(self, number: int) -> bytes:
        """Slow variables."""
        return shapes_data(self._epics[0], (1e-6 + 1e-9 * number, 21.5, f"update {number}"))

    def constants(self) -> Mapping[str, tuple[TruthArray, Array]]:
        """Position of the motor at each step."""
        spec = TruthArray(("step_index",), "float64", "mm", "position of the motor")
        return {"motor": (spec, motor(np.arange(self._count)))}

    def files(self) -> Mapping[str, bytes]:
        """None."""
        return {}

    def truth(self) -> dict[str, Any]:
        """Parameters of the scan."""
        return {
            "scan": {"motor": "mono_energy", "centre_mm": CENTRE, "width_mm": WIDTH},
            "slow": {"detector": "archon", "every": EVERY, "pedestal": 100, "sum_per_signal": 1000.0},
        }

    def _signal(self, events: Array) -> tuple[Array, Array, Array]:
        """Pulse energy, step and response of events that follow each other."""
        uniform = generators.uniforms(self._seed, int(events[0]), len(events), generators.HITS, 4)
        energy = 1.5 * -np.log(uniform).mean(axis=1)
        edges = np.linspace(0, self._events, self._count + 1).astype(int)
        step = np.searchsorted(edges, events, side="right") - 1
        signal = energy * (0.2 + np.exp(-0.5 * ((motor(step) - CENTRE) / WIDTH) ** 2))
        return energy, step.astype(np.int32), signal

    def events(self, first: int, n: int) -> Block:
        """Make waveforms of the fast detector and images of the slow one."""
        # an image holds the signal of its own event and of the nine before
        begin = max(0, first - EVERY + 1)
        energy, step, signal = self._signal(np.arange(begin, first + n))
        images, slow = self._images(first, n, begin, signal)
        events = np.arange(first, first + n)
        energy, step, signal = energy[first - begin :], step[first - begin :], signal[first - begin :]
        there = self.faults.segment_present(first, n, 0)
        damage = self.faults.damage(first, n, 0)
        parts = [
            Contribution(self._fim, self._waveforms(first, n, signal), present=there, damage=damage),
            Contribution(
                self._shutter,
                {
                    "value": signal,
                    "message": np.array([b"event %d" % event for event in events], "S16"),
                    "state:stateEnum": (events // 7 % 3).astype(np.int32),
                    **{f"{label}:stateEnum": np.full(n, i) for i, label in enumerate(("closed", "open", "fault"))},
                },
            ),
            Contribution(TIMING_NAMES, timing_values(self.clock.pulse(events), events)),
            Contribution(self._gmd, {"milliJoulesPerPulse": energy, "RMS_E": 0.01 * energy}),
        ]
        root = damage | np.where(there, 0, DROPPED).astype(np.uint16)
        slow_part = Contribution(self._slow, {"value": images}, present=slow)
        if len(self.streams) == 1:
            streams = [StreamEvents([*parts, slow_part], np.full(n, True), root)]
        else:
            streams = [
                StreamEvents(parts, np.full(n, True), root),
                StreamEvents([slow_part], slow, np.zeros(n, np.uint16)),
            ]
        truth: dict[str, Array] = {
            "timestamp": self.clock.timestamps(events),
            "pulse_energy": energy,
            "step": step,
            "signal": signal,
            "written": np.stack([there, slow], axis=1),
        }
        return Block(streams, truth)

    def _waveforms(self, first: int, n: int, signal: Array) -> dict[str, Array]:
        noise = generators.uniforms(self._seed, first, n, generators.NOISE, 2 * SAMPLES).reshape(n, 2, SAMPLES)
        pulse = np.exp(-0.5 * ((np.arange(SAMPLES) - 24) / 4.0) ** 2)
        height = 1000 * signal[:, None, None] * np.array([1.0, 0.5])[:, None]
        samples = np.clip(np.rint(200 + 8 * (noise - 0.5) + height * pulse), 0, 65535).astype(np.uint16)
        return {"raw_0": samples[:, 0], "raw_1": samples[:, 1]}

    def _images(self, first: int, n: int, begin: int, signal: Array) -> tuple[Array, Array]:
        """Images (n, rows, columns), zero where there is none, and which events have one."""
        slow = (np.arange(first, first + n) + 1) % EVERY == 0
        images = np.zeros((n, ROWS, COLUMNS), np.uint16)
        line = np.exp(-0.5 * ((np.arange(COLUMNS) - COLUMNS / 2) / 300.0) ** 2)
        shape = line / (line.sum() * ROWS)
        for i in np.flatnonzero(slow):
            event = first + int(i)
            total = 1000.0 * signal[event - EVERY + 1 - begin : event + 1 - begin].sum()
            dither = generators.uniforms(self._seed, event, 1, generators.PHOTONS, ROWS * COLUMNS)
            # rounding up or down at random keeps the mean of pixels that hold less than one
            images[i] = 100 + np.floor(total * shape + dither.reshape(ROWS, COLUMNS)).astype(np.uint16)
        return images, slow
