"""A served run read by zarr over fsspec's own HTTP, in a process that knows nothing of this package."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gateway_rig import Facility, Gateway

import lcls_dask
from lcls_dask.security import load_identity

EXPERIMENT = "tmox42619"

#: What anybody could write: a client certificate, a header, and zarr.
_READER = """
import json, ssl, sys
import aiohttp, fsspec, zarr

told = json.load(sys.stdin)
context = ssl.create_default_context(cafile=told["authority"])
context.load_cert_chain(told["certificate"], told["key"])

async def client(**more):
    headers = {"Authorization": "Bearer " + told["token"]}
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), headers=headers)

web = fsspec.filesystem("https", asynchronous=True, get_client=client, skip_instance_cache=True)
store = zarr.storage.FsspecStore(web, path=told["url"], read_only=True)
group = zarr.open_group(store, mode="r", use_consolidated=False)
found = {name: [str(group[name].dtype), list(group[name].shape), group[name][:].sum().item()] for name in told["names"]}
found["some"] = group[told["names"][0]][3:7].tolist()
print(json.dumps(found))
assert not any(module.startswith("lcls_dask") for module in sys.modules)
"""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    facility = Facility(tmp_path)
    lcls_dask.simulate(facility.root / EXPERIMENT / "r0001", "scan", events=300, experiment=EXPERIMENT, run=1)
    facility.identity("alice")
    facility.allow({EXPERIMENT: ["alice"]})
    running = Gateway(facility).start()
    yield running
    running.stop()


def test_plain_zarr(gateway: Gateway) -> None:
    facility = gateway.facility
    identity = facility.base / "alice"
    source = lcls_dask.open_run(facility.root / EXPERIMENT / "r0001").source
    root = source.index.nodes["/"].variables
    names = ["timestamp", *(name for name, v in root.items() if "." in name and v.dtype.kind in "iuf")]
    known = load_identity(identity)
    told = {
        "authority": str(facility.base / "site" / "CA.crt"),
        "certificate": str(known.certificate_file),
        "key": str(known.key_file),
        "token": facility.token(identity, EXPERIMENT),
        "url": f"https://localhost:{gateway.port}/v1/runs/{EXPERIMENT}/r0001@{source.index.snapshot}/zarr",
        "names": names,
    }
    done = subprocess.run(
        [sys.executable, "-c", _READER], input=json.dumps(told), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for name in names:
        values = source.read("/", name, slice(0, 300))
        assert found[name][:2] == [str(values.dtype), list(values.shape)]
        np.testing.assert_allclose(found[name][2], values.sum(), rtol=1e-12)
    assert found["some"] == source.read("/", names[0], slice(3, 7)).tolist()
    assert gateway.audited(operation="key", key="timestamp/c/0", decision="allowed")["user"] == "alice"
