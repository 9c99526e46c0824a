"""A gateway in processes of its own, with real certificates and tokens, and a client that can misbehave."""

import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from biscuit_auth import PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lcls_dask.access import engine
from lcls_dask.formats import discover
from lcls_dask.formats.codecs import Codec, encode
from lcls_dask.formats.zarr import EXPORT
from lcls_dask.model import Node, RunIndex, Variable
from lcls_dask.security import Operation, Right, Role, create_identity, create_revocations, load_identity
from lcls_dask.security.certificates import key_pem
from lcls_dask.security.introductions import accept, introduce
from lcls_dask.security.tls import client_context
from lcls_dask.security.tokens import issue
from lcls_dask.stores.metadata import array_json, group_json

_READ = frozenset((Operation.LIST, Operation.INFO, Operation.READ))
_SERVE = "import sys; from lcls_dask.cli import main; sys.exit(main())"


def until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "it") -> Any:
    """Wait until a condition gives something true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.02)
    return value


def write_store(
    path: Path,
    experiment: str,
    run: int,
    shapes: Mapping[str, tuple[int, tuple[int, ...]]],
    filters: Sequence[Codec] = (),
    most: int = 1 << 16,
) -> None:
    """Write a run as export does: variables of random uint16 below `most`, by name: length of a chunk, and shape."""
    codecs = ({"name": "bytes", "configuration": {"endian": "little"}}, *filters)
    rng = np.random.default_rng(run)
    variables = {}
    for name, (chunk, shape) in shapes.items():
        dims = ("event", *(f"{name}.dim_{axis}" for axis in range(len(shape) - 1)))
        attrs = {"units": "1", "long_name": name}
        variables[name] = Variable(name, dims, shape, np.dtype("<u2"), chunk, attrs, codecs=codecs)
        for number in range(-(-shape[0] // chunk)):
            target = path / name / "c" / "/".join([str(number), *("0" for _ in shape[1:])])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encode(codecs, rng.integers(0, most, (chunk, *shape[1:]), np.uint16)))
        (path / name / "zarr.json").write_bytes(array_json(variables[name]))
    about = {"nodes": {"/": list(variables)}, "detectors": {}}
    index = RunIndex(experiment, run, "ended", f"{run:032x}", {"/": Node("/", variables, {EXPORT: about})})
    (path / "zarr.json").write_bytes(group_json(index, "/"))


@dataclass(frozen=True)
class Reply:
    """What a gateway answered."""

    status: int
    fields: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Facility:
    """An authority, an issuer of tokens, a policy, and identities made at test time."""

    def __init__(self, base: Path, clock: Callable[[], float] = time.time) -> None:
        self.base = base
        self.root = base / "root"
        self.root.mkdir()
        create_identity(base / "site", Role.ISSUER, "site", clock=clock)
        self.issuer = Ed25519PrivateKey.generate()
        self.policy = base / "policy.toml"
        self.revocations = base / "revoked.txt"
        create_revocations(self.revocations)
        self.allow({})
        self.gateway = self.identity("gateway", Role.GATEWAY, "gateway", hosts=("localhost", "127.0.0.1"))
        public = self.gateway / "known_issuers" / "issuer.pub"
        public.write_bytes(self.issuer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        public.chmod(0o644)

    def allow(self, members: Mapping[str, Iterable[str]], direct: Iterable[str] = ()) -> None:
        """Write the policy: users by experiment."""
        lines = []
        for experiment, users in members.items():
            lines += [f"[experiments.{experiment}]", f"members = {json.dumps(list(users))}"]
            lines += ["direct_reads = true"] if experiment in direct else []
        fresh = self.policy.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.chmod(0o644)
        fresh.replace(self.policy)

    def identity(
        self,
        name: str,
        role: Role = Role.USER,
        user: str | None = None,
        *,
        hosts: Iterable[str] = (),
        lifetime: timedelta | None = None,
        site: str = "site",
        clock: Callable[[], float] = time.time,
    ) -> Path:
        """Make an identity that the site has introduced."""
        directory = self.base / name
        create_identity(directory, role, user or name, hosts=hosts)
        subject = (directory / "id.crt").read_bytes()
        signed = introduce(self.base / site, subject, lifetime=lifetime, hosts=hosts, clock=clock)
        accept(directory, json.dumps(signed), trust=True)
        for folder, others in (("known_servers", "site"), ("known_clients", "site")):
            known = directory / folder / "site.crt"
            known.write_bytes((self.base / others / "CA.crt").read_bytes())
            known.chmod(0o644)
        return directory

    def thumbprint(self, identity: Path) -> str:
        return hashlib.sha256(load_identity(identity).certificate.public_bytes(Encoding.DER)).hexdigest()

    def token(
        self,
        identity: Path,
        *experiments: str,
        user: str | None = None,
        runs: tuple[int, int] = (0, 999_999),
        detectors: str = "*",
        operations: Iterable[Operation] = _READ,
        lifetime: float = 600.0,
        key: Ed25519PrivateKey | None = None,
    ) -> str:
        """A token for an identity's certificate."""
        rights = [Right(name, frozenset(operations), *runs, detectors) for name in experiments]
        private = PrivateKey.from_pem(key_pem(key or self.issuer).decode())
        holder = self.thumbprint(identity)
        return issue(private, user or load_identity(identity).peer.user, holder, rights, time.time() + lifetime)


@dataclass
class Gateway:
    """A running ``lcls-dask serve``."""

    facility: Facility
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[str] | None" = None
    port: int = 0

    @property
    def audit_directory(self) -> Path:
        return self.facility.base / "audit"

    @property
    def database(self) -> str:
        return f"sqlite:///{self.facility.base / 'gateway.db'}"

    @property
    def log(self) -> Path:
        return self.facility.base / "gateway.log"

    def start(self) -> "Gateway":
        f = self.facility
        command = [sys.executable, "-c", _SERVE, "serve", "--root", f.root, "--identity", f.gateway]
        command += ["--policy", f.policy, "--revocations", f.revocations, "--audit", self.audit_directory]
        command += ["--port", str(self.port)]
        if "--state" not in self.arguments:
            command += ["--state", self.database]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *self.arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **self.environment},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        if not self.port:  # it may be the port of another facility's gateway, that this process has read from
            engine._SEEN.clear()
            discover._OPEN.clear()
        self.port = json.loads(line)["port"]
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        status = self.process.wait(60)
        self.process.stdout.close()
        self.process = None
        return status

    def workers(self) -> list[int]:
        """Process ids of those that serve."""
        assert self.process is not None
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text()
                    command = (entry / "cmdline").read_text()
                except OSError:
                    continue
                if int(stat.rpartition(")")[2].split()[1]) == self.process.pid and "spawn_main" in command:
                    found.append(int(entry.name))
        return sorted(found)

    def audit(self) -> list[dict[str, Any]]:
        """All that the audit's files say, in the order of time."""
        records = []
        for path in self.audit_directory.glob("*.jsonl"):
            lines = path.read_bytes().split(b"\n")[:-1]
            records += [json.loads(line) for line in lines]
        return sorted(records, key=lambda record: record["time"])

    def audited(self, **fields: Any) -> dict[str, Any]:
        """Wait for a line of the audit that says this, and give it."""

        def find() -> dict[str, Any] | None:
            return next((r for r in reversed(self.audit()) if all(r[k] == v for k, v in fields.items())), None)

        end = time.monotonic() + 15
        while (found := find()) is None:
            if time.monotonic() > end:
                pytest.fail(f"no line of the audit says {fields}; the last ones are {self.audit()[-3:]}")
            time.sleep(0.02)
        return found

    def socket(self, identity: Path | None, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """A TLS connection."""
        if context is None:
            assert identity is not None
            context = client_context(load_identity(identity))
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        try:
            return context.wrap_socket(raw, server_hostname="localhost")
        except BaseException:
            raw.close()
            raise

    def client(self, identity: Path, token: str | None = None) -> "Client":
        return Client(self, identity, token)


class Client:
    """A connection that is kept, as a well-behaved client's."""

    def __init__(self, gateway: Gateway, identity: Path, token: str | None) -> None:
        self._token = token
        self._http = http.client.HTTPSConnection(
            "localhost", gateway.port, context=client_context(load_identity(identity)), timeout=60
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, target: str, method: str = "GET", token: str | None = None, **fields: str) -> Reply:
        """Ask; names of fields have underscores for hyphens."""
        sent = {name.replace("_", "-"): value for name, value in fields.items()}
        if (token := token or self._token) is not None:
            sent["Authorization"] = f"Bearer {token}"
        self._http.request(method, target, headers=sent)
        answer = self._http.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def exchange(connection: ssl.SSLSocket, data: bytes) -> bytes:
    """Send bytes as they are, and give all that comes until the other side closes."""
    try:
        connection.sendall(data)
    except OSError:
        pass  # it may have closed already, having answered
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except (ConnectionError, ssl.SSLError):
        pass
    return received
