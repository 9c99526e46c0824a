"""Nothing secret lies where others could see it: every key, token and enrolment secret is looked for everywhere."""

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import dask
import dask.config
import pytest
import xarray as xr
from cluster_rig import SFX, Site, open_site, uri
from cluster_tasks import PATH, keys_and_tokens, tell_secrets
from dask.utils import tmpdir
from gateway_rig import Gateway

import lcls_dask
from lcls_dask.cluster import connect

JOB = {
    "cores": 1,
    "processes": 1,
    "memory": "1GB",
    "walltime": "00:20:00",
    "interface": "lo",
    "job_script_prologue": [PATH],
}


@pytest.fixture
def place(slurm_node: Path, cluster_runs: Path, tmp_path: Path) -> Iterator[tuple[Path, Site, Gateway]]:
    with open_site(tmp_path / "site", cluster_runs) as (made, gateway):
        with dask.config.set(made.settings(gateway)), tmpdir(dir=tmp_path):
            yield slurm_node, made, gateway


def processes() -> Iterator[tuple[str, bytes]]:
    """Command line and environment of every process that can be seen, this one among them."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for file in ("cmdline", "environ"):
                try:
                    yield f"/proc/{entry.name}/{file}", (entry / file).read_bytes()
                except OSError:
                    continue


def files(*directories: Path) -> Iterator[tuple[str, bytes]]:
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()


def test_nothing_secret_is_seen(
    place: tuple[Path, Site, Gateway], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, site, gateway = place
    made: list[str] = []
    real = secrets.token_urlsafe

    def remembered(length: int | None = None) -> str:
        made.append(real(length))
        return made[-1]

    monkeypatch.setattr(secrets, "token_urlsafe", remembered)  # enrolment secrets, tickets and sessions
    hidden, logs = tmp_path / "hidden", tmp_path / "logs"
    hidden.mkdir(0o700)
    with connect("slurm", workers=2, log_directory=str(logs), **JOB) as client:
        workers = list(client.scheduler_info(-1)["workers"])
        answers = [
            client.submit(tell_secrets, str(hidden / str(number)), workers=[worker], pure=False)
            for number, worker in enumerate(workers)
        ]
        assert min(client.gather(answers)) >= 3  # its own key, its authority's, a token
        assert client.dashboard_link
        with dask.annotate(priority=3):
            frames = xr.open_dataset(uri(SFX), engine="lcls", chunks={})["jungfrau.raw.raw"]
            graph = frames.sum("event")
        future = client.compute(graph)
        assert future.result().shape == frames.shape[1:]

        held = {text for file in hidden.iterdir() for text in json.loads(file.read_text())}
        for identity in (site.alice, site.gateway, site.world.issuer.directory):
            held |= set(keys_and_tokens(identity))
        for role in ("scheduler", "manager"):
            held |= set(keys_and_tokens(Path(client.cluster.security.directories["client"]).parent / role))
        held |= set(made)
        assert len(held) > 12
        needles = {text[8:40].encode() for text in held}
        assert all(len(needle) >= 24 for needle in needles)

        client.dump_cluster_state(str(tmp_path / "dump"), format="yaml")
        seen: list[tuple[str, bytes]] = [
            ("graph", cloudpickle.dumps(dict(graph.__dask_graph__()))),
            ("client", cloudpickle.dumps([client.scheduler_info(-1), repr(client), client.security])),
            ("tasks", repr([(t.run_spec, t.annotations) for t in client.cluster.scheduler.tasks.values()]).encode()),
            ("job script", client.cluster.job_script().encode()),
            *files(tmp_path / "dump.yaml", logs, node, site.base / "dask-audit", site.base / "index"),
            ("dump", (tmp_path / "dump.yaml").read_bytes()),
            *processes(),
        ]
        # dask-jobqueue cannot close while anybody holds its Job objects, so their numbers alone are kept
        for number in [job.job_id for job in client.cluster.workers.values()]:
            for what in (["write", "batch_script", number, "-"], ["show", "job", number]):
                told = subprocess.run(["scontrol", *what], capture_output=True, check=True, timeout=30)
                seen.append((" ".join(what), told.stdout))
    seen += files(logs, node, site.base / "dask-audit", site.base / "audit")
    issuer = site.world.issuer.directory
    seen += [(name, data) for name, data in files(issuer) if not name.endswith(".key")]
    seen += [("log", site.service.log.encode()), ("log", gateway.log.read_bytes())]

    # were the places looked at the right ones? each holds what is no secret
    assert any("job_script" in name or name.endswith("script") for name, _ in seen), "Slurm's spool"
    assert sum(b"identity enrol" in data for _, data in seen) >= 3
    assert sum("cmdline" in name and b"lcls_dask.plugins.worker" in data for name, data in seen) >= 2
    assert sum("environ" in name and b"CERTIFIED_CONFIG=" in data for name, data in seen) >= 2
    assert any(b"Registered to" in data for name, data in seen if str(logs) in name)
    found = {(name, needle) for name, data in seen for needle in needles if needle in data}
    assert {name for name, _ in found} == set()


def test_the_scan_finds_what_is_there(tmp_path: Path) -> None:
    """A secret in an environment and in a file: both are seen."""
    secret = secrets.token_urlsafe(32)
    (tmp_path / "file").write_text(f"token={secret}")
    child = subprocess.Popen(["sleep", "60"], env={"TOKEN": secret})
    try:
        places = [name for name, data in (*processes(), *files(tmp_path)) if secret.encode()[8:40] in data]
    finally:
        child.kill()
        child.wait()
    assert f"/proc/{child.pid}/environ" in places
    assert str(tmp_path / "file") in places


def test_credentials_do_not_leave_their_process() -> None:
    from lcls_dask.formats.remote.credentials import Credentials

    with pytest.raises(TypeError, match="stay in the process"):
        cloudpickle.dumps(Credentials.__new__(Credentials))
    assert lcls_dask.connect is connect
