"""A facility for the tests of clusters: an issuer's service, a gateway with two simulated runs, and maybe a Slurm."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_tasks import HitsByTime, PhotonsByRow
from gateway_rig import Gateway
from security_world import Service, World, make_world, serving

import lcls_dask
from lcls_dask import tof
from lcls_dask.formats import discover
from lcls_dask.formats.remote import gateway as remote_gateway
from lcls_dask.security import Role, create_identity
from lcls_dask.security.certificates import certificate_pem
from lcls_dask.security.introductions import accept

SCRIPT = Path(__file__).parent / "slurm" / "single-node.sh"
EXPERIMENT, TOF, SFX = "tmox42619", 1, 2
EVENTS, FRAMES = 1500, 16

_POLICY = f"""
[experiments.{EXPERIMENT}]
members = ["alice"]

[experiments.xpptut15]
members = ["alice"]
"""


@dataclass
class Site:
    """Everything that `lcls.*` names; the gateway's rig finds its directories here."""

    world: World
    service: Service
    base: Path
    root: Path
    gateway: Path
    alice: Path

    @property
    def policy(self) -> Path:
        return self.world.policy_file

    @property
    def revocations(self) -> Path:
        return self.world.revoked_file

    def settings(self, running: Gateway) -> dict[str, object]:
        return {
            "lcls.gateway": f"https://localhost:{running.port}",
            "lcls.issuer": self.service.url,
            "lcls.identity": str(self.alice),
            "lcls.revocations": str(self.revocations),
            "lcls.audit": str(self.base / "dask-audit"),
            "lcls.index-cache": str(self.base / "index"),
            "lcls.cluster.directory": str(self.base / "clusters"),
        }


def write_runs(root: Path) -> None:
    """The runs that are reduced, in the facility's format."""
    for number, kind, count in ((TOF, "tof", EVENTS), (SFX, "sfx", FRAMES)):
        where = root / EXPERIMENT / f"r{number:04d}"
        lcls_dask.simulate(where, kind, events=count, seed=number, experiment=EXPERIMENT, run=number)


@contextlib.contextmanager
def open_site(base: Path, runs: Path) -> Iterator[tuple[Site, Gateway]]:
    world = make_world(base)
    world.policy_file.write_text(_POLICY)
    with serving(world) as service:
        identity = create_identity(base / "gateway", Role.GATEWAY, "gateway", hosts=["localhost"])
        signed = world.issuer.sign(
            certificate_pem(identity.certificate), Role.GATEWAY, "gateway", hosts=["localhost", "127.0.0.1"]
        )
        accept(identity.directory, json.dumps(signed), trust=True)
        alice = world.person("alice").directory
        site = Site(world, service, base, runs, identity.directory, alice)
        running = Gateway(site, ("--requests", "100000")).start()  # type: ignore[arg-type]
        try:
            yield site, running
        finally:
            remote_gateway._hang_up()
            discover._OPEN.clear()
            if running.process is not None:
                running.stop()


@contextlib.contextmanager
def slurm() -> Iterator[Path]:
    """A Slurm of this machine; its directory."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if _absent(name)]
    if missing:
        pytest.skip(f"there is no Slurm here, and clusters on it were NOT tested: {', '.join(missing)} are missing")
    base = Path(tempfile.mkdtemp(prefix="lcls-slurm-"))  # a socket's path must be short
    started = subprocess.run(
        [SCRIPT, "start", base, str(_two_ports())], capture_output=True, text=True, timeout=150, check=False
    )
    before = os.environ.get("SLURM_CONF")
    try:
        assert started.returncode == 0, started.stderr
        os.environ["SLURM_CONF"] = started.stdout.strip()
        yield base
    finally:
        if before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = before
        subprocess.run([SCRIPT, "stop", base], check=True, timeout=150, stdout=subprocess.DEVNULL)
        shutil.rmtree(base)


def _absent(command: str) -> bool:
    return shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None


def _two_ports() -> int:
    """A free port whose next one is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


def uri(number: int) -> str:
    return f"lcls://{EXPERIMENT}/r{number:04d}"


def blocks(events: int, length: int) -> list[tuple[int, int]]:
    """Events in blocks: (first, behind the last) of each."""
    return [(first, min(first + length, events)) for first in range(0, events, length)]


def total(parts: list[np.ndarray[Any, Any]]) -> list[list[int]]:
    """What `HitsByTime` or `PhotonsByRow` has counted in all."""
    return np.sum(parts, axis=0).tolist()  # type: ignore[no-any-return]


def tof_work(site: Site) -> tuple[HitsByTime, list[tuple[int, int]], list[list[int]]]:
    """The reduction of the time-of-flight run through the gateway, its blocks, and the right answer."""
    local, parts, right = _tof(site.root / EXPERIMENT / f"r{TOF:04d}")
    return replace(local, path=uri(TOF), snapshot=lcls_dask.open_run(uri(TOF)).snapshot), parts, right


def sfx_work(site: Site) -> tuple[PhotonsByRow, list[tuple[int, int]], list[list[int]]]:
    """The same of the crystallography run."""
    local, parts, right = _sfx(site.root / EXPERIMENT / f"r{SFX:04d}")
    return replace(local, path=uri(SFX), snapshot=lcls_dask.open_run(uri(SFX)).snapshot), parts, right


@cache
def _tof(truth: Path) -> tuple[HitsByTime, list[tuple[int, int]], list[list[int]]]:
    run = lcls_dask.open_run(truth)
    node = run.dataset(group="/hsd", chunks=None)
    work = HitsByTime(str(truth), run.snapshot, tof.baseline_of(tof.windows(node, waveforms=True)).values)
    parts = blocks(node.sizes["hsd.event"], 50)
    right = total([work((0, parts[-1][-1]))])
    assert np.count_nonzero(right) > 100
    return work, parts, right


@cache
def _sfx(truth: Path) -> tuple[PhotonsByRow, list[tuple[int, int]], list[list[int]]]:
    run = lcls_dask.open_run(truth)
    work, parts = PhotonsByRow(str(truth), run.snapshot), blocks(run.events, 2)
    return work, parts, total([work((0, run.events))])
