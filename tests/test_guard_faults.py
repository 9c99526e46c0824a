"""A guarded cluster of processes whose nannies end or restart workers, and whose network is cut."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from cluster_tasks import recorded
from dask_rig import Rig, ask_identity, dial, running, until
from distributed import Client
from distributed.comm import CommClosedError
from security_world import World, make_world

from lcls_dask.security import Role
from lcls_dask.security.guard import security_of

#: The two ends of a link between two network namespaces; no packet of it goes anywhere else.
HERE, THERE = "10.213.77.1", "10.213.77.2"
CUT = 20.0
#: Schedulers and workers import what is to be done.
IMPORTS = {"PYTHONPATH": str(Path(__file__).parent)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@contextmanager
def connected(rig: Rig, role: Role = Role.USER, cluster: str | None = None) -> Iterator[Client]:
    security = security_of(rig.person(role=role, cluster=cluster).directory)
    with Client(rig.address, security=security, timeout=30, set_as_default=False) as client:
        yield client


def test_nannies_restart_workers_and_die(world: World, tmp_path: Path) -> None:
    """A restarted worker is as guarded as the first; a nanny that is killed takes its worker with it."""
    with running(world, tmp_path / "alice") as rig:
        rig.scheduler(environment=IMPORTS)
        nannies = [rig.worker("--nthreads", "1", environment=IMPORTS) for _ in range(2)]
        with connected(rig) as client, connected(rig, Role.MANAGER, "c1") as manager:
            client.wait_for_workers(2, timeout=60)
            before = set(client.scheduler_info(-1)["workers"])
            futures = client.map(recorded, [tmp_path / "record"] * 20, range(20), [0.2] * 20, pure=False)
            first = min(before)
            manager.restart_workers([first], timeout=60)
            after = client.scheduler_info(-1)["workers"]
            assert len(after) == 2
            for address, told in after.items():
                for target in (address, told["nanny"]):
                    with pytest.raises(CommClosedError):
                        dial(target, rig.person("bob"), ask_identity)
            children = psutil.Process(nannies[0].popen.pid).children(recursive=True)
            os.kill(nannies[0].popen.pid, signal.SIGKILL)
            assert client.gather(futures) == [number**2 for number in range(20)]
            _, left = psutil.wait_procs(children, timeout=30)
            assert left == []
            assert len(client.scheduler_info(-1)["workers"]) == 1
    # what the dead have left to be done again was done again, nothing else was
    assert set((tmp_path / "record").read_text().split()) == {str(number) for number in range(20)}


@pytest.fixture
def link() -> Iterator[tuple[str, str]]:
    """A network of two ends: the name of our end, and that of the namespace with the other."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("no network of its own can be made here, and a cut network was NOT tested: it takes root and ip")
    name = f"lcls{os.getpid() % 100000}"
    ours, theirs = f"{name}a", f"{name}b"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, timeout=20, check=False)
    if made.returncode:
        pytest.skip(f"no network namespaces here, and a cut network was NOT tested: {made.stderr}")
    try:
        for command in (
            f"link add {ours} type veth peer name {theirs} netns {name}",
            f"addr add {HERE}/30 dev {ours}",
            f"link set {ours} up",
            f"-n {name} addr add {THERE}/30 dev {theirs}",
            f"-n {name} link set {theirs} up",
            f"-n {name} link set lo up",
        ):
            subprocess.run(["ip", *command.split()], check=True, timeout=20)
        yield ours, name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=20)  # its link goes with it


@pytest.mark.long
def test_the_schedulers_network_is_cut(world: World, tmp_path: Path, link: tuple[str, str]) -> None:
    """For 20 s, in the middle: nothing is lost, nothing is done twice, nobody has to join again."""
    ours, namespace = link
    parts = 40
    with running(world, tmp_path / "alice") as rig:
        scheduler = rig.scheduler("--host", HERE, environment=IMPORTS)
        worker = rig.worker("--host", THERE, environment=IMPORTS, prefix=("ip", "netns", "exec", namespace))
        with connected(rig) as client:
            client.wait_for_workers(1, timeout=60)
            (address,) = client.scheduler_info(-1)["workers"]
            assert THERE in address
            record = tmp_path / "record"
            futures = client.map(recorded, [record] * parts, range(parts), [0.2] * parts, pure=False)
            until(lambda: sum(future.done() for future in futures) >= 5, "some of the work")
            subprocess.run(["ip", "link", "set", ours, "down"], check=True, timeout=20)
            cut = time.monotonic()
            done = sum(future.done() for future in futures)
            while time.monotonic() < cut + CUT:
                time.sleep(0.5)
                assert sum(future.done() for future in futures) <= done + 2
            subprocess.run(["ip", "link", "set", ours, "up"], check=True, timeout=20)
            assert client.gather(futures) == [number**2 for number in range(parts)]
            assert list(client.scheduler_info(-1)["workers"]) == [address]
            assert client.submit(int, "7").result(timeout=20) == 7
        for process in (scheduler, worker):
            assert not [line for line in process.lines() if line["event"] == "connection"]
    assert sorted(map(int, record.read_text().split())) == list(range(parts))
