"""What a gateway gives to whom it may: catalogue, metadata, keys, ranges, caching, direct reads, metrics."""

import base64
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from gateway_rig import Client, Facility, Gateway, until

import lcls_dask
from lcls_dask.gateway.openapi import DOCUMENT
from lcls_dask.gateway.state import State
from lcls_dask.security import Operation, Role
from lcls_dask.stores.keys import RunKeys

HERS, OTHERS = "tmox42619", "xpptut15"


@pytest.fixture(scope="module")
def facility(tmp_path_factory: pytest.TempPathFactory) -> Facility:
    made = Facility(tmp_path_factory.mktemp("facility"))
    for experiment in (HERS, OTHERS):
        for run in (1, 14):
            lcls_dask.simulate(
                made.root / experiment[:3] / experiment / f"r{run:04d}",
                "scan",
                events=200,
                experiment=experiment,
                run=run,
            )
    made.identity("alice")
    made.allow({HERS: ["alice"], OTHERS: ["bob"], "emptyexp1": ["alice"]}, direct=[HERS])
    return made


@pytest.fixture(scope="module")
def gateway(facility: Facility) -> Iterator[Gateway]:
    running = Gateway(facility, ("--processes", "2")).start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def alice(facility: Facility, gateway: Gateway) -> Iterator[Client]:
    identity = facility.base / "alice"
    with gateway.client(identity, facility.token(identity, HERS, "emptyexp1")) as client:
        yield client


@pytest.fixture
def keys(facility: Facility) -> RunKeys:
    return RunKeys(lcls_dask.open_run(facility.root / "tmo" / HERS / "r0014").source)


@pytest.fixture
def run(alice: Client) -> str:
    """Where run 14 is, pinned."""
    return f"/v1/runs/{HERS}/r0014@{alice.get(f'/v1/runs/{HERS}/r0014').json['snapshot']}"


def digest(body: bytes) -> str:
    return f"crc32c=:{base64.b64encode(google_crc32c.value(body).to_bytes(4, 'big')).decode()}:"


def test_the_catalogue_is_hers(alice: Client, gateway: Gateway) -> None:
    assert alice.get("/v1/runs").json == {"experiments": [HERS]}
    rows = alice.get(f"/v1/runs/{HERS}").json["runs"]
    assert [(row["run"], row["events"], row["state"], row["problem"]) for row in rows] == [
        (1, 200, "ended", ""),
        (14, 200, "ended", ""),
    ]
    assert alice.get(f"/v1/runs/{HERS}").json["runs"] == rows, "the row that the database kept is the same"
    state = State(gateway.database)
    assert {number: row for number, (_, row) in state.rows(HERS).items()} == {row["run"]: row for row in rows}
    state.close()


def test_a_run_that_cannot_be_opened_is_a_row_that_says_why(alice: Client, facility: Facility) -> None:
    broken = facility.root / "tmo" / HERS / "run20.h5"
    broken.write_bytes(b"\x89HDF\r\n\x1a\n" + b"x" * 100)
    try:
        (row,) = [row for row in alice.get(f"/v1/runs/{HERS}").json["runs"] if row["run"] == 20]
        assert (row["state"], row["events"]) == ("unreadable", 0)
        assert row["problem"].startswith(f"tmo/{HERS}/run20.h5")
        assert str(facility.root) not in row["problem"]
    finally:
        broken.unlink()


def test_the_run_document_is_the_index(alice: Client, facility: Facility) -> None:
    opened = lcls_dask.open_run(facility.root / "tmo" / HERS / "r0014")
    reply = alice.get(f"/v1/runs/{HERS}/r0014")
    assert reply.fields["cache-control"] == "private, no-cache"
    told = reply.json
    first, last = opened.span() or (0, 0)
    expected = {"experiment": HERS, "run": 14, "state": "ended", "snapshot": opened.snapshot, "events": 200,
                "steps": opened.steps, "first_timestamp": first, "last_timestamp": last}  # fmt: skip
    assert {key: told[key] for key in expected} == expected
    assert told["nodes"] == list(opened.index.nodes)
    assert [detector["name"] for detector in told["detectors"]] == list(opened.detectors)
    pinned = f"/v1/runs/{HERS}/r0014@{opened.snapshot}"
    assert alice.get(pinned).json == told
    assert "immutable" in alice.get(pinned).fields["cache-control"]
    for path, node in opened.index.nodes.items():
        document = alice.get(f"{pinned}/nodes{path}").json
        assert document["path"] == path
        assert [
            (v["name"], tuple(v["dims"]), tuple(v["shape"]), np.dtype(v["dtype"]), v["chunk"], v["coordinate"])
            for v in document["variables"]
        ] == [(v.name, v.dims, v.shape, v.dtype, v.chunk, v.coordinate) for v in node.variables.values()]
    assert told["root"] == alice.get(f"{pinned}/nodes/").json
    assert alice.get(f"{pinned}/nodes/nosuch").status == 404


def walk(client: Client, run: str, prefix: str = "") -> Iterator[tuple[str, int | None]]:
    for entry in client.get(f"{run}/zarr/{prefix}").json:
        if entry["directory"]:
            yield from walk(client, run, f"{prefix}{entry['name']}/")
        else:
            yield prefix + entry["name"], entry["size"]


def test_every_key_that_is_listed_is_served(alice: Client, run: str, keys: RunKeys) -> None:
    seen = 0
    for key, size in walk(alice, run):
        expected = keys.read(key)
        assert expected is not None
        reply = alice.get(f"{run}/zarr/{key}")
        assert (reply.status, reply.body) == (200, expected.tobytes()), key
        assert size in (None, len(reply.body))
        assert reply.fields["content-digest"] == digest(reply.body)
        assert reply.fields["cache-control"] == "private, max-age=31536000, immutable"
        assert reply.fields["content-length"] == str(len(reply.body))
        head = alice.get(f"{run}/zarr/{key}", method="HEAD")
        assert head.body == b""
        made = ("date", "content-digest")  # to know the digest takes the body
        assert {k: v for k, v in head.fields.items() if k not in made} == {
            k: v for k, v in reply.fields.items() if k not in made
        }
        seen += 1
    assert seen > 20


def test_what_is_not_in_the_grid_is_not_there(alice: Client, run: str) -> None:
    for key in ("timestamp/c/1", "nosuch/zarr.json", ".zarray", "timestamp/c", "timestamp/c/00", "zarr.json/"):
        assert alice.get(f"{run}/zarr/{key}").status == 404, key
    assert alice.get(f"/v1/runs/{HERS}/r0015").status == 404
    assert alice.get("/v1/runs/emptyexp1").status == 404
    gone = alice.get(f"/v1/runs/{HERS}/r0014@{'0' * 32}/zarr/zarr.json")
    assert gone.status == 410
    assert "\n" not in gone.json["error"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=3-17", slice(3, 18)),
        ("bytes=1592-", slice(1592, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=-99999", slice(None)),
        ("bytes=7-999999999999999999", slice(7, None)),
    ],
)
def test_ranges(alice: Client, run: str, keys: RunKeys, text: str, expected: slice) -> None:
    whole = keys.read("timestamp/c/0")
    assert whole is not None
    reply = alice.get(f"{run}/zarr/timestamp/c/0", Range=text)
    start, stop, _ = expected.indices(whole.nbytes)
    assert (reply.status, reply.body) == (206, whole[start:stop].tobytes())
    assert reply.fields["content-range"] == f"bytes {start}-{stop - 1}/{whole.nbytes}"
    assert reply.fields["content-digest"] == digest(reply.body)


@pytest.mark.parametrize("text", ["bytes=1600-", "bytes=-0", "bytes=999999999-9999999999"])
def test_ranges_outside(alice: Client, run: str, text: str) -> None:
    reply = alice.get(f"{run}/zarr/timestamp/c/0", Range=text)
    assert reply.status == 416
    assert reply.fields["content-range"] == "bytes */1600"


@pytest.mark.parametrize(
    "text", ["bytes=0-1,5-6", "bytes=9-2", "lines=1-2", "bytes=" + "0-1," * 400, "bytes=-" + "9" * 40]
)
def test_absurd_ranges_are_ignored(alice: Client, run: str, text: str) -> None:
    reply = alice.get(f"{run}/zarr/timestamp/c/0", Range=text)
    assert (reply.status, len(reply.body)) == (200, 1600)


def test_tags(alice: Client, run: str) -> None:
    target = f"{run}/zarr/timestamp/c/0"
    tag = alice.get(target).fields["etag"]
    assert re.fullmatch(r'"[0-9a-f]+"', tag), "strong"
    for sent in (tag, f'"x", {tag}', "*"):
        reply = alice.get(target, If_None_Match=sent)
        assert (reply.status, reply.body, reply.fields["etag"]) == (304, b"", tag)
    assert alice.get(target, If_None_Match='"x"').status == 200
    assert alice.get(f"{run}/zarr/nosuch/c/0", If_None_Match="*").status == 404
    assert alice.get(target, Range="bytes=0-7", If_Range=tag).status == 206
    assert alice.get(target, Range="bytes=0-7", If_Range='"x"').status == 200
    other = alice.get(f"{run}/zarr/time/c/0").fields["etag"]
    assert other != tag


def test_many_requests_on_one_connection_and_pipelined(
    alice: Client, facility: Facility, gateway: Gateway, run: str
) -> None:
    identity = facility.base / "alice"
    token = facility.token(identity, HERS)
    one = f"GET {run}/zarr/timestamp/c/0 HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n"
    with gateway.socket(identity) as connection:
        connection.sendall((one + "\r\n").encode() * 3 + (one + "Connection: close\r\n\r\n").encode())
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 200 OK") == 4
    assert received.count(b"Connection: close") == 1


def test_direct_reads(alice: Client, facility: Facility, gateway: Gateway, run: str) -> None:
    assert alice.get(f"{run}/direct").status == 403
    gateway.audited(operation="direct", decision="refused", reason="other operation", user="alice")
    identity = facility.base / "alice"
    token = facility.token(identity, HERS, operations=[Operation.INFO, Operation.READ, Operation.DIRECT])
    told = alice.get(f"{run}/direct", token=token).json
    gateway.audited(operation="direct", decision="allowed", user="alice", run=14, experiment=HERS)
    used = tuple((name, size) for name, size in told["used"])
    from lcls_dask.formats import SourceRef, reopen

    source = reopen(SourceRef(told["path"], told["run"], told["snapshot"], used))
    assert source.index.snapshot == run.rpartition("@")[2]
    for file in told["files"]:
        stat = (Path(told["path"]) / file["name"]).stat()
        assert (file["size"], file["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
        assert re.fullmatch("[0-9a-f]{32}", file["header"])
    part = facility.token(identity, HERS, detectors="archon", operations=[Operation.INFO, Operation.DIRECT])
    assert alice.get(f"{run}/direct", token=part).status == 403, "only for the whole run"


def test_health_and_openapi_need_no_token(facility: Facility, gateway: Gateway) -> None:
    with gateway.client(facility.base / "alice") as client:
        assert client.get("/healthz").json == {"status": "ok"}
        assert client.get("/v1/openapi.json").json == json.loads(json.dumps(DOCUMENT))


def test_metrics_are_of_all_processes_and_for_managers(facility: Facility, gateway: Gateway, alice: Client) -> None:
    assert alice.get("/metrics").status == 403
    with gateway.client(facility.identity("prometheus", Role.MANAGER)) as manager:

        def asked() -> float:
            told = manager.get("/metrics")
            assert told.fields["content-type"].startswith("text/plain")
            found = re.findall(r'lcls_gateway_answers_total\{kind="healthz",status="200"\} (\S+)', told.body.decode())
            return float(found[0]) if found else 0.0

        before = asked()
        for _ in range(8):  # each on a connection of its own: the kernel gives them to either process
            with gateway.client(facility.base / "alice") as client:
                client.get("/healthz")
        assert until(lambda: asked() >= before + 8)
        body = manager.get("/metrics").body.decode()
    assert "alice" not in body
    assert HERS not in body


def test_the_audit_says_who_read_what(facility: Facility, gateway: Gateway, alice: Client, run: str) -> None:
    identity = facility.base / "alice"
    token = facility.token(identity, HERS)
    size = len(alice.get(f"{run}/zarr/timestamp/c/0", token=token).body)
    told = gateway.audited(operation="key", key="timestamp/c/0", decision="allowed", bytes=size, status=200)
    assert (told["user"], told["experiment"], told["run"], told["role"]) == ("alice", HERS, 14, "user")
    assert re.fullmatch("[0-9a-f]+", told["certificate"])
    assert re.fullmatch("[0-9a-f]+", told["token"])
    assert told["address"] == "127.0.0.1"
    everything = "".join(path.read_text() for path in gateway.audit_directory.iterdir()) + gateway.log.read_text()
    assert token not in everything
    assert token[:40] not in everything
    state = State(gateway.database)
    until(
        lambda: any(row["key"] == "timestamp/c/0" for row in state.audit(user="alice")), what="the index of the audit"
    )
    state.close()


def test_runs_are_opened_anew_on_sighup(gateway: Gateway, alice: Client) -> None:
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGHUP)
    assert alice.get(f"/v1/runs/{HERS}/r0001").status == 200
    assert gateway.process.poll() is None
