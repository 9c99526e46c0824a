"""Frames with known peaks, for the tests and benchmarks of crystallography."""

from typing import Any

import numpy as np

from lcls_dask.facility.geometry import PIXEL, jungfrau_4m
from lcls_dask.sfx import Geometry, Panel

Array = np.ndarray[Any, np.dtype[Any]]


def jungfrau(distance: float = 0.12, photon_energy: float | None = 9500.0) -> Geometry:
    """The simulated Jungfrau 4M, from its own layout, not from its .geom file."""
    layout, panels = jungfrau_4m(), []
    for name, corner, slow, fast, (row, column) in zip(
        layout.name, layout.corner, layout.slow, layout.fast, layout.first.tolist(), strict=True
    ):
        x, y = ((corner + 0.5 * slow + 0.5 * fast) * PIXEL).tolist()
        segment, row = divmod(row, 512)
        fs, ss = (fast * PIXEL).tolist(), (slow * PIXEL).tolist()
        panels.append(
            Panel(name, segment, row, row + 256, column, column + 256, (x, y, 0.0), (*fs, 0.0), (*ss, 0.0),
                  (f"p{segment}", "modules"))
        )  # fmt: skip
    return Geometry(tuple(panels), (8, 512, 1024), distance, photon_energy)


def small(segments: int = 2, rows: int = 128, columns: int = 160, panels: int = 2) -> Geometry:
    """A few segments about the beam, each cut into panels side by side."""
    made, width = [], columns // panels
    for segment in range(segments):
        for number in range(panels):
            x, y = 1e-4 * (number * (width + 3) - columns / 2), 1e-4 * (segment * (rows + 9) - segments * rows / 2)
            made.append(
                Panel(f"s{segment}p{number}", segment, 0, rows, number * width, (number + 1) * width, (x, y, 0.0),
                      (1e-4, 2e-7, 0.0), (-2e-7, 1e-4, 0.0))
            )  # fmt: skip
    return Geometry(tuple(made), (segments, rows, columns), 0.1, 9500.0)


def frame(
    geometry: Geometry, seed: int, *, peaks: int = 120, low: float = 300, high: float = 3000, level: float = 20.0,
    noise: float = 0.3, margin: int = 6,
) -> tuple[Array, Array]:  # fmt: skip
    """A Poisson background that falls from the beam, and Gaussian peaks of sigma 1 at random places.

    Returns the frame, float32, and (peaks, 4): segment, row, column, photons. Peaks lie `margin` pixels and more from
    the edges of their panels, and 12 from each other.
    """
    random = np.random.default_rng(seed)
    x, y, _ = geometry.positions()
    radius = np.nan_to_num(np.hypot(x, y)) / np.linalg.norm(geometry.panels[0].fs)
    values = random.poisson(level * (np.exp(-radius / 600) + 0.15)) + random.normal(0, noise, geometry.shape)
    placed: list[tuple[int, float, float, float]] = []
    while len(placed) < peaks:
        panel = geometry.panels[random.integers(len(geometry.panels))]
        row = random.uniform(panel.row0 + margin, panel.row1 - 1 - margin)
        column = random.uniform(panel.column0 + margin, panel.column1 - 1 - margin)
        if all(s != panel.segment or np.hypot(r - row, c - column) > 12 for s, r, c, _ in placed):
            placed.append((panel.segment, row, column, random.uniform(low, high)))
            add(values, *placed[-1], random)
    return values.astype(np.float32), np.array(placed).reshape(-1, 4)


def add(values: Array, segment: int, row: float, column: float, photons: float, random: Any) -> None:
    """Add a Gaussian peak of sigma 1, with Poisson noise."""
    rows = np.arange(max(int(row) - 5, 0), min(int(row) + 7, values.shape[1]))
    columns = np.arange(max(int(column) - 5, 0), min(int(column) + 7, values.shape[2]))
    shape = np.exp(-0.5 * ((rows[:, None] - row) ** 2 + (columns - column) ** 2)) / (2 * np.pi)
    values[segment, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += random.poisson(photons * shape)
