"""Hits by their definition, written once more for one sample after the other: times, heights and widths."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from tof_pulses import BASE, DT, digitised

from lcls_dask import tof

METHODS = ("cfd", "leading_edge", "dynamic_leading_edge")


def rising(x: Any, low: int, at: int, level: float) -> float:
    """Where the signal rises through a level, nearest before a maximum; `low` where it does not."""
    below = [k for k in range(low, at) if x[k] <= level]
    return below[-1] + (level - x[below[-1]]) / (x[below[-1] + 1] - x[below[-1]]) if below else float(low)


def crossing(x: Any, low: int, at: int, fraction: float, delay: int) -> float:
    """Where ``x(t) - fraction * x(t + delay)`` rises through zero, nearest before a maximum."""
    y = x[:-delay] - fraction * x[delay:]
    rises = [k for k in range(low, at + 1) if y[k] <= 0 < y[k + 1]]
    if not rises:
        return float(low)
    k = rises[-1]
    slope = 0.3 * (y[k + 2] - y[k - 1]) + 0.1 * (y[k + 1] - y[k])
    line = 0.5 - 0.25 * y[k - 1 : k + 3].sum() / slope if slope > 0 else y[k] / (y[k] - y[k + 1])
    return k + float(np.clip(line, -1, 2))


def defined(x: Any, method: str, threshold: float, fraction: float, delay: int) -> list[tuple[float, float, float]]:
    """Times, heights and widths [samples] by their definition, sample by sample, over a whole record."""
    x = np.concatenate([np.zeros(64), x, np.zeros(64)])
    hits: list[tuple[float, float, float]] = []
    i = 0
    while i < x.size:
        low = at_low = i
        while i < x.size and x[i] < x[low] + threshold:
            low = at_low = i if x[i] < x[low] else low
            i += 1
        if i == x.size:
            break
        top = i
        while i < x.size and x[i] > x[top] - threshold:
            top = i if x[i] > x[top] else top
            i += 1
        if x[top] < threshold:
            continue
        bend = x[top - 1] - 2 * x[top] + x[top + 1]
        height = x[top] - 0.125 * (x[top + 1] - x[top - 1]) ** 2 / bend if bend < 0 else x[top]
        if method == "cfd":
            time = crossing(x, at_low, top, fraction, delay)
        else:
            time = rising(x, at_low, top, threshold if method == "leading_edge" else fraction * height)
        mirrored = x[::-1]
        falls = x.size - 1 - rising(mirrored, 0, x.size - 1 - top, x[top] / 2)
        if not hits or time - 64 >= hits[-1][0]:  # one that comes out before the one before it is dead
            hits.append((time - 64, height, falls - rising(x, 0, top, x[top] / 2)))
    return hits


def whole_numbers(rows: int, times: Any, heights: Any, samples: int, polarity: int, seed: int) -> tuple[Any, Any, Any]:
    """Waveforms, baselines that are whole numbers, and the signal, which is exact then."""
    pulses = digitised(times, heights, samples, seed=seed)
    values = pulses.astype(np.int16) if polarity < 0 else (4096 - pulses).astype(np.int16)
    base = np.round(BASE) if polarity < 0 else 4096 - np.round(BASE)
    return values, base, polarity * (values - np.resize(base, samples))


def away_from_defined(found: xr.Dataset, right: list[list[tuple[float, float, float]]]) -> Any:
    """(hit, 3): how far time, height and width are from those of the next hit that there is by definition.

    Rows with as many hits as there are by definition are compared in order.
    """
    columns = np.stack([found["time"] / DT, found["amplitude"], found["width"] / DT], axis=1)
    away, offset = [], found["offset"].values
    for row, hits in enumerate(right):
        mine = columns[offset[row] : offset[row + 1]]
        if len(mine) == len(hits):
            away.extend(np.abs(mine - np.array(hits).reshape(-1, 3)).tolist())
        else:
            away.extend(min(np.abs(np.array(hits) - hit).tolist(), default=[np.inf] * 3) for hit in mine)
    return np.array(away).reshape(-1, 3)


@pytest.mark.parametrize("polarity", [-1, 1])
@pytest.mark.parametrize("method", METHODS)
def test_as_defined_down_to_the_noise(method: str, polarity: int) -> None:
    """At two standard deviations of the noise too: whatever stretch of the record a pulse was found in."""
    random = np.random.default_rng(17)
    values, base, signal = whole_numbers(
        300, random.uniform(20, 280, (300, 2)), random.uniform(8, 60, (300, 2)), 300, polarity, 18
    )
    hits = tof.find_hits(
        values[:, None], method, 0.6, 6 * DT, threshold=8, polarity=polarity, baseline=base[None], dead_time=0
    ).compute()
    assert hits.sizes["hit"] > 3000
    right = [defined(x, method, 8.0, 0.6, 6) for x in signal]
    away = away_from_defined(hits, right)
    np.testing.assert_array_less(away.max(axis=0), [1e-6, 1e-3, 1e-5])
    # the minimum before a pulse is sought some samples far, which may be above the baseline all of them
    assert 0 <= sum(map(len, right)) - hits.sizes["hit"] < 0.005 * hits.sizes["hit"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("samples", [61, 64, 128, 300, 4096, 4100])
def test_as_defined_for_pulses_of_all_heights(method: str, samples: int) -> None:
    """Alone, near each other, at the ends of a record and of a block, in records of one word of blocks and more."""
    random = np.random.default_rng(samples)
    rows = max(8, 40_000 // samples)
    many = max(2, samples // 40)
    times = random.uniform(-3, samples + 3, (rows, many))
    heights = np.exp(random.uniform(np.log(120), np.log(1900), (rows, many)))
    values, base, signal = whole_numbers(rows, times, heights, samples, -1, samples)
    hits = tof.find_hits(
        values[:, None],
        method,
        0.6,
        6 * DT,
        threshold=40,
        baseline=base[None],
        dead_time=0,
        saturation=(-np.inf, np.inf),
    ).compute()
    right = [defined(x, method, 40.0, 0.6, 6) for x in signal]
    np.testing.assert_array_equal(np.diff(hits["offset"]), list(map(len, right)))
    away = away_from_defined(hits, right)
    assert len(away) > 500
    np.testing.assert_array_less(away.max(axis=0), [1e-6, 1e-3, 1e-5])
