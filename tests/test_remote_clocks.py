"""A clock that is an hour off, the gateway's or the client's: right values, or an error that names the times."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from gateway_rig import Facility, Gateway

import lcls_dask
from lcls_dask.formats import open_source
from lcls_dask.formats.remote.clocks import of_refusal
from lcls_dask.security import Role, create_identity
from lcls_dask.security.certificates import load_certificate
from lcls_dask.security.introductions import accept
from lcls_dask.security.issuer import create_issuer, open_issuer
from lcls_dask.security.trust import trust_authority

EXPERIMENT = "tmox42619"
HOUR = 3600.0
CLOCK = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
_LIBRARIES = [path for base in ("/usr/lib", "/usr/local/lib") for path in Path(base).rglob("libfaketimeMT.so.1")]

pytestmark = pytest.mark.skipif(
    not _LIBRARIES, reason="libfaketime is not installed (apt-get install libfaketime): wrong clocks are NOT tested"
)

_CLIENT = """
import json, sys
import lcls_dask
from lcls_dask.errors import LclsError
try:
    values = lcls_dask.open_run(sys.argv[1]).source.read("/", "timestamp", slice(0, 50))
    told = {"sum": int(values.sum())}
except LclsError as error:
    told = {"error": type(error).__name__, "says": str(error)}
print(json.dumps(told))
"""


def an_hour_ago() -> float:
    return time.time() - 1.5 * HOUR


def off(hours: float) -> Mapping[str, str]:
    """Environment of a process whose clock is wrong; times of files stay as they are."""
    if not hours:
        return {}
    return {"LD_PRELOAD": str(_LIBRARIES[0]), "FAKETIME": f"{hours:+g}h", "NO_FAKE_STAT": "1"}


@pytest.fixture
def facility(tmp_path: Path) -> Facility:
    made = Facility(tmp_path, clock=an_hour_ago)
    lcls_dask.simulate(made.root / EXPERIMENT / "r0001", "scan", events=50, experiment=EXPERIMENT, run=1)
    made.allow({EXPERIMENT: ["alice"]})
    return made


@pytest.fixture
def serve(facility: Facility) -> Iterator[Callable[[float], Gateway]]:
    started: list[Gateway] = []

    def start(hours: float) -> Gateway:
        started.append(Gateway(facility, environment=off(hours)).start())
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()


def enter(facility: Facility, name: str, **more: object) -> Path:
    identity = facility.identity(name, user="alice", **more)  # type: ignore[arg-type]
    token = identity / "token"
    token.touch(0o600)
    token.write_text(facility.token(identity, EXPERIMENT))
    return identity


def read(gateway: Gateway, identity: Path, hours: float = 0, issuer: str | None = None) -> dict[str, str]:
    settings = {
        "LCLS_GATEWAY": f"https://localhost:{gateway.port}",
        "LCLS_IDENTITY": str(identity),
        "DASK_LCLS__PATIENCE": "5",
        **({"LCLS_ISSUER": issuer} if issuer else {}),
    }
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT, f"lcls://{EXPERIMENT}/r0001"],
        env={**os.environ, **settings, **off(hours)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, str] = json.loads(done.stdout)
    return told


def right(facility: Facility) -> dict[str, int]:
    here = open_source(facility.root / EXPERIMENT / "r0001")
    return {"sum": int(here.read("/", "timestamp", slice(0, 50)).sum())}


@pytest.mark.long
def test_the_gateways_clock_is_ahead(facility: Facility, serve: Callable[[float], Gateway]) -> None:
    """It takes a token of ten minutes for one that has expired."""
    told = read(serve(+1), enter(facility, "alice"))
    assert told["error"] == "AccessError"
    assert re.search(
        rf"expired.* \(the token is good until {CLOCK}, the gateway's clock says {CLOCK}, this machine's says {CLOCK}: "
        "one of the two is wrong\\)",
        told["says"],
    )


def test_the_gateways_clock_is_behind(facility: Facility, serve: Callable[[float], Gateway]) -> None:
    """A certificate that was made just now is not good yet; an older one is, and then all is well."""
    gateway = serve(-1)
    told = read(gateway, enter(facility, "new"))
    assert told["error"] == "AccessError"
    assert re.search(
        f"does not accept this certificate .*good from {CLOCK} to {CLOCK}, this machine's clock says {CLOCK}, "
        "the gateway's may differ",
        told["says"],
    )
    gateway.audited(operation="connect", decision="refused", reason="TLS: certificate is not yet valid")
    assert read(gateway, enter(facility, "older", clock=an_hour_ago)) == right(facility)


def test_the_clients_clock_is_ahead(facility: Facility, serve: Callable[[float], Gateway]) -> None:
    assert read(serve(0), enter(facility, "alice"), +1) == right(facility)


@pytest.mark.long
def test_the_clients_clock_is_behind(facility: Facility, serve: Callable[[float], Gateway]) -> None:
    """The gateway's certificate, made just now, is not good yet by that clock."""
    told = read(serve(0), enter(facility, "alice"), -1)
    assert told["error"] == "IdentityError"
    assert re.search(
        f"cannot be trusted: certificate is not yet valid, if this machine's clock is right, which says {CLOCK}",
        told["says"],
    )


def test_a_worker_whose_clock_is_ahead_of_its_certificate(
    facility: Facility, serve: Callable[[float], Gateway]
) -> None:
    told = read(serve(0), enter(facility, "brief", lifetime=timedelta(minutes=50)), +1)
    assert told["error"] == "IdentityError"
    assert re.search(f"was good until {CLOCK}, and this machine's clock says {CLOCK}", told["says"])


def test_times_are_named_only_where_they_matter() -> None:
    assert of_refusal("bad signature", None, "garbage") == ""
    assert "good until" not in of_refusal("expired", None, "garbage")
    assert of_refusal("expired", "no date", None).startswith(" (this machine's says ")
    assert "wrong" in of_refusal("bad signature", "Sun, 06 Nov 1994 08:49:37 GMT", None)


@pytest.fixture
def issuing(facility: Facility) -> Iterator[Callable[[float], str]]:
    """Starts an issuer whose clock is so many hours off, and gives its address."""
    hosts = ("localhost", "127.0.0.1")
    made = create_issuer(facility.base / "issuer", hosts=hosts, clock=an_hour_ago)
    trust_authority(facility.gateway, made.authority)
    shutil.copy(made.directory / "biscuit.pub", facility.gateway / "known_issuers" / "service.pub")
    started: list[subprocess.Popen[str]] = []

    def start(hours: float) -> str:
        command = ["issue", "serve", made.directory, "--policy", facility.policy, "--port", "0"]
        command += ["--revocations", facility.revocations]
        program = "import sys; from lcls_dask.cli import main; sys.exit(main())"
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, command)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **off(hours)},
        )
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip().replace("127.0.0.1", "localhost")

    yield start
    for process in started:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def sign_in(facility: Facility) -> Path:
    """An identity that the issuer has signed, without a token."""
    directory = facility.base / "alice"
    create_identity(directory, Role.USER, "alice")
    issuer = open_issuer(facility.base / "issuer", clock=an_hour_ago)
    accept(directory, json.dumps(issuer.sign((directory / "id.crt").read_bytes(), Role.USER, "alice")), trust=True)
    trust_authority(directory, load_certificate((facility.base / "site" / "CA.crt").read_bytes()))
    return directory


def tokens_given(facility: Facility) -> int:
    return (facility.base / "issuer" / "issued.jsonl").read_text().count('"kind": "token"')


@pytest.mark.parametrize("hours", [0, 1])
def test_tokens_from_an_issuer(
    facility: Facility, serve: Callable[[float], Gateway], issuing: Callable[[float], str], hours: float
) -> None:
    """Whatever the client's clock says: one token for all requests."""
    gateway, address = serve(0), issuing(0)
    assert read(gateway, sign_in(facility), hours, issuer=address) == right(facility)
    assert tokens_given(facility) == 1


def test_the_issuers_clock_is_behind(
    facility: Facility, serve: Callable[[float], Gateway], issuing: Callable[[float], str]
) -> None:
    """Its tokens have expired when they come; a few are tried, not one after the other for ever."""
    gateway, address = serve(0), issuing(-1)
    told = read(gateway, sign_in(facility), issuer=address)
    assert told["error"] == "AccessError"
    assert re.search(rf"expired.* \(the token is good until {CLOCK}, the gateway's clock says {CLOCK}", told["says"])
    assert tokens_given(facility) <= 3
