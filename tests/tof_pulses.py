"""Pulses with known times, for the tests of time of flight."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

#: Interval of samples [ns], width of a pulse [samples], noise [ADU], baselines of the interleaved cores [ADU].
DT, SIGMA, NOISE, BASE = 1e9 / (6.4e9 * 13 / 14), 3.5, 4.0, np.array([2050.0, 2041.0, 2048.0, 2044.0])


def digitised(
    times: Array, heights: Array, samples: int, *, noise: float = NOISE, seed: int = 0, dtype: Any = np.uint16
) -> Array:
    """Waveforms of negative pulses: times and heights are (rows, hits), in samples and ADU."""
    random = np.random.default_rng(seed)
    at = np.arange(samples)
    signal = np.tile(BASE, -(-samples // 4))[:samples] + noise * random.standard_normal((len(times), samples))
    for k in range(times.shape[1]):
        signal -= heights[:, k, None] * np.exp(-0.5 * ((at - times[:, k, None]) / SIGMA) ** 2)
    return np.rint(signal).astype(dtype)


def bound(height: float) -> float:
    """Cramér-Rao bound of the time of a Gaussian pulse in white noise, that of rounding included [ns]."""
    noise = np.hypot(NOISE, np.sqrt(1 / 12))
    return float(DT * noise * np.sqrt(2 * SIGMA / np.sqrt(np.pi)) / height)
