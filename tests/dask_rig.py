"""A guarded Dask cluster of real processes, its audit, and strangers who speak distributed's own protocol to it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from ssl import CERT_NONE, PROTOCOL_TLS_CLIENT, Purpose, SSLContext, create_default_context
from typing import Any

from distributed.comm import Comm, connect
from distributed.core import send_recv
from distributed.protocol import ToPickle
from security_world import World

from lcls_dask.security import Identity, Role, create_identity, revoke
from lcls_dask.security.certificates import certificate_pem
from lcls_dask.security.introductions import accept

SECONDS = 60.0
SWEEP = 0.5
PRELOAD = ("--preload", "lcls_dask.plugins.worker", "--preload-nanny", "lcls_dask.plugins.nanny")


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Wait for what is true in the end; where it is not, say what was waited for."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)
    return value


@dataclass
class Process:
    """One `dask` command, its log, and the audit of its processes."""

    popen: "subprocess.Popen[bytes]"
    log: Path
    audit: Path

    def ended(self, seconds: float = SECONDS) -> int:
        return self.popen.wait(seconds)

    def stop(self) -> None:
        """Let it end, with its children; then make it."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.popen.pid, signal.SIGKILL)
                self.popen.wait(10)

    def lines(self) -> list[dict[str, Any]]:
        files = sorted(self.audit.glob("*.jsonl")) if self.audit.is_dir() else []
        whole = [line for file in files for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in whole]

    def audited(self, **fields: Any) -> dict[str, Any]:
        """The last line with these fields; it may be some moments late."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines() if all(line.get(name) == value for name, value in fields.items())]

        return until(found, f"{fields} in the audit, which is {self.lines()[-5:]}; log: {self.tail()}", 20)[-1]

    def tail(self) -> str:
        return self.log.read_text()[-3000:]


@dataclass
class Rig:
    """One user's cluster in a world of identities."""

    world: World
    path: Path
    user: str = "alice"
    cluster: str = "c1"
    processes: list[Process] = field(default_factory=list)
    address: str = ""

    def person(self, user: str | None = None, role: Role = Role.USER, cluster: str | None = None) -> Identity:
        return self.world.person(user or self.user, role, cluster)

    def dask(
        self, *arguments: str, identity: Path, environment: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> Process:
        """Start a `dask` command as an identity; a prefix is another command that runs it."""
        number = len(list(self.path.glob("*.log")))
        log, audit = self.path / f"{number}.log", self.path / f"audit-{number}"
        environment = {
            **os.environ,
            "CERTIFIED_CONFIG": str(identity),
            "LCLS_AUDIT": str(audit),
            "LCLS_REVOCATIONS": str(self.world.revoked_file),
            "DASK_LCLS__SWEEP": str(SWEEP),
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "20s",
            **(environment or {}),
        }
        with open(log, "wb") as file:
            popen = subprocess.Popen(
                [*prefix, sys.executable, "-m", "dask", *arguments],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.path,
                start_new_session=True,
            )
        process = Process(popen, log, audit)
        self.processes.append(process)
        return process

    def scheduler(
        self, *more: str, name: str = "scheduler.json", identity: Identity | None = None, **options: Any
    ) -> Process:
        """A scheduler, and its address once it listens."""
        file = self.path / name
        process = self.dask(
            "scheduler",
            *("--preload", "lcls_dask.plugins.scheduler", "--host", "127.0.0.1", "--port", "0"),
            *("--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file), *more),
            identity=(identity or self.person(role=Role.SCHEDULER, cluster=self.cluster)).directory,
            **options,
        )

        def listens() -> bool:
            assert process.popen.poll() is None, process.tail()
            # the file is written before the guards are verified
            return file.is_file() and any(line["event"] == "start" for line in process.lines())

        until(listens, "the scheduler")
        self.address = json.loads(file.read_text())["address"]
        return process

    def worker(self, *more: str, identity: Identity | None = None, **options: Any) -> Process:
        """A worker with its nanny; it joins in its own time."""
        identity = identity or self.person(role=Role.WORKER, cluster=self.cluster)
        return self.dask(
            *("worker", self.address, *PRELOAD, "--nthreads", "2", "--host", "127.0.0.1", "--no-dashboard"),
            *("--local-directory", str(self.path), *more),
            identity=identity.directory,
            **options,
        )

    def short_lived(self, seconds: float, name: str, role: Role = Role.USER, cluster: str | None = None) -> Identity:
        """An identity of the cluster's owner whose certificate ends soon, or has ended."""
        self.world.clock.now = time.time()
        made = create_identity(self.path / name, role, self.user, cluster=cluster)
        introduction = self.world.issuer.sign(
            certificate_pem(made.certificate), role, self.user, cluster=cluster, lifetime=timedelta(seconds=seconds)
        )
        return accept(made.directory, json.dumps(introduction), trust=True)

    def revoke(self, identity: Identity) -> None:
        revoke(self.world.revoked_file, [identity.peer.serial], "a test")

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()


@contextmanager
def running(world: World, path: Path, **options: Any) -> Iterator[Rig]:
    path.mkdir(exist_ok=True)
    rig = Rig(world, path, **options)
    try:
        yield rig
    finally:
        rig.stop()


def stock_context(identity: Identity | None, authority: Path | None = None) -> SSLContext:
    """TLS as distributed makes it, which asks nothing of who answers; without an identity, no certificate."""
    if identity is None:
        context = SSLContext(PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, CERT_NONE
        return context
    context = create_default_context(Purpose.SERVER_AUTH, cafile=authority)
    context.check_hostname, context.verify_mode = False, CERT_NONE
    context.load_cert_chain(identity.certificate_file, identity.key_file)
    return context


class Bomb:
    """A pickle that leaves a file behind wherever it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def dial(
    address: str, identity: Identity | None, use: Callable[[Comm], Awaitable[Any]], bomb: Path | None = None
) -> Any:
    """Connect as distributed does, whoever answers, and use the connection; a bomb goes off in the handshake."""

    async def talk() -> Any:
        overrides = None if bomb is None else {"bomb": ToPickle(Bomb(bomb))}
        comm = await connect(address, timeout=5, ssl_context=stock_context(identity), handshake_overrides=overrides)
        try:
            return await use(comm)
        finally:
            comm.abort()

    return asyncio.run(talk())


async def ask_identity(comm: Comm) -> Any:
    return await send_recv(comm, op="identity")
