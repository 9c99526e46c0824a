"""The store that gateways serve in several tests: what it is called, and what is in it."""

import ssl
from pathlib import Path

from gateway_rig import Facility, Gateway

HERS = "tmox42619"
BIG = "det.raw.big"  # chunks of 16 MiB
SMALL = "det.raw.small"
RUN = f"/v1/runs/{HERS}/r0005@{5:032x}"
MIB = 1 << 20


def chunk(facility: Facility, name: str, number: int, dims: int = 3) -> bytes:
    return facility.root.joinpath(HERS, "r0005.zarr", name, "c", str(number), *["0"] * (dims - 1)).read_bytes()


def ask(gateway: Gateway, identity: Path, token: str, target: str) -> ssl.SSLSocket:
    """A connection on which a request was sent, and nothing read yet."""
    connection = gateway.socket(identity)
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return connection


def body_of(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[2]


def memory(pid: int) -> int:
    """Bytes of a process that no file backs."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024
