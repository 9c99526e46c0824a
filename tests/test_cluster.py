"""`connect` on this machine, to what runs already, and what it says when it cannot."""

import http.cookiejar
import os
import re
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dask.config
import pytest
from dask_jobqueue import PBSCluster
from distributed import LocalCluster, SchedulerPlugin, versions
from gateway_rig import until
from security_world import Service, make_world, serving

import lcls_dask
from lcls_dask import config
from lcls_dask.cluster import ClusterClient, connect, jobs
from lcls_dask.errors import AccessError, ClusterError, WorkersMissingError


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Directories, settings and temporary files of this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with dask.config.set({}):
        yield temporary


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterClient]:
    """Of a cluster of one worker that tests leave as it is."""
    with pytest.MonkeyPatch.context() as patch, dask.config.set({}):
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        with connect("local", workers=1) as client:
            yield client


@pytest.fixture
def owner(client: ClusterClient) -> str:
    """Directory of the identity of that cluster's owner."""
    return str(client.security.directories["client"])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(make_world(tmp_path)) as running:
        yield running


def test_local_without_a_facility(own_state: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with lcls_dask.connect("local", workers=2, threads_per_worker=1) as client:
        assert isinstance(client, ClusterClient)
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
        assert len(client.scheduler_info()["workers"]) == 2
        assert client.gather(client.map(lambda x: x + 1, range(10))) == list(range(1, 11))
        client.cluster.scale(1)
        until(lambda: len(client.scheduler_info()["workers"]) == 1, what="scaling down")
        directories = list(own_state.glob("lcls-*"))
        assert len(directories) == 2  # the issuer's, the cluster's
        assert all(directory.stat().st_mode & 0o077 == 0 for directory in directories)
    assert client.cluster.status.name == "closed"
    assert list(own_state.glob("lcls-*")) == []
    after = {thread.name for thread in threading.enumerate()} - before
    assert not [name for name in after if name.startswith("lcls-")], "no thread is left behind"


def test_local_with_the_facilitys_issuer(service: Service) -> None:
    """Certificates come from it; workers can read what the cluster was given, and nothing else."""
    world = service.world
    alice = world.person("alice")
    with dask.config.set({"lcls.issuer": service.url, "lcls.identity": str(alice.directory)}):
        with connect("local", workers=1, experiments=["tmox42619"]) as client:
            experiments, role, user = client.submit(_what_a_task_may_read).result()
        assert experiments == ["tmox42619"]
        assert (role, user) == ("worker", "alice")
        with pytest.raises(AccessError, match="nothing of this is granted"):
            connect("local", workers=1, experiments=["cxilr6716"])
    roles = [entry["role"] for entry in world.issuer.issued() if entry["kind"] == "certificate"]
    assert sorted(roles) == ["manager", "scheduler", "user", "worker"]


def _what_a_task_may_read() -> tuple[list[str], str, str]:
    from lcls_dask.formats.remote.credentials import credentials
    from lcls_dask.security import load_identity
    from lcls_dask.security.capability import read_unverified

    token = credentials().current().token
    assert token is not None
    peer = load_identity().peer
    return [right.experiment for right in read_unverified(token).rights], str(peer.role), peer.user


def test_adaptive() -> None:
    soon = {"distributed.adaptive.interval": "200ms"}
    with dask.config.set(soon), connect("local", adapt=(1, 3), threads_per_worker=1) as client:
        assert len(client.scheduler_info()["workers"]) >= 1
        futures = client.map(_sleep, range(60))
        until(lambda: len(client.scheduler_info()["workers"]) == 3, 60, "scaling up")
        assert client.gather(futures) == list(range(60))
        until(lambda: len(client.scheduler_info()["workers"]) == 1, 60, "scaling down")


def _sleep(x: int) -> int:
    import time

    time.sleep(0.2)
    return x


def test_a_cluster_that_runs_and_its_address(client: ClusterClient, owner: str) -> None:
    with connect(client.cluster, identity=owner) as second:
        assert second.submit(sum, [1, 2]).result() == 3
    with connect(client.scheduler.address, workers=1, identity=owner) as third:
        assert third.submit(sum, [3, 4]).result() == 7
    # closing those has not ended the cluster
    assert client.submit(sum, [5, 6]).result() == 11


def test_somebody_elses_cluster(service: Service, client: ClusterClient) -> None:
    bob = service.world.person("bob")
    with pytest.raises(OSError, match="tls"):
        connect(client.scheduler.address, identity=bob.directory, timeout=5)


def test_the_dashboard_is_for_who_asks_the_client(
    client: ClusterClient, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = client.dashboard_link
    plain = link.partition("?")[0]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(plain)
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    for page in (link, plain):
        with browser.open(page) as answer:
            assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(link)  # its ticket was used
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/alice/")
    # put back afterwards: other tests of this process run without JupyterHub
    link_there = {"distributed.dashboard.link": dask.config.get("distributed.dashboard.link")}
    with dask.config.set(link_there), connect(client.cluster, identity=owner) as second:
        port = re.search(r":(\d+)/", plain)
        assert port is not None
        assert second.dashboard_link.startswith(f"/user/alice/proxy/{port[1]}/status?ticket=")


def test_what_connect_refuses() -> None:
    for call, text in (
        (lambda: connect("kubernetes"), "is no cluster: give one of local, htcondor"),
        (lambda: connect("local", workers=1, adapt=(1, 2)), "workers= or adapt="),
        (lambda: connect("tcp://127.0.0.1:1"), "not guarded"),
        (lambda: connect("tls://127.0.0.1:1", cores=2), "cores= is for a cluster that is started"),
        (lambda: connect("local", workers=1, no_such_option=3), "cannot be started"),
        (lambda: connect(dict), "no class of dask-jobqueue"),
        (lambda: connect(PBSCluster), "say what a job of pbs is given"),
    ):
        with pytest.raises(ClusterError, match=text) as error:
            call()
        assert len(str(error.value).splitlines()) == 1
    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp", host="127.0.0.1"
        ) as stock,
        pytest.raises(ClusterError, match="not guarded"),
    ):
        connect(stock)


@pytest.mark.parametrize("plugins", [[], [SchedulerPlugin()]])
def test_no_option_takes_the_guards_away(own_state: Path, plugins: list[SchedulerPlugin]) -> None:
    with pytest.raises(ClusterError, match="speaks tls:// alone"):
        connect("local", workers=1, scheduler_kwargs={"protocol": "tcp://", "plugins": plugins})
    with pytest.raises(ClusterError, match="cannot be started"):
        connect("local", workers=1, security=None)
    assert list(own_state.glob("lcls-*")) == []


def test_nothing_stays_of_a_cluster_that_does_not_start(own_state: Path) -> None:
    with pytest.raises(ClusterError):
        connect("local", workers=1, no_such_option=3)
    assert list(own_state.glob("lcls-*")) == []


def test_workers_that_do_not_come(client: ClusterClient, owner: str) -> None:
    with pytest.raises(WorkersMissingError, match=r"1 of 2 workers have come in 0\.2 s"):
        connect(client.cluster, workers=2, timeout=0.2, identity=owner)


def test_other_versions_are_refused(client: ClusterClient, owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # of this process; its workers have the real one
    real = versions._version_cached
    monkeypatch.setattr(versions, "_version_cached", lambda name: "0.0.1" if name == "lcls_dask" else real(name))
    with pytest.raises(ClusterError, match=r"tls://.* runs lcls_dask .*, this process 0\.0\.1"):
        connect(client.cluster, identity=owner)


def test_control_c_stays_what_it_was() -> None:
    """dask-jobqueue's import has it end the process at once."""
    look = (
        "import signal; before = signal.getsignal(signal.SIGINT); from lcls_dask.cluster import jobs;"
        "cls = jobs.cluster_class('slurm'); assert signal.getsignal(signal.SIGINT) is before; print(cls.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "SLURMCluster"), done.stderr


def test_a_pbs_job_script(tmp_path: Path) -> None:
    options = {
        "cores": 4,
        "memory": "8GB",
        "walltime": "02:00:00",
        "job_script_prologue": ["module load x"],
        "worker_extra_args": ["--resources", "GPU=1"],
        "scheduler_options": {"port": 0},
    }
    with dask.config.set({"lcls.gateway": "https://gateway:4443", "lcls.identity": str(tmp_path / "alice")}):
        given = jobs.job_options(PBSCluster, options, Path("/shared/c1 secrets"), "https://issuer:1", "10.0.0.1")
    given.pop("scheduler_options")
    script = PBSCluster.job_cls("tls://10.0.0.1:8786", name="w", **given).job_script()
    lines = script.splitlines()
    assert lines.index("module load x") < lines.index('export CERTIFIED_CONFIG DASK_LCLS__IDENTITY="$CERTIFIED_CONFIG"')
    assert "identity enrol '/shared/c1 secrets') || exit 1" in script
    assert "export DASK_LCLS__GATEWAY=https://gateway:4443" in lines
    assert "export DASK_LCLS__ISSUER=https://issuer:1" in lines
    assert str(tmp_path / "alice") not in script
    assert "--resources GPU=1 --preload lcls_dask.plugins.worker --preload-nanny lcls_dask.plugins.nanny" in script
    assert "--lifetime 6900s --lifetime-stagger 150s" in script
    assert "--tls-" not in script
    with dask.config.set({"jobqueue.pbs.worker-extra-args": ["--lifetime", "60s"]}):
        again = jobs.job_options(
            PBSCluster, options | {"worker_extra_args": None}, Path("/x"), "https://issuer:1", None
        )
    assert again["worker_extra_args"].count("--lifetime") == 1


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("30", 1800), ("30:15", 1815), ("01:30:00", 5400), ("1-00", 86400), ("1-12:30", 131400), ("2-01:00:05", 176405)],
)
def test_walltimes_as_slurm_reads_them(walltime: str, seconds: float) -> None:
    assert jobs.parse_walltime(walltime) == seconds


def test_a_walltime_that_is_none() -> None:
    with pytest.raises(ClusterError, match="no walltime"):
        jobs.parse_walltime("UNLIMITED hours")


def test_defaults_are_in_the_yaml_file() -> None:
    assert dask.config.get("lcls.cluster.timeout") == config.DEFAULTS["lcls"]["cluster"]["timeout"]
    with dask.config.set({"lcls.cluster.timeout": 0.3, "lcls.cluster.options.local": {"threads_per_worker": 1}}):
        with connect("local", workers=2, timeout=60) as client:
            assert {worker["nthreads"] for worker in client.scheduler_info()["workers"].values()} == {1}
            with pytest.raises(WorkersMissingError, match=r"in 0.3 s"):
                connect(client.cluster, workers=3, identity=client.security.directories["client"])
    assert os.environ.get("LCLS_ISSUER") is None
