"""Positions of particles on a delay-line detector, of the times at the ends of its wires."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _pairs(first, second, mcp, total, window, used_first, used_second, best):
    """The pair of signals at a wire's ends whose sum of delays is nearest to what the wire's length says.

    ``best`` becomes (index at the first end, at the second, distance); -1 where there is none.
    """
    best[0], best[1], best[2] = -1, -1, window
    for i in range(first.size):
        if used_first[i] or not 0 <= first[i] - mcp <= total + window:
            continue
        for j in range(second.size):
            if used_second[j]:
                continue
            away = abs(first[i] + second[j] - 2 * mcp - total)
            if away <= best[2]:
                best[0], best[1], best[2] = i, j, away


@njit(cache=True, nogil=True)
def _single(signal, mcp, total, used):
    """The only free signal that can be of this particle; -1 where there is none, or more than one."""
    found = -1
    for i in range(signal.size):
        if not used[i] and 0 <= signal[i] - mcp <= total:
            if found >= 0:
                return -1
            found = i
    return found


@njit(cache=True, nogil=True)
def reconstruct(offset, time, channels, wires, sums, window, scale, radius, recover, count, x, y, t, complete):
    """Reconstruct the particles of each event.

    Parameters
    ----------
    offset : (rows + 1,) int64
        Hits of each (event, channel).
    time : (n,) float64
    channels : int
    wires : (5,) int64
        Channels of u1, u2, v1, v2, mcp.
    sums, scale : (2,) float64
        Sum of delays, and millimetres by ns of difference, of u and v.
    window, radius : float
        Most distance from the sum; of the detector [mm].
    recover : bool
        Whether one missing signal of a wire may be told from its other end.
    count : (events,) int64
        Out.
    x, y, t, complete : (capacity,)
        Out; there is room for each mcp hit.

    Returns
    -------
    int
        Particles.
    """
    found = 0
    best = np.empty(3)
    difference = np.empty(2)
    for event in range(count.size):
        base = event * channels
        before = found
        rows = [time[offset[base + wires[k]] : offset[base + wires[k] + 1]] for k in range(5)]
        used = [np.zeros(rows[k].size, np.bool_) for k in range(4)]
        done = np.zeros(rows[4].size, np.bool_)
        # whole particles first, so that signals which are clear are not given away to guesses
        for attempt in range(2 if recover else 1):
            for m in range(rows[4].size):
                if done[m]:
                    continue
                mcp, missing, fine = rows[4][m], 0, True
                at = np.full(4, -1)
                for layer in range(2):
                    one, two = 2 * layer, 2 * layer + 1
                    _pairs(rows[one], rows[two], mcp, sums[layer], window, used[one], used[two], best)
                    if best[0] >= 0:
                        at[one], at[two] = int(best[0]), int(best[1])
                        difference[layer] = rows[one][at[one]] - rows[two][at[two]]
                        continue
                    if attempt == 0:
                        fine = False
                        break
                    a, b = (
                        _single(rows[one], mcp, sums[layer], used[one]),
                        _single(rows[two], mcp, sums[layer], used[two]),
                    )
                    if (a >= 0) == (b >= 0):
                        fine = False
                        break
                    missing += 1
                    if a >= 0:
                        at[one] = a
                        difference[layer] = 2 * (rows[one][a] - mcp) - sums[layer]
                    else:
                        at[two] = b
                        difference[layer] = sums[layer] - 2 * (rows[two][b] - mcp)
                if not fine or missing > 1:
                    continue
                px, py = scale[0] * difference[0], scale[1] * difference[1]
                if px * px + py * py > radius * radius:
                    continue
                for k in range(4):
                    if at[k] >= 0:
                        used[k][at[k]] = True
                done[m] = True
                x[found], y[found], t[found], complete[found] = px, py, mcp, missing == 0
                found += 1
        # in the order of their times
        for i in range(before + 1, found):
            j = i
            while j > before and t[j - 1] > t[j]:
                x[j - 1], x[j] = x[j], x[j - 1]
                y[j - 1], y[j] = y[j], y[j - 1]
                t[j - 1], t[j] = t[j], t[j - 1]
                complete[j - 1], complete[j] = complete[j], complete[j - 1]
                j -= 1
        count[event] = found - before
    return found
