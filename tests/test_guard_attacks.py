"""Each attack on a user's Dask cluster, with real processes and real sockets: what comes of it, and its audit line.

Strangers speak distributed's own protocol, over its own transport, with certificates that they really have.
"""

import asyncio
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dask
import pytest
from dask_rig import PRELOAD, SWEEP, Bomb, Process, Rig, ask_identity, dial, running, stock_context, until
from distributed import Client, NannyPlugin, SchedulerPlugin, WorkerPlugin
from distributed.comm import Comm, CommClosedError, connect
from distributed.core import send_recv
from distributed.protocol import ToPickle
from distributed.protocol.pickle import dumps
from distributed.versions import get_versions
from security_world import World, make_world

from lcls_dask.security import Role, create_identity, load_identity
from lcls_dask.security.guard import security_of

NEW_HANDLER = """
def dask_setup(scheduler):
    scheduler.handlers["brand_new"] = lambda: "done"
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alice(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Alice's cluster: a scheduler and a worker with its nanny."""
    path = tmp_path_factory.mktemp("alice")
    (path / "new_handler.py").write_text(NEW_HANDLER)
    with running(world, path) as rig:
        rig.scheduler("--preload", str(path / "new_handler.py"))
        rig.worker()
        yield rig


@pytest.fixture(scope="module")
def client(alice: Rig) -> Iterator[Client]:
    with Client(alice.address, security=security_of(alice.person().directory), timeout=30) as client:
        client.wait_for_workers(1, timeout=60)
        yield client


@pytest.fixture
def scheduler(alice: Rig) -> Process:
    return alice.processes[0]


@pytest.fixture
def worker(alice: Rig) -> Process:
    return alice.processes[1]


async def join_as_client(comm: Comm, name: str) -> Any:
    await comm.write({"op": "register-client", "client": name, "reply": False, "versions": get_versions()})
    return await comm.read()


# who may connect


def test_client_without_certificate(alice: Rig, scheduler: Process) -> None:
    with pytest.raises(CommClosedError):
        dial(alice.address, None, ask_identity)
    scheduler.audited(event="connect", decision="refused", reason="TLS: peer did not return a certificate")


def test_same_names_from_another_authority(alice: Rig, scheduler: Process, tmp_path: Path) -> None:
    stranger = make_world(tmp_path).person("alice")
    with pytest.raises(CommClosedError):
        dial(alice.address, stranger, ask_identity)
    scheduler.audited(event="connect", decision="refused", reason="TLS: unable to get local issuer certificate")


def test_expired_certificate(alice: Rig, scheduler: Process) -> None:
    with pytest.raises(CommClosedError):
        dial(alice.address, alice.short_lived(-1, "expired"), ask_identity)
    scheduler.audited(event="connect", decision="refused", reason="TLS: certificate has expired")


@pytest.mark.parametrize("kind", ["handshake", "bogus operation"])
def test_pickles_of_another_user_are_never_read(alice: Rig, scheduler: Process, tmp_path: Path, kind: str) -> None:
    """Her own are: that is what unpickling means, and shows that the bomb works."""

    async def bogus(comm: Comm) -> None:
        await comm.write({"op": "no-such-operation", "x": ToPickle(Bomb(tmp_path / "went-off")), "reply": False})
        await send_recv(comm, op="identity")

    bob = alice.person("bob")
    use, bomb = (ask_identity, tmp_path / "went-off") if kind == "handshake" else (bogus, None)
    with pytest.raises(CommClosedError):
        dial(alice.address, bob, use, bomb)
    serial = bob.peer.serial
    scheduler.audited(event="connect", decision="refused", reason="another user", user="bob", certificate=serial)
    assert not (tmp_path / "went-off").exists()
    dial(alice.address, alice.person(), use, bomb)
    assert (tmp_path / "went-off").exists()


class Footprint:
    """A pickle that leaves the number of the process in which it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return exec, (f"import os; open({str(self.folder)!r} + '/' + str(os.getpid()), 'w').close()",)


def test_pickles_of_the_owner_are_read_in_her_processes(client: Client, scheduler: Process, tmp_path: Path) -> None:
    """The limit: a graph of hers is unpickled in her scheduler, as her, whatever the tables of operations say."""
    assert client.submit(lambda _: os.getpid(), Footprint(tmp_path)).result(timeout=20) != scheduler.popen.pid
    read = {int(file.name) for file in tmp_path.iterdir()}
    assert scheduler.popen.pid in read
    assert {os.stat(f"/proc/{pid}").st_uid for pid in read} == {os.geteuid()}


@pytest.mark.parametrize(
    ("user", "role", "cluster", "reason"),
    [
        ("bob", Role.USER, None, "another user"),
        ("bob", Role.WORKER, "c1", "another user"),
        ("bob", Role.MANAGER, "c1", "another user"),
        ("alice", Role.WORKER, "c2", "another cluster"),
        ("alice", Role.MANAGER, "c2", "another cluster"),
        ("alice", Role.SCHEDULER, "c1", "wrong role"),
        ("alice", Role.GATEWAY, None, "wrong role"),
    ],
)
def test_whom_the_scheduler_turns_away(
    alice: Rig, scheduler: Process, user: str, role: Role, cluster: str | None, reason: str
) -> None:
    other = alice.person(user, role, cluster)
    with pytest.raises(CommClosedError):
        dial(alice.address, other, ask_identity)
    line = scheduler.audited(event="connect", decision="refused", reason=reason, certificate=other.peer.serial)
    assert (line["user"], line["role"], line["address"]) == (user, str(role), "127.0.0.1")


@pytest.mark.parametrize("target", ["worker", "nanny"])
def test_nobody_but_the_cluster_dials_workers_and_nannies(
    alice: Rig, client: Client, worker: Process, target: str, tmp_path: Path
) -> None:
    """A person's certificate is turned away there before the first read, her own too."""
    address, told = next(iter(client.scheduler_info()["workers"].items()))
    address = address if target == "worker" else told["nanny"]
    for person, reason in ((alice.person(), "wrong role"), (alice.person("bob"), "another user")):
        with pytest.raises(CommClosedError):
            dial(address, person, ask_identity, bomb=tmp_path / "went-off")
        worker.audited(event="connect", decision="refused", reason=reason, certificate=person.peer.serial)
    assert not (tmp_path / "went-off").exists()


def test_nanny_that_was_forgotten(world: World, alice: Rig, client: Client, tmp_path: Path) -> None:
    """`dask worker` imports a worker's preload in the nanny's process, too; so that one is guarded as well."""
    (tmp_path / "forgotten").mkdir()
    with running(world, tmp_path / "forgotten") as rig:
        rig.address = alice.address
        process = rig.dask(
            *("worker", alice.address, *PRELOAD[:2], "--host", "127.0.0.1", "--local-directory", str(tmp_path)),
            identity=alice.person(role=Role.WORKER, cluster="c1").directory,
        )
        client.wait_for_workers(2, timeout=60)
        for told in client.scheduler_info()["workers"].values():
            with pytest.raises(CommClosedError):
                dial(told["nanny"], alice.person("bob"), ask_identity)
        process.audited(event="connect", decision="refused", reason="another user", user="bob")
    until(lambda: len(client.scheduler_info()["workers"]) == 1, "the second worker's end")


def test_other_users_worker_does_not_join(alice: Rig, client: Client, scheduler: Process) -> None:
    theirs = alice.worker(identity=alice.person("bob", Role.WORKER, "c1"))
    assert theirs.ended() != 0
    # it finds out by itself, before it has said anything
    theirs.audited(event="answer", decision="refused", reason="another user", user="alice", role="scheduler")
    assert len(client.scheduler_info()["workers"]) == 1


@pytest.mark.parametrize(
    ("user", "cluster", "reason"), [("bob", "c1", "another user"), ("alice", "c2", "another cluster")]
)
def test_rogue_scheduler(world: World, alice: Rig, tmp_path: Path, user: str, cluster: str, reason: str) -> None:
    """A stock scheduler with a good certificate of somebody else's cluster."""
    rogue_identity = alice.person(user, Role.SCHEDULER, cluster)
    (tmp_path / "rogue").mkdir()
    with running(world, tmp_path / "rogue") as rig:
        process = rig.dask(
            *(
                "scheduler",
                "--host",
                "tls://127.0.0.1",
                "--port",
                "0",
                "--no-dashboard",
                "--dashboard-address",
                "127.0.0.1:0",
            ),
            *(
                "--tls-ca-file",
                str(world.path / "issuer" / "CA.crt"),
                "--tls-cert",
                str(rogue_identity.certificate_file),
            ),
            *("--tls-key", str(rogue_identity.key_file), "--scheduler-file", str(tmp_path / "rogue.json")),
            identity=rogue_identity.directory,
        )
        until(lambda: (tmp_path / "rogue.json").exists() or process.popen.poll() is not None, "the rogue scheduler")
        address = json.loads((tmp_path / "rogue.json").read_text())["address"]
        if user == "bob":
            with pytest.raises(OSError, match="another user"):
                Client(address, security=security_of(alice.person().directory), timeout=5)
        rig.address = address
        ours = rig.worker(identity=alice.person(role=Role.WORKER, cluster="c1"))
        assert ours.ended() != 0
        ours.audited(event="answer", decision="refused", reason=reason, user=user, role="scheduler")


# while connected


def test_certificate_that_expires_on_a_live_connection(alice: Rig, scheduler: Process) -> None:
    brief = alice.short_lived(5, "brief")

    async def stay(comm: Comm) -> float:
        assert (await send_recv(comm, op="identity"))["type"] == "Scheduler"
        with pytest.raises(CommClosedError):
            await comm.read()
        return time.time()

    ended = dial(alice.address, brief, stay)
    assert 0 < ended - brief.peer.not_after < SWEEP + 3
    scheduler.audited(event="connection", decision="ended", reason="certificate expired", certificate=brief.peer.serial)


def test_revoked_while_connected(alice: Rig, scheduler: Process) -> None:
    lost = alice.short_lived(3600, "lost")

    async def stay(comm: Comm) -> None:
        assert (await send_recv(comm, op="identity"))["type"] == "Scheduler"
        alice.revoke(lost)
        with pytest.raises(CommClosedError):
            await asyncio.wait_for(comm.read(), 10)

    dial(alice.address, lost, stay)
    serial = lost.peer.serial
    scheduler.audited(event="connection", decision="ended", reason="certificate revoked", certificate=serial)
    with pytest.raises(CommClosedError):
        dial(alice.address, lost, ask_identity)
    scheduler.audited(event="connect", decision="refused", reason="certificate revoked", certificate=serial)


# what may be asked, and in whose name


def test_user_registers_as_worker(alice: Rig, client: Client, scheduler: Process) -> None:
    async def join(comm: Comm) -> Any:
        await comm.write({"op": "register-worker", "address": "tls://127.0.0.1:9", "reply": False})
        return await comm.read()

    with pytest.raises(CommClosedError):
        dial(alice.address, alice.person(), join)
    scheduler.audited(event="op", decision="refused", op="register-worker", reason="not for the role user")
    assert len(client.scheduler_info()["workers"]) == 1


def test_duplicate_client_id(alice: Rig, client: Client, scheduler: Process) -> None:
    """Task code, which has a worker's certificate, takes neither its owner's place nor the scheduler's own."""
    stolen = alice.person(role=Role.WORKER, cluster="c1")
    for name in (client.id, "fire-and-forget"):
        with pytest.raises(CommClosedError):
            dial(alice.address, stolen, lambda comm, name=name: join_as_client(comm, name))
        scheduler.audited(event="op", decision="refused", op="register-client", reason="the client's id is in use")
    with pytest.raises(CommClosedError):  # nor does the owner the scheduler's
        dial(alice.address, alice.person(), lambda comm: join_as_client(comm, "fire-and-forget"))
    assert client.submit(int, "7").result(timeout=20) == 7


def test_a_client_that_was_cut_off_comes_back_at_once(alice: Rig, client: Client, scheduler: Process) -> None:
    """Under its id, while the scheduler still holds its old connection, which is ended."""
    held = client.submit(int, "8", key="held")
    assert held.result(timeout=20) == 8

    async def come_back(first: Comm) -> None:
        context = stock_context(alice.person())
        second, third = [await connect(alice.address, timeout=5, ssl_context=context) for _ in range(2)]
        for comm in (first, second, third):
            assert (await asyncio.wait_for(join_as_client(comm, "cut-off"), 20))[0]["op"] == "stream-start"
        for ended in (first, second):
            with pytest.raises(CommClosedError):
                await asyncio.wait_for(ended.read(), 20)
        await third.write([{"op": "client-desires-keys", "keys": ["held"]}])
        (told,) = await asyncio.wait_for(third.read(), 20)
        assert (told["op"], told["key"]) == ("key-in-memory", "held")
        third.abort()

    dial(alice.address, alice.person(), come_back)
    scheduler.audited(event="client", decision="ended", reason="came back", op="cut-off")
    assert held.result(timeout=20) == 8


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"op": "client-releases-keys", "keys": ["alices-key"]}, "another client's id"),
        ({"op": "close-client"}, "another client's id"),
        ({"op": "cancel-keys", "keys": ["alices-key"], "force": True}, "another client's id"),
        (
            {"op": "task-erred", "key": "alices-key", "worker": "w", "stimulus_id": "s"},
            "not for the stream of a client",
        ),
        ({"op": "worker-status-change", "status": "closed", "worker": "w"}, "not for the stream of a client"),
        ({"op": "heartbeat-client", "worker": "w"}, "another worker's id"),
        ({"op": "no-such-operation"}, "not for the stream of a client"),
        ("not a message", "no message"),
    ],
)
def test_forged_messages_in_a_stream(alice: Rig, client: Client, scheduler: Process, message: Any, reason: str) -> None:
    """From a client with a certificate of a worker of this cluster, as task code has."""
    value = client.submit(int, "3", key="alices-key")
    assert value.result(timeout=20) == 3
    if reason == "another client's id":
        message = message | {"client": client.id}
    stolen = alice.person(role=Role.WORKER, cluster="c1")

    async def forge(comm: Comm) -> None:
        await join_as_client(comm, f"mallory-{abs(hash(str(message)))}")
        await comm.write([message, {"op": "heartbeat-client"}])
        operation = message["op"] if isinstance(message, dict) else ""
        await asyncio.to_thread(scheduler.audited, event="stream", decision="dropped", reason=reason, op=operation)

    dial(alice.address, stolen, forge)
    assert client.gather(value) == 3
    assert client.who_has(value)["alices-key"]


OPERATIONS: dict[str, Callable[[Client], Any]] = {
    "run_function": lambda client: client.run_on_scheduler(os.getpid),
    "feed": lambda client: client.sync(client.scheduler.feed, function=dumps(os.getpid), interval="1s"),
    "register_scheduler_plugin": lambda client: client.register_plugin(SchedulerPlugin()),
    "register_worker_plugin": lambda client: client.register_plugin(WorkerPlugin()),
    "register_nanny_plugin": lambda client: client.register_plugin(NannyPlugin()),
    "unregister_scheduler_plugin": lambda client: client.unregister_scheduler_plugin("lcls-guard"),
    "unregister_worker_plugin": lambda client: client.unregister_worker_plugin("shuffle"),
    "restart": lambda client: client.restart(timeout=5),
    "restart_workers": lambda client: client.restart_workers(list(client.scheduler_info()["workers"])),
    "retire_workers": lambda client: client.retire_workers(),
    "terminate": lambda client: client.sync(client.scheduler.terminate),
    "unregister": lambda client: client.sync(client.scheduler.unregister, address="w", stimulus_id="s"),
    "broadcast": lambda client: client.run(os.getpid),
    "proxy": lambda client: client.sync(
        client.scheduler.proxy, worker=next(iter(client.scheduler_info()["workers"])), msg={"op": "terminate"}
    ),
    "connection_stream": lambda client: client.sync(client.scheduler.connection_stream),
    "subscribe_worker_status": lambda client: client.sync(client.scheduler.subscribe_worker_status),
    "heartbeat_worker": lambda client: client.sync(client.scheduler.heartbeat_worker, address="w"),
    "shuffle_barrier": lambda client: client.sync(client.scheduler.shuffle_barrier, shuffle_id="s", run_id=1),
    "dump_cluster_state_to_url": lambda client: client.dump_cluster_state("memory://dump"),
    "publish_put": lambda client: client.sync(
        client.scheduler.publish_put, keys=[], name="n", data=None, override=False, client="somebody else"
    ),
    "brand_new": lambda client: client.sync(client.scheduler.brand_new),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_that_a_user_may_not(client: Client, scheduler: Process, operation: str) -> None:
    with pytest.raises(PermissionError, match=f"{operation} is refused by the scheduler"):
        OPERATIONS[operation](client)
    scheduler.audited(event="op", decision="refused", op=operation, user="alice", role="user")
    assert client.submit(int, "7", pure=False).result(timeout=20) == 7


def test_a_new_operation_is_refused_even_to_the_manager(alice: Rig, scheduler: Process) -> None:
    async def ask(comm: Comm) -> Any:
        return await send_recv(comm, op="brand_new")

    with pytest.raises(PermissionError, match="unknown operation"):
        dial(alice.address, alice.person(role=Role.MANAGER, cluster="c1"), ask)
    scheduler.audited(event="op", decision="refused", op="brand_new", reason="unknown operation", role="manager")


@pytest.mark.parametrize("operation", ["retire_workers", "unregister", "heartbeat_worker", "run_function", "terminate"])
def test_what_one_worker_may_not_do_to_another(alice: Rig, client: Client, scheduler: Process, operation: str) -> None:
    second = alice.path / "second-worker"
    if not second.exists():
        alice.short_lived(3600, second.name, Role.WORKER, "c1")
    first = next(iter(client.scheduler_info()["workers"]))
    arguments = {"retire_workers": {"workers": [first]}}.get(operation, {"address": first, "stimulus_id": "s"})

    async def ask(comm: Comm) -> Any:
        return await send_recv(comm, op=operation, **arguments)

    with pytest.raises(PermissionError, match=f"{operation} is refused"):
        dial(alice.address, load_identity(second), ask)
    scheduler.audited(event="op", decision="refused", op=operation, role="worker")
    assert list(client.scheduler_info()["workers"]) == [first]


def test_tasks_see_what_their_worker_has(client: Client) -> None:
    """The limit: a worker's key is its tasks' to read. So it is good for hours, in one cluster of one user."""
    assert client.submit(lambda: os.environ["CERTIFIED_CONFIG"]).result(timeout=20).endswith("alice-worker-c1")


def test_annotations_say_nothing_about_who_asks(client: Client, scheduler: Process) -> None:
    with dask.annotate(user="bob", role="manager", experiment="xpptut15", token="forged"):
        value = client.submit(int, "5", pure=False)
        with pytest.raises(PermissionError):
            client.run_on_scheduler(os.getpid)
    assert value.result(timeout=20) == 5
    assert scheduler.audited(event="op", decision="refused", op="run_function")["user"] == "alice"
    assert not [line for line in scheduler.lines() if line.get("user") == "bob" and line["decision"] == "allowed"]


def test_same_key_on_two_users_clusters(world: World, client: Client, tmp_path: Path) -> None:
    """On one scheduler bob would get alice's value; there is none that both may reach."""
    hers = client.submit(lambda: "alice's", key="same-key")
    assert hers.result(timeout=20) == "alice's"
    with running(world, tmp_path / "bob", user="bob", cluster="b1") as rig:
        rig.scheduler()
        rig.worker()
        with Client(rig.address, security=security_of(rig.person().directory), set_as_default=False) as bob:
            his = bob.submit(lambda: "bob's", key="same-key")
            assert his.result(timeout=60) == "bob's"
            assert (client.gather(hers), bob.gather(his)) == ("alice's", "bob's")
            assert bob.sync(bob.scheduler.who_has, keys=["same-key"])["same-key"]


# web pages


def fetch(address: str, path: str, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("GET", path, headers=headers or {})
        return connection.getresponse().status
    finally:
        connection.close()


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "bokeh, token",
}


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Cookie": "lcls-dask-x=wrong"}, UPGRADE])
@pytest.mark.parametrize(
    "path",
    ["/status", "/status/ws", "/info/main/workers.html", "/json/counts.json", "/metrics", "/sitemap.json",
     "/statics/css/base.css", "/eventstream", "/status?ticket=wrong", "/proxy/1/127.0.0.1/status", "/no-such-page"],
)  # fmt: skip
def test_pages_without_signing_in(client: Client, scheduler: Process, path: str, headers: dict[str, str]) -> None:
    address = urlsplit(client.dashboard_link).netloc
    assert fetch(address, path, headers) == 401
    reason = "wrong ticket" if "ticket" in path else "not signed in"
    scheduler.audited(event="page", decision="refused", reason=reason, op=path.partition("?")[0])
    assert fetch(address, "/health") == 200


def test_pages_of_a_worker(client: Client, worker: Process) -> None:
    address, told = next(iter(client.scheduler_info()["workers"].items()))
    page = f"{urlsplit(address).hostname}:{told['services']['dashboard']}"
    assert fetch(page, "/metrics") == 401
    worker.audited(event="page", decision="refused", op="/metrics")
    assert fetch(page, "/health") == 200


# what does not start


def broken(rig: Rig) -> dict[str, tuple[Process, str]]:
    """Commands of which none may come up, and what each one says."""
    good = rig.person(role=Role.SCHEDULER, cluster="c1")
    readable = rig.short_lived(3600, "readable", Role.SCHEDULER, "c1")
    readable.key_file.chmod(0o644)
    clusterless = rig.short_lived(3600, "clusterless", Role.SCHEDULER)
    lonely = rig.path / "lonely"
    create_identity(lonely, Role.SCHEDULER, "alice", cluster="c1")
    (rig.path / "file").touch()
    broken_setup = rig.path / "broken_setup.py"
    broken_setup.write_text(
        "import lcls_dask.plugins.scheduler as real\n"
        "def dask_setup(scheduler):\n"
        "    scheduler.handlers = dict(scheduler.handlers)\n"
        "    real.dask_setup(scheduler)\n"
    )
    plugin = ("--preload", "lcls_dask.plugins.scheduler")
    common = ("scheduler", "--port", "0", "--dashboard-address", "127.0.0.1:0")
    local = ("--host", "127.0.0.1")

    def scheduler(*more: str, identity: Path = good.directory, **environment: str) -> Process:
        return rig.dask(*common, *more, identity=identity, environment=environment)

    ca, worker = rig.world.path / "issuer" / "CA.crt", rig.person(role=Role.WORKER, cluster="c1")
    # in the configuration alone, where the nanny's process never sees them
    preloads = {
        "DASK_DISTRIBUTED__WORKER__PRELOAD": "lcls_dask.plugins.worker",
        "DASK_DISTRIBUTED__NANNY__PRELOAD": "lcls_dask.plugins.nanny",
    }
    stock_tls = preloads | {
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(ca),
        "DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT": str(worker.certificate_file),
        "DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY": str(worker.key_file),
    }
    bare = ("worker", rig.address, *local, "--no-dashboard", "--local-directory", str(rig.path))
    return {
        "tcp": (scheduler(*plugin, *local, "--protocol", "tcp"), "tcp:// is refused here"),
        "ws": (scheduler(*plugin, *local, "--protocol", "ws"), "ws:// is refused here"),
        "wss": (scheduler(*plugin, *local, "--protocol", "wss"), "wss:// is refused here"),
        "inproc": (scheduler(*plugin, *local, "--protocol", "inproc"), "inproc:// is refused here"),
        "ucx": (scheduler(*plugin, *local, "--protocol", "ucx"), "ucx:// is refused here"),
        "jupyter": (scheduler(*plugin, *local, "--jupyter"), "runs code for anybody"),
        "no such plugin": (scheduler("--preload", "lcls_dask.plugins.nothing", *local), "No module named"),
        "no identity": (scheduler(*plugin, *local, identity=rig.path / "nowhere"), "there is no identity"),
        "of a worker": (scheduler(*plugin, *local, identity=worker.directory), "needed is a scheduler's"),
        "key for all": (scheduler(*plugin, *local, identity=readable.directory), "chmod 600"),
        "no cluster": (scheduler(*plugin, *local, identity=clusterless.directory), "names no cluster"),
        "no authority": (scheduler(*plugin, *local, identity=lonely), "trusts no authority"),
        "no list": (scheduler(*plugin, *local, LCLS_REVOCATIONS="nowhere.txt"), "cannot be read"),
        "no audit": (scheduler(*plugin, *local, LCLS_AUDIT=str(rig.path / "file")), "file"),
        "guards gone": (scheduler("--preload", str(broken_setup), *local), "requests or streams have no guard"),
        "nanny bare": (rig.dask(*bare, identity=worker.directory, environment=preloads), "TLS expects"),
        "nanny stock": (rig.dask(*bare, identity=worker.directory, environment=stock_tls), "the nanny is not guarded"),
    }


def test_what_is_not_guarded_does_not_start(alice: Rig, client: Client, tmp_path: Path) -> None:
    with running(alice.world, tmp_path / "broken") as rig:
        rig.address = alice.address
        for what, (process, message) in broken(rig).items():
            assert process.ended(120) not in (0, None), (what, process.tail())
            assert message in process.log.read_text(), (what, process.tail())
    assert len(client.scheduler_info()["workers"]) == 1
