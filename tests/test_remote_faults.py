"""What goes wrong while a reduction reads through a gateway: the right answer afterwards, or an error that says so."""

import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from gateway_rig import Facility, Gateway, until, write_store

import lcls_dask
from lcls_dask.errors import LclsError, SnapshotError, UnreachableError
from lcls_dask.formats import discover, open_source
from lcls_dask.formats.remote import credentials as remote_credentials
from lcls_dask.formats.remote import gateway as remote_gateway
from lcls_dask.security import load_identity
from lcls_dask.security.identity import rotate_identity
from lcls_dask.security.introductions import accept, introduce

EXPERIMENT, IMAGE, CHUNKS = "tmox42619", "det.raw.image", 60
SIMULATED, STORED = f"lcls://{EXPERIMENT}/r0001", f"lcls://{EXPERIMENT}/r0005"


@pytest.fixture
def facility(tmp_path: Path) -> Facility:
    made = Facility(tmp_path)
    lcls_dask.simulate(made.root / EXPERIMENT / "r0001", "scan", events=300, experiment=EXPERIMENT, run=1)
    shapes = {IMAGE: (2, (2 * CHUNKS, 64, 512)), "timestamp": (2 * CHUNKS, (2 * CHUNKS,))}
    write_store(made.root / EXPERIMENT / "r0005.zarr", EXPERIMENT, 5, shapes)
    made.allow({EXPERIMENT: ["alice"]})
    return made


@pytest.fixture
def gateway(facility: Facility) -> Iterator[Gateway]:
    running = Gateway(facility).start()
    yield running
    running.stop()


@pytest.fixture
def alice(facility: Facility, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(remote_credentials, "_FOUND", {})
    monkeypatch.setattr(remote_gateway, "_GATEWAYS", {})
    monkeypatch.setattr(discover, "_OPEN", OrderedDict())
    identity = facility.identity("alice")
    give_token(facility, identity)
    settings = {"gateway": f"https://localhost:{gateway.port}", "identity": str(identity), "patience": 40}
    with dask.config.set({f"lcls.{name}": value for name, value in settings.items()}):
        yield identity
    remote_gateway._hang_up()


def give_token(facility: Facility, identity: Path) -> None:
    fresh = identity / "token.new"
    fresh.touch(0o600)
    fresh.write_text(facility.token(identity, EXPERIMENT))
    fresh.replace(identity / "token")


def reduction(uri: str, name: str, pace: Callable[[], None]) -> Future[int]:
    """The sum of a variable, of a few rows at a time, in a thread; `pace` is called before each."""
    values = xr.open_dataset(uri, engine="lcls")[name]

    def work() -> int:
        total = 0
        for first in range(0, values.shape[0], 2):
            pace()
            total += int(np.asarray(values[first : first + 2].values).astype(np.int64).sum())
        return total

    threads = ThreadPoolExecutor(1)
    future = threads.submit(work)
    threads.shutdown(wait=False)
    return future


def expected(facility: Facility, uri: str, name: str) -> int:
    source = open_source(facility.root / EXPERIMENT / ("r0001" if uri == SIMULATED else "r0005.zarr"))
    length = source.index.nodes["/"].variables[name].shape[0]
    return int(source.read("/", name, slice(0, length)).astype(np.int64).sum())


def archon(facility: Facility) -> str:
    variables = open_source(facility.root / EXPERIMENT / "r0001").index.nodes["/"].variables
    return max((name for name in variables if variables[name].dtype.kind in "iu"), key=lambda n: variables[n].nbytes)


class Pace:
    """Lets a reduction go so far, and then on."""

    def __init__(self, stop_at: int) -> None:
        self.calls, self._stop_at = 0, stop_at
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self._stop_at:
            self.reached.set()
            assert self.go_on.wait(60)


@pytest.mark.parametrize("uri", [SIMULATED, STORED])
def test_the_disk_is_away_for_ten_seconds(facility: Facility, gateway: Gateway, alice: Path, uri: str) -> None:
    name = archon(facility) if uri == SIMULATED else IMAGE
    right = expected(facility, uri, name)
    pace = Pace(20)
    total = reduction(uri, name, pace)
    assert pace.reached.wait(60)
    away = facility.root.with_name("away")
    facility.root.rename(away)
    try:
        begun = time.monotonic()
        pace.go_on.set()
        gateway.audited(decision="refused", reason="disk away", user="alice", status=503, bytes=0)
        while time.monotonic() - begun < 10:
            assert not total.done()
            time.sleep(0.1)
    finally:
        away.rename(facility.root)
    assert total.result(60) == right


@pytest.mark.parametrize("mount_point", [False, True])
def test_the_disk_stays_away(facility: Facility, gateway: Gateway, alice: Path, mount_point: bool) -> None:
    """The message says so; what is not there is never taken for what was never written, nor for a run that is not."""
    source = lcls_dask.open_run(SIMULATED).source
    name = archon(facility)
    away = facility.root.with_name("away")
    facility.root.rename(away)
    if mount_point:
        facility.root.mkdir()
    try:
        with dask.config.set({"lcls.patience": 1.5}):
            for ask in (
                lambda: source.read("/", name, slice(0, 2)),
                lambda: lcls_dask.open_run(STORED),
                lambda: lcls_dask.open_experiment(f"lcls://{EXPERIMENT}").runs(),
            ):
                with pytest.raises(UnreachableError, match=r"has answered for .* that the disk .* is away"):
                    ask()
    finally:
        if mount_point:
            facility.root.rmdir()
        away.rename(facility.root)
    assert lcls_dask.open_run(STORED).events == 2 * CHUNKS


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(os.urandom(path.stat().st_size))
    other.replace(path)


@pytest.mark.parametrize("change", [truncate, replace])
@pytest.mark.parametrize("uri", [SIMULATED, STORED])
def test_a_file_changes_while_a_reduction_runs(
    facility: Facility, gateway: Gateway, alice: Path, uri: str, change: Callable[[Path], None]
) -> None:
    name = archon(facility) if uri == SIMULATED else IMAGE
    pace = Pace(5)
    total = reduction(uri, name, pace)
    assert pace.reached.wait(60)
    if uri == SIMULATED:
        for stream in (facility.root / EXPERIMENT / "r0001").glob("*.xtc2"):
            change(stream)
    else:
        change(facility.root / EXPERIMENT / "r0005.zarr" / IMAGE / "c" / str(CHUNKS - 1) / "0" / "0")
    pace.go_on.set()
    with pytest.raises(LclsError) as raised:
        total.result(60)
    assert isinstance(raised.value, SnapshotError), raised.value
    assert "open the run again" in str(raised.value) or "ask for the run again" in str(raised.value)


def test_certificates_are_rotated_under_load(facility: Facility, gateway: Gateway, alice: Path) -> None:
    """The gateway's certificate and key, and the user's, are replaced while threads read: all values are right."""
    source = lcls_dask.open_run(STORED).source
    right = open_source(facility.root / EXPERIMENT / "r0005.zarr").read("/", IMAGE, slice(0, 2 * CHUNKS))
    stop, reads, wrong = threading.Event(), [0] * 3, []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        while not stop.is_set() and not wrong:
            first = int(rng.integers(0, 2 * CHUNKS - 4))
            if reads[number] % 5 == 0:
                source.close()  # connections are made anew all the time
            try:
                if not np.array_equal(source.read("/", IMAGE, slice(first, first + 4)), right[first : first + 4]):
                    wrong.append("values")
            except Exception as error:
                wrong.append(error)
            reads[number] += 1

    def go_on() -> None:
        before = list(reads)
        until(lambda: wrong or all(now > then + 10 for now, then in zip(reads, before, strict=True)), 60, "reading")
        assert not wrong

    def sign(directory: Path, hosts: tuple[str, ...] = ()) -> str:
        signed = introduce(facility.base / "site", (directory / "id.crt").read_bytes(), hosts=hosts)
        accept(directory, json.dumps(signed))
        return load_identity(directory).peer.serial

    def presented() -> str:
        with gateway.socket(alice) as connection:
            told = connection.getpeercert()
            assert told is not None
            return str(told["serialNumber"]).lstrip("0").lower()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        go_on()
        hosts = ("localhost", "127.0.0.1")
        renewed = sign(facility.gateway, hosts)
        until(lambda: presented() == renewed, what="the gateway's new certificate")
        go_on()
        rotate_identity(facility.gateway)
        rotated = sign(facility.gateway, hosts)
        until(lambda: presented() == rotated, what="the gateway's new key")
        go_on()
        mine = sign(alice)
        give_token(facility, alice)  # bound to the new certificate
        gateway.audited(user="alice", certificate=mine, decision="allowed", operation="key")
        go_on()
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not wrong
