"""Baselines of single records, and the limit that tells samples apart that lie beyond them."""

import numpy as np

from ...reduce.kernels.loops import compiled, inlined
from ...reduce.kernels.masks import ALL, BLOCK, NONE
from .lanes import add_fourths, add_sixteenths

#: Samples further than this many standard deviations from the median are of a pulse, as in `samples.subtract_baseline`.
CLIP = 4.0

#: Numbers of interleaved cores that 16 samples are a whole multiple of.
QUICK = (1, 2, 4, 8, 16)


@inlined
def set_limit(limit, base, each, polarity, level, rails):
    """Put into ``limit[0]`` what tells samples apart that are `level` beyond any core's baseline.

    Parameters
    ----------
    limit : (1,)
        Out, of the samples' dtype.
    base : (cores,) float64
    each : (cores,) tuple or array
        For its length alone, which is known at compile time where it is a tuple.
    polarity : int
        1 or -1.
    level : float
    rails : (5,) float64
        See `gate.Digitizer`.

    Returns
    -------
    (can_be, flip)
        Whether any sample of the dtype is beyond; what turns the mask of those at most the limit into that of
        those beyond.
    """
    furthest = base[np.uint64(0)]
    for k in range(1, len(each)):
        one = base[np.uint64(k)]
        furthest = one if (one > furthest) == (polarity < 0) else furthest
    value, whole = furthest + polarity * level, rails[2] != 0.0
    if polarity < 0:
        value = np.floor(value) if whole else value
        limit[0] = rails[0] if value < rails[0] else rails[1] if value > rails[1] else value
        return value >= rails[0], NONE
    value = np.ceil(value) if whole else value
    if value <= rails[0]:
        limit[0] = rails[1]
        return True, NONE
    below = value - 1.0 if whole else np.nextafter(value, -np.inf)
    limit[0] = rails[1] if below > rails[1] else below
    return value <= rails[1], ALL


@inlined
def quick_baseline(samples, begin, pretrigger, sums, each, base):
    """Means of the first samples of a record, for as many interleaved cores as one of `QUICK`.

    Parameters
    ----------
    samples : (n,)
    begin, pretrigger : int
    sums : (16,) float64
        To work with.
    each : (cores,) tuple or array
        How many of the samples are of each core.
    base : (cores,) float64
        Out.
    """
    for k in range(16):
        sums[np.uint64(k)] = 0.0
    whole = pretrigger // BLOCK * BLOCK
    cores = len(each)
    if cores == 4:  # as digitizers have
        for at in range(begin, begin + whole, BLOCK):
            add_fourths(samples, at, sums)
    else:
        for at in range(begin, begin + whole, BLOCK):
            add_sixteenths(samples, at, sums)
    apart = 4 if cores == 4 else 16
    for i in range(whole, pretrigger):
        sums[np.uint64(i % apart)] += float(samples[np.uint64(begin + i)])
    for k in range(cores):
        total = 0.0
        for j in range(k, apart, cores):
            total += sums[np.uint64(j)]
        base[np.uint64(k)] = total / each[k]


@compiled
def _median(values, count):
    """Median of the first few values, which are sorted: by insertion, as they are few."""
    for i in range(1, count):
        value, j = values[i], i
        while j > 0 and values[j - 1] > value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value
    return 0.5 * (values[(count - 1) // 2] + values[count // 2])


@compiled
def estimate_baseline(samples, begin, pretrigger, level, base, polarity, scratch):
    """Baseline of each interleaved core over the first samples of a record.

    The mean; or, where a sample lies `level` above it, so that a pulse is in the window, the mean of the samples within
    four standard deviations of the median, as the median absolute deviation tells them.

    Parameters
    ----------
    samples : (n,)
    begin, pretrigger : int
    level : float
    base : (cores,) float64
        Out.
    polarity : int
        1 or -1.
    scratch : (pretrigger,) float64
        To work with.
    """
    cores, end, pulse = base.size, begin + pretrigger, False
    for k in range(cores):
        total, count, furthest = 0.0, 0, polarity * float(samples[begin + k])
        for i in range(begin + k, end, cores):
            value = float(samples[i])
            total += value
            count += 1
            furthest = max(furthest, polarity * value)
        base[k] = total / count
        pulse = pulse or furthest - polarity * base[k] >= level
    if not pulse:
        return
    for k in range(cores):
        count = 0
        for i in range(begin + k, end, cores):
            scratch[count] = float(samples[i])
            count += 1
        median = _median(scratch, count)
        for j in range(count):
            scratch[j] = abs(scratch[j] - median)
        most = max(CLIP * 1.4826 * _median(scratch, count), 1.0)
        total, kept = 0.0, 0
        for i in range(begin + k, end, cores):
            if abs(float(samples[i]) - median) <= most:
                total += float(samples[i])
                kept += 1
        base[k] = total / kept
