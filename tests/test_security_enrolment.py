"""One-time secrets, and what their issuer gives for them: real processes, real sockets."""

import contextlib
import hashlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import until
from security_world import Service, World, make_world, right, serving

from lcls_dask import cli, config
from lcls_dask.errors import AccessError, IdentityError, UnreachableError
from lcls_dask.security import FileRevocations, Identity, Role, create_identity, load_identity, renewal, revoke
from lcls_dask.security import certificates as cert
from lcls_dask.security.capability import Right, read_unverified
from lcls_dask.security.delegation import Delegations
from lcls_dask.security.enrolment import Enrolment, create_enrolment, enrol, open_enrolment
from lcls_dask.security.files import read_private
from lcls_dask.security.identity import TOKEN_FILE
from lcls_dask.security.introductions import accept
from lcls_dask.security.issuer_client import (
    announce_secrets,
    close_cluster,
    fetch_token,
    is_refusal,
    open_cluster,
    renew,
)
from lcls_dask.security.tls import anonymous_context


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests here: each has a cluster of its own in it."""
    with serving(make_world(tmp_path_factory.mktemp("facility")), "--requests", "1000") as running:
        yield running


@pytest.fixture
def slow_service(world: World) -> Iterator[Service]:
    """One that takes few requests."""
    with serving(world, "--requests", "0.5") as running:
        yield running


class Cluster:
    """A user's cluster as an issuer sees it: identities of its scheduler and manager, and a directory of secrets."""

    def __init__(
        self, service: Service, rights: list[Right] | None = None, hours: float = 1.0, owner: Identity | None = None
    ):
        world, owner = service.world, owner or service.world.person("alice")
        user = owner.peer.user
        self.service, self.alice, self.name = service, owner, f"c{time.monotonic_ns()}"
        made = {}
        for role in (Role.SCHEDULER, Role.MANAGER):
            made[str(role)] = create_identity(world.path / f"{self.name}-{role}", role, user, cluster=self.name)
        requests = {role: request_of(identity) for role, identity in made.items()}
        signed = open_cluster(self.alice, service.url, self.name, requests, rights, hours)
        joined = {role: accept(made[role].directory, json.dumps(signed[role]), trust=True) for role in made}
        self.scheduler, self.manager = joined["scheduler"], joined["manager"]
        self.secrets: Enrolment = create_enrolment(
            world.path / f"{self.name}-secrets", service.url, world.issuer.authority, user, self.name
        )

    def worker(self, name: str = "worker", patience: float = 5.0) -> Identity:
        return enrol(self.secrets.directory, self.service.world.path / f"{self.name}-{name}", patience)

    def bring(self, secret: str, identity: Identity | None = None) -> tuple[int, dict[str, object]]:
        """Bring a secret as an attacker would: with whatever key."""
        world = self.service.world
        made = identity or create_identity(world.path / f"thief{time.monotonic_ns()}", Role.WORKER, "alice")
        context = anonymous_context([world.issuer.authority])
        connection = http.client.HTTPSConnection(self.service.url.removeprefix("https://"), context=context)
        try:
            body = json.dumps({"secret": secret, "request": request_of(made).decode()})
            connection.request("POST", "/v1/enrolments", body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def issued(self, kind: str) -> list[dict[str, Any]]:
        """What the issuer has on record of this cluster."""
        entries = self.service.world.issuer.issued()
        return [entry for entry in entries if (entry["kind"], entry.get("cluster")) == (kind, self.name)]


def request_of(identity: Identity) -> bytes:
    return cert.certificate_pem(cert.request(cert.load_key(read_private(identity.key_file)), identity.certificate))


def test_a_worker_joins_with_what_was_delegated_and_no_more(service: Service) -> None:
    world = service.world
    cluster = Cluster(service, [right("tmox42619", 10, 20)], hours=0.5)
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    worker = cluster.worker()
    peer = worker.peer
    assert (peer.role, peer.user, peer.cluster) == (Role.WORKER, "alice", cluster.name)
    assert peer.not_after - time.time() == pytest.approx(1800, abs=30)
    token = read_private(worker.directory / TOKEN_FILE).decode()
    told = read_unverified(token)
    assert told.holder == peer.thumbprint
    assert [(r.experiment, r.first, r.last) for r in told.rights] == [("tmox42619", 10, 20)]
    assert world.decide(worker, token, run=15).allowed
    assert not world.decide(worker, token, run=21).allowed
    # alice may read xpptut15, her cluster was not given it
    assert fetch_token(cluster.alice, service.url, [right("xpptut15")])
    with pytest.raises(AccessError, match="nothing of this was delegated"):
        fetch_token(worker, service.url, [right("xpptut15")])
    narrower = read_unverified(fetch_token(worker, service.url, [right("tmox42619", 5, 12, "hsd*")]))
    assert [(r.first, r.last, r.detectors) for r in narrower.rights] == [(10, 12, "hsd*")]
    assert [r.experiment for r in read_unverified(fetch_token(worker, service.url)).rights] == ["tmox42619"]
    # the key was made by the worker, and nothing is left to take
    assert cluster.secrets.waiting == []
    assert list((cluster.secrets.directory / "taken").iterdir()) == []
    chain = [cluster.manager.peer.serial, cluster.scheduler.peer.serial, peer.serial]
    assert [serial for serial in world.issuer.renewed_from(cluster.alice.peer.serial) if serial in chain] == chain


def test_eight_processes_take_eight_secrets(service: Service) -> None:
    cluster = Cluster(service)
    cluster.secrets.add(cluster.manager, 8, minutes=5)
    command = [sys.executable, "-m", "lcls_dask", "identity", "enrol", str(cluster.secrets.directory)]
    running = [
        subprocess.Popen(
            [*command, "--into", str(service.world.path / f"w{number}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(8)
    ]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 8, said
    serials = {load_identity(out.strip()).peer.serial for out in said}
    assert len(serials) == 8
    assert cluster.secrets.waiting == []
    enrolled = cluster.issued("enrolment")
    assert {entry["serial"] for entry in enrolled} == serials
    assert len({entry["secret_id"] for entry in enrolled}) == 8


def test_a_secret_is_good_once_and_the_second_use_is_audited(service: Service) -> None:
    cluster = Cluster(service)
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    (path,) = cluster.secrets.waiting
    secret = path.read_text()  # a thief has read it, before the worker came
    assert cluster.worker().peer.cluster == cluster.name
    status, content = cluster.bring(secret)
    assert status == 401
    assert "used before" in str(content["error"])
    assert "signed_cert" not in content
    (line,) = cluster.issued("refused")
    assert line["reason"] == "secret used before"
    assert (line["user"], line["cluster"], line["address"]) == ("alice", cluster.name, "127.0.0.1")
    assert line["secret_id"] == hashlib.sha256(secret.encode()).hexdigest()[:16]
    everything = service.log + "".join(
        file.read_text(errors="replace") for file in service.world.issuer.directory.rglob("*") if file.is_file()
    )
    assert secret not in everything


def test_the_worker_that_comes_second_ends_with_an_error(service: Service) -> None:
    cluster = Cluster(service)
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    (path,) = cluster.secrets.waiting
    assert cluster.bring(path.read_text())[0] == 200
    with pytest.raises(IdentityError, match="used before"):
        cluster.worker()


def test_two_that_bring_one_secret_at_once(service: Service) -> None:
    cluster = Cluster(service)
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    secret = cluster.secrets.waiting[0].read_text()
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(cluster.bring(secret)[0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 401, 401, 401, 401, 401]


def test_secrets_that_are_unknown_or_too_late(service: Service) -> None:
    cluster = Cluster(service)
    assert cluster.bring("x" * 43)[0] == 401
    cluster.secrets.add(cluster.manager, 1, minutes=1 / 60)
    (path,) = (cluster.secrets.directory / "waiting").iterdir()
    deadline = float(path.name.split("-")[1])
    secret = path.read_text()
    until(lambda: time.time() > deadline + 1, what="the deadline")
    with pytest.raises(UnreachableError, match="no secret that is still good"):
        cluster.worker(patience=0.2)
    status, content = cluster.bring(secret)
    assert status == 401
    assert "too late" in str(content["error"])
    assert [entry["reason"] for entry in cluster.issued("refused")] == ["secret too late"]
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    assert not path.exists()  # removed with the next ones


def test_a_worker_waits_until_a_secret_is_there(service: Service) -> None:
    cluster, found = Cluster(service), []
    thread = threading.Thread(target=lambda: found.append(cluster.worker(patience=30)))
    thread.start()
    until(lambda: (service.world.path / f"{cluster.name}-worker" / "id.key").exists(), what="the worker's key")
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    thread.join(30)
    assert found[0].peer.role is Role.WORKER


def test_a_closed_cluster_is_closed(service: Service) -> None:
    cluster = Cluster(service)
    cluster.secrets.add(cluster.manager, 2, minutes=5)
    worker = cluster.worker()
    secret = cluster.secrets.waiting[0].read_text()
    with pytest.raises(AccessError, match="bob has no cluster"):
        close_cluster(service.world.person("bob"), service.url, cluster.name)
    with pytest.raises(AccessError, match="could close"):
        close_cluster(worker, service.url, cluster.name)
    close_cluster(cluster.manager, service.url, cluster.name)
    assert cluster.bring(secret)[0] == 401
    for attempt in (
        lambda: fetch_token(worker, service.url),
        lambda: renew(worker, service.url),
        lambda: renew(cluster.scheduler, service.url),
        lambda: announce_secrets(cluster.manager, service.url, ["0" * 64], 5),
    ):
        with pytest.raises(IdentityError, match="closed"):
            attempt()
    with pytest.raises(AccessError, match="has had a cluster"):
        open_cluster(
            cluster.alice,
            service.url,
            cluster.name,
            {"scheduler": request_of(cluster.scheduler), "manager": request_of(cluster.manager)},
        )


def test_nobody_closes_a_cluster_of_another_user(service: Service) -> None:
    """An encoded slash is decoded once the path was taken apart."""
    cluster = Cluster(service)
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    bob = Cluster(service, owner=service.world.person("bob"))
    for name in (f"..%2Falice%2F{cluster.name}", f"%2e%2e%2Falice%2F{cluster.name}"):
        assert service.post(bob.alice, f"/v1/clusters/{name}", b"", "DELETE")[0] == 403
    assert cluster.worker().peer.user == "alice"


def test_a_cluster_is_signed_for_no_longer_than_its_user(service: Service) -> None:
    """Else a visitor of two hours would compute, and read, for as long as she lets the cluster run."""
    world = service.world
    made = create_identity(world.path / "guest", Role.USER, "alice")
    subject = cert.certificate_pem(made.certificate)
    introduction = world.issuer.sign(subject, Role.USER, "alice", lifetime=timedelta(minutes=10))
    guest = accept(made.directory, json.dumps(introduction), trust=True)
    cluster = Cluster(service, hours=12, owner=guest)
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    for identity in (cluster.scheduler, cluster.manager, cluster.worker()):
        assert identity.peer.not_after - time.time() < 601
        for _ in range(2):
            identity = renew(identity, service.url)
            assert 500 < identity.peer.not_after - time.time() < 601


def test_nobody_joins_or_starts_a_cluster_that_escapes_a_revocation(world: World) -> None:
    """The revocation comes in between, when all else was looked at already."""
    alice, revocations = world.person("alice"), FileRevocations(world.revoked_file, interval=0)
    made = create_identity(world.path / "w", Role.WORKER, "alice", cluster="c1")
    world.issuer.revoke(alice.peer.serial, world.revoked_file, "laptop lost")
    before = len(list(world.issuer.issued()))
    with pytest.raises(IdentityError, match="revoked"):
        world.issuer.sign(
            request_of(made), Role.WORKER, "alice", cluster="c1", parent=alice.peer.serial, revocations=revocations
        )
    assert len(list(world.issuer.issued())) == before


def test_revoking_a_user_at_the_issuer_revokes_what_her_clusters_hold(service: Service) -> None:
    world = service.world
    cluster = Cluster(service, owner=world.person("dave"))
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    worker = cluster.worker()
    renewed = renew(worker, service.url)
    revoked = world.issuer.revoke(cluster.alice.peer.serial, world.revoked_file, "laptop lost")
    assert {cluster.scheduler.peer.serial, cluster.manager.peer.serial, worker.peer.serial} <= set(revoked)
    assert renewed.peer.serial in revoked
    with pytest.raises(IdentityError, match="revoked"):
        renew(renewed, service.url)


def test_secrets_are_not_tried_faster_than_that(slow_service: Service) -> None:
    """And neither do those who try spend the budget of a user."""
    cluster = Cluster(slow_service)
    assert [cluster.bring("x" * 43)[0] for _ in range(32)] == [401] * 30 + [429] * 2
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    assert cluster.worker(patience=30).peer.user == "alice", "who is told to wait brings the same secret later"


def test_who_may_do_what(service: Service) -> None:
    cluster = Cluster(service)
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    worker = cluster.worker()
    requests = {"scheduler": request_of(cluster.scheduler), "manager": request_of(cluster.manager)}
    for who in (worker, cluster.scheduler, cluster.manager):
        with pytest.raises(AccessError, match="cannot start clusters"):
            open_cluster(who, service.url, "c2", requests)
    for who in (worker, cluster.scheduler, cluster.alice):
        with pytest.raises(AccessError, match="cannot let workers join"):
            announce_secrets(who, service.url, ["0" * 64], 5)
    # what alice may not read, her cluster may not either
    with pytest.raises(AccessError, match="nothing of this is granted"):
        open_cluster(cluster.alice, service.url, "c2", requests, [right("cxilr6716")])
    for body in (
        {"cluster": "../bob", "requests": {k: v.decode() for k, v in requests.items()}},
        {"cluster": "c3", "requests": {"scheduler": "x", "manager": "y"}},
        {"cluster": "c3", "requests": {"worker": requests["manager"].decode()}},
        {"cluster": "c3", "requests": {k: v.decode() for k, v in requests.items()}, "hours": 13},
        {"cluster": "c3", "requests": {k: v.decode() for k, v in requests.items()}, "hours": "nan"},
        {"cluster": "c3", "requests": {k: v.decode() for k, v in requests.items()}, "user": "bob"},
        {"cluster": "c3"},
        [],
    ):
        status, content = service.post(cluster.alice, "/v1/clusters", json.dumps(body).encode())
        assert status == 400, content
    certificate = cert.certificate_pem(worker.certificate).decode()  # no proof that its key is held
    refused = {"cluster": "c3", "requests": {"scheduler": certificate, "manager": certificate}}
    assert service.post(cluster.alice, "/v1/clusters", json.dumps(refused).encode())[0] == 400
    for body in ({"hashes": ["../x"], "minutes": 5}, {"hashes": [], "minutes": 1e9}, {"hashes": 3}, {}):
        assert service.post(cluster.manager, "/v1/secrets", json.dumps(body).encode())[0] == 400


def test_without_a_certificate_there_is_nothing_but_secrets(service: Service) -> None:
    context = anonymous_context([service.world.issuer.authority])
    for method, path in (
        ("POST", "/v1/certificates"),
        ("POST", "/v1/tokens"),
        ("POST", "/v1/clusters"),
        ("DELETE", "/v1/clusters/c1"),
        ("POST", "/v1/secrets"),
        ("GET", "/healthz"),
        ("GET", "/"),
    ):
        connection = http.client.HTTPSConnection(service.url.removeprefix("https://"), context=context)
        connection.request(method, path, b"{}")
        answer = connection.getresponse()
        assert answer.status == 401, path
        assert "no certificate" in answer.read().decode()
        connection.close()
    # a certificate of anybody else's authority is still turned away in the handshake
    mallory = create_identity(service.world.path / "mallory", Role.USER, "alice")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        service.post(mallory, "/v1/enrolments", b"{}")


def test_revoking_the_user_ends_her_clusters(service: Service) -> None:
    cluster = Cluster(service, owner=service.world.person("erin"))
    cluster.secrets.add(cluster.manager, 2, minutes=5)
    worker = cluster.worker()
    revoke(service.world.revoked_file, [cluster.alice.peer.serial], "laptop lost")

    until(lambda: service.post(worker, "/v1/tokens", b"")[0] == 401, what="the revocation")
    with pytest.raises(IdentityError, match="revoked, and with it her clusters"):
        cluster.worker("second")


def test_revoking_the_manager_ends_its_cluster(service: Service) -> None:
    """By hand, its first serial alone: nobody joins any more, and nothing is renewed."""
    cluster, other = Cluster(service), Cluster(service)
    cluster.secrets.add(cluster.manager, 2, minutes=5)
    worker = cluster.worker()
    first = cluster.manager.peer.serial
    renew(cluster.manager, service.url)
    revoke(service.world.revoked_file, [first], "a thief")

    until(lambda: service.post(worker, "/v1/tokens", b"")[0] == 401, what="the revocation")
    for attempt in (
        lambda: cluster.worker("second"),
        lambda: renew(worker, service.url),
        lambda: renew(cluster.scheduler, service.url),
        lambda: renew(load_identity(cluster.manager.directory), service.url),
    ):
        with pytest.raises(IdentityError, match="manager's certificate was revoked"):
            attempt()
    assert renew(other.scheduler, service.url)


def test_revoking_a_manager_at_the_issuer_revokes_its_whole_cluster(service: Service) -> None:
    """By its newest serial; the worker joined, and the scheduler was signed, when it had another."""
    cluster, other = Cluster(service), Cluster(service)
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    whole = {cluster.manager.peer.serial, cluster.scheduler.peer.serial, cluster.worker().peer.serial}
    newest = renew(cluster.manager, service.url).peer.serial
    revoked = service.world.issuer.revoke(newest, service.world.revoked_file, "a thief")
    assert set(revoked) == whole | {newest}
    assert cluster.alice.peer.serial not in revoked
    assert other.manager.peer.serial not in revoked


def test_a_cluster_closed_at_one_service_is_not_opened_again_by_another(service: Service) -> None:
    """Two services share a directory: the manager renews at one while its user closes the cluster at the other."""
    cluster, world = Cluster(service), service.world
    closing = threading.Thread(
        target=lambda: Delegations(world.issuer, world.revocations).close(cluster.alice.peer, cluster.name)
    )

    class Slow:
        """A list of revocations that is asked once the delegation was read, and before it is written again."""

        version = 0

        def __contains__(self, _: object) -> bool:
            if not closing.is_alive():
                closing.start()
                closing.join(0.5)  # it ends now, or waits for its turn
            return False

    renewing = Delegations(world.issuer, Slow())
    signed = world.issuer.renew(cluster.manager.certificate, request_of(cluster.manager))
    with contextlib.suppress(IdentityError):
        renewing.renewed(cluster.manager.peer, signed)
    closing.join()
    with pytest.raises(IdentityError, match="is closed"):
        Delegations(world.issuer, world.revocations).of(cluster.manager.peer)


def test_certificates_are_renewed_before_they_end(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lifetimes of seconds; the cluster goes on as long as its manager renews."""
    cluster = Cluster(service, hours=4 / 3600)
    cluster.secrets.add(cluster.manager, 1, minutes=5)
    worker = cluster.worker()
    monkeypatch.setattr(config, "issuer", lambda: service.url)
    monkeypatch.setattr(renewal, "_RETRY", 0.2)
    for identity in (worker, cluster.manager, cluster.scheduler):
        renewal.start(identity.directory)
        renewal.start(identity.directory)  # once is enough
    ends = worker.peer.not_after
    until(lambda: load_identity(worker.directory).peer.not_after > ends + 4, 60, "renewing again and again")
    assert time.time() > ends, "each is renewed at half of its time, not at once"
    again = load_identity(worker.directory)
    assert again.certificate.public_key() == worker.certificate.public_key()
    assert again.peer.cluster == cluster.name
    close_cluster(cluster.alice, service.url, cluster.name)
    until(lambda: not renewal._RUNNING[worker.directory][0].is_alive(), 30, "the refusal")
    for identity in (worker, cluster.manager, cluster.scheduler):
        renewal.stop(identity.directory)


@pytest.mark.parametrize("folder", [".", "waiting", "taken"])
def test_a_directory_that_others_can_look_into_is_refused(world: World, folder: str) -> None:
    made = create_enrolment(world.path / "secrets", "https://localhost:1", world.issuer.authority, "alice", "c1")
    assert open_enrolment(made.directory) == made
    (made.directory / folder).chmod(0o750)
    with pytest.raises(IdentityError, match="chmod 700"):
        enrol(made.directory, world.path / "worker", 1)


def test_somebody_else_at_the_issuers_address(service: Service, tmp_path: Path) -> None:
    """Another authority: nothing is sent, and no secret is taken."""
    stranger = make_world(tmp_path / "elsewhere")
    made = create_enrolment(tmp_path / "secrets", service.url, stranger.issuer.authority, "alice", "c1")
    (made.directory / "waiting" / "0-9999999999-0000-aa").touch(0o600)
    with pytest.raises(IdentityError, match="its certificate cannot be trusted"):
        enrol(made.directory, tmp_path / "worker", 5)
    assert len(list((made.directory / "waiting").iterdir())) == 1


def test_an_issuer_that_cannot_be_trusted_has_refused_nothing(service: Service, tmp_path: Path) -> None:
    """Its clock, or ours, may be put right: who keeps a certificate good goes on asking."""
    stranger = make_world(tmp_path / "elsewhere").person("alice")
    with pytest.raises(IdentityError, match="cannot be trusted") as untrusted:
        renew(stranger, service.url)
    assert not is_refusal(untrusted.value)
    alice = service.world.person("alice")
    service.world.issuer.revoke(alice.peer.serial, service.world.revoked_file, "laptop lost")
    with pytest.raises(IdentityError, match="revoked") as refused:
        renew(alice, service.url)
    assert is_refusal(refused.value)


def test_no_issuer_in_time_takes_no_secret(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    made = create_enrolment(world.path / "secrets", "https://127.0.0.1:1", world.issuer.authority, "alice", "c1")
    (made.directory / "waiting" / "0-9999999999-0000-aa").touch(0o600)
    before = set(os.listdir(os.environ.get("TMPDIR", "/tmp")))
    assert cli.main(["identity", "enrol", str(made.directory), "--patience", "0.1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "does not answer" in err
    assert len(err.splitlines()) == 1
    assert len(list((made.directory / "waiting").iterdir())) == 1
    left = set(os.listdir(os.environ.get("TMPDIR", "/tmp"))) - before
    assert not [name for name in left if name.startswith("lcls-worker-")]
