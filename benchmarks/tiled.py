"""Frames through the gateway over mutual TLS against tiled: its server and its Dask client, over plain HTTP."""

import importlib.util

from .served import FRAME, NAME, ROWS, SHAPE, served_run, serving
from .timing import Setting, interleaved, ratio, show

#: The same frames in the same blocks, all in memory.
_SERVER = """
import socket, sys
import numpy as np, uvicorn
from tiled.adapters.array import ArrayAdapter
from tiled.adapters.mapping import MapAdapter
from tiled.config import Authentication
from tiled.server.app import build_app
rows, shape = int(sys.argv[1]), tuple(map(int, sys.argv[2].split(",")))
frames = np.concatenate([np.fromfile(path, np.uint16).reshape(rows, *shape) for path in sys.argv[3:]])
chunks = ((rows,) * (len(frames) // rows), *((length,) for length in shape))
tree = MapAdapter({"frames": ArrayAdapter.from_array(frames, chunks=chunks)})
app = build_app(tree, authentication=Authentication(allow_anonymous_access=True))
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[server])
"""


def run(setting: Setting) -> None:
    """Measure."""
    if importlib.util.find_spec("tiled") is None:
        print("  SKIPPED: tiled is not installed, there is nothing to compare with (pip install -e '.[bench]')")
        return
    from tiled.client import from_uri

    frames = setting.size(256, 16)
    with (
        served_run(setting, frames) as run,
        serving(_SERVER, ROWS, ",".join(map(str, SHAPE)), *run.chunks()) as port,
    ):

        def reduced() -> int:
            client = from_uri(f"http://127.0.0.1:{port}/api/v1", structure_clients="dask")
            return int(client["frames"].read().sum().compute(scheduler="threads"))

        if reduced() != run.reduced():
            raise RuntimeError("the two gave different frames")
        timings = interleaved(setting.repeats, {"tiled, plain HTTP": reduced, "lcls_dask": run.reduced})
    print(f"  sum of {NAME}: {frames} frames of 2 MiB, {ROWS} in a block, by Dask's threads; opening included")
    for name, timing in timings.items():
        show(name, timing, size=frames * FRAME)
    ratio("throughput over tiled's", *timings.values(), 2, at_least=True)
