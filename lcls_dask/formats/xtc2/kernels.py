"""The compiled loops over xtc2 events: scan a file, survey a detector, read a field.

Every loop reads through one small buffer by ``pread``, without the GIL: events that lie close together
come in by large reads, large arrays go from the file straight into the result, and of what nobody asked
for only the headers are touched. (A memory map would do the same, but kills the process with
SIGBUS when a file is truncated under it.)

Loops return ``(status, row, position)``: `OK`, or what is wrong with which row at which byte of the file.
Nothing in a file is trusted: each position is checked against the end of its datagram before it is used.
"""

import numpy as np
from numba import njit, types

from .words import GROUPS, first_bit, i64, skips, u16, u32, u64

OK, TRUNCATED, EXTENT, UNKNOWN_NAMES, TIMESTAMP, SHAPE, CONTENT, READ, TOO_LONG, HSD, FULL, TYPE = range(12)

REASONS = {
    TRUNCATED: "the file ends inside this datagram",
    EXTENT: "an Xtc's extent does not fit its datagram",
    UNKNOWN_NAMES: "data of a NamesId that the configuration does not know",
    TIMESTAMP: "the timestamp is not the one that the index has for this place",
    SHAPE: "an array's shape is not that of the run's first events; leave this event out (events=)",
    CONTENT: "a field reaches past the end of its data",
    READ: "the file could not be read",
    TOO_LONG: "a string is longer than those of the run's first events; leave this event out (events=)",
    HSD: "a digitizer stream is malformed",
    TYPE: "an Xtc of unknown type",
}

_pread = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))
_memcpy = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))

#: One buffered file: bytes [lo, hi) of it lie at `data`; `ahead` is how many the next read takes at least.
_FILE = np.dtype([(name, np.int64) for name in ("fd", "end", "lo", "hi", "ahead", "data")])
_PAGE = 4096
_BUFFER = 1 << 18  # bytes that the buffer holds at least, from any position on
_DIRECT = 16384  # a payload of this many bytes does not pass through the buffer
# The kernel copies by `rep movsb`, which AMD's processors of families 19h and 1Ah do five times slower where the target
# lies this little behind the source within a page (2 instead of 12 GB/s); so that is avoided.
_ALIAS = 64


def reader(fd: int, end: int) -> np.void:
    """What the loops read a file by, of which the first `end` bytes count: its state, and a buffer in the same memory.

    Loops hand on this record rather than arrays, of which numba counts the references at each call: that took longer
    than the rest of the loops.
    """
    memory = np.empty(_BUFFER + 4 * _PAGE, np.uint8)
    begin = -memory.ctypes.data % _PAGE
    file = memory[begin : begin + _FILE.itemsize].view(_FILE)
    file[0] = (fd, end, 0, 0, _PAGE, memory.ctypes.data + begin + _PAGE)  # a page more behind it, for `skips`
    record: np.void = file[0]
    return record


# Sizes of what is read, typed: of each literal number the loops would be compiled once more.
_4, _8, _12, _16, _20, _24 = (np.int64(size) for size in (4, 8, 12, 16, 20, 24))


@njit(nogil=True, cache=True)
def _fill(fd, address, size, position):
    """Read exactly `size` bytes; whether that worked."""
    done = 0
    while done < size:
        got = _pread(fd, address + done, size - done, position + done)
        if got <= 0:
            return False
        done += got
    return True


@njit(nogil=True, cache=True)
def _need(file, position, size):
    """Address of the file's bytes [position, position + size); -1: it has none such, -2: they can't be read."""
    if file.lo <= position and position + size <= file.hi:
        return file.data + position - file.lo
    return _refill(file, position, size)


@njit(nogil=True, cache=True)
def _refill(file, position, size):
    """`_need` of what is not in the buffer."""
    if position < 0 or position + size > file.end:
        return -1
    near = file.lo <= position <= file.hi + 2 * _PAGE
    file.ahead = min(2 * file.ahead, _BUFFER) if near else _PAGE
    before = position % _PAGE  # so that the kernel copies whole pages
    want = min(before + max(file.ahead, size), _BUFFER + _PAGE, file.end - position + before)
    if not _fill(file.fd, file.data, want, position - before):
        file.lo = file.hi = 0
        return -2
    file.lo, file.hi = position - before, position - before + want
    return file.data + before


@njit(nogil=True, cache=True)
def _why(nowhere):
    """Status where `_need` has no address."""
    return TRUNCATED if nowhere == -1 else READ


@njit(nogil=True, cache=True)
def _copy(file, position, size, out, at):
    """Bytes of the file into ``out[at:at + size]``."""
    if at < 0 or size < 0 or at + size > out.size:
        return SHAPE
    target = np.int64(out.ctypes.data) + at
    if file.lo <= position and position + size <= file.hi:
        _memcpy(target, file.data + position - file.lo, size)
        return OK
    return _copy_unread(file, position, size, target)


@njit(nogil=True, cache=True)
def _copy_unread(file, position, size, target):
    """`_copy` of what is not in the buffer, to an address."""
    if position + size > file.end:
        return TRUNCATED
    if size >= _DIRECT and not 0 < (target - position) % _PAGE < _ALIAS:
        return OK if _fill(file.fd, target, size, position) else READ
    done = 0
    while done < size:
        piece = min(size - done, _BUFFER)
        i = _need(file, position + done, piece)
        if i < 0:
            return _why(i)
        _memcpy(target + done, i, piece)
        done += piece
    return OK


@njit(nogil=True, cache=True)
def _datagram(file, position):
    """Header of the datagram at `position`: its address, where the datagram ends, and a status."""
    i = _need(file, position, _24)
    if i < 0:
        return i, position, _why(i)
    extent = u32(i + 20)
    end = position + 12 + extent
    if extent < 12 or extent >= 1 << 31:
        return i, end, EXTENT
    return i, end, TRUNCATED if end > file.end else OK


@njit(nogil=True, cache=True)
def _is_event(header):
    service = u32(header + 8) >> 24 & 15
    return service == 12 or service == 11


@njit(nogil=True, cache=True)
def scan(file, position, stamps, offsets):
    """Walk over datagrams until the first that is no event.

    Returns ``(status, events, position)``; `OK` at a transition (which starts at `position`), `FULL` when the
    arrays are, `TRUNCATED` at the end of the file (`position` is where the last whole datagram ends).
    """
    n = 0
    while True:
        i, end, status = _datagram(file, position)
        if status != OK or not _is_event(i):
            return status, n, position
        if n == stamps.size:
            return FULL, n, position
        stamps[n] = u64(i)
        offsets[n] = position
        n += 1
        position = end


@njit(nogil=True, cache=True)
def scan_smalldata(file, position, slots, layout, fields, stamps, offsets, lengths):
    """`scan` over smalldata: offsets and lengths are those that ``smdinfo`` gives for the event in the big file."""
    n = 0
    # hostile files declare more than one table of offsets, of which the first counts
    where, damage = np.empty(layout.shape[0], np.int64), np.empty(layout.shape[0], np.uint16)
    table = np.int64(layout.ctypes.data)
    while True:
        i, end, status = _datagram(file, position)
        if status != OK or not _is_event(i):
            return status, n, position
        if n == stamps.size:
            return FULL, n, position
        stamps[n] = u64(i)
        status, at = _walk(file, position, stamps[n], slots, where, damage)
        if status != OK:
            return status, n, at
        if where[0] < 0:
            return CONTENT, n, position
        for k in range(2):
            status, at, size, _ = _locate(file, where[0], table, fields[k])
            i = _need(file, at, _8)
            if status != OK or size != 8 or i < 0:
                return CONTENT, n, where[0]
            if k == 0:
                offsets[n] = u64(i)
            else:
                lengths[n] = u64(i)
        if not (0 <= offsets[n] < 1 << 47 and 24 <= lengths[n] < 1 << 32):
            return CONTENT, n, where[0]
        n += 1
        position = end


@njit(nogil=True, cache=True)
def _enter(file, position, stamp):
    """Begin to read the datagram at `position`, which must be that of `stamp`: where it ends, and a status."""
    i, end, status = _datagram(file, position)
    if status != OK:
        return end, status
    if u64(i) != stamp:
        return end, TIMESTAMP
    # all of it at once: who goes back to its beginning must not find that out of the buffer
    if end - position <= _DIRECT and _need(file, position, end - position) < 0:
        return end, READ
    return end, OK


@njit(nogil=True, cache=True)
def _walk(file, position, stamp, slots, where, damage):
    """Find the ShapesData that `slots` asks for in the datagram at `position`.

    `slots[NamesId]` is -2 for an id that the configuration does not know, -1 for one that nobody asked for, else an
    index into `where` (file position of the ShapesData, -1 if absent) and `damage`.
    """
    where[:] = -1
    damage[:] = 0
    end, status = _enter(file, position, stamp)
    if status != OK:
        return status, position
    root = u16(_need(file, position, _24) + 16)
    damage[:] = root  # of an absent contribution the datagram's own damage tells why
    if root & 8:  # Corrupted: the inside is not to be trusted
        return OK, position
    at = position + 24
    while at < end:
        if at + 12 > end:
            return EXTENT, at
        i = _need(file, at, _12)
        if i < 0:
            return _why(i), at
        src, kind, extent = u32(i) & 0xFFFFF, u16(i + 6) & 0xFFF, u32(i + 8)
        if extent < 12 or at + extent > end:
            return EXTENT, at
        if kind == 0 and not u16(i + 4) & 8:
            at += 12  # what is inside a Parent ends where the Parent does
            continue
        if kind == 1:
            slot = -2 if src >= slots.size else slots[src]
            if slot == -2:
                return UNKNOWN_NAMES, at
            if slot >= 0:
                where[slot] = at
                damage[slot] = u16(i + 4)
        elif kind > 4:
            return TYPE, at
        at += extent
    return OK, position


@njit(nogil=True, cache=True)
def _open(file, position):
    """A status, and where the shapes and the data of the ShapesData at `position` begin and end."""
    shapes = shapes_end = data = data_end = -1
    i = _need(file, position, _12)
    if i < 0:
        return _why(i), (shapes, shapes_end, data, data_end)
    at, end = position + 12, position + u32(i + 8)
    while at + 12 <= end:
        i = _need(file, at, _12)
        if i < 0:
            return _why(i), (shapes, shapes_end, data, data_end)
        kind, extent = u16(i + 6) & 0xFFF, u32(i + 8)
        if extent < 12 or at + extent > end:
            return EXTENT, (shapes, shapes_end, data, data_end)
        if kind == 2:
            shapes, shapes_end = at + 12, at + extent
        elif kind == 3:
            data, data_end = at + 12, at + extent
        at += extent
    return CONTENT if data < 0 else OK, (shapes, shapes_end, data, data_end)


@njit(nogil=True, cache=True)
def _find(file, parts, layout, field):
    """Find a field in the parts that `_open` found: a status, its place, its bytes, and the place of its shape.

    `layout` is the address of rank and bytes of an element of each field, int64.
    """
    shapes, shapes_end, data, data_end = parts
    size = 0
    for f in range(field + 1):
        data += size
        rank, count = i64(layout + 16 * f), 1
        if rank > 0:
            if shapes < 0 or shapes + 20 > shapes_end:
                return CONTENT, data, 0, shapes
            i = _need(file, shapes, _20)
            if i < 0:
                return _why(i), data, 0, shapes
            for d in range(rank):
                count *= u32(i + 4 * d)
                if count > data_end - data:  # also keeps the product from running over
                    return CONTENT, data, 0, shapes
            shapes += 20
        size = count * i64(layout + 16 * f + 8)
        if data + size > data_end:
            return CONTENT, data, 0, shapes
    return OK, data, size, shapes - 20


@njit(nogil=True, cache=True)
def _locate(file, position, layout, field):
    """`_find` in the ShapesData at `position`."""
    status, parts = _open(file, position)
    if status != OK:
        return status, position, 0, 0
    return _find(file, parts, layout, field)


@njit(nogil=True, cache=True)
def survey(file, offsets, stamps, slots, present, damage):
    """Which contributions are there, and their damage. (rows, slots) arrays; an offset of -1 is an absent datagram."""
    where, flaws = np.empty(present.shape[1], np.int64), np.empty(present.shape[1], np.uint16)
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        status, at = _walk(file, offsets[row], stamps[row], slots, where, flaws)
        if status != OK:
            return status, row, at
        for s in range(where.size):
            present[row, s] = where[s] >= 0
            damage[row, s] = flaws[s]
    return OK, -1, -1


@njit(nogil=True, cache=True)
def survey_shapes(file, offsets, stamps, slots, layout, fields, shapes):
    """Shapes of one field, (rows, slots, 5) int64, -1 where absent. ``fields[slot]`` is -1 where a Names lacks it."""
    where, damage = np.empty(fields.size, np.int64), np.empty(fields.size, np.uint16)
    table, width = np.int64(layout.ctypes.data), 16 * layout.shape[1]
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        status, at = _walk(file, offsets[row], stamps[row], slots, where, damage)
        if status != OK:
            return status, row, at
        for s in range(where.size):
            if where[s] < 0 or fields[s] < 0:
                continue
            status, _, _, at = _locate(file, where[s], table + s * width, fields[s])
            if status != OK:
                return status, row, where[s]
            shapes[row, s, :] = 1
            rank = layout[s, fields[s], 0]
            i = _need(file, at, _20) if rank else 0
            if i < 0:
                return _why(i), row, where[s]
            for d in range(rank):
                shapes[row, s, d] = u32(i + 4 * d)
    return OK, -1, -1


@njit(nogil=True, cache=True)
def _has_shape(file, at, shape):
    """Whether the lengths at `at` are those of `shape`."""
    i = _need(file, at, _20) if shape.size else 0
    if i < 0:
        return False
    for d in range(shape.size):
        if u32(i + 4 * d) != shape[d]:
            return False
    return True


@njit(nogil=True, cache=True)
def read_dense(file, offsets, stamps, slots, layout, fields, places, shape, item, text, there, out):
    """Values of one field, each into its place of `out`, bytes of shape (rows, segments * item).

    ``places[slot]`` is the segment's position; ``there[row, place]`` becomes whether it was written. `text`: values are
    NUL-terminated and at most `item` bytes long.
    """
    where, damage = np.empty(fields.size, np.int64), np.empty(fields.size, np.uint16)
    flat = out.reshape(out.size)
    table, width = np.int64(layout.ctypes.data), 16 * layout.shape[1]
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        status, at = _walk(file, offsets[row], stamps[row], slots, where, damage)
        if status != OK:
            return status, row, at
        for s in range(where.size):
            if where[s] < 0 or fields[s] < 0:
                continue
            status, at, size, dims = _locate(file, where[s], table + s * width, fields[s])
            if status != OK:
                return status, row, where[s]
            begin = row * out.shape[1] + places[s] * item
            if text:
                ended, size = size <= item, min(size, item)
            elif size != item or layout[s, fields[s], 0] != shape.size or not _has_shape(file, dims, shape):
                return SHAPE, row, where[s]
            status = _copy(file, at, size, flat, begin)
            if status != OK:
                return status, row, where[s]
            if text:
                for k in range(begin, begin + size):
                    if flat[k] == 0:
                        size, ended = k - begin, True
                        break
                if not ended:
                    return TOO_LONG, row, where[s]
                flat[begin + size : begin + item] = 0
            there[row, places[s]] = True
    return OK, -1, -1


@njit(nogil=True, cache=True)
def read_ragged(file, offsets, stamps, slots, layout, fields, places, starts, ends, out):
    """Values of one field one behind the other: row r, segment s into bytes ``starts[r, s]:ends[r, s]`` of `out`."""
    where, damage = np.empty(fields.size, np.int64), np.empty(fields.size, np.uint16)
    table, width = np.int64(layout.ctypes.data), 16 * layout.shape[1]
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        status, at = _walk(file, offsets[row], stamps[row], slots, where, damage)
        if status != OK:
            return status, row, at
        for s in range(where.size):
            if where[s] < 0 or fields[s] < 0:
                continue
            status, at, size, _ = _locate(file, where[s], table + s * width, fields[s])
            if status != OK:
                return status, row, where[s]
            begin = starts[row, places[s]]
            if ends[row, places[s]] - begin != size:
                return SHAPE, row, where[s]
            status = _copy(file, at, size, out, begin)
            if status != OK:
                return status, row, where[s]
    return OK, -1, -1


@njit(nogil=True, cache=True)
def check(file, offsets, stamps, slots, layout, lasts, present, bits, root, statuses, positions):
    """Walk through every field of every contribution; goes on after damage.

    ``lasts[slot]`` is the last field of each Names, -1 without fields. Counts go to ``present[slot]`` and, by damage
    bit, to ``bits[slot, 16]``, of whole datagrams to ``root[16]``; what is wrong with each row to `statuses`, and where
    to `positions`.
    """
    where, damage = np.empty(lasts.size, np.int64), np.empty(lasts.size, np.uint16)
    table, width = np.int64(layout.ctypes.data), 16 * layout.shape[1]
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        i = _need(file, offsets[row], _24)
        whole = u16(i + 16) if i >= 0 else 0
        statuses[row], positions[row] = _walk(file, offsets[row], stamps[row], slots, where, damage)
        for bit in range(16):
            root[bit] += whole >> bit & 1
        for s in range(where.size):
            if statuses[row] != OK:
                break
            if where[s] < 0:
                continue
            for bit in range(16):
                bits[s, bit] += damage[s] >> bit & 1
            present[s] += 1
            if lasts[s] >= 0:
                statuses[row], _, _, _ = _locate(file, where[s], table + s * width, lasts[s])
                positions[row] = where[s]
    return OK, -1, -1


@njit(nogil=True, cache=True)
def _streams(file, at, size, mask):
    """Find the words of a digitizer payload: a status, place and number of the raw ones and of the FEX ones, flags.

    Streams lie one behind the other until every bit of the event header's mask has been seen.
    """
    wave = waves = fex = fexes = flags = 0
    end = at + size
    while mask and at + 16 <= end:
        i = _need(file, at, _16)
        if i < 0:
            return _why(i), wave, waves, fex, fexes, flags
        head, kind = u32(i), u32(i + 4) >> 24
        words = head & 0x1FFFFFFF
        at += 16
        if kind > 1 or at + 2 * words > end:
            return HSD, wave, waves, fex, fexes, flags
        if kind == 0:
            wave, waves = at, words
        else:
            fex, fexes = at, words
        flags |= (head >> 29) << (3 * kind)
        mask &= ~(1 << kind)
        at += 2 * words
    return HSD if mask else OK, wave, waves, fex, fexes, flags


@njit(nogil=True, cache=True, forceinline=True)  # else numba would count references to its arrays
def _windows(file, at, groups, lead, starts, lengths, n):
    """Append the windows of some groups of four FEX words from number `n` on: how many there are then, and a status."""
    if n + groups + 1 > starts.size:  # no more windows than groups
        return n, FULL
    first, end, time, length = n, at + 8 * groups, 0, 0
    while at < end:
        count = min(GROUPS, (end - at) >> 3)
        i = _need(file, at, 8 * count)
        if i < 0:
            return n, _why(i)
        at += 8 * count
        skipped, g = skips(i), 0
        while g < count:
            run = min(first_bit(skipped >> np.uint64(g)), count - g)
            if run:
                if not length:
                    starts[n] = time
                length += 4 * run
                time += 4 * run
                g += run
            if g < count:
                if length:
                    lengths[n], length = length, 0
                    n += 1
                low, high = u32(i + 8 * g) & 0x7FFF7FFF, u32(i + 8 * g + 4) & 0x7FFF7FFF
                time += (low >> 16) + (low & 0xFFFF) + (high >> 16) + (high & 0xFFFF)
                g += 1
    if length:
        lengths[n] = length
        n += 1
    if n > first and lead:
        starts[first] += lead
        lengths[first] -= lead
    return n, OK


@njit(nogil=True, cache=True)
def survey_hsd(
    file, offsets, stamps, slots, layout, fields, headers, places, lead, first, counts, flags, words, starts,
    lengths,
):  # fmt: skip
    """Measure digitizer channels and find their FEX windows.

    ``counts[row, place]`` becomes (waveform samples, windows, bytes), and ``words[row, slot]`` where in the datagram
    the words of (waveform, windows) begin, 0 where there are none; windows are appended to `starts` and `lengths` in
    the order of rows and *slots*. `lead` samples at the start of the first window are baselines, no signal (format 3).
    Starts at row `first`; returns ``(FULL, row, windows)`` where the arrays are full, ``(OK, -1, windows)`` at the end.
    """
    n = np.int64(0)
    where, damage = np.empty(fields.size, np.int64), np.empty(fields.size, np.uint16)
    table, width = np.int64(layout.ctypes.data), 16 * layout.shape[1]
    for row in range(first, offsets.size):
        if offsets[row] < 0:
            continue
        status, at = _walk(file, offsets[row], stamps[row], slots, where, damage)
        if status != OK:
            return status, row, at
        before = n
        for s in range(where.size):
            if where[s] < 0 or fields[s] < 0:
                continue
            if headers[s] < 0:
                return CONTENT, row, where[s]
            status, parts = _open(file, where[s])
            if status != OK:
                return status, row, where[s]
            status, at, size, _ = _find(file, parts, table + s * width, headers[s])
            if status != OK:
                return status, row, where[s]
            i = _need(file, at, _4)
            if i < 0 or size < 4:
                return CONTENT, row, where[s]
            mask = u32(i) >> 20 & 3
            status, at, size, _ = _find(file, parts, table + s * width, fields[s])
            if status != OK:
                return status, row, where[s]
            if not size:
                continue
            status, wave, waves, fex, fexes, told = _streams(file, at, size, mask)
            start = n
            if status == OK:
                n, status = _windows(file, fex, fexes // 4, lead, starts, lengths, n)
            if status == FULL:
                return FULL, row, before
            if status == HSD:  # one malformed payload is no reason to give none: it counts as empty, and is flagged
                flags[row, places[s]] = 128
                continue
            if status != OK:
                return status, row, where[s]
            counts[row, places[s], 0] = waves
            counts[row, places[s], 1] = n - start
            counts[row, places[s], 2] = size
            flags[row, places[s]] = told
            words[row, s, 0] = wave - offsets[row] if waves else 0
            words[row, s, 1] = fex - offsets[row] if fexes else 0
    return OK, -1, n


@njit(nogil=True, cache=True)
def read_waveforms(file, offsets, stamps, words, places, begins, ends, out):
    """Samples of waveforms: of row r, place p into the uint16s ``[begins[r, p], ends[r, p])`` of the bytes `out`.

    ``words[row, slot]`` is where in its datagram they lie, as `survey_hsd` found it.
    """
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        end, status = _enter(file, offsets[row], stamps[row])
        if status != OK:
            return status, row, offsets[row]
        for s in range(places.size):
            if not words[row, s]:
                continue
            at, begin = offsets[row] + words[row, s], begins[row, places[s]]
            size = 2 * (ends[row, places[s]] - begin)
            if at + size > end:
                return CONTENT, row, at
            status = _copy(file, at, size, out, 2 * begin)
            if status != OK:
                return status, row, at
    return OK, -1, -1


@njit(nogil=True, cache=True)
def read_windows(file, offsets, stamps, words, places, lead, firsts, lasts, origin, edges, out):
    """Samples of FEX windows, of row r and place p those numbered ``firsts[r, p]`` to ``lasts[r, p]``, into `out`.

    ``edges[w - origin]`` is where window w begins among all samples; the bytes `out` begin with window `origin`.
    `words` and `out` are as for `read_waveforms`. How long the windows are is known, so of the words between them only
    those are looked at that tell of skipped samples.
    """
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        end, status = _enter(file, offsets[row], stamps[row])
        if status != OK:
            return status, row, offsets[row]
        for s in range(places.size):
            if not words[row, s]:
                continue
            at, skip = offsets[row] + words[row, s], 2 * lead
            for window in range(firsts[row, places[s]], lasts[row, places[s]]):
                while True:
                    if at + 8 > end:
                        return CONTENT, row, at
                    i = _need(file, at, _8)
                    if i < 0:
                        return READ, row, at
                    if not u16(i) & 0x8000:
                        break
                    at += 8
                begin = edges[window - origin]
                size = 2 * (edges[window - origin + 1] - begin)
                at, skip = at + skip, 0
                if at + size > end:
                    return CONTENT, row, at
                status = _copy(file, at, size, out, 2 * (begin - edges[0]))
                if status != OK:
                    return status, row, at
                at += size
    return OK, -1, -1
