"""Frames over mutual TLS against LCLStreamer's path: HDF5 in memory, sent by plain ZMQ, read by h5py."""

import io

import h5py
import numpy as np

from .served import FRAME, NAME, ROWS, SHAPE, served_run, serving
from .timing import Setting, interleaved, ratio, show

#: What LCLStreamer does with a batch of events that it has: a file in memory, one dataset a field, a chunk an event, no
#: compression; one message a batch, five waiting at most. It answers each "go" with the run, once.
_PRODUCER = """
import io, sys
import h5py, numpy as np, zmq
paths, shape = sys.argv[3:], tuple(map(int, sys.argv[1].split(",")))
context = zmq.Context()
push, told = context.socket(zmq.PUSH), context.socket(zmq.PULL)
push.setsockopt(zmq.SNDHWM, 5)
port = push.bind_to_random_port("tcp://127.0.0.1")
told.bind(f"ipc://{sys.argv[2]}")
print(port, flush=True)
while True:
    told.recv()
    for path in paths:
        frames = np.fromfile(path, np.uint16).reshape(-1, *shape)
        blob = io.BytesIO()
        with h5py.File(blob, "w") as file:
            file.create_dataset("/data/frames", data=frames, chunks=(1, *shape))
        push.send(blob.getbuffer(), copy=False)
"""


def run(setting: Setting) -> None:
    """Measure."""
    try:
        import zmq
    except ImportError:
        print("  SKIPPED: pyzmq is not installed, there is nothing to compare with (pip install -e '.[bench]')")
        return
    frames = setting.size(256, 16)
    told = setting.directory / "go"
    with served_run(setting, frames) as run, zmq.Context() as context:
        shape = ",".join(map(str, SHAPE))
        with serving(_PRODUCER, shape, told, *run.chunks()) as port:
            pull, go = context.socket(zmq.PULL), context.socket(zmq.PUSH)
            pull.connect(f"tcp://127.0.0.1:{port}")
            go.connect(f"ipc://{told}")

            def pulled() -> int:
                go.send(b"go")
                total = 0
                for _ in range(frames // ROWS):
                    with h5py.File(io.BytesIO(pull.recv(copy=False).buffer), "r") as file:
                        total += int(file["/data/frames"][...].sum(dtype=np.uint64))
                return total

            try:
                if pulled() != run.reduced():
                    raise RuntimeError("the two paths gave different frames")
                timings = interleaved(setting.repeats, {"LCLStreamer's path": pulled, "lcls_dask": run.reduced})
            finally:
                pull.close(linger=0)
                go.close(linger=0)
    print(f"  sum of {NAME}: {frames} frames of 2 MiB, {ROWS} in a batch or chunk; ours over mutual TLS, theirs plain")
    for name, timing in timings.items():
        show(name, timing, size=frames * FRAME)
    ratio("throughput over LCLStreamer's path", *timings.values(), 1.5, at_least=True)
