"""A gateway before one store with large and small chunks, and one run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_rig import Facility, Gateway, write_store
from served_store import BIG, HERS, SMALL

import lcls_dask


@pytest.fixture
def facility(tmp_path: Path) -> Facility:
    made = Facility(tmp_path)
    lcls_dask.simulate(made.root / HERS / "r0001", "scan", events=200, experiment=HERS, run=1)
    write_store(
        made.root / HERS / "r0005.zarr",
        HERS,
        5,
        {BIG: (8, (16, 1024, 1024)), SMALL: (1, (16, 2048)), "timestamp": (16, (16,))},
    )
    made.identity("alice")
    made.allow({HERS: ["alice"]})
    return made


@pytest.fixture
def alice(facility: Facility) -> Path:
    return facility.base / "alice"


@pytest.fixture
def gateway(facility: Facility) -> Iterator[Gateway]:
    running = Gateway(facility)
    yield running
    if running.process is not None:
        assert running.stop() == 0
