"""Certificates that are renewed under a working cluster: no connection ends, nothing is computed twice."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from dask_rig import SWEEP, running, until
from distributed import Client
from security_world import make_world

from lcls_dask.security import Identity, Role, load_identity
from lcls_dask.security.certificates import certificate_pem
from lcls_dask.security.guard import guard_of, security_of
from lcls_dask.security.introductions import accept

SECONDS = 40.0


@pytest.mark.long
def test_renewed_under_a_working_cluster(tmp_path: Path) -> None:
    """Scheduler, worker, nanny and client live on beyond the certificates that their connections began with."""
    world = make_world(tmp_path)
    with running(world, tmp_path / "alice") as rig:

        def brief(role: Role, cluster: str | None = "c1") -> Identity:
            return rig.short_lived(SECONDS, f"brief-{role}", role, cluster)

        people = [brief(Role.SCHEDULER), brief(Role.WORKER), brief(Role.USER, None)]
        scheduler = rig.scheduler(identity=people[0])
        worker = rig.worker(identity=people[1])
        with Client(rig.address, security=security_of(people[2].directory), timeout=30) as client:
            client.wait_for_workers(1, timeout=30)
            data = client.scatter(np.arange(1000))
            pid = client.submit(os.getpid, pure=False).result(timeout=20)
            connection = client.scheduler_comm.comm
            for identity in people:
                peer = identity.peer
                introduction = world.issuer.sign(
                    certificate_pem(identity.certificate),
                    peer.role,
                    peer.user,
                    cluster=peer.cluster,
                    lifetime=timedelta(hours=1),
                )
                accept(identity.directory, json.dumps(introduction))
            assert time.time() < min(identity.peer.not_after for identity in people), "too slow a machine for this"
            for process in (scheduler, worker):
                process.audited(event="certificate", decision="allowed", reason="renewed")
            # each has seen the others' new ones before their old ones end
            new = load_identity(people[1].directory).peer.serial
            scheduler.audited(event="connect", decision="allowed", role="worker", certificate=new)
            new = load_identity(people[2].directory).peer.serial
            scheduler.audited(event="connect", decision="allowed", role="user", certificate=new)
            until(lambda: time.time() > max(identity.peer.not_after for identity in people) + 4 * SWEEP + 4, "the end")
            assert client.submit(lambda x: (os.getpid(), int(x.sum())), data).result(timeout=20) == (pid, 499500)
            assert client.scheduler_comm.comm is connection
            assert client.status == "running"
        for process in (scheduler, worker):
            assert not [line for line in process.lines() if line["decision"] == "ended" and "expired" in line["reason"]]
        assert guard_of(people[2].directory).own.not_after > time.time() + 3000


def test_not_renewed_for_other_names(tmp_path: Path) -> None:
    """A certificate of another cluster in the directory is not taken for a renewal."""
    world = make_world(tmp_path)
    with running(world, tmp_path / "alice") as rig:
        identity = rig.short_lived(3600, "scheduler", Role.SCHEDULER, "c1")
        process = rig.scheduler(identity=identity)
        request = certificate_pem(identity.certificate)
        introduction = world.issuer.sign(request, Role.SCHEDULER, "alice", cluster="c2", lifetime=timedelta(hours=5))
        accept(identity.directory, json.dumps(introduction))
        until(lambda: "for another role, user or cluster" in process.log.read_text(), "a word in the log")
        assert process.popen.poll() is None
