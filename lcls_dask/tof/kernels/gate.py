"""The gate: which samples of many records lie beyond the threshold, 64 at a time and without a branch.

Only a bit of each 64 samples is kept, as nearly all of them are quiet; and their memory is asked for ahead.
"""

from typing import Any, NamedTuple

import numpy as np

from ...reduce.kernels.loops import inlined
from ...reduce.kernels.masks import ALL, BLOCK, NONE, ONE, at_most
from .baseline import QUICK, estimate_baseline, quick_baseline, set_limit
from .lanes import prefetch

#: Words of bits of a tile, and blocks of 64 samples of a word.
TILE, WORD = 32, 64

#: Samples that are asked for before they are compared; and those that are asked for at a time during other work.
NEAR, ASKED = 2048, 256

#: Of the threshold: a sample this high in the pre-trigger window says that a pulse lies in it.
SUSPECT = 0.75


class Records(NamedTuple):
    """Stretches of samples, and the rows they are of: (event, channel) in C order.

    Attributes
    ----------
    samples : (n,) int16, uint16, float32 or float64
        Of all records, one behind the other.
    edge : (records + 1,) int64
    start : (records,) int32
        Number of each record's first sample within its waveform.
    row_edge : (rows + 1,) int64
        Records of each row.
    channels : int
    """

    samples: Any
    edge: Any
    start: Any
    row_edge: Any
    channels: Any


class Digitizer(NamedTuple):
    """What samples mean.

    Attributes
    ----------
    baseline : (channels, cores) float64
        What the samples are without a pulse, for the interleaved cores of the digitizer; used where `pretrigger` is 0.
    pretrigger : int
        Samples at the start of each record to take its baseline from.
    each : (cores,) tuple or array of float64
        How many of these are of each core. Loops over the cores of a tuple are compiled for their number.
    polarity : int
        1 or -1.
    scale : float
        Signal of one unit of the samples.
    period : float
        By which samples that run over are wrapped; 0 where they are not.
    rails : (5,) float64
        Least and greatest value of the dtype, 1 for whole numbers, least and greatest value of the digitizer.
    first, interval : float
        Time of a waveform's first sample, and between samples [ns].
    sums, scratch : (16,), (pretrigger,) float64
        To work with.
    """

    baseline: Any
    pretrigger: Any
    each: Any
    polarity: Any
    scale: Any
    period: Any
    rails: Any
    first: Any
    interval: Any
    sums: Any
    scratch: Any


class Tile(NamedTuple):
    """Words of bits, a bit for each block of 64 samples, set where one is beyond the limit.

    Attributes
    ----------
    row, record : (words,) int64
    begin, end : (words,) int64
        First sample of the record, and the one behind its last.
    phase : (words,) int64
        Core of the record's first sample.
    at : (words,) int64
        First sample of the word.
    limit, flip : (words,)
        See `baseline.set_limit`.
    base : (words, cores) float64
    bits : (words,) uint64
    """

    row: Any
    record: Any
    begin: Any
    end: Any
    phase: Any
    at: Any
    limit: Any
    flip: Any
    base: Any
    bits: Any


@inlined
def ask_for(samples, ahead):
    """Ask for the memory of the next samples, from ``ahead[0]`` on while that is less than ``ahead[1]``."""
    at = ahead[0]
    if at < ahead[1]:
        for j in range(0, ASKED, BLOCK // 2):
            prefetch(samples, at + j)
        ahead[0] = at + ASKED


@inlined
def beyond(samples, at, end, limit, flip):
    """Which of 64 samples from `at` on, of those before `end`, are beyond the limit."""
    there = ALL if end - at >= BLOCK else (ONE << np.uint64(end - at)) - ONE
    if at + BLOCK <= samples.size:
        return (at_most(samples, at, limit) ^ flip) & there
    if samples.size >= BLOCK:
        late = np.uint64(at + BLOCK - samples.size)
        return ((at_most(samples, samples.size - BLOCK, limit) ^ flip) >> late) & there
    mask = NONE
    for j in range(end - at):
        if (samples[at + j] <= limit) == (flip == NONE):
            mask |= ONE << np.uint64(j)
    return mask


@inlined
def _own_baseline(samples, begin, digitizer, level, limit, base):
    """Baseline of a record from its first samples, where a pulse is of that level at least."""
    pretrigger, polarity = digitizer.pretrigger, digitizer.polarity
    if len(digitizer.each) in QUICK:
        quick_baseline(samples, begin, pretrigger, digitizer.sums, digitizer.each, base)
        can_be, flip = set_limit(limit, base, digitizer.each, polarity, level, digitizer.rails)
        mask = NONE
        for at in range(begin, begin + pretrigger, BLOCK):
            mask |= beyond(samples, at, begin + pretrigger, limit[0], flip)
        if not can_be or mask == NONE:
            return
    estimate_baseline(samples, begin, pretrigger, level, base, polarity, digitizer.scratch)


@inlined
def look(records, digitizer, level, place, tile):
    """Look at the next words of records.

    Parameters
    ----------
    records : Records
    digitizer : Digitizer
    level : float
        Height of the threshold, in units of the samples.
    place : (3,) int64
        Row, record and block to go on from; it is moved on.
    tile : Tile
        Out.

    Returns
    -------
    int
        Words; 0 at the end.
    """
    row, record, block = place[0], place[1], place[2]
    samples, cores, words = records.samples, len(digitizer.each), 0
    while words < TILE and record < records.row_edge[records.row_edge.size - 1]:
        while record >= records.row_edge[row + 1]:
            row += 1
        begin, end = records.edge[record], records.edge[record + 1]
        base, limit = tile.base[words], tile.limit[words : words + 1]
        can_be, tile.phase[words] = digitizer.pretrigger <= end - begin, 0
        if block > 0:
            before = words - 1 if words > 0 else TILE - 1
            limit[0], tile.flip[words], tile.phase[words] = tile.limit[before], tile.flip[before], tile.phase[before]
            for k in range(cores):
                base[k] = tile.base[before, k]
        elif can_be:
            if digitizer.pretrigger > 0:
                _own_baseline(samples, begin, digitizer, SUSPECT * level, limit, base)
            else:
                tile.phase[words] = records.start[record]
                for k in range(cores):
                    base[k] = digitizer.baseline[row % records.channels, k]
            can_be, tile.flip[words] = set_limit(
                limit, base, digitizer.each, digitizer.polarity, level, digitizer.rails
            )
            can_be = can_be or digitizer.period != 0.0  # samples that have run over may lie anywhere
        if can_be:
            tile.row[words], tile.record[words] = row, record
            tile.begin[words], tile.end[words], tile.at[words] = begin, end, begin + BLOCK * block
            words += 1
        block = block + WORD if can_be else end - begin
        if digitizer.period != 0.0 or begin + BLOCK * block >= end:
            record, block = record + 1, 0
    place[0], place[1], place[2] = row, record, block
    for w in range(words):
        at, end, limit_, flip, bits = tile.at[w], tile.end[w], tile.limit[w], tile.flip[w], NONE
        whole = min(WORD, (end - at) // BLOCK)
        if digitizer.period != 0.0:
            tile.bits[w] = ONE if at < end else NONE
            continue
        for j in range(whole):
            prefetch(samples, at + NEAR)
            prefetch(samples, at + NEAR + BLOCK // 2)
            bits |= np.uint64(at_most(samples, at, limit_) ^ flip != NONE) << np.uint64(j)
            at += BLOCK
        if whole < WORD and at < end:
            bits |= np.uint64(beyond(samples, at, end, limit_, flip) != NONE) << np.uint64(whole)
        tile.bits[w] = bits
    return words
