"""A small facility for the tests of security: an issuer, two users, a policy, and a clock that stands still."""

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lcls_dask.security import (
    Access,
    Authoriser,
    Decision,
    FileRevocations,
    Identity,
    IssuerKeys,
    Operation,
    PolicyFile,
    Right,
    Role,
    client_context,
    create_identity,
    create_revocations,
    load_identity,
)
from lcls_dask.security.certificates import certificate_pem
from lcls_dask.security.introductions import accept
from lcls_dask.security.issuer import Issuer, create_issuer

POLICY = """
[groups]
tmo = ["alice", "carol"]

[experiments.tmox42619]
members = ["@tmo"]
direct_reads = true

[experiments.xpptut15]
members = ["alice", "bob"]

[experiments.cxilr6716.members]
bob = ["list", "info"]
"""


@dataclass
class Clock:
    now: float

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """Every part in one directory; the clock starts at the real time, as TLS and certified look at that."""

    path: Path
    clock: Clock
    monotonic: Clock = field(default_factory=lambda: Clock(0.0))

    def __post_init__(self) -> None:
        self.issuer: Issuer = create_issuer(self.path / "issuer", hosts=["localhost", "127.0.0.1"], clock=self.clock)
        self.policy_file = self.path / "policy.toml"
        self.policy_file.write_text(POLICY)
        self.policy = PolicyFile(self.policy_file, monotonic=self.monotonic)
        self.revoked_file = self.path / "revoked.txt"
        create_revocations(self.revoked_file)
        self.revocations = FileRevocations(self.revoked_file, monotonic=self.monotonic)
        self.keys = IssuerKeys.load(self.path / "issuer" / "biscuit.pub")
        self.authoriser = Authoriser(self.keys, self.policy, self.revocations, self.clock)

    def person(
        self, user: str, role: Role = Role.USER, cluster: str | None = None, key_type: str = "ed25519"
    ) -> Identity:
        base = self.path / f"{user}-{role}-{cluster}"
        if base.exists():
            return load_identity(base)
        made = create_identity(base, role, user, cluster=cluster, key_type=key_type, clock=self.clock)
        introduction = self.issuer.sign(certificate_pem(made.certificate), role, user, cluster=cluster)

        return accept(base, json.dumps(introduction), trust=True)

    def decide(
        self,
        holder: Identity,
        token: str | None,
        operation: Operation = Operation.READ,
        experiment: str = "tmox42619",
        run: int | None = 15,
        detector: str | None = "hsd",
    ) -> Decision:
        return self.authoriser.decide(holder.peer, token, Access(operation, experiment, run, detector))

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.monotonic.now += seconds


@dataclass
class Service:
    """`lcls-dask issue serve` as a process of its own."""

    world: World
    url: str
    process: subprocess.Popen[str]

    @property
    def log(self) -> str:
        return (self.world.path / "log").read_text()

    def post(self, who: Identity, path: str, body: bytes, method: str = "POST") -> tuple[int, dict[str, object]]:
        context = client_context(who, [self.world.issuer.authority])
        connection = http.client.HTTPSConnection(self.url.removeprefix("https://"), context=context, timeout=20)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()


@contextmanager
def serving(world: World, *more: str) -> Iterator[Service]:
    arguments = ["--policy", str(world.policy_file), "--revocations", str(world.revoked_file), "--port", "0", *more]
    with (world.path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lcls_dask", "issue", "serve", str(world.issuer.directory), *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    service = Service(world, line, process)
    assert line.startswith("https://127.0.0.1:"), service.log
    try:
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(20)
        process.stdout.close()
    assert status == 0
    assert "Traceback" not in service.log


READ = frozenset({Operation.READ})
ALL = frozenset(Operation)


def right(experiment: str = "tmox42619", first: int = 10, last: int = 20, detectors: str = "*") -> Right:
    return Right(experiment, ALL, first, last, detectors)


def make_world(tmp_path: Path) -> World:
    return World(tmp_path / "facility", Clock(time.time()))
