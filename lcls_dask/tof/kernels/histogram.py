"""Counting: values of samples, hits in bins of even or uneven width."""

import numpy as np
from numba import njit

#: How far from an edge a value is surely in its bin, in bins: edges that are even to a thousandth count as even.
NEAR = 2e-3


@njit(cache=True, nogil=True)
def count_values(samples, edge, start, record_edge, shift, counts):
    """Count how often samples have each value.

    Parameters
    ----------
    samples, edge, start, record_edge
        Records; see `hits.find_hits`.
    shift : int
        Added to a value to make it an index.
    counts : (channels, cores, values) int32
        Added to.
    """
    channels, cores = counts.shape[0], counts.shape[1]
    for row in range(record_edge.size - 1):
        for r in range(record_edge[row], record_edge[row + 1]):
            core = start[r] % cores
            for i in range(edge[r], edge[r + 1]):
                counts[row % channels, core, np.int64(samples[i]) + shift] += 1
                core = core + 1 if core + 1 < cores else 0


@njit(cache=True, nogil=True)
def greatest_whole(values):
    """Greatest magnitude of whole numbers, (n,) float32; -1 where one is none, or is NaN."""
    # magnitudes have the order of their bits, which, being whole, are compared as vectors
    bits, most, broken = values.view(np.int32), np.int32(0), np.int32(0)
    for i in range(values.size):
        value = values[i]
        broken = np.int32(broken | np.int32(value != np.rint(value)))
        size = np.int32(bits[i] & np.int32(0x7FFFFFFF))
        most = size if size > most else most
    return -1.0 if broken else float(np.array([most], np.int32).view(np.float32)[0])


@njit(cache=True, nogil=True)
def _add(values, edges, scale, counts):
    """Add values to the counts of bins; how many are in none.

    A bin holds its lower edge, the last one its upper edge too, as numpy.histogram has it. Indices are unsigned, since
    signed ones are looked at twice.
    """
    bins, outside = counts.size, 0
    low, high = edges[0], edges[bins]
    for value in values:
        if not low <= value <= high:
            outside += 1
            continue
        if scale != 0.0:
            place = (value - low) * scale
            i = min(int(place), bins - 1)
            # next to an edge it may be off by one, as edges are only so even; elsewhere they need not be looked up
            if not NEAR < place - i < 1 - NEAR:
                i -= value < edges[np.uint64(i)]
                i += i + 1 < bins and value >= edges[np.uint64(i + 1)]
        else:
            i, last = 0, bins
            while last - i > 1:
                middle = (i + last) // 2
                if value < edges[np.uint64(middle)]:
                    last = middle
                else:
                    i = middle
        counts[np.uint64(i)] += 1
    return outside


@njit(cache=True, nogil=True)
def count_hits(offset, values, channels, groups, edges, scale, counts, outside):
    """Histogram hits by group of events and channel.

    Parameters
    ----------
    offset : (rows + 1,) int64
        First hit of each (event, channel).
    values : (n,) float64
    channels : int
    groups : (events,) int64
        Of each event; below 0 it is left out.
    edges : (bins + 1,) float64
        Rising.
    scale : float
        Bins for one unit, where they are even; else 0.
    counts : (groups, channels, bins) int64
        Added to.
    outside : (groups, channels) int64
        Added to: hits below the first edge or above the last, or that are not a number.
    """
    for event in range(groups.size):
        group = groups[event]
        if group < 0:
            continue
        for channel in range(channels):
            row = event * channels + channel
            if offset[row + 1] > offset[row]:
                mine = values[offset[row] : offset[row + 1]]
                outside[group, channel] += _add(mine, edges, scale, counts[group, channel])


@njit(cache=True, nogil=True)
def spread_hits(offset, values, channels, edges, scale, out):
    """Histogram the hits of each event and channel.

    Parameters
    ----------
    offset, values, channels, edges, scale
        See `count_hits`.
    out : (events, channels or 1, bins) float32
        Added to; all channels together where there is room for one.
    """
    for row in range(offset.size - 1):
        if offset[row + 1] > offset[row]:
            mine = out[row // channels, min(row % channels, out.shape[1] - 1)]
            _add(values[offset[row] : offset[row + 1]], edges, scale, mine)
