"""Orientations of a known lattice, by what its shortest axis and a rotation about it make of the spots.

A direct axis a is where ``q . a`` is a whole number for the spots q of the lattice (Steller, Bolotovsky & Rossmann
1997), so one axis is looked for in all directions, and the others by turning the lattice about it (as Gildea et al.
2014, with the known cell). Spots are (3, n) float32 here, so that the compiler makes vector code of the loops.
"""

import math

import numpy as np
from numba import njit

from .order import by_size

#: The search takes these: fastmath without the assumption that there are no NaN.
_LOOSE = {"contract", "reassoc", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=_LOOSE)
def axis_scores(x, y, z, q, length, width, score):
    """Score directions of an axis: sum over spots of ``max(0, 1 - (distance of q . a from a whole number / width)^2)``.

    Parameters
    ----------
    x, y, z : (m,) float32
        Unit vectors.
    q : (3, n) float32
        Spots [1/Angstrom].
    length, width : float32
    score : (m,) float32
        Out.
    """
    half, one, none = np.float32(0.5), np.float32(1), np.float32(0)
    inverse = one / (width * width)
    for k in range(score.size):
        score[k] = none
    for i in range(q.shape[1]):
        a, b, c = length * q[0, i], length * q[1, i], length * q[2, i]
        for k in range(score.size):
            t = a * x[k] + b * y[k] + c * z[k]
            t -= np.floor(t + half)
            score[k] += max(none, one - t * t * inverse)


@njit(cache=True, nogil=True)
def best_of(score, most, chosen):
    """Write the places of about `most` highest scores, not in order; how many they are."""
    bins = 512
    count = np.zeros(bins, np.int64)
    top = np.float32(0)
    for k in range(score.size):
        top = max(top, score[k])
    if top <= 0:
        return np.int64(0)
    scale = (bins - 1) / top
    for k in range(score.size):
        count[int(score[k] * scale)] += 1
    level, found = bins - 1, count[bins - 1]
    while level > 0 and found + count[level - 1] <= most:
        level -= 1
        found += count[level]
    found = 0
    for k in range(score.size):
        if int(score[k] * scale) >= level and found < most:
            chosen[found] = k
            found += 1
    return found


@njit(cache=True, nogil=True, fastmath=_LOOSE)
def polish_axis(u, q, length, width):
    """Two Gauss-Newton steps of a direction on the sphere, in place; its score."""
    inverse = 1.0 / (width * width)
    score = 0.0
    for turn in range(3):
        # two directions across u
        if abs(u[2]) < 0.9:
            s = 1.0 / math.sqrt(u[0] * u[0] + u[1] * u[1])
            e0, e1, e2 = -u[1] * s, u[0] * s, 0.0
        else:
            s = 1.0 / math.sqrt(u[1] * u[1] + u[2] * u[2])
            e0, e1, e2 = 0.0, -u[2] * s, u[1] * s
        g0, g1, g2 = u[1] * e2 - u[2] * e1, u[2] * e0 - u[0] * e2, u[0] * e1 - u[1] * e0
        score = aa = ab = bb = ra = rb = 0.0
        for i in range(q.shape[1]):
            x, y, z = length * q[0, i], length * q[1, i], length * q[2, i]
            t = x * u[0] + y * u[1] + z * u[2]
            t -= math.floor(t + 0.5)
            w = max(0.0, 1.0 - t * t * inverse)
            score += w
            a, b = x * e0 + y * e1 + z * e2, x * g0 + y * g1 + z * g2
            aa += w * a * a
            ab += w * a * b
            bb += w * b * b
            ra -= w * a * t
            rb -= w * b * t
        if turn == 2:
            break
        aa += 1e-3
        bb += 1e-3
        det = aa * bb - ab * ab
        da, db = (bb * ra - ab * rb) / det, (aa * rb - ab * ra) / det
        u[0] += da * e0 + db * g0
        u[1] += da * e1 + db * g1
        u[2] += da * e2 + db * g2
        s = 1.0 / math.sqrt(u[0] * u[0] + u[1] * u[1] + u[2] * u[2])
        u[0], u[1], u[2] = u[0] * s, u[1] * s, u[2] * s
    return score


@njit(cache=True, nogil=True)
def find_axes(x, y, z, q, length, width, step, tries, axes):
    """The best directions of an axis, no two nearer than half a step; how many.

    Parameters
    ----------
    x, y, z : (m,) float32
        Directions of half a sphere, `step` [rad] apart.
    q : (3, n) float32
    length, width, step : float
    tries : int
        How many are polished.
    axes : (most, 3) float64
        Out, best first.
    """
    score, chosen = np.empty(x.size, np.float32), np.empty(tries, np.int64)
    axis_scores(x, y, z, q, np.float32(length), np.float32(width), score)
    found = best_of(score, tries, chosen)
    tried, value, order = np.empty((tries, 3)), np.empty(tries), np.empty(tries, np.int64)
    for i in range(found):
        k = chosen[i]
        tried[i, 0], tried[i, 1], tried[i, 2] = x[k], y[k], z[k]
        value[i] = -polish_axis(tried[i], q, length, width)
    by_size(value, found, order)
    near = math.cos(0.5 * step)
    count = 0
    for place in range(found):
        i = order[place]
        again = False
        for k in range(count):
            dot = axes[k, 0] * tried[i, 0] + axes[k, 1] * tried[i, 1] + axes[k, 2] * tried[i, 2]
            if abs(dot) > near:
                again = True
                break
        if not again:
            axes[count, 0], axes[count, 1], axes[count, 2] = tried[i, 0], tried[i, 1], tried[i, 2]
            count += 1
            if count == len(axes):
                break
    return count


@njit(cache=True, nogil=True, fastmath=_LOOSE)
def turn_scores(u, v, w, across, b, c, cos, sin, q, length, width, score):
    """Score angles of the lattice about its axis: like `axis_scores`, of the three indices together.

    Parameters
    ----------
    u, v, w : (3,) float64
        The axis, and two directions across it.
    across : float
        Its sign: the lattice's axis is ``across * u``.
    b, c : (3,) float64
        The other axes of the lattice: along the axis, and across it at angle 0 and 90 degrees.
    cos, sin : (m,) float32
        Of the angles.
    q : (3, n) float32
    length, width : float
    score : (m,) float32
        Out.
    """
    half, none = np.float32(0.5), np.float32(0)
    inverse = np.float32(1.0 / (width * width))
    for k in range(score.size):
        score[k] = none
    for i in range(q.shape[1]):
        x, y, z = q[0, i], q[1, i], q[2, i]
        g0 = across * (u[0] * x + u[1] * y + u[2] * z)
        t = length * g0
        t -= math.floor(t + 0.5)
        left = np.float32(1.0 - t * t / (width * width))
        if left <= none:
            continue
        g1, g2 = v[0] * x + v[1] * y + v[2] * z, across * (w[0] * x + w[1] * y + w[2] * z)
        b1, b2, b3 = np.float32(b[1] * g1 + b[2] * g2), np.float32(b[1] * g2 - b[2] * g1), np.float32(b[0] * g0)
        c1, c2, c3 = np.float32(c[1] * g1 + c[2] * g2), np.float32(c[1] * g2 - c[2] * g1), np.float32(c[0] * g0)
        for k in range(score.size):
            s = b1 * cos[k] + b2 * sin[k] + b3
            t = c1 * cos[k] + c2 * sin[k] + c3
            s -= np.floor(s + half)
            t -= np.floor(t + half)
            score[k] += max(none, left - (s * s + t * t) * inverse)


@njit(cache=True, nogil=True)
def find_turns(axes, count, cell, cos, sin, q, width, value, found, keep):
    """The best angles about each of the axes.

    Parameters
    ----------
    axes : (most, 3) float64
        Of which there are `count`.
    cell : Lattice
        The first of its axes is the one that was looked for.
    cos, sin : (m,) float32
    q : (3, n) float32
    width : float
    value, found : (capacity,), (capacity, 3, 3) float64
        Out: minus the score, and the rotation from the frame of the lattice to that of `q`.
    keep : int
        Angles of each axis and sense.

    Returns
    -------
    int
        How many.
    """
    own, b, c = cell.frame, cell.second, cell.third
    v, w, score = np.empty(3), np.empty(3), np.empty(cos.size, np.float32)
    made = 0
    for i in range(count):
        u = axes[i]
        if abs(u[2]) < 0.9:
            s = 1.0 / math.sqrt(u[0] * u[0] + u[1] * u[1])
            v[0], v[1], v[2] = -u[1] * s, u[0] * s, 0.0
        else:
            s = 1.0 / math.sqrt(u[1] * u[1] + u[2] * u[2])
            v[0], v[1], v[2] = 0.0, -u[2] * s, u[1] * s
        w[0], w[1], w[2] = u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]
        for sense in range(2 if cell.both else 1):
            across = 1.0 - 2.0 * sense
            turn_scores(u, v, w, across, b, c, cos, sin, q, cell.length, width, score)
            for _ in range(keep):
                k = 0
                for other in range(1, score.size):
                    if score[other] > score[k]:
                        k = other
                if score[k] <= 0 or made == len(value):
                    break
                value[made] = -score[k]
                for row in range(3):
                    f1 = cos[k] * v[row] + sin[k] * across * w[row]
                    f2 = -sin[k] * v[row] + cos[k] * across * w[row]
                    for column in range(3):
                        found[made, row, column] = (
                            across * u[row] * own[0, column] + f1 * own[1, column] + f2 * own[2, column]
                        )
                made += 1
                for near in range(k - 2, k + 3):
                    score[near % score.size] = 0
    return made
