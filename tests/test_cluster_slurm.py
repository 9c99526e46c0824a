"""Real Slurm jobs reduce runs that a gateway serves: the right answer, whatever happens to the jobs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dask.config
import numpy as np
import pytest
import xarray as xr
from cluster_rig import EXPERIMENT, SFX, TOF, Site, open_site, sfx_work, slurm, tof_work, uri, write_runs
from cluster_tasks import PATH, slowly
from gateway_rig import Gateway, until

from lcls_dask.cluster import ClusterClient, connect
from lcls_dask.demo import sfx, tof
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
def node() -> Iterator[Path]:
    with slurm() as directory:
        yield directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_runs(root)
    return root


@pytest.fixture
def site(node: Path, runs: Path, tmp_path: Path) -> Iterator[tuple[Site, Gateway]]:
    with open_site(tmp_path, runs) as (made, gateway), dask.config.set(made.settings(gateway)):
        yield made, gateway


def jobs_of(client: ClusterClient) -> dict[str, str]:
    """Slurm's job of each worker, by the worker's address."""
    futures = {
        a: client.submit(os.getenv, "SLURM_JOB_ID", workers=[a], pure=False)
        for a in client.scheduler_info(-1)["workers"]
    }
    return {address: future.result() for address, future in futures.items()}  # fmt: skip


def test_two_jobs_reduce_both_runs_and_one_is_retired(site: tuple[Site, Gateway], tmp_path: Path) -> None:
    made, gateway = site
    with connect("slurm", workers=2, experiments=["tmox42619"], log_directory=str(tmp_path / "logs"), **JOB) as client:
        jobs = jobs_of(client)
        assert len(set(jobs.values())) == 2
        assert all(address.startswith("tls://127.0.0.1:") for address in jobs)
        for work, parts, right, merge in ((*tof_work(made), tof.merge), (*sfx_work(made), sfx.merge)):
            found = merge(client.gather(client.map(work, parts, pure=False)))
            assert found == right
        client.cluster.scale(1)
        until(lambda: len(client.scheduler_info(-1)["workers"]) == 1, 60, "scaling down")
        until(lambda: running() == 1, 60, "the end of its job")
        assert client.submit(sum, [1, 2]).result() == 3
    until(lambda: running() == 0, 60, "the end of all jobs")
    assert not list((made.base / "clusters").glob("*-secrets"))
    readers = {record["user"] for record in gateway.audit() if "/c/" in str(record["key"])}
    assert readers == {"alice"}
    enrolled = [entry for entry in made.world.issuer.issued() if entry["kind"] == "enrolment"]
    assert len(enrolled) == 2


def running() -> int:
    told = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True, timeout=30).stdout
    return len(told.splitlines())


def test_a_job_is_killed_in_the_middle_and_replaced(site: tuple[Site, Gateway]) -> None:
    made, _ = site
    with connect("slurm", adapt=(2, 2), **JOB) as client:
        work, parts, right = tof_work(made)
        before = jobs_of(client)
        futures = client.map(slowly, [work] * len(parts), parts, [0.1] * len(parts), pure=False)
        until(lambda: sum(future.done() for future in futures) >= len(parts) // 4, 120, "a quarter of the reduction")
        victim = min(before.values(), key=int)
        subprocess.run(["scancel", victim], check=True, timeout=30)
        assert not all(future.done() for future in futures)
        assert tof.merge(client.gather(futures)) == right
        # the adaptive cluster has sent another job, which has joined with a secret of its own
        until(lambda: len(client.scheduler_info(-1)["workers"]) == 2, 120, "another job")
        after = set(jobs_of(client).values())
        assert victim not in after
        assert len(after) == 2


def test_the_job_script_submitted_once_more_joins_too(site: tuple[Site, Gateway], tmp_path: Path) -> None:
    """As a batch system does that requeues a job: nobody has told the client of it."""
    made, _ = site
    with connect("slurm", workers=1, **JOB) as client:
        script = tmp_path / "again.sh"
        script.write_text(client.cluster.job_script())
        subprocess.run(["sbatch", script], check=True, capture_output=True, timeout=30)
        client.wait_for_workers(2, timeout=120)
        assert len(set(jobs_of(client).values())) == 2
        enrolled = [entry for entry in made.world.issuer.issued() if entry["kind"] == "enrolment"]
        assert len({entry["secret_id"] for entry in enrolled}) == 2
        (victim,) = set(jobs_of(client).values()) - {job.job_id for job in client.cluster.workers.values()}
        subprocess.run(["scancel", victim], check=True, timeout=30)


def test_a_worker_killed_in_its_job_is_started_again(site: tuple[Site, Gateway]) -> None:
    """By its nanny, with the identity that the job has: no second secret is taken."""
    made, _ = site
    with connect("slurm", workers=1, **JOB) as client:
        ((address, job),) = jobs_of(client).items()
        os.kill(client.submit(os.getpid).result(), signal.SIGKILL)
        until(lambda: set(client.scheduler_info(-1)["workers"]) - {address}, 120, "the next worker")
        until(lambda: set(client.scheduler_info(-1)["workers"]).isdisjoint({address}), 60, "the end of the first")
        assert set(jobs_of(client).values()) == {job}
        assert len([entry for entry in made.world.issuer.issued() if entry["kind"] == "enrolment"]) == 1


def test_jobs_that_wait_in_the_queue(site: tuple[Site, Gateway]) -> None:
    wish = JOB | {"job_extra_directives": ["--hold"]}
    told = r"0 of 1 workers have come in 2 s: 1 of 1 jobs wait in the queue"
    with pytest.raises(WorkersMissingError, match=told) as error:
        connect("slurm", workers=1, timeout=2, **wish)
    (note,) = error.value.__notes__
    assert "--- job script" in note
    assert "#SBATCH --hold" in note
    until(lambda: running() == 0, 60, "the end of its jobs")


def test_jobs_that_cannot_start_their_workers(site: tuple[Site, Gateway], tmp_path: Path) -> None:
    options = JOB | {"job_script_prologue": ["module load no-such-module || exit 3"], "log_directory": str(tmp_path)}
    with pytest.raises(WorkersMissingError, match="logs may say why") as error:
        connect("slurm", workers=1, timeout=10, **options)
    assert "module" in error.value.__notes__[0].partition("--- job script")[0]


def test_workers_retire_before_their_walltime(site: tuple[Site, Gateway]) -> None:
    """Their results are handed over: nothing is computed twice."""
    options = JOB | {"walltime": "00:10:00", "worker_extra_args": ["--lifetime", "15s"]}
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
    _, _, right = sfx_work(made)
    assert np.array_equal(saved["powder"], right.total.sum(axis=0))
    truth = made.root / EXPERIMENT / f"r{TOF:04d}"
    windows = xr.open_dataset(truth, engine="lcls", group="/hsd")["hsd.raw.windows.time"].values * 1e9
    assert np.array_equal(saved["spectrum"], np.histogram(windows, 500, (0, 500))[0])
    assert saved["spectrum"].sum() > 1000
