"""The demo's reduction as a compiled loop: arrival times of digitizer windows."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def find_arrivals(window_edge, start, sample_edge, samples, baseline, polarity, threshold, bin_samples, counts):
    """Histogram the arrival times of all pulses in digitizer windows.

    A pulse is a maximum that rises and falls by `threshold`; it arrives at the top of the parabola through
    that sample and those two before and behind it.

    Parameters
    ----------
    window_edge : (rows + 1,) int64
        Windows of each row; rows are (event, segment) in C order.
    start : (windows,) int32
        Sample at which each window begins.
    sample_edge : (windows + 1,) int64
        Samples of each window.
    samples : (n,) uint16
    baseline : (segments, cores) float64
        Of the interleaved cores of each segment, in samples' units.
    polarity : int
        1 or -1.
    threshold : float
        In samples' units.
    bin_samples : float
        Width of a bin in samples.
    counts : (segments, bins) int64
        Added to; what comes later is counted in the last bin.

    Returns
    -------
    int
        Number of pulses.
    """
    found = 0
    segments, cores = baseline.shape
    bins = counts.shape[1]
    longest = 0
    for window in range(start.size):
        longest = max(longest, sample_edge[window + 1] - sample_edge[window])
    signal = np.zeros(longest + 4)  # two zeros before and behind the window
    for row in range(window_edge.size - 1):
        segment = row % segments
        for window in range(window_edge[row], window_edge[row + 1]):
            begin, length = sample_edge[window], sample_edge[window + 1] - sample_edge[window]
            for i in range(length):
                value = float(samples[begin + i]) - baseline[segment, (start[window] + i) % cores]
                signal[i + 2] = polarity * value
            signal[length + 2] = signal[length + 3] = 0.0
            low, top, at, rising = 0.0, 0.0, 2, True
            for i in range(2, length + 3):
                value = signal[i]
                if rising:
                    if value > top:
                        top, at = value, i
                    elif value < top - threshold:
                        if top > low + threshold:
                            before, behind = signal[at - 2], signal[at + 2]
                            curvature = before - 2 * top + behind
                            shift = (before - behind) / curvature if curvature < 0 else 0.0
                            time = start[window] + at - 2 + max(-2.0, min(2.0, shift))
                            counts[segment, max(0, min(bins - 1, int(time / bin_samples)))] += 1
                            found += 1
                        rising, low = False, value
                elif value < low:
                    low = value
                elif value > low + threshold:
                    rising, top, at = True, value, i
    return found
