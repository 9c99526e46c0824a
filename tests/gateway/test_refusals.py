"""Every attack on real sockets: what comes of it, and what the audit says."""

import ctypes
import json
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest
from biscuit_auth import Biscuit, BlockBuilder
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gateway_rig import Facility, Gateway, exchange, until, write_store

import lcls_dask
from lcls_dask.security import Operation, Role, attenuate, create_identity, load_identity, revoke
from lcls_dask.security.issuer_keys import IssuerKeys
from lcls_dask.security.tls import client_context

HERS, OTHERS = "tmox42619", "xpptut15"
RUN = f"/v1/runs/{HERS}/r0014"
SAME_FOR_ALL = b'{"status":404,"error":"there is no such thing here, or it is not yours to know of"}\n'


@pytest.fixture(scope="module")
def facility(tmp_path_factory: pytest.TempPathFactory) -> Facility:
    made = Facility(tmp_path_factory.mktemp("facility"))
    for experiment in (HERS, OTHERS):
        for run in (1, 14):
            path = made.root / experiment / f"r{run:04d}"
            lcls_dask.simulate(path, "scan", events=50, experiment=experiment, run=run)
    made.identity("alice")
    made.identity("bob")
    made.allow({HERS: ["alice", "carol"], OTHERS: ["bob"]})
    return made


@pytest.fixture(scope="module")
def gateway(facility: Facility) -> Iterator[Gateway]:
    running = Gateway(facility).start()
    yield running
    assert running.stop() == 0
    assert '"level": "error"' not in running.log.read_text()


@pytest.fixture(scope="module")
def alice(facility: Facility) -> Path:
    return facility.base / "alice"


@pytest.fixture(scope="module")
def snapshot(facility: Facility) -> str:
    return lcls_dask.open_run(facility.root / HERS / "r0014").snapshot


def refused_in_the_handshake(gateway: Gateway, context: ssl.SSLContext) -> None:
    """With TLS 1.3 a client learns that its certificate was refused when it first reads."""
    with pytest.raises((ssl.SSLError, ConnectionError)):  # noqa: PT012
        with gateway.socket(None, context) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
            if not connection.recv(1):
                raise ConnectionResetError


def refusals(gateway: Gateway, **told: str) -> int:
    """How many refusals the audit has of such requests; equal ones share a line."""
    lines = [record for record in gateway.audit() if record["decision"] == "refused"]
    return sum(line.get("count", 1) for line in lines if told.items() <= line.items())


# --- certificates ---


def test_no_certificate(facility: Facility, gateway: Gateway) -> None:
    context = ssl.create_default_context(cafile=facility.base / "site" / "CA.crt")
    refused_in_the_handshake(gateway, context)
    gateway.audited(operation="connect", decision="refused", reason="TLS: peer did not return a certificate", user="")


def test_a_certificate_of_another_authority(facility: Facility, gateway: Gateway) -> None:
    create_identity(facility.base / "evil", Role.ISSUER, "site")  # of the very same name
    forged = facility.identity("forged", Role.USER, "alice", site="evil")
    refused_in_the_handshake(gateway, client_context(load_identity(forged)))
    told = gateway.audited(operation="connect", decision="refused", user="")
    until(lambda: any(r["reason"].startswith("TLS: ") and "certif" in r["reason"] for r in gateway.audit()))
    assert told["role"] == ""


def test_a_certificate_signed_by_itself(facility: Facility, gateway: Gateway) -> None:
    lonely = facility.base / "lonely"
    create_identity(lonely, Role.USER, "alice")
    (lonely / "known_servers" / "site.crt").write_bytes((facility.base / "site" / "CA.crt").read_bytes())
    before = refusals(gateway, operation="connect", user="")
    refused_in_the_handshake(gateway, client_context(load_identity(lonely)))
    until(lambda: refusals(gateway, operation="connect", user="") > before, what="a line in the audit")


def test_an_expired_certificate(facility: Facility, gateway: Gateway) -> None:
    old = facility.identity("old", lifetime=timedelta(hours=1), clock=lambda: time.time() - 7200)
    refused_in_the_handshake(gateway, client_context(load_identity(old)))
    gateway.audited(operation="connect", decision="refused", reason="TLS: certificate has expired")


def test_a_certificate_that_expires_while_connected(facility: Facility, gateway: Gateway) -> None:
    brief = facility.identity("brief", Role.WORKER, "alice", lifetime=timedelta(seconds=8))
    with gateway.socket(brief) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        begun = time.monotonic()
        while connection.recv(65536):
            pass
        assert time.monotonic() - begun < 20
    told = gateway.audited(operation="connect", reason="certificate expired", user="alice", role="worker")
    assert told["time"] <= load_identity(brief).peer.not_after + 4


def test_a_certificate_that_is_revoked_while_connected(facility: Facility, gateway: Gateway) -> None:
    lost = facility.identity("lost", Role.USER, "carol")
    with gateway.socket(lost) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        revoke(facility.revocations, [load_identity(lost).peer.serial], "laptop lost")
        begun = time.monotonic()
        while connection.recv(65536):
            pass
        assert time.monotonic() - begun < 6
    gateway.audited(operation="connect", reason="certificate revoked", user="carol")
    with gateway.socket(lost) as again:
        assert exchange(again, b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n") == b""


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.MANAGER, Role.SCHEDULER, Role.ISSUER])
def test_a_wrong_role(facility: Facility, gateway: Gateway, role: Role) -> None:
    wrong = facility.identity(f"as-{role}", role, "alice")
    with gateway.client(wrong, facility.token(wrong, HERS)) as client:
        assert client.get(RUN).status == 403
    gateway.audited(operation="run", decision="refused", reason="wrong role", role=str(role), status=403, bytes=0)


# --- tokens ---


def test_no_token(gateway: Gateway, alice: Path) -> None:
    with gateway.client(alice) as client:
        for target in ("/v1/runs", f"/v1/runs/{HERS}", RUN, f"/v1/runs/{OTHERS}", "/v1/runs/nosuchexp"):
            reply = client.get(target)
            assert reply.status == 401
            assert reply.fields["www-authenticate"] == "Bearer"
    gateway.audited(operation="run", decision="refused", reason="no token", user="alice", experiment=HERS, token=None)


@pytest.mark.parametrize("token", ["garbage", "x" * 7000, "%00", "En0KEwoFZ3Vlc3QYAyIMCgoIABIGIgJ0aA=="])
def test_garbage_for_a_token(gateway: Gateway, alice: Path, token: str) -> None:
    with gateway.client(alice, token) as client:
        assert client.get(RUN).status == 401
    gateway.audited(operation="run", decision="refused", reason="bad signature", user="alice")


def test_a_token_that_expires(facility: Facility, gateway: Gateway, alice: Path) -> None:
    token = facility.token(alice, HERS, lifetime=3.0)
    with gateway.client(alice, token) as client:
        assert client.get(RUN).status == 200
        assert until(lambda: client.get(RUN).status != 200)
        assert client.get(RUN).status == 401
    gateway.audited(operation="run", decision="refused", reason="expired", user="alice", status=401)


def test_a_token_of_another_key(facility: Facility, gateway: Gateway, alice: Path) -> None:
    with gateway.client(alice, facility.token(alice, HERS, key=Ed25519PrivateKey.generate())) as client:
        assert client.get(RUN).status == 401
    gateway.audited(decision="refused", reason="bad signature", user="alice", token=None)


def test_a_token_that_was_tampered_with(facility: Facility, gateway: Gateway, alice: Path) -> None:
    token = facility.token(alice, HERS)
    places = range(40, len(token) - 4, 97)
    before = refusals(gateway, operation="run", user="alice")
    with gateway.client(alice) as client:
        for at in places:
            forged = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
            assert client.get(RUN, token=forged).status == 401, at
    until(lambda: refusals(gateway, operation="run", user="alice") >= before + len(places), what="lines in the audit")


def test_a_stolen_token(facility: Facility, gateway: Gateway, alice: Path) -> None:
    stolen = facility.token(alice, HERS)
    with gateway.client(facility.base / "bob", stolen) as client:
        assert client.get(RUN).status == 401
    told = gateway.audited(operation="run", decision="refused", reason="other certificate", user="bob")
    assert told["token"], "whose token it was can be found out"
    with gateway.client(facility.identity("her-worker", Role.WORKER, "alice"), stolen) as client:
        assert client.get(RUN).status == 401, "not even by another of her own certificates"


def test_a_token_for_another_user(facility: Facility, gateway: Gateway) -> None:
    bob = facility.base / "bob"
    with gateway.client(bob, facility.token(bob, HERS, user="alice")) as client:
        assert client.get(RUN).status == 401
    gateway.audited(operation="run", decision="refused", reason="other user", user="bob")


@pytest.mark.parametrize(
    ("granted", "target", "reason"),
    [
        ({"runs": (2, 13)}, RUN, "run out of range"),
        ({"runs": (15, 99)}, f"{RUN}@{{snapshot}}/zarr/timestamp/c/0", "run out of range"),
        ({"operations": [Operation.LIST]}, RUN, "other operation"),
        ({"operations": [Operation.INFO]}, f"{RUN}@{{snapshot}}/zarr/archon.raw.value/c/0/0/0/0", "other operation"),
        ({"detectors": "hsd*"}, f"{RUN}@{{snapshot}}/zarr/archon.raw.value/c/0/0/0/0", "other detector"),
        ({"detectors": "hsd*"}, f"{RUN}@{{snapshot}}/zarr/archon/archon.raw.value/c/0/0/0/0", "other detector"),
        ({}, f"{RUN}@{{snapshot}}/direct", "operation not granted"),
    ],
)
def test_a_token_that_does_not_cover_it(
    facility: Facility,
    gateway: Gateway,
    alice: Path,
    snapshot: str,
    granted: dict[str, object],
    target: str,
    reason: str,
) -> None:
    with gateway.client(alice, facility.token(alice, HERS, **granted)) as client:  # type: ignore[arg-type]
        reply = client.get(target.format(snapshot=snapshot))
    assert reply.status == 403
    assert reply.json["error"].startswith(reason)
    gateway.audited(decision="refused", reason=reason, user="alice", experiment=HERS, run=14, status=403)


def test_a_token_of_another_experiment(facility: Facility, gateway: Gateway, alice: Path) -> None:
    facility.allow({HERS: ["alice", "carol"], OTHERS: ["bob"], "both1": ["alice"]})
    try:
        with gateway.client(alice, facility.token(alice, "both1")) as client:
            assert until(lambda: client.get(RUN).status == 403)
        gateway.audited(decision="refused", reason="other experiment", user="alice")
    finally:
        facility.allow({HERS: ["alice", "carol"], OTHERS: ["bob"]})


def test_an_attenuated_token_cannot_be_widened(
    facility: Facility, gateway: Gateway, alice: Path, snapshot: str
) -> None:
    keys = IssuerKeys.load(facility.gateway / "known_issuers")
    narrow = attenuate(facility.token(alice, HERS), keys, runs=(1, 1))
    with gateway.client(alice, narrow) as client:
        assert client.get(f"/v1/runs/{HERS}/r0001").status == 200
        assert client.get(RUN).status == 403
        biscuit = keys.verify(narrow)
        assert isinstance(biscuit, Biscuit)
        wider = biscuit.append(BlockBuilder(f'right("{HERS}", "read", 0, 999999, "^.*$"); run(1)')).to_base64()
        assert client.get(RUN, token=wider).status == 401
        gateway.audited(decision="refused", reason="bad attenuation", user="alice")
        assert client.get(RUN, token=attenuate(narrow, keys, runs=(1, 99))).status == 403


def _appended(facility: Facility, token: str, code: str, text: str) -> str:
    """A token narrowed by hand, with a string that `attenuate` would never write."""
    keys = IssuerKeys.load(facility.gateway / "known_issuers")
    block = BlockBuilder("")
    block.add_code(code, {"text": text})
    return str(keys.verify(token).append(block).to_base64())


def test_an_appended_text_that_prints_as_another_check(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """The library prints strings without escapes: this one reads as three checks, one of a date that is none."""
    text = 'a");\ncheck if time($t), $t < 9999-99-99T99:99:99Z;\ncheck if experiment("b'
    token = _appended(facility, facility.token(alice, HERS), "check if experiment({text});", text)
    with gateway.client(alice, token) as client:
        reply = client.get(f"/v1/runs/{HERS}/r0001")
        assert (reply.status, reply.fields["www-authenticate"]) == (401, "Bearer")
    gateway.audited(decision="refused", reason="bad attenuation", user="alice", run=1)


def test_an_appended_pattern_that_takes_long(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """What is decided is decided between all other requests: one of a fifth of a second would hold up everybody."""
    text = "^" + ".*a" * 1500 + "q$"
    code = "check if detector($d), $d.matches({text}) or metadata(true);"
    token = _appended(facility, facility.token(alice, HERS), code, text)
    with gateway.client(alice, token) as client:
        assert client.get(f"{RUN}@{14:032x}/zarr/{'a' * 1000}/c/0").status == 401
    gateway.audited(decision="refused", reason="bad attenuation", user="alice", run=14)


def test_revoked_tokens_and_children_of_revoked_ones(facility: Facility, gateway: Gateway, alice: Path) -> None:
    keys = IssuerKeys.load(facility.gateway / "known_issuers")
    parent = facility.token(alice, HERS)
    child = attenuate(parent, keys, runs=(0, 99))
    other = facility.token(alice, HERS)
    with gateway.client(alice) as client:
        assert [client.get(RUN, token=token).status for token in (parent, child, other)] == [200] * 3
        identifier = gateway.audited(decision="allowed", operation="run", user="alice")
        assert identifier["token"] == keys.verify(other).revocation_ids[-1]
        revoke(facility.revocations, [keys.verify(parent).revocation_ids[0]], "shared in a chat")
        begun = time.monotonic()
        until(lambda: client.get(RUN, token=child).status == 401)
        assert time.monotonic() - begun < 5
        assert client.get(RUN, token=parent).status == 401
        assert client.get(RUN, token=other).status == 200
    gateway.audited(decision="refused", reason="revoked", user="alice")


# --- what is not hers ---


def test_what_is_not_hers_looks_like_what_is_not_there(
    facility: Facility, gateway: Gateway, alice: Path, snapshot: str
) -> None:
    theirs = lcls_dask.open_run(facility.root / OTHERS / "r0014").snapshot
    with gateway.client(alice, facility.token(alice, HERS, OTHERS)) as client:

        def look(experiment: str, rest: str) -> tuple[object, ...]:
            reply = client.get(f"/v1/runs/{experiment}{rest}")
            return reply.status, reply.body, {k: v for k, v in reply.fields.items() if k != "date"}

        for rest in (
            "",
            "/r0014",
            f"/r0014@{theirs}",
            f"/r0014@{theirs}/zarr/timestamp/c/0",
            f"/r0014@{theirs}/direct",
        ):
            there, not_there = look(OTHERS, rest), look("xpptut99", rest)
            assert there == not_there
            assert there[:2] == (404, SAME_FOR_ALL)
        assert client.get(f"/v1/runs/{HERS}/r0077").body == SAME_FOR_ALL
        assert client.get("/v1/runs").json == {"experiments": [HERS]}

        def seconds(experiment: str) -> float:
            begun = time.perf_counter()
            look(experiment, "/r0014")
            return time.perf_counter() - begun

        pairs = [(seconds(OTHERS), seconds("xpptut99")) for _ in range(60)]
    theirs_took, nobodys_took = (sorted(times)[len(times) // 4] for times in zip(*pairs, strict=True))
    assert 0.5 < theirs_took / nobodys_took < 2, "it takes as long, too"
    gateway.audited(decision="refused", reason="not a member", experiment=OTHERS, user="alice", status=404)


# --- paths ---


@pytest.mark.parametrize(
    "target",
    [
        "/v1/runs/../../etc/passwd", "/v1/runs/%2e%2e/%2e%2e/etc/passwd", "/v1/runs/..%2f..", "/v1/runs/tmox42619%00",
        "/v1/runs/tmox42619/r..", "/v1/runs/tmox42619/r0014@..%2f..", "/v1/runs/%74mox42619", "/../etc/passwd",
        "/v1/runs/tmox42619/r%c2%b9%c2%b4", "{run}/zarr/../../../../etc/passwd", "{run}/zarr/%2e%2e/%2e%2e/zarr.json",
        "{run}/zarr/..%2f..%2fetc%2fpasswd", "{run}/zarr/timestamp/c/..", "{run}/zarr/%00", "{run}/zarr/a%00b/c/0",
        "{run}/zarr/%c0%ae%c0%ae/zarr.json", "{run}/zarr/%e2%80%a5/zarr.json", "{run}/zarr/timestamp%5c..%5cc/0",
        "{run}/nodes/..", "{run}/nodes/%2e%2e", "{run}/zarr/%ef%bc%8e%ef%bc%8e/zarr.json", "{run}/zarr//etc/passwd",
        "{run}/zarr/%252e%252e/zarr.json", "//etc/passwd", "/v1/runs/tmox42619/r0014/../r0001",
    ],
)  # fmt: skip
def test_traversal(facility: Facility, gateway: Gateway, alice: Path, snapshot: str, target: str) -> None:
    asked = target.format(run=f"{RUN}@{snapshot}")
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        reply = client.get(asked)
    assert (reply.status, reply.body) == (404, SAME_FOR_ALL)
    assert any(record["status"] == 404 and record["user"] == "alice" for record in gateway.audit())


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A run that lies outside of the root."""
    lcls_dask.simulate(tmp_path / "r0066", "scan", events=10, experiment="secret01", run=66)
    return tmp_path / "r0066"


def test_a_run_that_a_link_places_outside(facility: Facility, gateway: Gateway, alice: Path, secret: Path) -> None:
    link = facility.root / HERS / "r0066"
    link.symlink_to(secret)
    try:
        with gateway.client(alice, facility.token(alice, HERS)) as client:
            assert client.get(f"/v1/runs/{HERS}/r0066").status == 404
            assert 66 not in [row["run"] for row in client.get(f"/v1/runs/{HERS}").json["runs"]]
    finally:
        link.unlink()
    gateway.audited(reason="a link leads out", run=66, status=404, decision="refused")


def test_an_experiment_that_a_link_places_outside(facility: Facility, gateway: Gateway, secret: Path) -> None:
    link = facility.root / "linked01"
    link.symlink_to(secret.parent)
    bob = facility.base / "bob"
    facility.allow({HERS: ["alice", "carol"], OTHERS: ["bob"], "linked01": ["bob"]})
    try:
        with gateway.client(bob, facility.token(bob, "linked01")) as client:
            assert client.get("/v1/runs/linked01/r0066").status == 404
            until(lambda: gateway.audited(experiment="linked01"))
            until(lambda: client.get("/v1/runs/linked01").status == 404 and any(
                r["reason"] == "a link leads out" and r["experiment"] == "linked01" for r in gateway.audit()
            ))  # fmt: skip
            assert client.get("/v1/runs").json == {"experiments": []}
    finally:
        link.unlink()
        facility.allow({HERS: ["alice", "carol"], OTHERS: ["bob"]})


def test_a_stream_that_a_link_places_outside(facility: Facility, gateway: Gateway, alice: Path, secret: Path) -> None:
    inside = facility.root / HERS / "r0067"
    inside.mkdir()
    for file in secret.glob("*.xtc2"):
        (inside / file.name.replace("secret01", HERS).replace("r0066", "r0067")).symlink_to(file)
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        assert client.get(f"/v1/runs/{HERS}/r0067").status == 404
    gateway.audited(reason="a link leads out", run=67, decision="refused")


@pytest.mark.parametrize("whole", [True, False], ids=["run", "stream"])
def test_a_link_into_another_experiment(facility: Facility, gateway: Gateway, alice: Path, whole: bool) -> None:
    """A confused deputy: members may make links in their experiment, and the gateway may read all experiments."""
    theirs, trap = facility.root / OTHERS / "r0068", facility.root / HERS / "r0068"
    lcls_dask.simulate(theirs, "scan", events=10, experiment=OTHERS, run=68)
    if whole:
        trap.symlink_to(Path("..") / OTHERS / "r0068")
    else:
        trap.mkdir()
        for file in theirs.glob("*.xtc2"):
            (trap / file.name).symlink_to(file)
    try:
        with gateway.client(alice, facility.token(alice, HERS)) as client:
            reply = client.get(f"/v1/runs/{HERS}/r0068")
            assert (reply.status, reply.body) == (404, SAME_FOR_ALL)
            rows = {row["run"]: row for row in client.get(f"/v1/runs/{HERS}").json["runs"]}
            assert 68 not in rows or (rows[68]["state"], rows[68]["events"]) == ("unreadable", 0)
        gateway.audited(reason="a link leads out", run=68, status=404, decision="refused")
    finally:
        trap.unlink() if whole else shutil.rmtree(trap)
        shutil.rmtree(theirs)


@pytest.mark.parametrize("kind", ["xtc2", "zarr", "hdf5"])
def test_a_link_that_comes_and_goes(facility: Facility, gateway: Gateway, alice: Path, kind: str) -> None:
    """A run of hers and a link to another's change places, again and again, between any look and the next opening."""
    trap, theirs = facility.root / HERS, facility.root / OTHERS
    name, number = {"xtc2": ("r0071", 71), "zarr": ("r0072.zarr", 72), "hdf5": ("run0073.h5", 73)}[kind]
    for experiment, base in ((HERS, trap), (OTHERS, theirs)):
        if kind == "xtc2":
            lcls_dask.simulate(base / name, "scan", events=10, experiment=experiment, run=number)
        elif kind == "zarr":
            write_store(base / name, experiment, number, {"timestamp": (4, (4,))})
        else:
            with h5py.File(base / name, "w") as file:
                file["timestamp"] = np.arange(10, dtype="u8")
                file["gmd/energy"] = np.full(10, float(experiment == OTHERS))
    other = trap / f"other-{kind}"
    other.symlink_to(theirs / name)
    exchange_names, stop = ctypes.CDLL(None, use_errno=True).renameat2, threading.Event()

    def flip() -> None:
        while not stop.is_set():
            assert exchange_names(-100, bytes(trap / name), -100, bytes(other), 2) == 0  # RENAME_EXCHANGE
            time.sleep(0.0005)

    flipping, opened = threading.Thread(target=flip), 0
    flipping.start()
    try:
        with gateway.client(alice, facility.token(alice, HERS)) as client:
            begun = time.monotonic()
            while time.monotonic() - begun < 60 and opened < 300:  # it took a few before
                reply = client.get(f"/v1/runs/{HERS}/r{number:04d}")
                if reply.status != 200:
                    continue
                opened += 1
                if kind == "hdf5":
                    (energy,) = [v["name"] for v in reply.json["root"]["variables"] if "energy" in v["name"]]
                    key = f"r{number:04d}@{reply.json['snapshot']}/zarr/{energy}/c/0"
                    values = client.get(f"/v1/runs/{HERS}/{key}")
                    assert values.status != 200 or not np.frombuffer(values.body, "f8").any()
                else:
                    assert reply.json["experiment"] == HERS
    finally:
        stop.set()
        flipping.join()
        other.unlink() if other.is_symlink() else (trap / name).unlink()  # whichever is the link now
    assert opened


def test_a_link_to_nothing_hides_no_other_run(facility: Facility, gateway: Gateway, alice: Path) -> None:
    link = facility.root / HERS / "r0014" / "notes"
    link.symlink_to("nowhere")
    try:
        with gateway.client(alice, facility.token(alice, HERS)) as client:
            reply = client.get(f"/v1/runs/{HERS}")
            assert reply.status == 200
            assert {1, 14} <= {row["run"] for row in reply.json["runs"]}
    finally:
        link.unlink()


@pytest.mark.parametrize("kind", ["external link", "external storage", "virtual source"])
def test_a_file_that_points_out_of_its_run(
    facility: Facility, gateway: Gateway, alice: Path, tmp_path: Path, kind: str
) -> None:
    """A confused deputy: the gateway may read what the user may not."""
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.arange(10.0)
    (tmp_path / "raw").write_bytes(bytes(80))
    trap = facility.root / HERS / f"{HERS}_Run0070.h5"
    with h5py.File(trap, "w") as file:
        file["timestamp"] = np.arange(10, dtype="u8")
        if kind == "external link":
            file["gmd/energy"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/secret")
        elif kind == "external storage":
            file.create_dataset("gmd/energy", (10,), "f8", external=[(str(tmp_path / "raw"), 0, 80)])
        else:
            layout = h5py.VirtualLayout((10,), "f8")
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "secret", (10,))
            file.create_virtual_dataset("gmd/energy", layout)
    try:
        with gateway.client(alice, facility.token(alice, HERS)) as client:
            reply = client.get(f"/v1/runs/{HERS}/r0070")
            assert (reply.status, reply.body) == (404, SAME_FOR_ALL)
        gateway.audited(reason="a link leads out", run=70, decision="refused")
    finally:
        trap.unlink()


# --- HTTP ---


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"GET /healthz HTTP/1.0\r\nHost: g\r\n\r\n", 505, "not HTTP/1.1"),
        (b"GET /healthz HTTP/1.1\nHost: g\n\n", 400, "bare line feed"),
        (b"GET /healthz HTTP/1.1\r\nHost: g\r\nX: a\r\n b\r\n\r\n", 400, "malformed header field"),
        (b"GET /healthz HTTP/1.1\r\nHost: g\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
         "a request here has no body"),
        (b"GET /healthz HTTP/1.1\r\nHost: g\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n", 400,
         "two content-length fields"),
        (b"GET /healthz HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\n", 400,
         "a request here has no body"),
        (b"GET /healthz HTTP/1.1\r\nHost: g\r\nTransfer-Encoding : chunked\r\n\r\n", 400, "malformed header field"),
        (b"GET /healthz HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\n\r\nhello", 400, "a request here has no body"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "not HTTP"),
        (b"\r\n\r\nGET /healthz HTTP/1.1\r\nHost: g\r\n\r\n", 400, "not HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed request line"),
        (b"GET /healthz HTTP/1.1\r\nHost: g\r\nHost: h\r\n\r\n", 400, "two host fields"),
        (b"GET /healthz HTTP/1.1\r\nHost: g\r\nX: a\x00b\r\n\r\n", 400, "malformed header field"),
        (b"GET /" + b"a" * 4000 + b" HTTP/1.1\r\nHost: g\r\n\r\n", 414, "URL too long"),
        (b"GET /healthz HTTP/1.1\r\nHost: g\r\nX: " + b"a" * 40_000, 431, "header fields too large"),
        (b"GET /healthz HTTP/1.1\r\nHost: g\r\n" + b"A: b\r\n" * 500 + b"\r\n", 431, "too many header fields"),
        (b"A" * 40_000, 431, "header fields too large"),
    ],
)  # fmt: skip
def test_malformed_requests_end_the_connection(
    gateway: Gateway, alice: Path, data: bytes, status: int, reason: str
) -> None:
    with gateway.socket(alice) as connection:
        received = exchange(connection, data + b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
    assert received.startswith(f"HTTP/1.1 {status} ".encode())
    assert received.count(b"HTTP/1.1 ") == 1, "nothing behind it is answered"
    gateway.audited(operation="connect", decision="refused", reason=reason, status=status, user="alice")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"])
def test_other_methods(facility: Facility, gateway: Gateway, alice: Path, method: str) -> None:
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        reply = client.get(RUN, method=method, Content_Length="0")
    assert (reply.status, reply.fields["allow"]) == (405, "GET, HEAD")
    gateway.audited(decision="refused", reason="method", status=405)


def test_plain_http_on_the_port(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
        connection.settimeout(10)
        received = b""
        try:
            while piece := connection.recv(4096):
                received += piece
        except ConnectionError:
            pass
    assert b"200" not in received
    gateway.audited(operation="connect", decision="refused", reason="TLS: http request")


def test_noise_on_the_port(gateway: Gateway, alice: Path) -> None:
    for data in (os.urandom(2000), b"\0" * 500, b"\x16\x03\x01" + os.urandom(600), b""):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
            connection.sendall(data)
    with gateway.client(alice) as client:
        assert client.get("/healthz").status == 200


def test_tls_below_1_2(gateway: Gateway, alice: Path) -> None:
    context = client_context(load_identity(alice))
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        gateway.socket(None, context).close()
    gateway.audited(operation="connect", decision="refused", reason="TLS: unsupported protocol")


def test_tls_1_2_is_enough(gateway: Gateway, alice: Path) -> None:
    context = client_context(load_identity(alice))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with gateway.socket(None, context) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        assert connection.version() == "TLSv1.2"
        assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_slow_loris(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """Many connections that send a header byte by byte; others are served meanwhile, and the slow ones are closed."""
    silent = socket.create_connection(("127.0.0.1", gateway.port), timeout=60)
    slow = [gateway.socket(alice) for _ in range(20)]
    begun = time.monotonic()
    for connection in slow:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: g\r\n")
        connection.setblocking(False)
    closed: set[ssl.SSLSocket] = set()
    with gateway.client(alice, facility.token(alice, HERS)) as client:
        while len(closed) < len(slow) and time.monotonic() - begun < 30:
            assert client.get(RUN).status == 200
            for connection in set(slow) - closed:
                try:
                    connection.send(b"X")
                    if connection.recv(1) == b"":
                        closed.add(connection)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass
                except OSError:
                    closed.add(connection)
            time.sleep(0.1)
    assert len(closed) == len(slow)
    assert time.monotonic() - begun < 20
    with silent:
        try:
            assert silent.recv(1) == b"", "nor does it wait for a handshake for ever"
        except ConnectionError:
            pass
    for connection in slow:
        connection.close()
    gateway.audited(operation="connect", decision="refused", reason="head timeout", user="alice")
    gateway.audited(operation="connect", decision="refused", reason="handshake timeout")


def test_refusals_do_not_fill_the_disk(facility: Facility, gateway: Gateway, alice: Path) -> None:
    before = sum(path.stat().st_size for path in gateway.audit_directory.iterdir())
    with gateway.client(alice, facility.token(alice, HERS, runs=(3, 3))) as client:
        for _ in range(300):
            assert client.get(RUN).status == 403
    assert sum(path.stat().st_size for path in gateway.audit_directory.iterdir()) - before < 30_000
    until(
        lambda: sum(r["count"] for r in gateway.audit() if r["reason"] == "run out of range" and r["run"] == 14) >= 300
    )


def test_the_audit_holds_no_token(gateway: Gateway, facility: Facility, alice: Path) -> None:
    token = facility.token(alice, HERS)
    with gateway.client(alice, token) as client:
        client.get(RUN)
        client.get(f"/{token}"[:1000])
    told = gateway.audited(operation="other", user="alice", reason="no such address")
    for record in gateway.audit():
        assert token not in json.dumps(record)
    assert len(told["key"]) <= 200


def test_an_introduction_of_nobody_is_no_identity(facility: Facility, gateway: Gateway) -> None:
    """A certificate that the site signed, but that names two roles, is nobody's."""
    from cryptography import x509

    from lcls_dask.security import certificates as cert

    directory = facility.base / "janus"
    create_identity(directory, Role.USER, "alice")
    authority = cert.load_certificate((facility.base / "site" / "CA.crt").read_bytes())
    signer = cert.load_key((facility.base / "site" / "CA.key").read_bytes())
    subject = cert.load_certificate((directory / "id.crt").read_bytes())
    uris = ["urn:lcls:role:user", "urn:lcls:role:gateway", "urn:lcls:user:alice"]
    builder = x509.CertificateBuilder(
        authority.subject, subject.subject, subject.public_key(), 4711, subject.not_valid_before_utc,
        subject.not_valid_after_utc,
    )  # fmt: skip
    for extension in authority.extensions:
        if isinstance(extension.value, x509.SubjectKeyIdentifier):
            issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(extension.value)
            builder = builder.add_extension(issuer, False)
    builder = builder.add_extension(x509.BasicConstraints(False, None), True)
    names = [x509.UniformResourceIdentifier(uri) for uri in uris]
    signed = builder.add_extension(x509.SubjectAlternativeName(names), False).sign(signer, None)
    context = ssl.create_default_context(cafile=facility.base / "site" / "CA.crt")
    (directory / "two.crt").write_bytes(cert.certificate_pem(signed))
    context.load_cert_chain(directory / "two.crt", directory / "id.key")
    with gateway.socket(None, context) as connection:
        assert exchange(connection, b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n") == b""
    until(lambda: any("2 roles" in record["reason"] for record in gateway.audit()))
