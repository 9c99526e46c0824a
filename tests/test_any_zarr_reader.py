"""A served run read by zarr over fsspec's own HTTP, and by zarrita.js: processes that know nothing of this package."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gateway_rig import Facility, Gateway

import lcls_dask
from lcls_dask.formats import RunSource
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


def told_to(gateway: Gateway, kinds: str) -> tuple[dict[str, object], RunSource]:
    """What a reader needs to know, and the run itself."""
    facility = gateway.facility
    identity = facility.base / "alice"
    source = lcls_dask.open_run(facility.root / EXPERIMENT / "r0001").source
    root = source.index.nodes["/"].variables
    names = ["timestamp", *(name for name, v in root.items() if "." in name and v.dtype.kind in kinds)]
    known = load_identity(identity)
    told: dict[str, object] = {
        "authority": str(facility.base / "site" / "CA.crt"),
        "certificate": str(known.certificate_file),
        "key": str(known.key_file),
        "token": facility.token(identity, EXPERIMENT),
        "url": f"https://localhost:{gateway.port}/v1/runs/{EXPERIMENT}/r0001@{source.index.snapshot}/zarr",
        "names": names,
    }
    return told, source


def test_plain_zarr(gateway: Gateway) -> None:
    told, source = told_to(gateway, "iuf")
    done = subprocess.run(
        [sys.executable, "-c", _READER], input=json.dumps(told), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    names = told["names"]
    assert isinstance(names, list)
    for name in names:
        values = source.read("/", name, slice(0, 300))
        assert found[name][:2] == [str(values.dtype), list(values.shape)]
        np.testing.assert_allclose(found[name][2], values.sum(), rtol=1e-12)
    assert found["some"] == source.read("/", names[0], slice(3, 7)).tolist()
    assert gateway.audited(operation="key", key="timestamp/c/0", decision="allowed")["user"] == "alice"


#: Where ``make test`` has npm put it.
_MODULES = Path(sys.prefix) / "node_modules"

_IN_NODE = """
import fs from "node:fs";
import https from "node:https";
import * as zarr from "zarrita";

const told = JSON.parse(fs.readFileSync(0));
const read = (path) => fs.readFileSync(path);
const agent = new https.Agent({
  ca: read(told.authority), cert: read(told.certificate), key: read(told.key), keepAlive: true,
});
const headers = { Authorization: "Bearer " + told.token };
const store = {
  get: (key) => new Promise((resolve, reject) => {
    https.get(told.url + key, { agent, headers }, (answer) => {
      const pieces = [];
      answer.on("data", (piece) => pieces.push(piece));
      answer.on("end", () => {
        if (answer.statusCode === 404) resolve(undefined);
        else if (answer.statusCode === 200) resolve(new Uint8Array(Buffer.concat(pieces)));
        else reject(new Error(key + ": " + answer.statusCode));
      });
    }).on("error", reject);
  }),
};
const root = await zarr.open.v3(store, { kind: "group" });
const found = { experiment: root.attrs.experiment };
for (const name of told.names) {
  const array = await zarr.open.v3(root.resolve(name), { kind: "array" });
  const { data } = await zarr.get(array);
  found[name] = [array.dtype, array.shape, Array.from(data, String)];
}
console.log(JSON.stringify(found));
agent.destroy();
"""


@pytest.mark.skipif(
    shutil.which("node") is None or not (_MODULES / "zarrita").is_dir(),
    reason=f"node or zarrita is not there (npm install --prefix {sys.prefix} zarrita): NOT read with zarrita.js",
)
def test_zarrita(gateway: Gateway, tmp_path: Path) -> None:
    told, source = told_to(gateway, "iuf")
    (tmp_path / "read.mjs").write_text(_IN_NODE)
    (tmp_path / "node_modules").symlink_to(_MODULES)
    done = subprocess.run(
        ["node", str(tmp_path / "read.mjs")], input=json.dumps(told), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found.pop("experiment") == EXPERIMENT
    assert list(found) == told["names"]
    for name, (dtype, shape, values) in found.items():
        expected = source.read("/", name, slice(0, 300))
        assert (dtype, shape) == (str(expected.dtype), list(expected.shape))
        np.testing.assert_array_equal(np.array(values).astype(dtype).reshape(shape), expected)
