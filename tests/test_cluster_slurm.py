"""Real Slurm jobs reduce runs that a gateway serves: the right answer, whatever happens to the jobs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask.config
import numpy as np
import pytest
import xarray as xr
from cluster_rig import EXPERIMENT, SFX, TOF, Site, open_site, sfx_work, tof_work, total, uri
from cluster_tasks import PATH, slowly
from gateway_rig import Gateway, until

from lcls_dask.cluster import ClusterClient, connect
from lcls_dask.errors import WorkersMissingError

ROOT = Path(__file__).resolve().parents[1]
JOB = {
    "cores": 1,
    "processes": 1,
    "memory": "1GB",
    "walltime": "00:20:00",
    "interface": "lo",
    "job_script_prologue": [PATH],
}


@pytest.fixture(scope="module")
def site(
    slurm_node: Path, cluster_runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, Gateway]]:
    with (
        open_site(tmp_path_factory.mktemp("site"), cluster_runs) as (made, gateway),
        dask.config.set(made.settings(gateway)),
    ):
        yield made, gateway


@pytest.fixture
def soon() -> Iterator[None]:
    """What is lost is given up in two seconds, so that a test need not wait for it."""
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "2s"}):
        yield


@pytest.fixture(scope="module")
def started(site: tuple[Site, Gateway]) -> Iterator[ClusterClient]:
    with connect("slurm", workers=2, experiments=[EXPERIMENT], **JOB) as client:
        yield client


@pytest.fixture
def two_jobs(started: ClusterClient) -> ClusterClient:
    """A cluster of two jobs; each test leaves as many behind."""
    started.wait_for_workers(2, timeout=60)
    assert len(set(jobs_of(started).values())) == 2
    return started


def enrolled(site: Site) -> list[str]:
    """Secrets that jobs have brought to the issuer so far."""
    return [entry["secret_id"] for entry in site.world.issuer.issued() if entry["kind"] == "enrolment"]


def jobs_of(client: ClusterClient) -> dict[str, str]:
    """Slurm's job of each worker, by the worker's address."""
    futures = {
        a: client.submit(os.getenv, "SLURM_JOB_ID", workers=[a], pure=False)
        for a in client.scheduler_info(-1)["workers"]
    }
    return {address: future.result() for address, future in futures.items()}  # fmt: skip


def test_two_jobs_reduce_both_runs(site: tuple[Site, Gateway], two_jobs: ClusterClient) -> None:
    made, gateway = site
    assert all(address.startswith("tls://127.0.0.1:") for address in two_jobs.scheduler_info(-1)["workers"])
    for work, parts, right in (tof_work(made), sfx_work(made)):
        assert total(two_jobs.gather(two_jobs.map(work, parts, pure=False))) == right
    readers = {record["user"] for record in gateway.audit() if "/c/" in str(record["key"])}
    assert readers == {"alice"}


def test_one_of_two_jobs_is_retired_and_nothing_stays_in_the_end(site: tuple[Site, Gateway]) -> None:
    made, _ = site
    before, others = len(enrolled(made)), running()
    with connect("slurm", workers=2, **JOB) as client:
        assert len(enrolled(made)) == before + 2
        client.cluster.scale(1)
        until(lambda: len(client.scheduler_info(-1)["workers"]) == 1, 60, "scaling down")
        until(lambda: running() == others + 1, 60, "the end of its job")
        assert client.submit(sum, [1, 2]).result() == 3
        secrets = Path(client.cluster.job_script().partition("identity enrol ")[2].partition(")")[0])
        assert secrets.is_dir()
    until(lambda: running() == others, 60, "the end of all jobs")
    assert not secrets.exists()


def running() -> int:
    told = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True, timeout=30).stdout
    return len(told.splitlines())


def test_a_job_is_killed_in_the_middle_and_replaced(
    site: tuple[Site, Gateway], two_jobs: ClusterClient, soon: None
) -> None:
    made, _ = site
    work, parts, right = tof_work(made)
    before = jobs_of(two_jobs)
    adaptive = two_jobs.cluster.adapt(minimum=2, maximum=2)
    try:
        futures = two_jobs.map(slowly, [work] * len(parts), parts, [0.1] * len(parts), pure=False)
        until(lambda: sum(future.done() for future in futures) >= len(parts) // 4, 120, "a quarter of the reduction")
        victim = min(before.values(), key=int)
        subprocess.run(["scancel", victim], check=True, timeout=30)
        assert not all(future.done() for future in futures)
        assert total(two_jobs.gather(futures)) == right
        # the adaptive cluster has sent another job, which has joined with a secret of its own
        until(lambda: victim not in own_jobs(two_jobs) and len(own_jobs(two_jobs)) == 2, 60, "another job")
        two_jobs.wait_for_workers(2, timeout=120)
        after = set(jobs_of(two_jobs).values())
        assert victim not in after
        assert len(after) == 2
    finally:
        adaptive.stop()


def test_the_job_script_submitted_once_more_joins_too(
    site: tuple[Site, Gateway], two_jobs: ClusterClient, tmp_path: Path
) -> None:
    """Nobody has told the client of it."""
    made, _ = site
    before = enrolled(made)
    script = tmp_path / "again.sh"
    script.write_text(two_jobs.cluster.job_script())
    subprocess.run(["sbatch", script], check=True, capture_output=True, timeout=30, cwd=tmp_path)
    two_jobs.wait_for_workers(3, timeout=120)
    assert len(set(jobs_of(two_jobs).values())) == 3
    (secret,) = enrolled(made)[len(before) :]
    assert secret not in before
    (victim,) = set(jobs_of(two_jobs).values()) - own_jobs(two_jobs)
    subprocess.run(["scancel", victim], check=True, timeout=30)
    until(lambda: len(two_jobs.scheduler_info(-1)["workers"]) == 2, 60, "its end")


def own_jobs(client: ClusterClient) -> set[str]:
    """Jobs that the client's cluster knows of."""
    return {job.job_id for job in client.cluster.workers.values()}


def test_a_job_that_slurm_requeues_is_waited_for(
    site: tuple[Site, Gateway], two_jobs: ClusterClient, soon: None
) -> None:
    """As after a preemption: the same job comes back with a new secret, and none is sent in its place."""
    made, _ = site
    before, jobs = enrolled(made), own_jobs(two_jobs)
    address, victim = min(jobs_of(two_jobs).items())
    subprocess.run(["scontrol", "requeue", victim], check=True, timeout=30)
    until(lambda: address not in two_jobs.scheduler_info(-1)["workers"], 60, "the worker's end")
    lost = time.monotonic()
    until(lambda: len(two_jobs.scheduler_info(-1)["workers"]) == 2, 120, "the job's return")
    assert time.monotonic() - lost > 3, "longer than lost workers are waited for"
    assert set(jobs_of(two_jobs).values()) == own_jobs(two_jobs) == jobs
    assert len(enrolled(made)) == len(before) + 1


def test_a_worker_killed_in_its_job_is_started_again(site: tuple[Site, Gateway], two_jobs: ClusterClient) -> None:
    """By its nanny, with the identity that the job has: no second secret is taken."""
    made, _ = site
    before, jobs = enrolled(made), set(jobs_of(two_jobs).values())
    victim = min(two_jobs.scheduler_info(-1)["workers"])
    os.kill(two_jobs.submit(os.getpid, workers=[victim], pure=False).result(), signal.SIGKILL)
    until(lambda: victim not in two_jobs.scheduler_info(-1)["workers"], 60, "the end of the first")
    two_jobs.wait_for_workers(2, timeout=60)
    assert set(jobs_of(two_jobs).values()) == jobs
    assert enrolled(made) == before


def test_jobs_that_wait_in_the_queue(site: tuple[Site, Gateway]) -> None:
    wish, others = JOB | {"job_extra_directives": ["--hold"]}, running()
    told = r"0 of 1 workers have come in 2 s: 1 of 1 jobs wait in the queue"
    with pytest.raises(WorkersMissingError, match=told) as error:
        connect("slurm", workers=1, timeout=2, **wish)
    (note,) = error.value.__notes__
    assert "--- job script" in note
    assert "#SBATCH --hold" in note
    until(lambda: running() == others, 60, "the end of its jobs")


def test_jobs_that_cannot_start_their_workers(site: tuple[Site, Gateway], tmp_path: Path) -> None:
    options = JOB | {"job_script_prologue": ["module load no-such-module || exit 3"], "log_directory": str(tmp_path)}
    with pytest.raises(WorkersMissingError, match="logs may say why") as error:
        connect("slurm", workers=1, timeout=5, **options)
    assert "module" in error.value.__notes__[0].partition("--- job script")[0]


def test_workers_retire_before_their_walltime(site: tuple[Site, Gateway]) -> None:
    """Their results are handed over: nothing is computed twice."""
    # long enough for the other to be there when the first one's ends, on a busy machine too
    options = JOB | {"walltime": "00:10:00", "worker_extra_args": ["--lifetime", "30s"]}
    with connect("slurm", workers=1, **options) as client:
        first = client.submit(np.arange, 1000, pure=False)
        first.result()
        (old,) = client.scheduler_info(-1)["workers"]
        client.cluster.scale(2)
        until(lambda: old not in client.scheduler_info(-1)["workers"], 120, "the end of its lifetime")
        assert first.status == "finished"
        assert first.result().sum() == 499500


def test_the_example(site: tuple[Site, Gateway], tmp_path: Path) -> None:
    """`examples/slurm.py` as a user runs it, with everything about the place in the environment."""
    made, gateway = site
    out = tmp_path / "out.npz"
    settings = {
        f"DASK_{name.upper().replace('-', '_').replace('.', '__')}": str(value)
        for name, value in made.settings(gateway).items()
    }
    options = ["--cores", "1", "--memory", "1GB", "--walltime", "00:20:00", "--interface", "lo", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / "slurm.py", uri(TOF), uri(SFX), *options],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    saved = np.load(out)
    runs = made.root / EXPERIMENT
    frames = xr.open_dataset(runs / f"r{SFX:04d}", engine="lcls")["jungfrau.raw.raw"] & 0x3FFF
    assert np.array_equal(saved["powder"], frames.sum("event", dtype=np.uint64))
    windows = xr.open_dataset(runs / f"r{TOF:04d}", engine="lcls", group="/hsd")["hsd.raw.windows.time"].values * 1e9
    assert np.array_equal(saved["spectrum"], np.histogram(windows, 500, (0, 500))[0])
    assert saved["spectrum"].sum() > 1000
