"""Disk, database, clock, keys and certificates fail or change: an error that says so or the right bytes."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import psutil
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from gateway_rig import Facility, Gateway, until
from served_store import HERS, RUN, SMALL, chunk
from test_state import Postgres, postgres  # noqa: F401

from lcls_dask.gateway.audit import AuditLog
from lcls_dask.gateway.authority import Authority
from lcls_dask.gateway.connections import Connections
from lcls_dask.gateway.limits import Usage, create_table
from lcls_dask.gateway.metrics import Metrics
from lcls_dask.gateway.reading import Reader
from lcls_dask.gateway.runs import Runs
from lcls_dask.gateway.seen import Seen
from lcls_dask.gateway.service import Service
from lcls_dask.gateway.settings import Settings
from lcls_dask.gateway.state import State
from lcls_dask.gateway.worker import listening_socket
from lcls_dask.security import create_revocations, load_identity
from lcls_dask.security.capability import read_unverified
from lcls_dask.security.introductions import accept, introduce
from lcls_dask.security.tls import client_context


def test_nothing_is_sent_that_cannot_be_audited(facility: Facility, gateway: Gateway, alice: Path) -> None:
    gateway.start()
    (worker,) = gateway.workers()
    target = f"{RUN}/zarr/{SMALL}/c/0/0"
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        assert client.get(target).status == 200
        unlimited = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (1, unlimited[1]))  # as a full disk
        try:
            reply = client.get(target)
            assert (reply.status, reply.fields["retry-after"]) == (503, "1")
        finally:
            resource.prlimit(worker, resource.RLIMIT_FSIZE, unlimited)
        assert client.get(target).body == chunk(facility, SMALL, 0, 2)
    assert all(isinstance(record, dict) for record in gateway.audit())


def test_the_gateways_certificate_is_renewed_under_load(facility: Facility, gateway: Gateway, alice: Path) -> None:
    gateway.start()
    context = client_context(load_identity(alice))

    def serial() -> str:
        with gateway.socket(None, context) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            told = connection.getpeercert()
            assert told is not None
            return str(told["serialNumber"]).lstrip("0").lower()

    before = serial()
    with gateway.client(alice, facility.token(alice, HERS)) as kept:
        assert kept.get(f"/v1/runs/{HERS}/r0005").status == 200
        subject = (facility.gateway / "id.crt").read_bytes()
        signed = introduce(facility.base / "site", subject, hosts=("localhost", "127.0.0.1"))
        accept(facility.gateway, json.dumps(signed))
        after = until(lambda: (now := serial()) != before and now)
        assert after == load_identity(facility.gateway).peer.serial
        assert kept.get(f"/v1/runs/{HERS}/r0005").status == 200, "who is connected stays connected"


def test_a_certificate_that_could_not_be_taken_is_taken_once_it_is_mended(
    facility: Facility, gateway: Gateway, alice: Path
) -> None:
    gateway.start()
    subject = (facility.gateway / "id.crt").read_bytes()
    signed = introduce(facility.base / "site", subject, hosts=("localhost", "127.0.0.1"))
    renewed = accept(facility.gateway, json.dumps(signed))
    renewed.certificate_file.chmod(0o666)
    until(lambda: "can be written by others" in gateway.log.read_text(), what="a warning")
    renewed.certificate_file.chmod(0o644)

    def presented() -> bytes | None:
        with gateway.socket(alice) as connection:
            return connection.getpeercert(binary_form=True)

    until(lambda: presented() == renewed.certificate.public_bytes(Encoding.DER), what="the new certificate")
    assert gateway.log.read_text().count("can be written by others") == 1


def test_an_issuers_key_that_is_withdrawn(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """Tokens of an issuer whose key was stolen: good until somebody takes the public key away, not until a restart."""
    gateway.start()
    public = facility.gateway / "known_issuers" / "issuer.pub"
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        assert client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 200
        public.rename(facility.base / "withdrawn")
        begun = time.monotonic()
        until(lambda: client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 401)
        assert time.monotonic() - begun < 5
        gateway.audited(decision="refused", reason="bad signature", user="alice")
        (facility.base / "withdrawn").rename(public)
        until(lambda: client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 200)


def test_a_policy_source_that_fails_hides_no_experiments(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """To answer that she has none would be taken for the truth."""
    (facility.base / "portal.py").write_text(
        "class Portal:\n    version = 1\n    def operations(self, user, experiment): raise TimeoutError\n"
        "    experiments = operations\n"
    )
    facility.policy.write_text(facility.policy.read_text() + '[source]\nuse = "portal:Portal"\n')
    gateway.environment = {"PYTHONPATH": str(facility.base)}
    gateway.start()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        for target in ("/v1/runs", f"/v1/runs/{HERS}", f"{RUN}/zarr/{SMALL}/c/0/0"):
            reply = client.get(target)
            assert (reply.status, reply.fields["retry-after"]) == (503, "1")
    gateway.audited(decision="refused", reason="policy unavailable", operation="runs", status=503)


def test_what_is_refused_for_its_number_does_not_fill_the_disk(
    facility: Facility, gateway: Gateway, alice: Path
) -> None:
    gateway.arguments = ("--requests", "5")
    gateway.start()
    token = facility.token(alice, HERS)
    with gateway.client(alice, token) as client:
        statuses = [client.get(f"{RUN}/zarr/{SMALL}/c/{number}/0").status for number in range(400)]
    assert statuses.count(429) > 300
    until(lambda: sum(r["count"] for r in gateway.audit() if r["status"] == 429) == statuses.count(429))
    assert len(gateway.audit()) < 100


def test_a_user_within_her_limit_does_not_take_all_descriptors(
    facility: Facility, gateway: Gateway, alice: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        gateway.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    token = facility.token(alice, HERS)
    held = [gateway.socket(alice) for _ in range(300)]
    try:
        with gateway.client(alice, token) as client:
            assert client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 200
    finally:
        for connection in held:
            connection.close()
    assert "Too many open files" not in gateway.log.read_text()


def test_without_descriptors_it_waits_for_some(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """And says so once, in place of at each turn of its loop."""
    gateway.start()
    (worker,) = gateway.workers()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        assert client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 200
    _, most = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{worker}/fd")) + 5, most))
    held = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(40)]
    try:
        until(lambda: "no connection can be accepted" in gateway.log.read_text())
        before = psutil.Process(worker).cpu_times()
        time.sleep(1)
        after = psutil.Process(worker).cpu_times()
        assert after.user + after.system - before.user - before.system < 0.5
    finally:
        for connection in held:
            connection.close()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        assert client.get(f"{RUN}/zarr/{SMALL}/c/0/0").status == 200
    assert gateway.log.read_text().count("no connection can be accepted") < 10


def test_health_and_deadlines_need_no_disk(facility: Facility, alice: Path) -> None:
    """All threads that read are stuck: who asks for the health is answered at once."""
    settings = Settings(
        facility.root, facility.gateway, facility.policy, facility.revocations, facility.base / "audit",
        f"sqlite:///{facility.base / 'gateway.db'}",
    )  # fmt: skip
    shared, table, seen = facility.base / "shared", facility.base / "usage", facility.base / "seen"
    create_revocations(shared)
    create_table(table, 1)
    seen.mkdir()
    stuck, pool = Event(), ThreadPoolExecutor(2)
    for _ in range(2):
        pool.submit(stuck.wait)

    async def serve() -> bytes:
        authority, usage = Authority(settings, shared), Usage(table, 0, 1, settings.limits)
        audit, state = AuditLog(settings.audit), State(settings.state)
        state.migrate()
        reading = Reader(Runs(facility.root, Seen(seen)), authority.authoriser, state)
        service = Service(reading, authority.authoriser, audit, usage, pool, pool, 2)
        server = Connections(service, authority.context(), usage, Metrics(), settings.timeouts, authority.revoked)
        sock = listening_socket("127.0.0.1", 0)
        server.listen(sock)
        reader, writer = await asyncio.open_connection(
            *sock.getsockname(), ssl=client_context(load_identity(alice)), server_hostname="localhost"
        )
        writer.write(f"GET {RUN} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        other, more = await asyncio.open_connection(
            *sock.getsockname(), ssl=client_context(load_identity(alice)), server_hostname="localhost"
        )
        more.write(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
        answer = await asyncio.wait_for(other.readuntil(b"}\n"), 20)
        with pytest.raises(TimeoutError):  # while the other is not answered
            await asyncio.wait_for(reader.read(1), 0.1)
        stuck.set()
        assert await asyncio.wait_for(reader.readexactly(15), 20) == b"HTTP/1.1 200 OK"
        for stream in (writer, more):
            stream.close()
        await server.drain()
        audit.close()
        state.close()
        return answer

    token = facility.token(alice, HERS)
    try:
        assert asyncio.run(serve()).endswith(b'{"status":"ok"}\n')
    finally:
        stuck.set()
        pool.shutdown()


def test_what_other_gateways_revoked_stays_revoked(
    facility: Facility,
    gateway: Gateway,
    alice: Path,
    postgres: Postgres,  # noqa: F811
) -> None:
    """Also in a process that starts anew while the database is away."""
    gateway.arguments = ("--state", postgres.url)
    gateway.start()
    token = facility.token(alice, HERS)
    target = f"{RUN}/zarr/{SMALL}/c/0/0"
    (identifier,) = read_unverified(token).revocation_ids

    def status() -> int:
        try:
            with gateway.client(alice, token) as client:
                return client.get(target).status
        except OSError:
            return 0

    assert status() == 200
    other = State(postgres.url)
    other.share_revocations([(identifier, "now", "by another gateway")])
    other.close()
    begun = time.monotonic()
    until(lambda: status() == 401)
    assert time.monotonic() - begun < 5
    postgres.stop()
    try:
        (worker,) = gateway.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: gateway.workers() not in ([], [worker]), what="a new process")
        assert until(status) == 401
    finally:
        postgres.start()


def test_serving_goes_on_while_postgresql_is_away(
    facility: Facility,
    gateway: Gateway,
    alice: Path,
    postgres: Postgres,  # noqa: F811
) -> None:
    gateway.arguments = ("--state", postgres.url)
    gateway.start()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        table = client.get(f"/v1/runs/{HERS}").json
        postgres.stop()
        try:
            begun = time.monotonic()
            while time.monotonic() - begun < 10:
                assert client.get(f"{RUN}/zarr/{SMALL}/c/7/0").body == chunk(facility, SMALL, 7, 2)
                time.sleep(0.2)
            assert client.get(f"/v1/runs/{HERS}").json == table
        finally:
            postgres.start()
        state = State(postgres.url)
        expected = sum(record["operation"] == "key" for record in gateway.audit())
        mine = gateway.audit()[0]["certificate"]

        def indexed() -> bool:
            rows = [row for row in state.audit(user="alice") if row["certificate"] == mine]
            return sum(row["operation"] == "key" for row in rows) >= expected

        until(indexed, 30, "the index catching up")
        state.close()
    log = gateway.log.read_text()
    assert "the audit is not indexed for now" in log
    assert "the audit is indexed again" in log


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [("--policy", "[experiments", "no TOML"), ("--state", "nonsense://", "URL"), ("--issuer", "x", "public key")],
)
def test_what_cannot_start_says_why_in_one_line(
    facility: Facility, tmp_path: Path, argument: str, value: str, said: str
) -> None:
    if argument != "--state":
        bad = tmp_path / "bad"
        bad.write_text(value)
        bad.chmod(0o644)
        value = str(bad)
    call = ["serve", "--root", str(facility.root), "--identity", str(facility.gateway), "--port", "0"]
    call += ["--policy", str(facility.policy), "--revocations", str(facility.revocations)]
    call += ["--audit", str(tmp_path / "audit"), "--state", f"sqlite:///{tmp_path / 'x.db'}", argument, value]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; from lcls_dask.cli import main; sys.exit(main({call!r}))"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
