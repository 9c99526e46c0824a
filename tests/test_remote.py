"""Reading through a gateway: the same values as from the files, by every face, in spite of what goes wrong."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from gateway_rig import Facility, Gateway, until
from hypothesis import given, settings
from hypothesis import strategies as st

import lcls_dask
from lcls_dask.errors import AccessError, IdentityError, LclsError, RunNotFoundError, SnapshotError, UnreachableError
from lcls_dask.formats import discover, open_source
from lcls_dask.formats.discover import open_uri
from lcls_dask.formats.remote import credentials as remote_credentials
from lcls_dask.formats.remote import gateway as remote_gateway
from lcls_dask.formats.remote.plan import of_rows, of_slice
from lcls_dask.security import Operation, Role, create_identity, load_identity
from lcls_dask.security.certificates import certificate_pem
from lcls_dask.security.introductions import accept, introduce
from lcls_dask.security.issuer import create_issuer
from lcls_dask.security.issuer_client import renew
from lcls_dask.uri import parse_uri

EXPERIMENT, OTHERS = "tmox42619", "xpptut15"


@pytest.fixture(scope="module")
def facility(tmp_path_factory: pytest.TempPathFactory) -> Facility:
    made = Facility(tmp_path_factory.mktemp("facility"))
    for experiment in (EXPERIMENT, OTHERS):
        lcls_dask.simulate(made.root / experiment / "r0001", "scan", events=300, experiment=experiment, run=1)
    lcls_dask.simulate(made.root / EXPERIMENT / "r0002", "tof", events=200, experiment=EXPERIMENT, run=2)
    made.identity("alice")
    made.identity("bob")
    made.allow({EXPERIMENT: ["alice"], OTHERS: ["bob"]})
    return made


@pytest.fixture(scope="module")
def gateway(facility: Facility) -> Iterator[Gateway]:
    running = Gateway(facility).start()
    yield running
    running.stop()


def enter(facility: Facility, name: str, *experiments: str, **more: object) -> Path:
    """Let a user's token lie where clients look for it."""
    identity = facility.base / name
    path = identity / "token"
    path.touch(0o600)
    path.chmod(0o600)
    path.write_text(facility.token(identity, *experiments, **more))  # type: ignore[arg-type]
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
    return identity


@pytest.fixture
def alice(facility: Facility, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process is Alice, and knows where the gateway is."""
    monkeypatch.setattr(remote_credentials, "_FOUND", {})
    monkeypatch.setattr(remote_gateway, "_GATEWAYS", {})
    monkeypatch.setattr(discover, "_OPEN", OrderedDict())
    identity = enter(facility, "alice", EXPERIMENT)
    settings = {"lcls.gateway": f"https://localhost:{gateway.port}", "lcls.identity": str(identity), "lcls.patience": 5}
    with dask.config.set(settings):
        yield identity
    remote_gateway._hang_up()


def run_uri(number: int = 1) -> str:
    return f"lcls://{EXPERIMENT}/r{number:04d}"


@pytest.mark.parametrize("number", [1, 2])
def test_same_values_as_the_files(facility: Facility, alice: Path, number: int) -> None:
    here = open_source(facility.root / EXPERIMENT / f"r{number:04d}")
    there = open_uri(parse_uri(run_uri(number)))
    assert there.index.snapshot == here.index.snapshot
    assert list(there.index.nodes) == list(here.index.nodes)
    assert dict(there.index.detectors) == dict(here.index.detectors)
    for path, node in here.index.nodes.items():
        assert list(there.index.nodes[path].variables) == list(node.variables)
        for name, variable in node.variables.items():
            mine = there.index.nodes[path].variables[name]
            assert (mine.dims, mine.shape, mine.dtype, mine.chunk) == (
                variable.dims,
                variable.shape,
                variable.dtype,
                variable.chunk,
            )
            rows = slice(0, variable.shape[0] if variable.shape else 1)
            np.testing.assert_array_equal(there.read(path, name, rows), here.read(path, name, rows), err_msg=name)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_pieces_hold_the_rows(data: st.DataObject) -> None:
    chunk, item = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 1000, 50_000, 200_000]))
    rows = np.array(data.draw(st.lists(st.integers(0, 60), max_size=30)), np.int64)
    pieces, index = of_rows(rows, chunk, item)
    held = np.concatenate([np.arange(p.start, p.stop) + p.chunk * chunk for p in pieces] or [np.empty(0, np.int64)])
    np.testing.assert_array_equal(held[index], rows)
    assert all(0 <= p.start < p.stop <= chunk for p in pieces)
    assert len(set(held.tolist())) == held.size
    first, last = sorted(data.draw(st.tuples(st.integers(0, 60), st.integers(0, 60))))
    straight = [p.chunk * chunk + row for p in of_slice(first, last, chunk) for row in range(p.start, p.stop)]
    assert straight == list(range(first, last))


def test_any_rows(facility: Facility, alice: Path) -> None:
    here, there = open_source(facility.root / EXPERIMENT / "r0001"), open_uri(parse_uri(run_uri()))
    rng = np.random.default_rng(3)
    for path in ("/", "/steps"):
        for name, variable in here.index.nodes[path].variables.items():
            size = variable.shape[0]
            for rows in (rng.integers(0, size, 25), np.array([size - 1, 0, 0]), np.empty(0, np.int64)):
                expected = here.read(path, name, rows.astype(np.int64))
                np.testing.assert_array_equal(there.read(path, name, rows.astype(np.int64)), expected, err_msg=name)
            assert there.read(path, name, slice(2, 2)).shape == (0, *variable.shape[1:])


def test_references_hold_no_credentials(alice: Path) -> None:
    source = open_uri(parse_uri(run_uri()))
    travels = pickle.dumps(source.ref)
    assert len(travels) < 1000
    token = (alice / "token").read_text()
    assert token.encode() not in travels
    assert str(alice).encode() not in travels
    assert discover.reopen(pickle.loads(travels)).index.snapshot == source.index.snapshot
    for secret in (remote_credentials.credentials(), remote_gateway.gateway_at(source.ref.gateway or "")):
        assert token not in repr(secret)
        with pytest.raises(TypeError, match="stay in the process"):
            pickle.dumps(secret)
    assert token not in repr(remote_credentials.credentials().current())


@pytest.mark.parametrize(
    ("uri", "error", "says"),
    [
        (f"lcls://{EXPERIMENT}/r0009", RunNotFoundError, "no such thing"),
        (f"lcls://{OTHERS}/r0001", RunNotFoundError, "no such thing"),
        ("lcls://nosuch123/r0001", RunNotFoundError, "no such thing"),
        (f"lcls://{EXPERIMENT}/r0001@{'0' * 32}", SnapshotError, "snapshot"),
    ],
)
def test_what_is_not_there(alice: Path, uri: str, error: type[LclsError], says: str) -> None:
    with pytest.raises(error, match=says):
        open_uri(parse_uri(uri))


def test_no_token(alice: Path) -> None:
    (alice / "token").unlink()
    with pytest.raises(AccessError, match=r"no token.*lcls-dask token issue"):
        open_uri(parse_uri(run_uri()))


def test_expired_and_narrow_tokens(facility: Facility, alice: Path) -> None:
    enter(facility, "alice", EXPERIMENT, lifetime=-5)
    with pytest.raises(AccessError, match="expired"):
        open_uri(parse_uri(run_uri()))
    enter(facility, "alice", EXPERIMENT, runs=(2, 9))
    with pytest.raises(AccessError, match="run out of range"):
        open_uri(parse_uri(run_uri()))
    enter(facility, "alice", EXPERIMENT, detectors="gmd")
    source = open_uri(parse_uri(run_uri()))
    other = next(name for name in source.index.nodes["/"].variables if "." in name and not name.startswith("gmd"))
    assert source.read("/", "timestamp", slice(0, 5)).size == 5
    with pytest.raises(AccessError, match="detector"):
        source.read("/", other, slice(0, 5))


def test_a_token_that_others_can_read(alice: Path) -> None:
    (alice / "token").chmod(0o644)
    with pytest.raises(IdentityError, match="chmod"):
        open_uri(parse_uri(run_uri()))


def test_another_user_with_her_token(facility: Facility, alice: Path) -> None:
    stolen = (alice / "token").read_text()
    path = facility.base / "bob" / "token"
    path.touch(0o600)
    path.chmod(0o600)
    path.write_text(stolen)
    with (
        dask.config.set({"lcls.identity": str(facility.base / "bob")}),
        pytest.raises((AccessError, RunNotFoundError)),
    ):
        open_uri(parse_uri(run_uri()))


def test_a_certificate_that_was_renewed_by_somebody_else(facility: Facility, alice: Path) -> None:
    """On the command line, say: the new token is for the new certificate, which this process has not seen yet."""
    assert open_uri(parse_uri(run_uri())).index.events == 300
    signed = introduce(facility.base / "site", (alice / "id.crt").read_bytes(), lifetime=timedelta(days=1000))
    accept(alice, json.dumps(signed))
    enter(facility, "alice", EXPERIMENT)
    assert open_uri(parse_uri(run_uri(2))).index.events == 200


def test_another_process_renews_the_certificate(
    facility: Facility, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight workers, one identity: each asks for tokens that are bound to the certificate of its own connections."""
    code = "import sys; from lcls_dask.cli import main; sys.exit(main())"
    revoked = tmp_path / "revoked"
    site = create_issuer(tmp_path / "issuer", hosts=["localhost"])
    for folder, name in (("known_clients", "ca.crt"), ("known_issuers", "other.pub")):
        source = site.directory / ("CA.crt" if name == "ca.crt" else "biscuit.pub")
        shutil.copy(source, facility.gateway / folder / name)
    arguments = ["--policy", str(facility.policy), "--revocations", str(revoked), "--port", "0"]
    command = [sys.executable, "-c", code, "issue", "serve", str(site.directory), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip().replace("127.0.0.1", "localhost")
        try:
            made = create_identity(tmp_path / "worker", Role.WORKER, "alice")
            accept(made.directory, json.dumps(site.sign(certificate_pem(made.certificate), Role.WORKER, "alice")), True)
            shutil.copy(facility.base / "site" / "CA.crt", made.directory / "known_servers" / "site.crt")
            with dask.config.set({"lcls.issuer": url, "lcls.identity": str(made.directory)}):

                def read() -> int:
                    monkeypatch.setattr(discover, "_OPEN", OrderedDict())
                    return open_uri(parse_uri(run_uri())).index.events

                assert until(lambda: _allowed(read)) == 300  # the gateway has to take the new authority first
                renew(load_identity(made.directory), url)  # what another worker does
                mine = remote_credentials.credentials()
                before = mine.current()
                after = mine.current(refused=True)
                assert (after.generation, after.token != before.token) == (before.generation, True)
                assert read() == 300
        finally:
            process.terminate()
    for folder, name in (("known_clients", "ca.crt"), ("known_issuers", "other.pub")):
        (facility.gateway / folder / name).unlink()


def _allowed(read: Callable[[], int]) -> int:
    try:
        return read()
    except LclsError:
        return 0


def test_nobody_answers(alice: Path) -> None:
    with dask.config.set({"lcls.gateway": "https://localhost:1", "lcls.patience": 0.3}):
        begun = time.monotonic()
        with pytest.raises(UnreachableError, match="is the gateway running"):
            open_uri(parse_uri(run_uri()))
        assert time.monotonic() - begun < 10


def test_whoever_answers_must_be_a_gateway(facility: Facility, alice: Path) -> None:
    """A worker with a certificate of the same authority, on the host of a gateway."""
    import socket

    from lcls_dask.security import load_identity, server_context

    worker = facility.identity("worker", Role.WORKER, "alice", hosts=("localhost",))
    context = server_context(load_identity(worker))
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            plain, _ = server.accept()
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    received.append(connection.recv(100))
            except OSError:
                received.append(b"")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = f"https://localhost:{server.getsockname()[1]}"
        with pytest.raises(IdentityError, match="is a worker"):
            open_uri(parse_uri(run_uri()), gateway=address)
        thread.join(30)
    assert received == [b""], "nothing is sent to whom it is not meant for"


def test_restarted_in_the_middle(facility: Facility, alice: Path, gateway: Gateway) -> None:
    """Killed and started again while threads read: waiting, then the right values."""
    here, there = open_source(facility.root / EXPERIMENT / "r0002"), open_uri(parse_uri(run_uri(2)))
    path, name = max(
        ((path, name) for path, node in here.index.nodes.items() for name in node.variables),
        key=lambda found: here.index.nodes[found[0]].variables[found[1]].nbytes,
    )
    length = here.index.nodes[path].variables[name].shape[0]
    expected = here.read(path, name, slice(0, length))
    wrong: list[object] = []
    stop = threading.Event()
    reads = [0] * 4

    def work(number: int) -> None:
        while not stop.is_set():
            try:
                if not np.array_equal(there.read(path, name, slice(0, length)), expected):
                    wrong.append("values")
            except Exception as error:
                wrong.append(error)
            reads[number] += 1

    with dask.config.set({"lcls.patience": 40}):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            before = list(reads)
            while any(now < then + 2 for now, then in zip(reads, before, strict=True)) and not wrong:
                time.sleep(0.01)
            gateway.stop(signal.SIGKILL)
            gateway.start()
        before = list(reads)
        while any(now < then + 2 for now, then in zip(reads, before, strict=True)) and not wrong:
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not wrong


def test_kept_chunks(facility: Facility, alice: Path, tmp_path: Path, gateway: Gateway) -> None:
    cache = tmp_path / "chunks"
    with dask.config.set({"lcls.chunk-cache": str(cache)}):
        source = open_uri(parse_uri(run_uri()))
        expected = source.read("/", "timestamp", slice(0, 300))
        (kept,) = cache.iterdir()
        assert cache.stat().st_mode & 0o777 == 0o700
        served = sum(1 for record in gateway.audit() if "timestamp/c/" in record["key"])
        np.testing.assert_array_equal(source.read("/", "timestamp", slice(7, 250)), expected[7:250])
        assert sum(1 for record in gateway.audit() if "timestamp/c/" in record["key"]) == served
        kept.write_bytes(b"x" + kept.read_bytes()[1:])
        np.testing.assert_array_equal(source.read("/", "timestamp", slice(0, 300)), expected)
    cache.chmod(0o755)
    discover._OPEN.clear()
    with dask.config.set({"lcls.chunk-cache": str(cache)}), pytest.raises(AccessError, match="chmod 700"):
        open_uri(parse_uri(run_uri()))


def test_a_small_cache_stays_small(tmp_path: Path) -> None:
    from lcls_dask.formats.remote.cache import ChunkCache

    cache = ChunkCache(tmp_path / "small", 10_000)
    for number in range(30):
        cache.put(f"chunk {number}", memoryview(bytes([number]) * 1000))
        assert sum(entry.stat().st_size for entry in (tmp_path / "small").iterdir()) <= 10_000
    assert cache.get("chunk 29") == bytes([29]) * 1000
    assert cache.get("chunk 0") is None
    cache.put("large", memoryview(bytes(20_000)))
    assert cache.get("large") is None


def test_files_are_read_directly_where_policy_allows(facility: Facility, alice: Path, gateway: Gateway) -> None:
    operations = (Operation.LIST, Operation.INFO, Operation.READ, Operation.DIRECT)
    facility.allow({EXPERIMENT: ["alice"], OTHERS: ["bob"]}, direct=[EXPERIMENT])
    try:
        enter(facility, "alice", EXPERIMENT, operations=operations)
        time.sleep(1.2)  # the policy is looked at once a second
        source = open_uri(parse_uri(run_uri()))
        values = source.read("/", "timestamp", slice(0, 300))
        assert gateway.audited(operation="direct", decision="allowed")["user"] == "alice"
        assert source._files is not None  # type: ignore[attr-defined]
        with dask.config.set({"lcls.direct": False}):
            discover._OPEN.clear()
            through = open_uri(parse_uri(run_uri()))
            assert through._files is None  # type: ignore[attr-defined]
            np.testing.assert_array_equal(through.read("/", "timestamp", slice(0, 300)), values)
    finally:
        facility.allow({EXPERIMENT: ["alice"], OTHERS: ["bob"]})


def test_every_face(facility: Facility, alice: Path, tmp_path: Path) -> None:
    """Engine, Dask, zarr and fsspec over the gateway give what the engine gives over the files."""
    import fsspec
    import zarr

    from lcls_dask.stores.store import LclsStore

    with xr.open_dataset(facility.root / EXPERIMENT / "r0001", engine="lcls") as there:
        expected = there.load()
    with xr.open_dataset(run_uri(), engine="lcls", chunks={}) as lazy:
        xr.testing.assert_identical(lazy.compute(scheduler="threads").drop_attrs(), expected.drop_attrs())
    run = lcls_dask.open_run(run_uri())
    assert run.events == 300
    assert "through" not in run.info()
    xr.testing.assert_identical(
        run.dataset(events=slice(10, 20)).compute().drop_attrs(), expected.isel(event=slice(10, 20)).drop_attrs()
    )
    with xr.open_zarr(LclsStore(run.source), consolidated=False) as stored:
        xr.testing.assert_identical(stored.load().drop_attrs(), expected.drop_attrs())
    fs = fsspec.filesystem("lcls", skip_instance_cache=True)
    assert fs.ls("", detail=False) == [EXPERIMENT]
    assert fs.ls(EXPERIMENT, detail=False) == [f"{EXPERIMENT}/r0001", f"{EXPERIMENT}/r0002"]
    inside = fsspec.filesystem("lcls", asynchronous=True, skip_instance_cache=True)
    store = zarr.storage.FsspecStore(inside, path=f"{EXPERIMENT}/r0001", read_only=True)
    group = zarr.open_group(store, mode="r", use_consolidated=False)
    np.testing.assert_array_equal(group["timestamp"][:], expected["timestamp"].values)  # type: ignore[index]
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"{EXPERIMENT}/r0001/nothing/c/0")


def test_command_line(facility: Facility, alice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lcls_dask.cli import main

    assert main(["ls", f"lcls://{EXPERIMENT}"]) == 0
    listed = capsys.readouterr().out
    assert "ended" in listed
    assert "300" in listed
    assert main(["info", run_uri()]) == 0
    assert "300" in capsys.readouterr().out
    assert main(["validate", run_uri()]) in (0, 1)
    capsys.readouterr()
    target = tmp_path / "copy.zarr"
    assert main(["export", run_uri(), str(target)]) == 0
    capsys.readouterr()
    here = open_source(facility.root / EXPERIMENT / "r0001")
    copy = open_source(target)
    for name, variable in here.index.nodes["/"].variables.items():
        rows = slice(0, variable.shape[0])
        np.testing.assert_array_equal(copy.read("/", name, rows), here.read("/", name, rows))
    assert main(["info", f"lcls://{OTHERS}/r0001"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("lcls-dask: ")
    assert said.count("\n") == 1
    assert (alice / "token").read_text() not in said


def test_experiment(alice: Path) -> None:
    experiment = lcls_dask.open_experiment(f"lcls://{EXPERIMENT}")
    assert experiment.runs() == [1, 2]
    table = experiment.table()
    assert table["events"].tolist() == [300, 200]
    assert table["state"].tolist() == ["ended", "ended"]
    assert experiment[1].events == 300
    with pytest.raises(RunNotFoundError):
        experiment[7]
    with pytest.raises(RunNotFoundError):
        lcls_dask.open_experiment(f"lcls://{OTHERS}").runs()
