"""xtc2 read by struct alone: the tests' own reader, which shares nothing with the package."""

import struct
from typing import Any

import numpy as np

DTYPES = ["<u1", "<u2", "<u4", "<u8", "<i1", "<i2", "<i4", "<i8", "<f4", "<f8", "S1", "<i4", "<i4"]


def _text(data: bytes, at: int) -> str:
    return data[at : at + 256].split(b"\0")[0].decode()


def read_names(data: bytes, at: int) -> dict[str, Any]:
    extent, version, segment = *struct.unpack_from("<I", data, at + 8), *struct.unpack_from("<II", data, at + 1040)
    count, rest = divmod(extent - 1048, 524)
    assert rest == 0
    fields = [
        (_text(data, at + 1048 + 524 * i + 260), *struct.unpack_from("<II", data, at + 1048 + 524 * i + 516))
        for i in range(count)
    ]
    assert struct.unpack_from("<I", data, at + 12)[0] == sum(rank > 0 for _, _, rank in fields)
    return {
        "kind": _text(data, at + 16),
        "detector": _text(data, at + 272),
        "serial": _text(data, at + 528),
        "alg": _text(data, at + 784),
        "version": (version >> 16, version >> 8 & 255, version & 255),
        "segment": segment,
        "fields": fields,
    }


def read_values(data: bytes, at: int, fields: list[tuple[str, int, int]]) -> dict[str, Any]:
    """Values of the ShapesData at `at`."""
    end = at + struct.unpack_from("<I", data, at + 8)[0]
    parts, q = {}, at + 12
    while q < end:
        kind, extent = struct.unpack_from("<HI", data, q + 6)
        parts[kind & 0xFFF] = q + 12
        q += extent
    assert q == end
    out, row, place = {}, 0, parts[3]
    for name, code, rank in fields:
        shape = struct.unpack_from(f"<{rank}I", data, parts[2] + 20 * row) if rank else ()
        row += rank > 0
        dtype = np.dtype(DTYPES[code])
        value = np.frombuffer(data, dtype, int(np.prod(shape)), place).reshape(shape)
        place += value.nbytes
        out[name] = value.tobytes().split(b"\0")[0].decode() if code == 10 else value[()]
    return out


def walk(data: bytes) -> list[dict[str, Any]]:
    """All datagrams: offset, size, timestamp, service, damage, and `values` by (detector, segment, alg)."""
    names: dict[int, dict[str, Any]] = {}
    out = []
    at = 0

    def children(q: int, end: int, dgram: dict[str, Any], pending: list[tuple[int, int, int]]) -> None:
        while q < end:
            src, damage, kind, extent = struct.unpack_from("<IHHI", data, q)
            assert 12 <= extent <= end - q
            if kind & 0xFFF == 4:
                names[src] = read_names(data, q)
                dgram["names"].append(names[src])
            elif kind & 0xFFF == 1:
                pending.append((src, damage, q))
            else:
                assert kind & 0xFFF == 0
                children(q + 12, q + extent, dgram, pending)
            q += extent
        assert q == end

    while at < len(data):
        low, high, env, _, damage, kind, extent = struct.unpack_from("<IIIIHHI", data, at)
        assert kind == 0
        dgram: dict[str, Any] = {
            "offset": at, "size": 12 + extent, "timestamp": high << 32 | low, "service": env >> 24 & 15,
            "damage": damage, "names": [], "values": {}, "bits": {},
        }  # fmt: skip
        pending: list[tuple[int, int, int]] = []
        children(at + 24, at + 12 + extent, dgram, pending)
        for src, bits, q in pending:
            name = names[src]
            key = (name["detector"], name["segment"], name["alg"])
            dgram["values"][key] = read_values(data, q, name["fields"])
            dgram["bits"][key] = bits
        out.append(dgram)
        at += 12 + extent
    return out


def decode_hsd(chunk: np.ndarray) -> tuple[np.ndarray | None, list[tuple[int, np.ndarray]]]:
    """The whole waveform (or None) and the FEX windows (start, samples) of one channel's bytes."""
    words = np.frombuffer(chunk.tobytes(), "<u2")
    waveform, windows, at = None, [], 0
    while at < len(words):
        count, stream = int(words[at]) | (int(words[at + 1]) & 0x1FFF) << 16, int(words[at + 3]) >> 8
        body = words[at + 8 : at + 8 + count]
        at += 8 + count
        if stream == 0:
            waveform = body
            continue
        position, open_ = 0, False
        for g in range(0, count, 4):
            group = body[g : g + 4]
            if group[0] & 0x8000:
                position, open_ = position + int((group & 0x7FFF).astype(int).sum()), False
                continue
            if not open_:
                windows.append((position, group))
            else:
                windows[-1] = (windows[-1][0], np.concatenate([windows[-1][1], group]))
            position, open_ = position + 4, True
    return waveform, windows
