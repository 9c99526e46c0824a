"""One pass from samples to hits: baseline, gate and timing of each record, fused.

A record is a stretch of consecutive samples: a whole waveform, or one FEX window. The gate tells which blocks of 64
samples hold any beyond the threshold. Of each a window of signal is made, and most pulses are found and measured in
theirs by masks, without a branch that depends on them, so that the processor works on several at a time; each step is
done for a batch of windows before the next. Stretches that may be more than one pulse, or do not fit into their window,
are gone through sample by sample.

The signal is kept as float32: it is rounded by 1e-7 of its height, where a digitizer rounds it by a unit.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ...formats.memory import empty
from ...reduce.kernels.loops import compiled, inlined
from ...reduce.kernels.masks import ALL, BLOCK, NONE, ONE, at_most, first_bit
from .baseline import QUICK
from .gate import NEAR, TILE, WORD, Tile, ask_for, beyond, look
from .lanes import put_signal
from .pulses import MATCHED, NO_PULSE, ONE_PULSE, UNSURE, first_at_most, measure, next_pulse, only_pulse, surely_behind

#: Samples of signal on both sides of a stretch above the threshold, at least: the foot of a pulse.
MARGIN = 8

#: Windows that a step is done for before the next.
BATCH = 16


class Hits(NamedTuple):
    """Columns of hits, with room for more than there are: times and widths in ns."""

    time: Any
    height: Any
    width: Any
    saturated: Any

    @classmethod
    def room(cls, size: int) -> "Hits":
        """Room for so many; its memory is used again by the next, as the kernel takes its time to give fresh one."""
        memory = empty(17 * size)
        time, height, width, saturated = np.split(memory, [8 * size, 12 * size, 16 * size])
        return cls(time.view(np.float64), height.view(np.float32), width.view(np.float32), saturated.view(np.bool_))


class Batch(NamedTuple):
    """What is known of each window.

    Attributes
    ----------
    mask : (windows,) uint64
        Which samples of its block are beyond the limit.
    low : (windows,) int64
        The sample that the window begins at.
    pulses : (windows,) int64
        `NO_PULSE`, `ONE_PULSE` or `UNSURE`.
    first, top : (windows,) int64
        See `only_pulse`: places in the signal of all windows.
    size : (windows,) int64
        Samples of the window that were looked at.
    time, height, width : (windows,) float64
        See `measure`.
    """

    mask: Any
    low: Any
    pulses: Any
    first: Any
    top: Any
    size: Any
    time: Any
    height: Any
    width: Any


class Work(NamedTuple):
    """Memory to work with.

    Attributes
    ----------
    tile : Tile
    batch : Batch
    bases : (32 * words,) float64
        Baselines as `put_signal` takes them.
    word, block : (blocks,) int64
        Words and first samples of the blocks of a tile with samples beyond the limit.
    windows, stretch : (n,) float32
        Signal of the windows of a batch, and of one stretch, with what is looked at before and behind.
    place : (3,) int64
        See `gate.look`.
    ahead : (2,) int64
        See `gate.ask_for`.
    """

    tile: Any
    batch: Any
    bases: Any
    word: Any
    block: Any
    windows: Any
    stretch: Any
    place: Any
    ahead: Any


def reach_of(delay: int, template: int) -> int:
    """Samples about a stretch above the threshold, for a delay and a template of so many samples."""
    return max(MARGIN, delay + 3, template // 2 + 2)


def room_for(dtype: Any, cores: int, longest: int, reach: int) -> Work:
    """Memory to find hits with, in records of at most so many samples."""

    def whole(size: int) -> Any:
        return np.empty(size, np.int64)

    def bits(size: int) -> Any:
        return np.empty(size, np.uint64)

    tile = Tile(
        row=whole(TILE), record=whole(TILE), begin=whole(TILE), end=whole(TILE), phase=whole(TILE), at=whole(TILE),
        limit=np.empty(TILE, dtype), flip=bits(TILE), base=np.empty((TILE, cores)), bits=bits(TILE),
    )  # fmt: skip
    batch = Batch(
        mask=bits(BATCH), low=whole(BATCH), pulses=whole(BATCH), first=whole(BATCH), top=whole(BATCH),
        size=whole(BATCH), time=np.empty(BATCH), height=np.empty(BATCH), width=np.empty(BATCH),
    )  # fmt: skip
    return Work(
        tile, batch, bases=np.empty(32 * TILE), word=whole(TILE * WORD), block=whole(TILE * WORD),
        windows=np.zeros(BLOCK * (BATCH + 3), np.float32), place=whole(3), ahead=whole(2),
        stretch=np.zeros(longest + 2 * reach + 4 * BLOCK, np.float32),
    )  # fmt: skip


@inlined
def _spread(base, cores, at, bases):
    """Put the cores' baselines behind one another, 32 of them."""
    for i in range(cores):
        bases[np.uint64(at + i)] = base[np.uint64(i)]
    for i in range(at + cores, at + 32):
        bases[np.uint64(i)] = bases[np.uint64(i - cores)]


@inlined
def _put_block(samples, low, w, tile, cores, bases, factor, x, to):
    """Put the signal of 64 samples from `low` on behind `to`: zero of those that are not of the record of a word."""
    begin, end = tile.begin[w], tile.end[w]
    core = tile.phase[w] + low - begin
    if cores in QUICK and low >= 0 and low + BLOCK <= samples.size:
        before, behind = max(0, min(begin - low, BLOCK)), max(0, min(low + BLOCK - end, BLOCK))
        there = (ALL << np.uint64(before)) & (ALL >> np.uint64(behind)) if before + behind < BLOCK else NONE
        put_signal(samples, low, there, factor, bases, 32 * w + (core & (cores - 1)), x, to)
        return
    core %= cores
    for j in range(BLOCK):
        i = low + j
        x[to + j] = factor * (samples[i] - tile.base[w, core]) if begin <= i < end else 0.0
        core = core + 1 if core + 1 < cores else 0


@inlined
def _put_stretch(samples, i, w, tile, cores, bases, factor, reach, threshold, x):
    """Put the signal about sample `i`, from `reach` before it to `reach` behind the last one of the threshold.

    It ends where `reach` samples in a row are below the threshold.

    Returns
    -------
    int
        Where it ends in `x`; it begins at `BLOCK`.
    """
    block, last = BLOCK, BLOCK + reach
    under = np.nextafter(np.float32(threshold), np.float32(-np.inf))
    while True:
        _put_block(samples, i - reach + block - BLOCK, w, tile, cores, bases, factor, x, block)
        mask = ~at_most(x, block, under)
        while mask:
            at = block + first_bit(mask)
            if at > last + reach:
                return last + 1 + reach
            last = at + first_bit(~(mask >> np.uint64(at - block))) - 1
            if last + 1 - block >= BLOCK:
                break
            mask &= ALL << np.uint64(last + 1 - block)
        block += BLOCK
        if last + reach < block:
            return last + 1 + reach


@compiled
def _unwrapped(samples, reach, base, phase, factor, period, x):
    """Signal of a record whose samples have run over: each is taken to lie next to the one before it."""
    n, cores = samples.size, base.size
    before = base[phase % cores]
    x[:reach] = 0.0
    x[reach + n : n + 2 * reach] = 0.0
    for i in range(n):
        value = float(samples[i])
        value -= period * math.floor((value - before) / period + 0.5)
        x[reach + i] = factor * (value - base[(phase + i) % cores])
        before = value


@inlined
def _keep(records, digitizer, w, tile, top, time, height, width, hits, out):
    """Put a hit behind the others, with its time and width in ns, and whether its maximum is at a limit."""
    sample = float(records.samples[np.uint64(min(max(top, tile.begin[w]), tile.end[w] - 1))])
    out.time[hits] = digitizer.first + digitizer.interval * time
    out.height[hits], out.width[hits] = height, digitizer.interval * width
    out.saturated[hits] = sample <= digitizer.rails[3] or sample >= digitizer.rails[4]


@inlined
def _go_through(records, digitizer, i, w, work, reach, method, dead_time, last_time, hits, out):
    """Find the pulses of the stretch about sample `i`, which is of the record of a word, sample by sample.

    Returns
    -------
    (done, last_time, hits)
        The sample behind the stretch; -1 for hits where there is no room for them.
    """
    tile, x, factor = work.tile, work.stretch, digitizer.polarity * digitizer.scale
    begin, end = tile.begin[w], tile.end[w]
    if digitizer.period != 0.0:
        i, stop = begin, BLOCK + end - begin + 2 * reach
        record = records.samples[begin:end]
        _unwrapped(record, reach, tile.base[w], tile.phase[w], factor, digitizer.period, x[BLOCK:])
    else:
        stop = _put_stretch(
            records.samples, i, w, tile, len(digitizer.each), work.bases, factor, reach, method.threshold, x
        )
    low, origin = i - reach - BLOCK, records.start[tile.record[w]] - begin
    there, lowest, top, at = next_pulse(x, BLOCK, stop, method.threshold)
    while there:
        _, time, height, width = measure(x, BLOCK, stop, lowest, top, at, method)
        time += origin + low + top
        if time - last_time >= dead_time:
            if hits == out.time.size:
                return 0, last_time, -1
            _keep(records, digitizer, w, tile, low + top, time, height, width, hits, out)
            last_time, hits = time, hits + 1
        there, lowest, top, at = next_pulse(x, at, stop, method.threshold)
    return (min(low + stop, end) if digitizer.period == 0.0 else end), last_time, hits


@inlined
def _list_blocks(records, cores, words, work):
    """List the blocks of a tile that have samples beyond the limit: gives how many."""
    tile, blocks = work.tile, 0
    work.ahead[0] = tile.end[words - 1] + NEAR
    work.ahead[1] = work.ahead[0] + tile.end[words - 1] - tile.begin[0]
    for w in range(words):
        ask_for(records.samples, work.ahead)
        ask_for(records.samples, work.ahead)
        bits, at = tile.bits[w], tile.at[w]
        if bits and cores in QUICK:
            _spread(tile.base[w], cores, 32 * w, work.bases)
        while bits:
            work.word[blocks], work.block[blocks] = w, at + BLOCK * first_bit(bits)
            blocks += 1
            bits &= bits - ONE
    return blocks


@inlined
def _make_windows(records, digitizer, reach, listed, size, work):
    """Make the windows of some of the blocks that were listed, about the first sample of each that is beyond."""
    tile, batch, samples = work.tile, work.batch, records.samples
    cores, factor = len(digitizer.each), digitizer.polarity * digitizer.scale
    fits = 3 * reach < BLOCK and digitizer.period == 0.0
    for k in range(size):
        ask_for(samples, work.ahead)
        w, at = work.word[listed + k], work.block[listed + k]
        mask = ONE if digitizer.period != 0.0 else beyond(samples, at, tile.end[w], tile.limit[w], tile.flip[w])
        before = batch.mask[k - 1 if k > 0 else BATCH - 1] >> np.uint64(BLOCK - 1)
        # the end of a pulse that begins in the block before is found with that one: no use for a window, nor a change
        goes_on = listed + k > 0 and at == work.block[listed + k - 1] + BLOCK and before & mask != NONE
        batch.mask[k], batch.low[k], batch.pulses[k] = mask, at + first_bit(mask) - reach, UNSURE
        if fits and not goes_on:
            batch.pulses[k] = NO_PULSE
            _put_block(samples, batch.low[k], w, tile, cores, work.bases, factor, work.windows, BLOCK * (k + 1))


@inlined
def _find_pulses(records, reach, threshold, size, work):
    """Find the pulse of each window, by masks."""
    batch = work.batch
    for k in range(size):
        ask_for(records.samples, work.ahead)
        if batch.pulses[k] != UNSURE:
            batch.pulses[k], batch.first[k], batch.top[k], batch.size[k] = only_pulse(
                work.windows, BLOCK * (k + 1), reach, threshold
            )


@inlined
def _measure_pulses(records, method, size, work):
    """Measure the pulse of each window."""
    batch, x = work.batch, work.windows
    for k in range(size):
        ask_for(records.samples, work.ahead)
        if batch.pulses[k] == ONE_PULSE:
            low, top = BLOCK * (k + 1), batch.top[k]
            high = low + batch.size[k]
            end = high
            if method.number == MATCHED:
                end = first_at_most(x, top, high, np.float32(x[np.uint64(top)] - method.threshold))
            edge, batch.time[k], batch.height[k], batch.width[k] = measure(x, low, high, low, top, end, method)
            if edge < low or not surely_behind(x, edge, batch.first[k]):
                batch.pulses[k] = UNSURE


@inlined
def _keep_hits(
    records, digitizer, method, reach, dead_time, listed, size, work, row, before, done, last_time, hits, count, out
):
    """Put the hits of a batch behind the others, in order, and go through the stretches that are not sure.

    Returns
    -------
    (row, before, done, last_time, hits)
        The last row, the hits before it, the sample behind what was looked at, the time of the last hit, and the
        hits; -1 where there is no room for them.
    """
    tile, batch = work.tile, work.batch
    for k in range(size):
        ask_for(records.samples, work.ahead)
        w, at, low, mask = work.word[listed + k], work.block[listed + k], batch.low[k], batch.mask[k]
        other = tile.row[w] != row
        row, before, last_time = tile.row[w], hits if other else before, -np.inf if other else last_time
        already = hits
        while True:
            mask &= (ALL << np.uint64(max(done - at, 0))) if done - at < BLOCK else NONE
            if mask == NONE:
                break
            i = at + first_bit(mask)
            if i - reach != low or batch.pulses[k] == UNSURE:
                done, last_time, hits = _go_through(
                    records, digitizer, i, w, work, reach, method, dead_time, last_time, hits, out
                )
                if hits < 0:
                    return row, before, done, last_time, hits
                continue
            done = min(low + batch.size[k], tile.end[w])
            if batch.pulses[k] == ONE_PULSE:
                if hits == out.time.size:
                    return row, before, done, last_time, -1
                top = low + batch.top[k] - BLOCK * (k + 1)
                time = records.start[tile.record[w]] - tile.begin[w] + top + batch.time[k]
                _keep(records, digitizer, w, tile, top, time, batch.height[k], batch.width[k], hits, out)
                alive = time - last_time >= dead_time
                last_time = time if alive else last_time
                hits += alive
        count[row] += hits - already
    return row, before, done, last_time, hits


@compiled
def find_hits(records, digitizer, method, reach, dead_time, first, count, out, work):
    """Find the pulses of many records.

    Parameters
    ----------
    records : Records
    digitizer : Digitizer
    method : Method
    reach : int
        See `reach_of`.
    dead_time : float
        Samples after a hit in which there is no other.
    first : int
        Row to begin at.
    count : (rows,) int64
        Out: hits of each row, where it is zero before.
    out : Hits
        Out.
    work : Work
        See `room_for`.

    Returns
    -------
    (row, hits)
        The row to begin at again, with hits of all rows before it, where the capacity was too small; else all rows.
    """
    level, place = method.threshold / digitizer.scale, work.place
    place[0], place[1], place[2] = first, records.row_edge[first], 0
    row, before, done, last_time, hits = first, 0, 0, -np.inf, 0
    while True:
        words = look(records, digitizer, level, place, work.tile)
        if words == 0:
            return records.row_edge.size - 1, hits
        blocks = _list_blocks(records, len(digitizer.each), words, work)
        for listed in range(0, blocks, BATCH):
            size = min(BATCH, blocks - listed)
            _make_windows(records, digitizer, reach, listed, size, work)
            _find_pulses(records, reach, method.threshold, size, work)
            _measure_pulses(records, method, size, work)
            row, before, done, last_time, hits = _keep_hits(
                records, digitizer, method, reach, dead_time, listed, size, work, row, before, done, last_time, hits,
                count, out,
            )  # fmt: skip
            if hits < 0:
                count[row] = 0
                return row, before
