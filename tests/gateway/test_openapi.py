"""The served description against the service: schemathesis finds no answer that it does not describe, and no 5xx."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import Facility, Gateway

import lcls_dask
from lcls_dask.security import Operation, load_identity
from lcls_dask.stores.keys import RunKeys

HERS, OTHERS = "tmox42619", "xpptut15"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
)


@pytest.fixture
def facility(tmp_path: Path) -> Facility:
    made = Facility(tmp_path)
    for experiment in (HERS, OTHERS):
        lcls_dask.simulate(made.root / experiment / "r0014", "scan", events=100, experiment=experiment, run=14)
    made.identity("alice")
    made.allow({HERS: ["alice"], OTHERS: ["bob"]}, direct=[HERS])
    return made


@pytest.fixture
def gateway(facility: Facility) -> Iterator[Gateway]:
    running = Gateway(facility, ("--requests", "1000000")).start()
    yield running
    assert running.stop() == 0


def keys_of(run: Path) -> list[str]:
    keys = RunKeys(lcls_dask.open_run(run).source)

    def walk(prefix: str) -> Iterator[str]:
        for entry in keys.list_dir(prefix):
            if entry.is_dir:
                yield from walk(f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name

    return sorted(walk(""))


def described(client: Any, facility: Facility) -> dict[str, Any]:
    """The served description, with values that are there beside those that its patterns allow."""
    document: dict[str, Any] = copy.deepcopy(client.get("/v1/openapi.json").json)
    run = facility.root / HERS / "r0014"
    there: dict[str, list[str]] = {
        "experiment": [HERS, OTHERS],
        "run": ["0014", "14"],
        "snapshot": [lcls_dask.open_run(run).snapshot],
        "node": ["archon", "steps"],
    }
    for path in document["paths"].values():
        for parameter in path["get"]["parameters"]:
            if parameter["name"] in there:
                known = {"enum": there[parameter["name"]]}
                parameter["schema"] = {"type": "string", "anyOf": [known, known, dict(parameter["schema"])]}
    # a slash in a parameter would be encoded: each kind of key is an address of its own
    zarr = "/v1/runs/{experiment}/r{run}@{snapshot}/zarr/"
    operation = document["paths"].pop(zarr + "{key}")
    for key in [*keys_of(run)[::3], "", "archon/", "nosuch/zarr.json"]:
        found = document["paths"][zarr + key] = copy.deepcopy(operation)
        found["get"]["parameters"] = [p for p in operation["get"]["parameters"] if p["name"] != "key"]
    return document


@pytest.mark.parametrize(
    "seconds", [60, pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(900)])], ids=["quick", "long"]
)
def test_schemathesis(facility: Facility, gateway: Gateway, tmp_path: Path, seconds: int) -> None:
    alice = facility.base / "alice"
    token = facility.token(alice, HERS, operations=[Operation.LIST, Operation.INFO, Operation.READ, Operation.DIRECT])
    with gateway.client(alice) as client:
        (tmp_path / "openapi.json").write_text(json.dumps(described(client, facility)))
    program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(tmp_path / "openapi.json"), "--url", f"https://localhost:{gateway.port}",
         "--tls-verify", str(facility.base / "site" / "CA.crt"),
         "--request-cert", str(load_identity(alice).certificate_file), "--request-cert-key", str(alice / "id.key"),
         "--header", f"Authorization: Bearer {token}", "--checks", CHECKS, "--phases", "examples,coverage,fuzzing",
         "--generation-database", "none", "--request-timeout", "60", "--max-time", str(seconds), "--no-color",
         "--warnings", "off", "--continue-on-failure"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    asked = sum(record["count"] for record in gateway.audit())
    # a busy machine asks a fifth as often as an idle one; that it asked at all is what is to be seen
    assert asked > seconds / 3, done.stdout[-2000:]
    assert {record["status"] for record in gateway.audit()} >= {200, 404}
    assert '"level": "error"' not in gateway.log.read_text()


def test_the_description_is_valid_openapi(facility: Facility, gateway: Gateway) -> None:
    with gateway.client(facility.base / "alice") as client:
        document = client.get("/v1/openapi.json").json
    assert document["openapi"] == "3.1.0"
    for path, item in document["paths"].items():
        names = {name for part in path.split("{")[1:] if (name := part.partition("}")[0])}
        parameters = item["get"]["parameters"]
        assert {p["name"] for p in parameters if p["in"] == "path"} == names, path
        assert set(item["get"]["responses"]) >= {"200", "400", "404", "405", "429"}
