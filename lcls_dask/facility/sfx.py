"""Lysozyme crystals in a jet, in front of a Jungfrau 4M."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..formats.xtc2.bulk import Contribution
from ..formats.xtc2.layout import Field, Names
from ..formats.xtc2.writer import declare, enum_fields, shapes_data
from . import diffraction, generators
from .beamline import TIMING_NAMES, epics_names, epics_values, gmd_names, scan_names, timing_values
from .geometry import COLUMNS, PIXEL, ROWS, crystfel_geometry, jungfrau_4m, pixel_positions
from .plan import DROPPED, Array, Block, Clock, StreamEvents, StreamPlan, TruthArray, draw_faults

SEGMENTS = 8
PHOTON_ENERGY = 9500.0
WAVELENGTH = 12398.419843320026 / PHOTON_ENERGY
DISTANCE = 0.12

#: Lysozyme, P43212 [A].
CELL = (79.1, 79.1, 37.9)
#: Radius of the reciprocal-space nodes [1/A], B factor [A^2], photons of a mean reflection on the Ewald sphere.
NODE_RADIUS, B_FACTOR, SCALE = 0.0012, 18.0, 180.0
RESOLUTION = 1.75
HIT_FRACTION = 0.6

#: Gain stage 0: 41 ADU a keV, and noise [ADU]. Above 14 bits a real module would change gain; this one saturates.
GAIN, NOISE_ADU, SATURATION = 41.0 * PHOTON_ENERGY / 1000, 25.0, 16383
SPOT_SIGMA = 1.0

_CELL_FILE = f"""CrystFEL unit cell file version 1.0

lattice_type = tetragonal
centering = P
unique_axis = c
a = {CELL[0]} A
b = {CELL[1]} A
c = {CELL[2]} A
al = 90 deg
be = 90 deg
ga = 90 deg
"""
HOT_PIXELS = 200

#: Mean background photons: levels in logarithmic steps, and how many draws each has.
_LEVELS = np.geomspace(0.01, 2.0, 64)
_DRAWS = 1 << 14
_CAPACITY = 4096


def background(s: Array) -> Array:
    """Mean photons a pixel at 1/d [1/A]: air near the beam and the ring of water at 3.2 A."""
    mean: Array = 0.03 + 0.25 * np.exp(-s / 0.05) + 0.30 * np.exp(-0.5 * ((s - 0.31) / 0.05) ** 2)
    return mean


def _jungfrau_names(segment: int) -> tuple[Names, Names]:
    serial = f"8000000020000-230920-sim{segment}"
    jungfrau = ("jungfrau", "jungfrau")
    data: dict[str, tuple[str, int] | str] = {
        "raw": ("uint16", 3),
        "frame_cnt": "uint64",
        "timestamp": "uint64",
        "hotPixelThresh": "uint16",
        "numHotPixels": "uint32",
        "maxHotPixels": "uint32",
    }
    config = (
        *enum_fields("gainModeEnum", ["DYNAMIC", "FIX_G1", "FIX_G2"], "user.gainMode"),
        *enum_fields("gain0Enum", ["normal", "high"], "user.gain0"),
        Field("user.exposure_time_s", 9, 0),
        Field("user.bias_voltage_v", 0, 0),
    )
    return (
        declare(*jungfrau, "raw", (0, 2, 0), data, id=segment * 2, segment=segment, serial=serial),
        declare(*jungfrau, "config", (0, 2, 0), config, id=segment * 2 + 1, segment=segment, serial=serial),
    )


class SfxPlan:
    """A run of ``kind="sfx"``: detector ``jungfrau`` (8 segments), ``gmd``, ``timing``; one step.

    Parameters
    ----------
    seed, events, streams : int
    clock : Clock
    """

    # 8 MB an event, and their packed copy
    block = 4

    def __init__(self, seed: int, events: int, streams: int, clock: Clock) -> None:
        self.clock = clock
        self.faults = draw_faults(seed, events, streams, SEGMENTS)
        self._seed = seed
        self._segments = np.array_split(np.arange(SEGMENTS), streams)
        self._names = [_jungfrau_names(segment) for segment in range(SEGMENTS)]
        config = (0, 0, 1, 2, 0, 0, 1, 1e-5, 200)
        self._gmd, self._scan, self._epics = gmd_names(), scan_names({}), epics_names()
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
        self.steps: tuple[bytes, ...] = (shapes_data(self._scan, (0, "lysozyme in random orientations")),)
        self._detector()
        hit = ("spot",)
        self.truth_arrays: Mapping[str, TruthArray] = {
            "timestamp": TruthArray(("event",), "uint64", "1", "seconds << 32 | nanoseconds since 1990"),
            "hit": TruthArray(("event",), "bool", "1", "a crystal was hit"),
            "pulse_energy": TruthArray(("event",), "float64", "mJ", "pulse energy"),
            "written": TruthArray(("event", "segment"), "bool", "1", "segment is in the files", (SEGMENTS,)),
            "rotation": TruthArray(
                ("event", "lab", "crystal"), "float64", "1", "q = rotation (h/a, k/b, l/c); 0 for blanks", (3, 3)
            ),
            "spots.offset": TruthArray(("event_edge",), "int64", "1", "first spot of each event", counts=True),
            "spots.segment": TruthArray(hit, "int8", "1", "segment"),
            "spots.row": TruthArray(hit, "float32", "pixel", "row, pixel centres at whole numbers"),
            "spots.column": TruthArray(hit, "float32", "pixel", "column, pixel centres at whole numbers"),
            "spots.intensity": TruthArray(hit, "float32", "photon", "mean photons of the spot"),
            "spots.partiality": TruthArray(hit, "float32", "1", "partiality"),
            "spots.hkl": TruthArray(("spot", "index"), "int16", "1", "Miller indices", (3,)),
        }

    def _detector(self) -> None:
        """Pedestals, hot pixels, the background's level in each pixel, and draws for each level."""
        random = np.random.default_rng([self._seed, 0x4F])
        self._panels = jungfrau_4m()
        shape = (SEGMENTS, ROWS, COLUMNS)
        self._pedestal = np.rint(random.normal(2700, 80, shape)).clip(2200, 3200).astype(np.uint16)
        hot = random.choice(SEGMENTS * ROWS * COLUMNS, HOT_PIXELS, replace=False)
        self._hot = np.sort(hot).astype(np.int64)
        self._hot_value = random.integers(9000, SATURATION, HOT_PIXELS).astype(np.uint16)
        xy = pixel_positions(self._panels) * PIXEL
        angle = np.arctan(np.hypot(xy[..., 0], xy[..., 1]) / DISTANCE)
        mean = background(2 * np.sin(angle / 2) / WAVELENGTH) * np.cos(angle) ** 3  # the last: solid angle
        step = np.log(_LEVELS[1] / _LEVELS[0])
        self._level = np.rint(np.log(mean / _LEVELS[0]) / step).clip(0, len(_LEVELS) - 1).astype(np.uint8)
        draws = np.floor(random.poisson(_LEVELS[:, None], (len(_LEVELS), _DRAWS)) * GAIN)
        draws += np.rint(random.normal(0, NOISE_ADU, draws.shape))
        self._table = draws.clip(-2000, 13000).astype(np.int16)

    def update(self, number: int) -> bytes:
        """Slow variables."""
        return shapes_data(self._epics[0], (1e-6 + 1e-9 * number, 21.5, f"update {number}"))

    def constants(self) -> Mapping[str, tuple[TruthArray, Array]]:
        """Pedestals, hot pixels, and the crystal's intensities."""
        place = np.stack(np.unravel_index(self._hot, self._pedestal.shape), axis=1).astype(np.int32)
        dims = ("segment", "row", "column")
        hkl, intensity = self._intensities()
        words = "mean photons, without B factor and partiality, by those of an average reflection"
        return {
            "pedestal": (TruthArray(dims, "uint16", "ADU", "pedestal of gain stage 0"), self._pedestal),
            "hot_pixels": (TruthArray(("hot", "index"), "int32", "1", "segment, row, column of hot pixels"), place),
            "unique.hkl": (
                TruthArray(("unique", "index"), "int16", "1", "unique reflections, h >= k >= 0, l >= 0"),
                hkl,
            ),
            "unique.intensity": (TruthArray(("unique",), "float64", "1", words), intensity),
        }

    def _intensities(self) -> tuple[Array, Array]:
        """Unique reflections, and their intensities."""
        most = [int(length / RESOLUTION) for length in CELL]
        every = np.stack(np.meshgrid(*(np.arange(m + 1) for m in most), indexing="ij"), -1).reshape(-1, 3)
        inside = (every[:, 0] >= every[:, 1]) & (np.linalg.norm(every / CELL, axis=1) <= 1 / RESOLUTION)
        hkl = every[inside & every.any(axis=1)].astype(np.int16)
        intensity = np.array([diffraction.intensity(self._seed, *map(int, one)) for one in hkl])
        return hkl[intensity > 0], intensity[intensity > 0]

    def files(self) -> Mapping[str, bytes]:
        """The detector's layout and the cell for CrystFEL, and the detector's constants as files of darks have them."""
        constants = io.BytesIO()
        status = np.zeros(self._pedestal.shape, np.uint8)
        status.flat[self._hot] = 1
        np.savez(constants, pedestal=self._pedestal, gain=np.float32(GAIN / PHOTON_ENERGY * 1000), status=status)
        return {
            "jungfrau4M.geom": crystfel_geometry(self._panels, DISTANCE, PHOTON_ENERGY, GAIN).encode(),
            "lysozyme.cell": _CELL_FILE.encode(),
            "constants.npz": constants.getvalue(),
        }

    def truth(self) -> dict[str, Any]:
        """Parameters of crystal, beam and detector."""
        return {
            "crystal": {
                "space_group": "P43212",
                "cell_A": CELL,
                "node_radius_per_A": NODE_RADIUS,
                "b_factor_A2": B_FACTOR,
                "mean_photons": SCALE,
                "resolution_A": RESOLUTION,
                "hit_fraction": HIT_FRACTION,
            },
            "beam": {"photon_energy_eV": PHOTON_ENERGY, "wavelength_A": WAVELENGTH},
            "detector": {
                "geometry": "jungfrau4M.geom",
                "distance_m": DISTANCE,
                "pixel_m": PIXEL,
                "adu_per_photon": GAIN,
                "noise_ADU": NOISE_ADU,
                "saturation_ADU": SATURATION,
                "spot_sigma_pixels": SPOT_SIGMA,
            },
        }

    def events(self, first: int, n: int) -> Block:
        """Expose frames, and put their segments into the streams."""
        frames = np.empty((SEGMENTS, n, 1, ROWS, COLUMNS), np.uint16)
        energy, rotation = np.empty(n), np.zeros((n, 3, 3))
        spots, hkls = [], []
        for i in range(n):
            energy[i], rotation[i], place, hkl = self._expose(first + i, i, frames)
            spots.append(place)
            hkls.append(hkl)
        events = np.arange(first, first + n)
        present = [self.faults.present(first, n, stream) for stream in range(len(self.streams))]
        written = np.empty((n, SEGMENTS), bool)
        streams = []
        for number, segments in enumerate(self._segments):
            parts = []
            root = np.zeros(n, np.uint16)
            if number == 0:
                parts.append(Contribution(TIMING_NAMES, timing_values(self.clock.pulse(events), events)))
                parts.append(Contribution(self._gmd, {"milliJoulesPerPulse": energy, "RMS_E": 0.01 * energy}))
            for s in map(int, segments):
                there = self.faults.segment_present(first, n, s)
                damage = self.faults.damage(first, n, s)
                root |= damage | np.where(there, 0, DROPPED).astype(np.uint16)
                written[:, s] = there & present[number]
                values = {
                    "raw": frames[s],
                    "frame_cnt": events.astype(np.uint64),
                    "timestamp": self.clock.pulse(events),
                    "hotPixelThresh": np.full(n, 1000, np.uint16),
                    "numHotPixels": np.zeros(n, np.uint32),
                    "maxHotPixels": np.full(n, 10000, np.uint32),
                }
                parts.append(Contribution(self._names[s][0], values, present=there, damage=damage))
            streams.append(StreamEvents(parts, present[number], root))
        place, hkl = np.concatenate(spots), np.concatenate(hkls)
        truth: dict[str, Array] = {
            "timestamp": self.clock.timestamps(events),
            "hit": np.any(rotation, axis=(1, 2)),
            "pulse_energy": energy,
            "written": written,
            "rotation": rotation,
            "spots.offset": np.array([len(spot) for spot in spots]),
            "spots.segment": place[:, 0].astype(np.int8),
            "spots.row": place[:, 1].astype(np.float32),
            "spots.column": place[:, 2].astype(np.float32),
            "spots.intensity": place[:, 3].astype(np.float32),
            "spots.partiality": place[:, 4].astype(np.float32),
            "spots.hkl": hkl,
        }
        return Block(streams, truth)

    def _expose(self, event: int, i: int, frames: Array) -> tuple[float, Array, Array, Array]:
        """Make one frame; its pulse energy, rotation, spots and Miller indices."""
        state = generators.generator(self._seed, event, generators.FRAME)
        energy = 2.0 * np.exp(0.2 * generators.normal(state))
        rotation, count = np.zeros((3, 3)), 0
        place, hkl = np.empty((_CAPACITY, 5)), np.empty((_CAPACITY, 3), np.int16)
        if generators.uniform(state) < HIT_FRACTION:
            rotation = diffraction.rotation(state)
            size = 0.6 + 0.8 * generators.uniform(state)  # crystals differ
            count = diffraction.predict(
                self._seed, rotation / np.array(CELL), WAVELENGTH, NODE_RADIUS, B_FACTOR, SCALE * size * energy / 2,
                1 / RESOLUTION, self._panels.table(), self._panels.inverse(), DISTANCE / PIXEL, place, hkl,
            )  # fmt: skip
        shift = round(float(np.log(energy / 2) / np.log(_LEVELS[1] / _LEVELS[0])))
        diffraction.expose(state, self._level, shift, self._table, self._pedestal, frames, i)
        diffraction.add_spots(state, place, count, SPOT_SIGMA, GAIN, SATURATION, frames, i)
        segment, row, column = np.unravel_index(self._hot, self._pedestal.shape)
        frames[segment, i, 0, row, column] = self._hot_value
        return float(energy), rotation, place[:count], hkl[:count]
