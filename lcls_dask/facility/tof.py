"""An argon gas target seen by 16 electron time-of-flight spectrometers on a digitizer."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..formats.xtc2.bulk import Contribution, Ragged
from ..formats.xtc2.layout import Names
from ..formats.xtc2.writer import declare, shapes_data
from . import kernels
from .beamline import TIMING_NAMES, epics_names, epics_values, gmd_names, scan_names, timing_values
from .plan import DROPPED, Array, Block, Clock, StreamEvents, StreamPlan, TruthArray, draw_faults

CHANNELS = 16

#: Digitizer: samples a second, and what psana makes of the gate.
SAMPLE_NS = 1e9 / (6.4e9 * 13 / 14)
GATE_NS = 404
GATE = int(GATE_NS * 0.160 * 13 / 14) * 40
PRESCALE = 100
SIGMA = 3.5
BASELINE = 2048
BAND = (BASELINE - 40, BASELINE + 40, 8, 8)

PHOTON_ENERGY = 600.0


@dataclass(frozen=True)
class Line:
    """A line of the spectrum.

    Attributes
    ----------
    name : str
    energy : float
        Kinetic energy [eV] at the mean photon energy; 0 for the background, even over the gate.
    width : float
        Standard deviation [eV].
    photo : bool
        Whether it moves with the photon energy.
    rate : float
        Mean electrons in a channel and event, over all angles, at the mean pulse energy.
    beta : float
        Anisotropy parameter of the angular distribution.
    """

    name: str
    energy: float
    width: float
    photo: bool
    rate: float
    beta: float


#: Ionisation energies: 2p 248.63 and 250.78, 3s 29.24, 3p 15.76 eV. Rates and betas are made up to be plausible.
LINES = (
    Line("background", 0.0, 0.0, False, 0.03, 0.0),
    Line("Ar 3p", PHOTON_ENERGY - 15.76, 0.10, True, 0.04, 1.3),
    Line("Ar 3s", PHOTON_ENERGY - 29.24, 0.10, True, 0.02, 2.0),
    Line("Ar 2p3/2", PHOTON_ENERGY - 248.63, 0.06, True, 0.12, 1.0),
    Line("Ar 2p1/2", PHOTON_ENERGY - 250.78, 0.06, True, 0.06, 1.0),
    Line("Ar L3-M23M23 1D", 203.47, 0.06, False, 0.14, 0.0),
    Line("Ar L3-M23M23 3P", 205.21, 0.06, False, 0.07, 0.0),
    Line("Ar L2-M23M23 1D", 205.62, 0.06, False, 0.07, 0.0),
    Line("Ar L2-M23M23 3P", 207.39, 0.06, False, 0.04, 0.0),
)

#: Mean pulse energy [mJ], SASE modes, photon energy and its standard deviation [eV].
BEAM = (0.8, 4.0, PHOTON_ENERGY, 1.0)
#: Flight path [mm], time of the light [ns], timing jitter [ns], end of the gate less a pulse [ns].
SPECTROMETER = (590.0, 20.0, 0.05, GATE * SAMPLE_NS - 8.0)
#: Least pulse height, mean above it [ADU], shape of the gamma distribution.
AMPLITUDE = (150.0, 300.0, 3.0)
POLARISATION, TILT_DEG = 0.9, 20.0
ANGLES_DEG = np.arange(CHANNELS) * 360.0 / CHANNELS


def angular_weights(beta: float) -> Array:
    """Relative rate at each channel for linear polarisation: (16,) float64, mean 1."""
    angle = np.deg2rad(2 * (ANGLES_DEG - TILT_DEG))
    weights: Array = 1 + beta / 4 * (1 + 3 * POLARISATION * np.cos(angle))
    weights /= weights.mean()
    return weights


def _hsd_names(segment: int) -> tuple[Names, Names]:
    """Data and configuration of one channel, which is a segment of the detector."""
    serial = f"sim{segment:02d}"
    data = {"eventHeader": ("uint32", 1), "chan00": ("uint8", 1)}
    config = {
        "firmwareVersion": "uint32",
        "user.raw.gate_ns": "uint32",
        "user.raw.prescale": "uint32",
        "user.fex.gate_ns": "uint32",
        "user.fex.prescale": "uint32",
        "user.fex.ymin": "uint32",
        "user.fex.ymax": "uint32",
        "user.fex.xpre": "uint32",
        "user.fex.xpost": "uint32",
    }
    return (
        declare("hsd", "hsd", "raw", (2, 0, 0), data, id=segment * 2, segment=segment, serial=serial),
        declare("hsd", "hsd", "config", (2, 0, 0), config, id=segment * 2 + 1, segment=segment, serial=serial),
    )


class TofPlan:
    """A run of ``kind="tof"``: detector ``hsd`` (16 segments), ``gmd``, ``timing``; three steps.

    Parameters
    ----------
    seed, events, streams : int
    clock : Clock
    """

    block = 4000

    def __init__(self, seed: int, events: int, streams: int, clock: Clock) -> None:
        self.clock = clock
        self.faults = draw_faults(seed, events, streams, CHANNELS)
        self._seed = seed
        self._segments = np.array_split(np.arange(CHANNELS), streams)
        self._names = [_hsd_names(segment) for segment in range(CHANNELS)]
        config = (1, GATE_NS, PRESCALE, GATE_NS, 1, *BAND)
        self._gmd, self._scan, self._epics = gmd_names(), scan_names({"gas_pressure": "float64"}), epics_names()
        slow = (TIMING_NAMES, self._gmd, self._scan, *self._epics)
        self.streams = tuple(
            StreamPlan(
                (*(name for s in segments for name in self._names[s]), *(slow if number == 0 else ())),
                (
                    *(shapes_data(self._names[s][1], config) for s in segments),
                    *([epics_values(self._epics[1])] if number == 0 else []),
                ),
            )
            for number, segments in enumerate(self._segments)
        )
        self.steps = tuple(shapes_data(self._scan, (1e-6 * (1 + i), i, f"step {i}")) for i in range(3))
        random = np.random.default_rng([seed, 0xADC])
        # noise stays within the band, so that the FEX of a whole waveform has no window without a hit
        noise = np.clip(np.rint(4.0 * random.standard_normal(1 << 18)), -20, 20).astype(np.int32)
        self._noise = np.concatenate([noise, noise[:GATE]])
        self._base = BASELINE + random.integers(-6, 7, (CHANNELS, 4))
        self._rate = np.stack([line.rate * angular_weights(line.beta) for line in LINES], axis=1)
        self._lines = np.array([[line.energy, line.width, float(line.photo)] for line in LINES])
        hit = ("hit",)
        self.truth_arrays: Mapping[str, TruthArray] = {
            "timestamp": TruthArray(("event",), "uint64", "1", "seconds << 32 | nanoseconds since 1990"),
            "pulse_energy": TruthArray(("event",), "float64", "mJ", "pulse energy"),
            "photon_energy": TruthArray(("event",), "float64", "eV", "photon energy"),
            "written": TruthArray(("event", "channel"), "bool", "1", "segment is in the files", (CHANNELS,)),
            "hits.offset": TruthArray(("row_edge",), "int64", "1", "first hit of each (event, channel)", counts=True),
            "hits.time": TruthArray(hit, "float64", "s", "time of the pulse's maximum after the gate opens"),
            "hits.amplitude": TruthArray(hit, "float32", "ADU", "pulse height"),
            "hits.line": TruthArray(hit, "int8", "1", "index into the lines of truth.json"),
        }

    def update(self, number: int) -> bytes:
        """Slow variables."""
        return shapes_data(self._epics[0], (1e-6 + 1e-9 * number, 21.5, f"update {number}"))

    def constants(self) -> Mapping[str, tuple[TruthArray, Array]]:
        """Baselines of the interleaved cores."""
        spec = TruthArray(("channel", "core"), "int64", "ADU", "baseline of each interleaved core")
        return {"baseline": (spec, self._base)}

    def files(self) -> Mapping[str, bytes]:
        """None."""
        return {}

    def truth(self) -> dict[str, Any]:
        """Parameters of source, spectrometer and digitizer."""
        return {
            "lines": [asdict(line) for line in LINES],
            "beam": {
                "mean_pulse_energy_mJ": BEAM[0],
                "sase_modes": BEAM[1],
                "photon_energy_eV": BEAM[2],
                "photon_energy_std_eV": BEAM[3],
                "polarisation": POLARISATION,
                "tilt_deg": TILT_DEG,
            },
            "spectrometer": {
                "flight_path_mm": SPECTROMETER[0],
                "t0_ns": SPECTROMETER[1],
                "jitter_ns": SPECTROMETER[2],
                "angles_deg": ANGLES_DEG.tolist(),
            },
            "digitizer": {
                "sample_ns": SAMPLE_NS,
                "gate_samples": GATE,
                "raw_prescale": PRESCALE,
                "polarity": -1,
                "pulse_sigma_samples": SIGMA,
                "noise_ADU": 4.0,
                "ymin": BAND[0],
                "ymax": BAND[1],
                "xpre": BAND[2],
                "xpost": BAND[3],
                "least_amplitude_ADU": AMPLITUDE[0],
                "mean_amplitude_ADU": AMPLITUDE[0] + AMPLITUDE[1],
            },
        }

    def events(self, first: int, n: int) -> Block:
        """Draw hits, digitise them, and put them into the streams."""
        offset, time, height, line, energy, photon = self._draw(first, n)
        present = [self.faults.present(first, n, stream) for stream in range(len(self.streams))]
        written = np.empty((n, CHANNELS), bool)
        streams = []
        for number, segments in enumerate(self._segments):
            parts = []
            root = np.zeros(n, np.uint16)
            if number == 0:
                events = np.arange(first, first + n)
                parts.append(Contribution(TIMING_NAMES, timing_values(self.clock.pulse(events), events)))
                parts.append(Contribution(self._gmd, {"milliJoulesPerPulse": energy, "RMS_E": 0.01 * energy}))
            for s in map(int, segments):
                there = self.faults.segment_present(first, n, s)
                damage = self.faults.damage(first, n, s)
                root |= damage | np.where(there, 0, DROPPED).astype(np.uint16)
                written[:, s] = there & present[number]
                values = self._digitise(first, n, s, offset, time / SAMPLE_NS, height)
                parts.append(Contribution(self._names[s][0], values, present=there, damage=damage))
            streams.append(StreamEvents(parts, present[number], root))
        truth: dict[str, Array] = {
            "timestamp": self.clock.timestamps(np.arange(first, first + n)),
            "pulse_energy": energy,
            "photon_energy": photon,
            "written": written,
            "hits.offset": np.diff(offset),
            "hits.time": time * 1e-9,
            "hits.amplitude": height.astype(np.float32),
            "hits.line": line,
        }
        return Block(streams, truth)

    def _draw(self, first: int, n: int) -> tuple[Array, ...]:
        offset = np.zeros(n * CHANNELS + 1, np.int64)
        energy, photon = np.empty(n), np.empty(n)
        capacity = int(n * self._rate.sum() * 2) + 64 * CHANNELS * 4
        while True:
            time, height, line = np.empty(capacity), np.empty(capacity), np.empty(capacity, np.int8)
            done = kernels.draw_hits(
                self._seed, first, n, self._rate, self._lines, np.array(BEAM), np.array(SPECTROMETER),
                np.array(AMPLITUDE), offset, time, height, line, energy, photon,
            )  # fmt: skip
            if done == n:
                count = int(offset[-1])
                return offset, time[:count], height[:count], line[:count], energy, photon
            capacity *= 2

    def _digitise(
        self, first: int, n: int, segment: int, offset: Array, time: Array, height: Array
    ) -> dict[str, Array | Ragged]:
        ends = np.zeros(n + 1, np.int64)
        raw = math.ceil(n / PRESCALE) + 1
        base = np.tile(self._base[segment].astype(np.int32), GATE // 4)
        words = np.empty(n * 160 + (raw + 5) * (GATE + 64) + 8 * GATE, np.uint16)
        while (
            kernels.pack_hsd(
                self._seed, first, n, segment, CHANNELS, offset, time, height, base, self._noise,
                GATE, SIGMA, np.array(BAND), PRESCALE, words, ends,
            )
            < n
        ):  # fmt: skip
            words = np.empty(2 * len(words), np.uint16)
        header = np.empty((n, 2), np.uint32)
        events = np.arange(first, first + n)
        header[:, 0] = np.where(events % PRESCALE == 0, 0x01300000, 0x01200000)
        header[:, 1] = 0x4000
        return {"eventHeader": header, "chan00": Ragged(words[: ends[-1]].view(np.uint8), ends * 2)}
