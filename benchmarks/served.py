"""A run of frames behind a gateway: what the benchmarks of remote reading have in common."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import xarray as xr

from lcls_dask.formats import discover
from tests.gateway_rig import Facility, Gateway, write_store

from .timing import Setting

EXPERIMENT, NAME = "bench0001", "det.raw.big"
SHAPE, ROWS = (1024, 1024), 8
FRAME = 2 * SHAPE[0] * SHAPE[1]
CHUNK = ROWS * FRAME
UNLIMITED = ("--requests", "1e9", "--inflight", "1e6", "--connections", "100000")


@dataclass(frozen=True)
class ServedRun:
    """Frames of uint16, 8 in a chunk, and where they are.

    Attributes
    ----------
    facility : Facility
    gateway : Gateway
    identity : Path
    frames : int
    """

    facility: Facility
    gateway: Gateway
    identity: Path
    frames: int

    @property
    def store(self) -> Path:
        """The files behind the gateway."""
        return self.facility.root / EXPERIMENT / "r0001.zarr"

    def chunks(self) -> list[Path]:
        """Files of the chunks."""
        return [self.store / NAME / "c" / str(number) / "0" / "0" for number in range(self.frames // ROWS)]

    def there(self) -> int:
        """The sum of all pixels, of the files."""
        return sum(int(np.fromfile(path, np.uint16).sum()) for path in self.chunks())

    def reduced(self) -> int:
        """The sum of all pixels through the gateway, by Dask's threads."""
        discover._OPEN.clear()
        opened = xr.open_dataset(f"lcls://{EXPERIMENT}/r0001", engine="lcls", chunks={})
        return int(opened[NAME].sum().compute(scheduler="threads"))

    def loaded(self) -> int:
        """All pixels through the gateway, in one array; how many bytes."""
        discover._OPEN.clear()
        return int(xr.open_dataset(f"lcls://{EXPERIMENT}/r0001", engine="lcls")[NAME].load().nbytes)


@contextmanager
def served_run(setting: Setting, frames: int) -> Iterator[ServedRun]:
    """Serve frames of random numbers to this process, over mutual TLS; its sum is known to be right."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # a server and its client are two
    facility = Facility(setting.directory)
    shapes = {NAME: (ROWS, (frames, *SHAPE)), "timestamp": (frames, (frames,))}
    write_store(facility.root / EXPERIMENT / "r0001.zarr", EXPERIMENT, 1, shapes)
    alice = facility.identity("alice")
    facility.allow({EXPERIMENT: ["alice"]})
    token = alice / "token"
    token.touch(0o600)
    token.write_text(facility.token(alice, EXPERIMENT, lifetime=3000))
    gateway = Gateway(facility, UNLIMITED).start()
    address = f"https://localhost:{gateway.port}"
    try:
        with dask.config.set({"lcls.gateway": address, "lcls.identity": str(alice), "lcls.direct": False}):
            run = ServedRun(facility, gateway, alice, frames)
            if run.reduced() != run.there():
                raise RuntimeError("what came through the gateway is not what is in the files")
            yield run
    finally:
        gateway.stop()


@contextmanager
def serving(code: str, *arguments: object) -> Iterator[int]:
    """Port that a Python program prints, which is ended afterwards."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(30)
