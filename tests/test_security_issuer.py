"""The issuer's service over real sockets, and the commands."""

import json
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import NameOID
from security_world import Service, World, make_world, right, serving

from lcls_dask import cli
from lcls_dask.errors import AccessError, IdentityError
from lcls_dask.security import (
    FileRevocations,
    Identity,
    Operation,
    Right,
    Role,
    create_identity,
    load_identity,
    revoke,
    server_context,
)
from lcls_dask.security import certificates as cert
from lcls_dask.security.capability import read_unverified
from lcls_dask.security.files import read_private
from lcls_dask.security.introductions import accept
from lcls_dask.security.issuer_client import fetch_token, renew
from lcls_dask.security.revocations import revoked_lines


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def service(world: World, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A parameter is more of its arguments."""
    with serving(world, *getattr(request, "param", ())) as running:
        yield running


def test_tokens_of_the_service_are_good_for_what_policy_grants(service: Service) -> None:
    world = service.world
    alice, bob = world.person("alice"), world.person("bob")
    token = fetch_token(alice, service.url, [right("xpptut15", 1, 30, "hsd*")], minutes=5)
    told = read_unverified(token)
    assert (told.user, told.holder) == ("alice", alice.peer.thumbprint)
    (granted,) = told.rights
    assert granted == Right("xpptut15", frozenset({Operation.LIST, Operation.INFO, Operation.READ}), 1, 30, "hsd*")
    assert world.decide(alice, token, experiment="xpptut15").allowed
    everything = read_unverified(fetch_token(bob, service.url))
    assert {r.experiment: sorted(r.operations) for r in everything.rights} == {
        "xpptut15": ["info", "list", "read"],
        "cxilr6716": ["info", "list"],
    }
    with pytest.raises(AccessError, match="nothing of this"):
        fetch_token(bob, service.url, [right("tmox42619")])
    with pytest.raises(IdentityError, match="at most 60"):
        fetch_token(bob, service.url, minutes=61)
    logged = (world.path / "log").read_text() + (world.issuer.directory / "issued.jsonl").read_text()
    assert token[:40] not in logged
    assert read_unverified(token).revocation_ids[0] in logged


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{", b'{"user": "alice"}', b'{"rights": 3}', b'{"rights": [{}]}', b'{"minutes": "x"}', b'{"minutes": -1}',
     b'{"rights": [{"experiment": "tmo*"}]}', b'{"rights": [{"experiment": "tmox42619", "runs": [5]}]}',
     b'{"rights": [{"experiment": "tmox42619", "operations": ["all"]}]}', b"\xff", b"[" * 5000,
     b'{"rights": []}', b'{"minutes": NaN}']
)  # fmt: skip
def test_malformed_wishes(service: Service, body: bytes) -> None:
    status, content = service.post(service.world.person("alice"), "/v1/tokens", body)
    assert status == 400
    assert "token" not in content
    assert content["error"]


def test_a_certificate_is_renewed_for_its_own_names_only(service: Service) -> None:
    world = service.world
    worker, alice = world.person("alice", Role.WORKER, "c1"), world.person("alice")
    renewed = renew(worker, service.url)
    assert (renewed.peer.role, renewed.peer.user, renewed.peer.cluster) == (Role.WORKER, "alice", "c1")
    assert renewed.peer.serial != worker.peer.serial
    # a request that names somebody else gives a certificate with the caller's names
    key = cert.load_key(read_private(worker.key_file))
    other = cert.request(key, world.person("bob").certificate)
    status, content = service.post(renewed, "/v1/certificates", cert.certificate_pem(other))
    assert status == 200
    signed = cert.certificate_from_base64(str(content["signed_cert"]))
    assert cert.names_and_hosts(signed) == (Role.WORKER, "alice", "c1", [])
    # a certificate is no proof that its key is held
    status, _ = service.post(renewed, "/v1/certificates", cert.certificate_pem(alice.certificate))
    assert status == 400
    assert world.issuer.renewed_from(worker.peer.serial) == [
        worker.peer.serial,
        renewed.peer.serial,
        f"{signed.serial_number:x}",
    ]


def test_renewing_makes_no_certificate_last_longer(service: Service) -> None:
    """A visitor whose certificate was signed for two hours renewed it to one of a year."""
    world = service.world
    made = create_identity(world.path / "guest", Role.USER, "guest", clock=world.clock)
    subject = cert.certificate_pem(made.certificate)
    introduction = world.issuer.sign(subject, Role.USER, "guest", lifetime=timedelta(hours=2))
    guest = accept(made.directory, json.dumps(introduction), trust=True)
    for _ in range(3):
        guest = renew(guest, service.url)
        assert abs(guest.peer.not_after - time.time() - 7200) < 60


def test_nothing_is_renewed_faster_than_it_is_revoked(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """A thief who renews without a pause: after the command has ended no certificate of hers is good any more."""
    world = service.world
    for name in ("dave", "erin", "frank"):
        identity = world.person(name)
        request = cert.certificate_pem(
            cert.request(cert.load_key(read_private(identity.key_file)), identity.certificate)
        )
        stolen, stop = [identity.peer.serial], threading.Event()

        def steal(who: Identity = identity, body: bytes = request, found: list[str] = stolen) -> None:
            while not stop.is_set():  # noqa: B023
                status, content = service.post(who, "/v1/certificates", body)
                if status == 200:
                    found.append(accept(who.directory, json.dumps(content)).peer.serial)

        thief = threading.Thread(target=steal)
        thief.start()
        deadline = time.monotonic() + 20
        while len(stolen) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        code, _, err = call(
            capsys, "identity", "revoke", stolen[0], "--revocations", world.revoked_file,
            "--issuer", world.issuer.directory,
        )  # fmt: skip
        assert (code, err) == (0, "")
        stop.set()
        thief.join()
        assert len(stolen) >= 5
        assert service.post(load_identity(identity.directory), "/v1/certificates", request)[0] == 401
        assert set(stolen) <= {line[0] for line in revoked_lines(world.revoked_file)}


def _with_a_full_disk(limit: int, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose files can grow to so many bytes."""
    set_limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    command = [sys.executable, "-c", set_limit + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_revocation_that_does_not_fit_on_the_disk_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    revoke(path, ["aa"], "first")
    code = "import sys; from lcls_dask.cli import main; sys.exit(main(sys.argv[1:]))"
    call = "token", "revoke", "bb" * 64, "--revocations", path
    done = _with_a_full_disk(path.stat().st_size + 40, code, *call)
    assert done.returncode == 1, "half an identifier revokes nothing"
    assert "too large" in done.stderr
    assert "bb" * 64 not in FileRevocations(path)
    assert "aa" in FileRevocations(path)
    assert _with_a_full_disk(1 << 20, code, *call).returncode == 0
    assert {"aa", "bb" * 64} <= {line[0] for line in revoked_lines(path)}


def test_what_is_not_recorded_is_not_given_out(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    alice, record = world.person("alice"), world.issuer.directory / "issued.jsonl"
    code = "import sys; from lcls_dask.cli import main; sys.exit(main(sys.argv[1:]))"
    issue = "token", "issue", "--issuer", world.issuer.directory, "--identity", alice.directory
    call_ = (*issue, "--experiment", "tmox42619")
    done = _with_a_full_disk(record.stat().st_size + 20, code, *call_)
    assert (done.returncode, done.stdout) == (1, "")
    assert not record.read_bytes().endswith(b"\n"), "a part of the line is there"
    whole = _with_a_full_disk(1 << 20, code, *call_)
    assert whole.returncode == 0
    kinds = [entry["kind"] for entry in world.issuer.issued()]
    assert kinds == ["certificate", "token"], "the cut line costs no other"
    status, _, _ = call(
        capsys, "identity", "revoke", alice.peer.serial, "--revocations", world.revoked_file,
        "--issuer", world.issuer.directory,
    )  # fmt: skip
    assert status == 0


@pytest.mark.parametrize("service", [("--requests", "0.1")], indirect=True)
def test_each_user_may_ask_for_so_much(service: Service) -> None:
    world = service.world
    alice, bob = world.person("alice"), world.person("bob")
    # all certificates of a user count together, or renewing would be a way around it
    renewed = [service.post(who, "/v1/tokens", b"")[0] for who in (alice, world.person("alice", Role.WORKER, "c1")) * 4]
    assert renewed == [200] * 6 + [429] * 2
    before = (world.issuer.directory / "issued.jsonl").stat().st_size
    status, content = service.post(alice, "/v1/certificates", b"")
    assert status == 429
    assert "wait" in str(content["error"])
    assert (world.issuer.directory / "issued.jsonl").stat().st_size == before
    assert service.post(bob, "/v1/tokens", b"")[0] == 200
    begun = time.monotonic()
    assert fetch_token(alice, service.url), "the client waits as long as it is told"
    assert time.monotonic() - begun < 20


def test_a_certificate_says_one_user_in_all_places(world: World) -> None:
    """`certified` goes by the user id in the name, which whoever asks has chosen."""
    mallory = create_identity(world.path / "mallory", Role.USER, "alice", clock=world.clock)
    introduction = world.issuer.sign(cert.certificate_pem(mallory.certificate), Role.USER, "mallory")
    signed = cert.certificate_from_base64(introduction["signed_cert"])
    assert [a.value for a in signed.subject.get_attributes_for_oid(NameOID.USER_ID)] == ["mallory"]


def test_revoked_and_strangers(service: Service) -> None:
    world = service.world
    alice = world.person("alice")
    assert service.post(alice, "/healthz", b"", "GET") == (200, {"status": "ok"})
    assert service.post(alice, "/v1/no", b"")[0] == 404
    assert service.post(alice, "/v1/tokens", b"", "GET")[0] == 405
    revoke(world.revoked_file, [alice.peer.serial], "lost")
    deadline = time.monotonic() + 5
    status, content = service.post(alice, "/v1/tokens", b"")
    while status != 401 and time.monotonic() < deadline:
        status, content = service.post(alice, "/v1/tokens", b"")
    assert status == 401
    assert "revoked" in str(content["error"])
    with pytest.raises(IdentityError, match="revoked"):
        renew(alice, service.url)


def test_roles(service: Service) -> None:
    world = service.world
    manager = world.person("alice", Role.MANAGER)
    assert service.post(manager, "/v1/tokens", b"")[0] == 400
    assert renew(manager, service.url).peer.role is Role.MANAGER


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_commands_from_the_issuer_to_a_revoked_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    issuer, alice, revoked = tmp_path / "issuer", tmp_path / "alice", tmp_path / "revoked"

    def done(*arguments: object) -> str:
        code, out, err = call(capsys, *arguments)
        assert (code, err) == (0, "")
        return out

    done("issue", "init", issuer, "--host", "localhost")
    assert stat.S_IMODE((issuer / "biscuit.key").stat().st_mode) == 0o600
    done("identity", "create", alice, "--user", "alice")
    intro = tmp_path / "alice.json"
    intro.write_text(done("issue", "sign", issuer, alice / "id.crt", "--user", "alice", "--hours", "5"))
    done("identity", "accept", intro, "--identity", alice, "--trust")
    rows = json.loads(done("identity", "list", "--identity", alice, "--json"))
    assert [row["role"] for row in rows] == ["user", "user", "authority", "authority", "authority"]
    assert "alice" in done("identity", "list", "--identity", alice)

    policy = tmp_path / "policy.toml"
    policy.write_text('[experiments.tmox42619]\nmembers = ["alice"]')
    token, narrow = tmp_path / "token", tmp_path / "narrow"
    for name in (token, narrow):
        name.touch(0o600)
    token.write_text(done("token", "issue", "--issuer", issuer, "--identity", alice, "--policy", policy))
    narrow.write_text(
        done(
            "token", "attenuate", token, "--identity", alice, "--runs", "10:20", "--operation", "read", "--minutes", "5"
        )
    )
    told = done("token", "inspect", narrow, "--issuer-key", issuer / "biscuit.pub")
    for text in (token.read_text().strip(), narrow.read_text().strip()):
        assert text[:30] not in told
        assert text[-30:] not in told
    shown = json.loads(done("token", "inspect", narrow, "--json"))
    assert shown["rights"] == ["tmox42619 runs 0:999999 * info,list,read"]
    assert shown["state"] == "good"
    assert len(shown["narrowed"]) == 3
    assert done("token", "revoke", narrow, "--revocations", revoked).strip() == shown["revocation_ids"][-1]
    assert done("token", "revoke", narrow, "--whole", "--revocations", revoked).strip() == shown["revocation_ids"][0]
    serial = done("identity", "revoke", alice / "id.crt", "--revocations", revoked, "--issuer", issuer).strip()
    assert serial in revoked.read_text()
    key = (alice / "id.key").read_bytes()
    done("identity", "rotate", "--identity", alice)
    assert (alice / "id.key").read_bytes() != key
    introduced = json.loads(done("identity", "introduce", alice / "id.crt", "--identity", issuer))
    assert set(introduced) == {"signed_cert", "ca_cert"}
    done("identity", "trust", issuer / "CA.crt", "--identity", alice)


def test_commands_that_fail_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    issuer = tmp_path / "issuer"
    assert call(capsys, "issue", "init", issuer)[0] == 0
    garbage = tmp_path / "garbage"
    garbage.write_text("EsgBCl4KB2V4YW1wbGUKc2VjcmV0LXRva2Vu")
    alice = tmp_path / "alice"
    for code, arguments in (
        (1, ["issue", "init", issuer]),
        (1, ["issue", "sign", issuer, garbage, "--user", "alice"]),
        (1, ["identity", "list", "--identity", tmp_path / "nowhere"]),
        (1, ["token", "inspect", garbage]),
        (1, ["token", "attenuate", garbage, "--issuer-key", issuer / "biscuit.pub", "--runs", "1:2"]),
        (1, ["token", "issue", "--issuer", issuer, "--identity", alice, "--experiment", "tmox42619"]),
        (1, ["token", "revoke", "not-hex", "--revocations", tmp_path / "r"]),
        (2, ["token", "attenuate", garbage, "--runs", "x", "--issuer-key", issuer / "biscuit.pub"]),
        (2, ["token", "issue", "--issuer", issuer, "--runs", "1:2"]),
        (2, ["identity", "introduce", garbage, "--role", "user"]),
        (2, ["issue", "sign", issuer, garbage]),
    ):
        found, out, err = call(capsys, *arguments)
        assert (found, out) == (code, ""), (arguments, err)
        assert len(err.splitlines()) == 1
        assert "secret" not in err
        assert "EsgBCl4" not in err


def test_commands_renew_and_issue_through_the_service(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    alice = service.world.person("alice")
    code, out, err = call(capsys, "identity", "renew", "--identity", alice.directory, "--issuer", service.url)
    assert (code, err) == (0, "")
    assert "good until" in out
    code, out, err = call(
        capsys, "token", "issue", "--identity", alice.directory, "--issuer", service.url, "--experiment", "tmox42619"
    )
    assert (code, err) == (0, "")
    assert service.world.decide(service.world.person("alice"), out.strip()).allowed


def test_a_client_talks_to_nobody_but_an_issuer(world: World) -> None:
    """A worker's certificate, good for that host name: the client leaves before it sends anything."""
    alice, base = world.person("alice"), world.path / "worker"
    made = create_identity(base, Role.WORKER, "mallory")
    signed = world.issuer.sign(cert.certificate_pem(made.certificate), Role.WORKER, "mallory", hosts=["localhost"])
    context, received = server_context(accept(base, json.dumps(signed), trust=True)), []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as tls:
                received.append(tls.recv(100))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(IdentityError, match="is a worker of mallory, expected was: issuer"):
            fetch_token(alice, f"https://localhost:{listener.getsockname()[1]}")
        thread.join()
    assert received == [b""]
    with pytest.raises(IdentityError, match="no address of an issuer"):
        fetch_token(alice, "http://localhost:1")
    with pytest.raises(OSError, match="refused"):
        fetch_token(alice, "https://127.0.0.1:1")


def test_importing_the_package_stays_light() -> None:
    heavy = ["cryptography", "tornado", "biscuit_auth"]
    code = f"import sys, lcls_dask, lcls_dask.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
