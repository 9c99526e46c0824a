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

# what `reader` makes: the state of one buffered file
_FD, _LO, _HI, _END, _AHEAD = 0, 1, 2, 3, 4
_PAGE = 4096
_BUFFER = 1 << 18  # bytes that the buffer holds at least, from any position on
_DIRECT = 16384  # a payload of this many bytes does not pass through the buffer
# The kernel copies by `rep movsb`, which AMD's processors of families 19h and 1Ah do five times slower where the target
# lies this little behind the source within a page (2 instead of 12 GB/s); so that is avoided.
_ALIAS = 64

# what `_locate` finds of each field
_AT, _BYTES = 0, 1

_1, _2, _3 = np.uint64(1), np.uint64(2), np.uint64(3)
_8, _16, _24, _32, _40, _48, _56, _64 = (np.uint64(8 * k) for k in range(1, 9))


def reader(fd: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """State and buffer for the loops over one file, of which the first `end` bytes count."""
    buf = np.empty(_BUFFER + 2 * _PAGE, np.uint8)
    begin = -buf.ctypes.data % _PAGE
    return np.array([fd, 0, 0, end, _PAGE], np.int64), buf[begin : begin + _BUFFER + _PAGE]


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
def _need(st, buf, position, size):
    """Index in `buf` of the file's bytes [position, position + size); -1: it has none such, -2: they can't be read."""
    if st[_LO] <= position and position + size <= st[_HI]:
        return position - st[_LO]
    if position < 0 or position + size > st[_END]:
        return -1
    near = st[_LO] <= position <= st[_HI] + 2 * _PAGE
    st[_AHEAD] = min(2 * st[_AHEAD], _BUFFER) if near else _PAGE
    before = position % _PAGE  # so that the kernel copies whole pages
    want = min(before + max(st[_AHEAD], size), buf.size, st[_END] - position + before)
    if not _fill(st[_FD], buf.ctypes.data, want, position - before):
        st[_LO] = st[_HI] = 0
        return -2
    st[_LO], st[_HI] = position - before, position - before + want
    return before


@njit(nogil=True, cache=True)
def _u32(buf, i):
    j = np.uint64(i)  # of a signed index numba asks whether it counts from the end, for each byte
    low = np.int64(buf[j]) | np.int64(buf[j + _1]) << 8
    return low | np.int64(buf[j + _2]) << 16 | np.int64(buf[j + _3]) << 24


@njit(nogil=True, cache=True)
def _u16(buf, i):
    j = np.uint64(i)
    return np.int64(buf[j]) | np.int64(buf[j + _1]) << 8


@njit(nogil=True, cache=True)
def _stamp(buf, i):
    return np.uint64(_u32(buf, i + 4)) << np.uint64(32) | np.uint64(_u32(buf, i))


@njit(nogil=True, cache=True)
def scan(st, buf, position, stamps, offsets):
    """Walk over datagrams until the first that is no event.

    Returns ``(status, events, position)``; `OK` at a transition (which starts at `position`), `FULL` when the
    arrays are, `TRUNCATED` at the end of the file (`position` is where the last whole datagram ends).
    """
    n = 0
    while True:
        i = _need(st, buf, position, 24)
        if i < 0:
            return (TRUNCATED if i == -1 else READ), n, position
        extent = _u32(buf, i + 20)
        if extent < 12 or extent >= 1 << 31:
            return EXTENT, n, position
        if position + 12 + extent > st[_END]:
            return TRUNCATED, n, position
        service = buf[i + 11] & 15
        if service != 12 and service != 11:
            return OK, n, position
        if n == stamps.size:
            return FULL, n, position
        stamps[n] = _stamp(buf, i)
        offsets[n] = position
        n += 1
        position += 12 + extent


@njit(nogil=True, cache=True)
def scan_smalldata(st, buf, position, slots, ranks, sizes, fields, stamps, offsets, lengths):
    """`scan` over smalldata: offsets and lengths are those that ``smdinfo`` gives for the event in the big file."""
    n = 0
    where, damage = np.empty(1, np.int64), np.empty(1, np.uint16)
    shape, found = np.empty(5, np.int64), np.empty((ranks.shape[1], 2), np.int64)
    while True:
        i = _need(st, buf, position, 24)
        if i < 0:
            return (TRUNCATED if i == -1 else READ), n, position
        extent = _u32(buf, i + 20)
        if extent < 12 or extent >= 1 << 31:
            return EXTENT, n, position
        if position + 12 + extent > st[_END]:
            return TRUNCATED, n, position
        service = buf[i + 11] & 15
        if service != 12 and service != 11:
            return OK, n, position
        if n == stamps.size:
            return FULL, n, position
        stamps[n] = _stamp(buf, i)
        status, at = _walk(st, buf, position, stamps[n], slots, where, damage)
        if status != OK:
            return status, n, at
        if where[0] < 0:
            return CONTENT, n, position
        if _locate(st, buf, where[0], ranks, sizes, 0, max(fields[0], fields[1]), shape, found) != OK:
            return CONTENT, n, where[0]
        for k in range(2):
            if found[fields[k], _BYTES] != 8:
                return CONTENT, n, where[0]
            i = _need(st, buf, found[fields[k], _AT], 8)
            if i < 0:
                return CONTENT, n, where[0]
            value = _u32(buf, i) | _u32(buf, i + 4) << 32
            if k == 0:
                offsets[n] = value
            else:
                lengths[n] = value
        if not (0 <= offsets[n] < 1 << 47 and 24 <= lengths[n] < 1 << 32):
            return CONTENT, n, where[0]
        n += 1
        position += 12 + extent


@njit(nogil=True, cache=True)
def _enter(st, buf, position, stamp):
    """Begin to read the datagram at `position`, which must be that of `stamp`: where it ends, and a status."""
    i = _need(st, buf, position, 24)
    if i < 0:
        return position, TRUNCATED if i == -1 else READ
    if _stamp(buf, i) != stamp:
        return position, TIMESTAMP
    extent = _u32(buf, i + 20)
    end = position + 12 + extent
    if extent < 12 or end > st[_END]:
        return end, TRUNCATED
    # all of it at once: who goes back to its beginning must not find that out of the buffer
    if 12 + extent <= _DIRECT and _need(st, buf, position, 12 + extent) < 0:
        return end, READ
    return end, OK


@njit(nogil=True, cache=True)
def _walk(st, buf, position, stamp, slots, where, damage):
    """Find the ShapesData that `slots` asks for in the datagram at `position`.

    `slots[NamesId]` is -2 for an id that the configuration does not know, -1 for one that nobody asked for, else an
    index into `where` (file position of the ShapesData, -1 if absent) and `damage`.
    """
    where[:] = -1
    damage[:] = 0
    end, status = _enter(st, buf, position, stamp)
    if status != OK:
        return status, position
    i = _need(st, buf, position, 24)
    root = _u16(buf, i + 16)
    damage[:] = root  # of an absent contribution the datagram's own damage tells why
    if root & 8:  # Corrupted: the inside is not to be trusted
        return OK, position
    at = position + 24
    while at < end:
        if at + 12 > end:
            return EXTENT, at
        i = _need(st, buf, at, 12)
        if i < 0:
            return (TRUNCATED if i == -1 else READ), at
        src, kind, extent = _u32(buf, i) & 0xFFFFF, _u16(buf, i + 6) & 0xFFF, _u32(buf, i + 8)
        if extent < 12 or at + extent > end:
            return EXTENT, at
        if kind == 0 and not _u16(buf, i + 4) & 8:
            at += 12  # what is inside a Parent ends where the Parent does
            continue
        if kind == 1:
            slot = -2 if src >= slots.size else slots[src]
            if slot == -2:
                return UNKNOWN_NAMES, at
            if slot >= 0:
                where[slot] = at
                damage[slot] = _u16(buf, i + 4)
        elif kind > 4:
            return TYPE, at
        at += extent
    return OK, position


@njit(nogil=True, cache=True)
def _locate(st, buf, position, ranks, sizes, slot, last, shape, found):
    """Find the fields up to `last` of the ShapesData at `position`: ``found[field]`` is place and bytes.

    The shape of the last one goes into `shape`. (Rows of `ranks` and `sizes` would be arrays of their own, and
    to make and count references to them takes longer than all the rest.)
    """
    i = _need(st, buf, position, 12)
    if i < 0:
        return TRUNCATED if i == -1 else READ
    end = position + _u32(buf, i + 8)
    at = position + 12
    shapes = shapes_end = data = data_end = np.int64(-1)
    while at + 12 <= end:
        i = _need(st, buf, at, 12)
        if i < 0:
            return TRUNCATED if i == -1 else READ
        kind, extent = _u16(buf, i + 6) & 0xFFF, _u32(buf, i + 8)
        if extent < 12 or at + extent > end:
            return EXTENT
        if kind == 2:
            shapes, shapes_end = at + 12, at + extent
        elif kind == 3:
            data, data_end = at + 12, at + extent
        at += extent
    if data < 0:
        return CONTENT
    for f in range(last + 1):
        count = np.int64(1)
        if ranks[slot, f] > 0:
            if shapes < 0 or shapes + 20 > shapes_end:
                return CONTENT
            i = _need(st, buf, shapes, 20)
            if i < 0:
                return TRUNCATED if i == -1 else READ
            for d in range(ranks[slot, f]):
                length = _u32(buf, i + 4 * d)
                if f == last:
                    shape[d] = length
                count *= length
                if count > data_end - data:  # also keeps the product from running over
                    return CONTENT
            shapes += 20
        size = count * sizes[slot, f]
        if data + size > data_end:
            return CONTENT
        found[f, _AT], found[f, _BYTES] = data, size
        data += size
    return OK


@njit(nogil=True, cache=True)
def _copy(st, buf, position, size, out, at):
    """Bytes of the file into ``out[at:at + size]``."""
    if at < 0 or at + size > out.size:
        return SHAPE
    if position + size > st[_END]:
        return TRUNCATED
    target = np.int64(out.ctypes.data) + at
    buffered = st[_LO] <= position and position + size <= st[_HI]
    if size >= _DIRECT and not buffered and not 0 < (target - position) % _PAGE < _ALIAS:
        return OK if _fill(st[_FD], target, size, position) else READ
    done = 0
    while done < size:
        piece = min(size - done, _BUFFER)
        i = _need(st, buf, position + done, piece)
        if i < 0:
            return TRUNCATED if i == -1 else READ
        _memcpy(target + done, buf.ctypes.data + i, piece)
        done += piece
    return OK


@njit(nogil=True, cache=True)
def survey(st, buf, offsets, stamps, slots, present, damage):
    """Which contributions are there, and their damage. (rows, slots) arrays; an offset of -1 is an absent datagram."""
    where, flaws = np.empty(present.shape[1], np.int64), np.empty(present.shape[1], np.uint16)
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        status, at = _walk(st, buf, offsets[row], stamps[row], slots, where, flaws)
        if status != OK:
            return status, row, at
        for s in range(where.size):
            present[row, s] = where[s] >= 0
            damage[row, s] = flaws[s]
    return OK, -1, -1


@njit(nogil=True, cache=True)
def survey_shapes(st, buf, offsets, stamps, slots, ranks, sizes, fields, shapes):
    """Shapes of one field, (rows, slots, 5) int64, -1 where absent. ``fields[slot]`` is -1 where a Names lacks it."""
    where, damage = np.empty(fields.size, np.int64), np.empty(fields.size, np.uint16)
    found = np.empty((ranks.shape[1], 2), np.int64)
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        status, at = _walk(st, buf, offsets[row], stamps[row], slots, where, damage)
        if status != OK:
            return status, row, at
        for s in range(where.size):
            if where[s] < 0 or fields[s] < 0:
                continue
            shapes[row, s, :] = 1
            status = _locate(st, buf, where[s], ranks, sizes, s, fields[s], shapes[row, s], found)
            if status != OK:
                shapes[row, s, :] = -1
                return status, row, where[s]
    return OK, -1, -1


@njit(nogil=True, cache=True)
def read_dense(st, buf, offsets, stamps, slots, ranks, sizes, fields, places, shape, item, text, there, out):
    """Values of one field, each into its place of `out`, bytes of shape (rows, segments * item).

    ``places[slot]`` is the segment's position; ``there[row, place]`` becomes whether it was written. `text`: values are
    NUL-terminated and at most `item` bytes long.
    """
    where, damage = np.empty(fields.size, np.int64), np.empty(fields.size, np.uint16)
    actual, found = np.empty(5, np.int64), np.empty((ranks.shape[1], 2), np.int64)
    flat = out.reshape(out.size)
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        status, at = _walk(st, buf, offsets[row], stamps[row], slots, where, damage)
        if status != OK:
            return status, row, at
        for s in range(where.size):
            if where[s] < 0 or fields[s] < 0:
                continue
            status = _locate(st, buf, where[s], ranks, sizes, s, fields[s], actual, found)
            if status != OK:
                return status, row, where[s]
            begin = row * out.shape[1] + places[s] * item
            if text:
                size = min(found[fields[s], _BYTES], item)
                status = _copy(st, buf, found[fields[s], _AT], size, flat, begin)
                if status != OK:
                    return status, row, where[s]
                ended = found[fields[s], _BYTES] <= item
                for k in range(size):
                    if flat[begin + k] == 0:
                        flat[begin + k : begin + size] = 0
                        ended = True
                        break
                if not ended:
                    return TOO_LONG, row, where[s]
                flat[begin + size : begin + item] = 0
                there[row, places[s]] = True
                continue
            for d in range(shape.size):
                if actual[d] != shape[d]:
                    return SHAPE, row, where[s]
            if found[fields[s], _BYTES] != item:
                return SHAPE, row, where[s]
            status = _copy(st, buf, found[fields[s], _AT], item, flat, begin)
            if status != OK:
                return status, row, where[s]
            there[row, places[s]] = True
    return OK, -1, -1


@njit(nogil=True, cache=True)
def read_ragged(st, buf, offsets, stamps, slots, ranks, sizes, fields, places, starts, ends, out):
    """Values of one field one behind the other: row r, segment s into bytes ``starts[r, s]:ends[r, s]`` of `out`."""
    where, damage = np.empty(fields.size, np.int64), np.empty(fields.size, np.uint16)
    actual, found = np.empty(5, np.int64), np.empty((ranks.shape[1], 2), np.int64)
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        status, at = _walk(st, buf, offsets[row], stamps[row], slots, where, damage)
        if status != OK:
            return status, row, at
        for s in range(where.size):
            if where[s] < 0 or fields[s] < 0:
                continue
            status = _locate(st, buf, where[s], ranks, sizes, s, fields[s], actual, found)
            if status != OK:
                return status, row, where[s]
            p = places[s]
            if ends[row, p] - starts[row, p] != found[fields[s], _BYTES]:
                return SHAPE, row, where[s]
            status = _copy(st, buf, found[fields[s], _AT], found[fields[s], _BYTES], out, starts[row, p])
            if status != OK:
                return status, row, where[s]
    return OK, -1, -1


@njit(nogil=True, cache=True)
def _streams(data, i, size, mask, parts):
    """Find the raw and the FEX words of a digitizer payload; `parts`: first word and number of words of each, flags.

    Streams lie one behind the other until every bit of the event header's mask has been seen.
    """
    parts[:] = 0
    end = i + size
    while mask and i + 16 <= end:
        head, kind = _u32(data, i), _u32(data, i + 4) >> 24
        words = head & 0x1FFFFFFF
        i += 16
        if kind > 1 or i + 2 * words > end:
            return HSD
        parts[2 * kind], parts[2 * kind + 1] = i, words
        parts[4] |= (head >> 29) << (3 * kind)
        mask &= ~(1 << kind)
        i += 2 * words
    return HSD if mask else OK


@njit(nogil=True, cache=True)
def _find_payload(st, buf, position, ranks, sizes, slot, field, header, shape, found):
    """Locate a digitizer channel; its event header's mask and a status."""
    if header < 0:
        return 0, CONTENT
    status = _locate(st, buf, position, ranks, sizes, slot, max(field, header), shape, found)
    if status != OK:
        return 0, status
    i = _need(st, buf, found[header, _AT], 4)
    if i < 0 or found[header, _BYTES] < 4:
        return 0, CONTENT
    if found[field, _AT] + found[field, _BYTES] > st[_END]:
        return 0, TRUNCATED
    return _u32(buf, i) >> 20 & 3, OK


@njit(nogil=True, cache=True)
def _window_end(data, i, g, groups):
    """Number of the first group of four words from `g` on that is skipped samples; `groups` if none is."""
    at = np.uint64(i + 8 * g + 1)
    while g + 8 <= groups:
        flags = data[at] | data[at + _8] | data[at + _16] | data[at + _24]
        flags |= data[at + _32] | data[at + _40] | data[at + _48] | data[at + _56]
        if flags & 0x80:
            break
        g += 8
        at += _64
    while g < groups and not data[at] & 0x80:
        g += 1
        at += _8
    return g


@njit(nogil=True, cache=True)
def _windows(data, i, size, mask, lead, starts, lengths, first, parts):
    """Append a payload's FEX windows from number `first` on; how many there are then, and a status."""
    status = _streams(data, i, size, mask, parts)
    n, groups = first, parts[3] // 4
    if status != OK:
        return n, status
    if n + groups + 1 > starts.size:  # no more windows than groups of four
        return n, FULL
    g, time = 0, 0
    while g < groups:
        at = parts[2] + 8 * g
        if data[np.uint64(at + 1)] & 0x80:
            low, high = _u32(data, at) & 0x7FFF7FFF, _u32(data, at + 4) & 0x7FFF7FFF
            time += (low >> 16) + (low & 0xFFFF) + (high >> 16) + (high & 0xFFFF)
            g += 1
            continue
        begin, g = g, _window_end(data, parts[2], g, groups)
        starts[n], lengths[n] = time, 4 * (g - begin)
        time += 4 * (g - begin)
        n += 1
    if n > first and lead:
        starts[first] += lead
        lengths[first] -= lead
    return n, OK


@njit(nogil=True, cache=True)
def _large_windows(st, position, size, mask, lead, starts, lengths, first, parts):
    """`_windows` of a payload that does not fit the buffer."""
    whole = np.empty(size, np.uint8)
    if not _fill(st[_FD], whole.ctypes.data, size, position):
        return first, READ
    return _windows(whole, 0, size, mask, lead, starts, lengths, first, parts)


@njit(nogil=True, cache=True)
def survey_hsd(
    st, buf, offsets, stamps, slots, ranks, sizes, fields, headers, places, lead, first, counts, flags, words, starts,
    lengths,
):  # fmt: skip
    """Measure digitizer channels and find their FEX windows.

    ``counts[row, place]`` becomes (waveform samples, windows, bytes), and ``words[row, slot]`` where in the datagram
    the words of (waveform, windows) begin, 0 where there are none; windows are appended to `starts` and `lengths` in
    the order of rows and *slots*. `lead` samples at the start of the first window are baselines, no signal (format 3).
    Starts at row `first`; returns ``(FULL, row, windows)`` where the arrays are full, ``(OK, -1, windows)`` at the end.
    """
    n = 0
    where, damage = np.empty(fields.size, np.int64), np.empty(fields.size, np.uint16)
    shape, found, parts = np.empty(5, np.int64), np.empty((ranks.shape[1], 2), np.int64), np.zeros(5, np.int64)
    for row in range(first, offsets.size):
        if offsets[row] < 0:
            continue
        status, at = _walk(st, buf, offsets[row], stamps[row], slots, where, damage)
        if status != OK:
            return status, row, at
        before = n
        for s in range(where.size):
            if where[s] < 0 or fields[s] < 0:
                continue
            mask, status = _find_payload(st, buf, where[s], ranks, sizes, s, fields[s], headers[s], shape, found)
            if status != OK:
                return status, row, where[s]
            start, i, size = n, 0, found[fields[s], _BYTES]
            if not size:
                continue
            if size > _BUFFER:
                n, status = _large_windows(st, found[fields[s], _AT], size, mask, lead, starts, lengths, start, parts)
            else:
                i = _need(st, buf, found[fields[s], _AT], size)
                if i < 0:
                    return READ, row, where[s]
                n, status = _windows(buf, i, size, mask, lead, starts, lengths, start, parts)
            if status == FULL:
                return FULL, row, before
            if status == HSD:  # one malformed payload is no reason to give none: it counts as empty, and is flagged
                n = start
                flags[row, places[s]] = 128
                continue
            if status != OK:
                return status, row, where[s]
            counts[row, places[s], 0] = parts[1]
            counts[row, places[s], 1] = n - start
            counts[row, places[s], 2] = size
            flags[row, places[s]] = parts[4]
            for k in range(2):
                if parts[2 * k + 1]:
                    words[row, s, k] = found[fields[s], _AT] - offsets[row] + parts[2 * k] - i
    return OK, -1, n


@njit(nogil=True, cache=True)
def read_waveforms(st, buf, offsets, stamps, words, places, begins, ends, out):
    """Samples of waveforms: of row r, place p into the uint16s ``[begins[r, p], ends[r, p])`` of the bytes `out`.

    ``words[row, slot]`` is where in its datagram they lie, as `survey_hsd` found it.
    """
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        end, status = _enter(st, buf, offsets[row], stamps[row])
        if status != OK:
            return status, row, offsets[row]
        for s in range(places.size):
            if not words[row, s]:
                continue
            at, begin = offsets[row] + words[row, s], begins[row, places[s]]
            size = 2 * (ends[row, places[s]] - begin)
            if at + size > end:
                return CONTENT, row, at
            status = _copy(st, buf, at, size, out, 2 * begin)
            if status != OK:
                return status, row, at
    return OK, -1, -1


@njit(nogil=True, cache=True)
def read_windows(st, buf, offsets, stamps, words, places, lead, firsts, lasts, edges, out):
    """Samples of FEX windows: window w, of those ``firsts[r, p]`` to ``lasts[r, p]``, from ``edges[w]`` of `out` on.

    `words` and `out` are as for `read_waveforms`. How long the windows are is known, so of the words between them only
    those are looked at that tell of skipped samples.
    """
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        end, status = _enter(st, buf, offsets[row], stamps[row])
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
                    i = _need(st, buf, at, 8)
                    if i < 0:
                        return READ, row, at
                    if not buf[np.uint64(i) + _1] & 0x80:
                        break
                    at += 8
                size = 2 * (edges[window + 1] - edges[window])
                at, skip = at + skip, 0
                if at + size > end:
                    return CONTENT, row, at
                status = _copy(st, buf, at, size, out, 2 * edges[window])
                if status != OK:
                    return status, row, at
                at += size
    return OK, -1, -1


@njit(nogil=True, cache=True)
def check(st, buf, offsets, stamps, slots, ranks, sizes, lasts, present, bits, root, statuses, positions):
    """Walk through every field of every contribution; goes on after damage.

    ``lasts[slot]`` is the last field of each Names, -1 without fields. Counts go to ``present[slot]`` and, by damage
    bit, to ``bits[slot, 16]``, of whole datagrams to ``root[16]``; what is wrong with each row to `statuses`, and where
    to `positions`.
    """
    where, damage = np.empty(lasts.size, np.int64), np.empty(lasts.size, np.uint16)
    shape, found = np.empty(5, np.int64), np.empty((ranks.shape[1], 2), np.int64)
    for row in range(offsets.size):
        if offsets[row] < 0:
            continue
        i = _need(st, buf, offsets[row], 24)
        whole = _u16(buf, i + 16) if i >= 0 else 0
        statuses[row], positions[row] = _walk(st, buf, offsets[row], stamps[row], slots, where, damage)
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
                statuses[row] = _locate(st, buf, where[s], ranks, sizes, s, lasts[s], shape, found)
                positions[row] = where[s]
    return OK, -1, -1
