"""Compressed chunks passed through as they are stored, against decoding them at the server: bytes sent, and its CPU."""

import os
from collections.abc import Callable

from lcls_dask.formats import codecs, open_source
from lcls_dask.security import load_identity
from lcls_dask.security.tls import client_context
from tests.gateway_rig import Facility, Gateway, write_store

from .gateway import BIG, Peer, timed
from .served import EXPERIMENT, UNLIMITED
from .timing import Setting, compare, interleaved

#: As `lcls-dask export` compresses by default.
_ZSTD = {
    "name": "blosc",
    "configuration": {"typesize": 2, "cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "blocksize": 0},
}


def run(setting: Setting) -> None:
    """Measure."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # a server and its client are two
    facility = Facility(setting.directory)
    count = setting.size(8, 1)
    shapes = {BIG: (8, (8 * count, 1024, 1024)), "timestamp": (1, (1,))}
    for number, filters in ((1, ()), (2, (_ZSTD,))):
        write_store(facility.root / EXPERIMENT / f"r{number:04d}.zarr", EXPERIMENT, number, shapes, filters, most=64)
    alice = facility.identity("alice")
    facility.allow({EXPERIMENT: ["alice"]})
    token = facility.token(alice, EXPERIMENT)
    source = open_source(facility.root / EXPERIMENT / "r0002.zarr")
    variable = source.index.nodes["/"].variables[BIG]
    keys = [f"{BIG}/c/{number}/0/0" for number in range(count)]
    gateway = Gateway(facility, UNLIMITED).start()
    try:
        (worker,) = gateway.workers()
        context = client_context(load_identity(alice))
        plain, packed = (Peer(gateway.port, context, target, token, worker) for target in (_target(1), _target(2)))
        with plain.connect() as connection:
            sizes = [[peer.fetch(connection, key) for key in keys] for peer in (plain, packed)]
            timings = interleaved(
                2 * setting.repeats,
                {
                    "plain": timed(plain, lambda: [plain.fetch(connection, key) for key in keys]),
                    "packed": timed(packed, lambda: [packed.fetch(connection, key) for key in keys]),
                    "decoding": lambda: [
                        codecs.decode(variable.codecs, source.read_encoded("/", BIG, number) or b"", variable.dtype)
                        for number in range(count)
                    ],
                },
            )
    finally:
        gateway.stop()
    stored = sum(len(source.read_encoded("/", BIG, number) or b"") for number in range(count))
    ratio = sum(sizes[0]) / sum(sizes[1])
    print(f"  {count} chunks of 16 MiB that zstd makes {ratio:.2f} times smaller")
    compare("bytes sent over bytes stored", sum(sizes[1]) / stored, 1)
    at_server = timings["plain"].median_cpu + timings["decoding"].median_cpu
    compare("server's CPU time over reading, decoding, sending", timings["packed"].median_cpu / at_server, 1)


def _target(run: int) -> Callable[[str], str]:
    return lambda key: f"/v1/runs/{EXPERIMENT}/r{run:04d}@{run:032x}/zarr/{key}"
