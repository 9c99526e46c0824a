"""Random numbers for the compiled loops.

There is one splitmix64 generator for each (seed, event, purpose), so that an event is the same whatever block it is
made in.
"""

import math
from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, np.dtype[Any]]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)

#: Purposes of generators.
HITS, NOISE, FRAME, INTENSITY, PHOTONS = range(5)


@njit(cache=True, nogil=True, inline="always")
def _mix(z: Any) -> Any:
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@njit(cache=True, nogil=True)
def generator(seed: int, item: int, purpose: int) -> Array:
    """State of a new generator: (1,) uint64."""
    state = np.empty(1, np.uint64)
    z = _mix(np.uint64(seed) + _GAMMA)
    z = _mix(z ^ (np.uint64(item) * _GAMMA + np.uint64(purpose)))
    state[0] = z
    return state


@njit(cache=True, nogil=True)
def next_integer(state: Array) -> Any:
    """64 random bits."""
    state[0] += _GAMMA
    return _mix(state[0])


@njit(cache=True, nogil=True)
def uniform(state: Array) -> float:
    """A number inside (0, 1), never at its ends."""
    return (np.float64(next_integer(state) >> _S11) + 0.5) * 1.1102230246251565e-16


@njit(cache=True, nogil=True)
def normal(state: Array) -> float:
    """A standard normal number (Box and Muller)."""
    return math.sqrt(-2.0 * math.log(uniform(state))) * math.cos(2.0 * math.pi * uniform(state))


@njit(cache=True, nogil=True)
def poisson(state: Array, mean: float) -> int:
    """A Poisson number: by multiplication below 30, above by a rounded normal (1 % off in the tails)."""
    if mean <= 0.0:
        return 0
    if mean > 30.0:
        return max(0, round(mean + math.sqrt(mean) * normal(state)))
    limit, product, count = math.exp(-mean), uniform(state), 0
    while product > limit:
        product *= uniform(state)
        count += 1
    return count


@njit(cache=True, nogil=True)
def uniforms(seed: int, first: int, n: int, purpose: int, count: int) -> Array:
    """Numbers inside (0, 1) for each of n events: (n, count) float64."""
    out = np.empty((n, count))
    for i in range(n):
        state = generator(seed, first + i, purpose)
        for k in range(count):
            out[i, k] = uniform(state)
    return out
