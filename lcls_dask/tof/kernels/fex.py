"""The digitizer's feature extraction (FEX): samples out of a band kept, with some around them; the others skipped.

A stream is of groups of four words. A group whose first word has bit 15 says how many samples are skipped, the sum of
its words' lower 15 bits; any other one is four samples.
"""

import numpy as np
from numba import njit

GROUP = 4
_SKIP, _MOST = 0x8000, 0x7FFF


@njit(cache=True, nogil=True)
def skip(words, at, samples):
    """Append groups that skip samples; the new length."""
    while samples > 0:
        some = min(samples, _MOST)
        words[at] = _SKIP | some
        words[at + 1] = words[at + 2] = words[at + 3] = _SKIP
        at, samples = at + GROUP, samples - some
    return at


@njit(cache=True, nogil=True)
def sparsify(samples, low, used, ymin, ymax, xpre, xpost, words, at):
    """Append windows of ``samples``, which begin at sample `low` (a multiple of 4), to a FEX stream.

    A group of 4 samples is kept if one in reach of it (`xpre` after it, `xpost` before it) lies outside
    ymin..ymax. `used` samples are in the stream already.

    Returns
    -------
    (at, used)
        Words and samples in the stream.
    """
    groups = len(samples) // GROUP
    until = 0  # groups before this one are dealt with
    for i in range(len(samples)):
        if ymin <= samples[i] <= ymax:
            continue
        last = min(groups, (i + xpost) // GROUP + 1)
        for g in range(max(until, (i - xpre) // GROUP), last):
            start = low + GROUP * g
            at = skip(words, at, start - used)
            for k in range(GROUP):
                words[at + k] = samples[GROUP * g + k]
            at += GROUP
            used = start + GROUP
        until = max(until, last)
    return at, used


@njit(cache=True, nogil=True)
def sparsify_rows(waveforms, ymin, ymax, xpre, xpost, words, ends):
    """FEX streams of whole waveforms, one behind the other; `words` has room for twice the samples and 4 a row.

    Parameters
    ----------
    waveforms : (rows, n) int
        n is a multiple of 4.
    words : (capacity,) uint16
        Out.
    ends : (rows + 1,) int64
        Out: where each row begins.
    """
    at = 0
    ends[0] = 0
    for row in range(waveforms.shape[0]):
        at, used = sparsify(waveforms[row], 0, 0, ymin, ymax, xpre, xpost, words, at)
        at = skip(words, at, waveforms.shape[1] - used)
        ends[row + 1] = at


@njit(cache=True, nogil=True)
def measure_streams(words, ends, lead, windows, samples, lengths):
    """Count the windows and kept samples of each row, and the samples of its whole waveform.

    Parameters
    ----------
    words : (n,) uint16
    ends : (rows + 1,) int64
        Where each row begins.
    lead : int
        Samples at the start of the first window of a row that are no signal.
    windows, samples, lengths : (rows,) int64
        Out.

    Returns
    -------
    int
        A row that is malformed: not of whole groups, or with less than `lead` samples; -1 without one.
    """
    for row in range(len(ends) - 1):
        if (ends[row + 1] - ends[row]) % GROUP:
            return row
        count, kept, length, inside = 0, 0, 0, False
        for at in range(ends[row], ends[row + 1], GROUP):
            if words[at] & _SKIP:
                for k in range(GROUP):
                    length += words[at + k] & _MOST
                inside = False
            else:
                count += not inside
                inside = True
                length += GROUP
                kept += GROUP
        if count and kept < lead:
            return row
        windows[row], samples[row], lengths[row] = count, kept - (lead if count else 0), length
    return -1


@njit(cache=True, nogil=True)
def decode_streams(words, ends, lead, start, edge, out):
    """Starts and samples of all windows, in the order of rows.

    Parameters
    ----------
    words, ends, lead
        See `measure_streams`.
    start : (windows,) int32
        Out: first sample of each window.
    edge : (windows + 1,) int64
        Out: where each window's samples begin.
    out : (samples,) uint16
        Out.
    """
    window, kept = -1, 0
    edge[0] = 0
    for row in range(len(ends) - 1):
        length, inside, left = 0, False, lead
        for at in range(ends[row], ends[row + 1], GROUP):
            if words[at] & _SKIP:
                for k in range(GROUP):
                    length += words[at + k] & _MOST
                inside = False
                continue
            if not inside:
                window += 1
                start[window] = length + left
                inside = True
            if left == 0:
                for k in range(GROUP):  # unsigned, as signed indices are first looked at for a sign
                    out[np.uint64(kept + k)] = words[np.uint64(at + k)]
                kept += GROUP
            else:
                skipped = min(left, GROUP)
                left -= skipped
                for k in range(skipped, GROUP):
                    out[kept] = words[at + k]
                    kept += 1
            length += GROUP
            edge[window + 1] = kept


@njit(cache=True, nogil=True)
def fill(start, edge, samples, record_edge, out):
    """Put windows where they belong in whole waveforms.

    Parameters
    ----------
    start, edge, samples
        See `decode_streams`.
    record_edge : (rows + 1,) int64
        Windows of each row.
    out : (rows, n) uint16
        Changed where there are windows.

    Returns
    -------
    int
        A row with a window that does not fit; -1 without one.
    """
    for row in range(len(record_edge) - 1):
        for window in range(record_edge[row], record_edge[row + 1]):
            begin, length = start[window], edge[window + 1] - edge[window]
            if begin < 0 or begin + length > out.shape[1]:
                return row
            out[row, begin : begin + length] = samples[edge[window] : edge[window + 1]]
    return -1
