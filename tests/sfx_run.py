"""Stills of the simulated facility's lysozyme on its Jungfrau 4M, frame by frame, with everything known of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lcls_dask.facility import diffraction, generators, sfx
from lcls_dask.facility.geometry import ASIC, COLUMNS, PIXEL, ROWS, jungfrau_4m
from lcls_dask.sfx import Cell, Geometry, Panel

Array = np.ndarray[Any, Any]

CELL = Cell((*sfx.CELL, 90.0, 90.0, 90.0), "P 43 21 2")
PANELS = jungfrau_4m()


def geometry() -> Geometry:
    """The detector as it is."""
    centre = PANELS.corner + 0.5 * PANELS.slow + 0.5 * PANELS.fast
    panels = [
        Panel(
            name, int(row) // ROWS, int(row) % ROWS, int(row) % ROWS + ASIC, int(column), int(column) + ASIC,
            (*(PIXEL * corner).tolist(), 0.0), (*(PIXEL * fast).tolist(), 0.0), (*(PIXEL * slow).tolist(), 0.0),
        )
        for name, corner, fast, slow, (row, column) in zip(
            PANELS.name, centre, PANELS.fast, PANELS.slow, PANELS.first, strict=True
        )
    ]  # fmt: skip
    return Geometry(tuple(panels), (sfx.SEGMENTS, ROWS, COLUMNS), sfx.DISTANCE, sfx.PHOTON_ENERGY)


@dataclass(frozen=True)
class Still:
    """One crystal: its true a*, b*, c* as rows, and its spots: segment, row, column, photons, partiality; indices."""

    star: Array
    place: Array
    hkl: Array


def still(seed: int, number: int, scale: float = 1.0) -> Still:
    """A crystal in a random orientation."""
    state = generators.generator(seed, number, generators.FRAME)
    rotation = diffraction.rotation(state)
    scale *= sfx.SCALE * (0.6 + 0.8 * generators.uniform(state))
    place, hkl = np.empty((4096, 5)), np.empty((4096, 3), np.int16)
    count = diffraction.predict(
        seed, rotation / np.array(sfx.CELL), sfx.WAVELENGTH, sfx.NODE_RADIUS, sfx.B_FACTOR, scale, 1 / sfx.RESOLUTION,
        PANELS.table(), PANELS.inverse(), sfx.DISTANCE / PIXEL, place, hkl,
    )  # fmt: skip
    return Still((rotation / np.array(sfx.CELL)).T, place[:count], hkl[:count])


def structure_factors(seed: int, hkl: Array) -> Array:
    """True intensities."""
    return np.array([diffraction.intensity(seed, *map(int, one)) for one in hkl])


def found_peaks(
    random: np.random.Generator, still: Still, count: int | None, spurious: float, least: float = 30.0
) -> Array:
    """Segment, row, column of the strongest spots, as a peak finder tells them, and of others: (n, 3)."""
    photons = random.poisson(still.place[:, 3])
    order = np.argsort(-photons)[:count]
    place = still.place[order[photons[order] >= least], :3].copy()
    place[:, 1:] += 0.15 * random.normal(size=(len(place), 2))
    wrong = round(len(place) * spurious / (1 - spurious))
    others = np.column_stack(
        [random.integers(0, sfx.SEGMENTS, wrong), random.uniform(0, ROWS, wrong), random.uniform(0, COLUMNS, wrong)]
    )
    return random.permutation(np.concatenate([place, others]))


def frame(random: np.random.Generator, still: Still, background: float = 0.3) -> Array:
    """Photons of each pixel: (segments, rows, columns) float32."""
    raw = random.poisson(background, (sfx.SEGMENTS, 1, 1, ROWS, COLUMNS)).astype(np.uint16)
    state = generators.generator(int(random.integers(1 << 30)), 0, generators.FRAME)
    diffraction.add_spots(state, still.place, len(still.place), sfx.SPOT_SIGMA, 1.0, 60000, raw, 0)
    return raw[:, 0, 0].astype(np.float32)
