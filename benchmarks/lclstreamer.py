"""Frames over mutual TLS against LCLStreamer's path: HDF5 in memory, sent by plain ZMQ, read by h5py.

Between its producers and their client stands a buffer (NNG-Stream, now fastcache) wherever a transfer was asked for by
its API, as it alone is reached from outside; here ZMQ's own proxy, which is one of the ways that it forwards.
"""

import io
from collections.abc import Callable
from contextlib import ExitStack

import h5py
import numpy as np

from .remote import SENDER, received
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


#: The buffer between: ten messages wait at most on either side.
_BUFFER = """
import sys
import zmq
context = zmq.Context()
pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
pull.setsockopt(zmq.RCVHWM, 10)
push.setsockopt(zmq.SNDHWM, 10)
pull.connect(f"tcp://127.0.0.1:{sys.argv[1]}")
print(push.bind_to_random_port("tcp://127.0.0.1"), flush=True)
zmq.proxy(pull, push)
"""


def run(setting: Setting) -> None:
    """Measure."""
    try:
        import zmq
    except ImportError:
        print("  SKIPPED: pyzmq is not installed, there is nothing to compare with (pip install -e '.[bench]')")
        return
    frames = setting.size(256, 16)
    with ExitStack() as stack:
        run = stack.enter_context(served_run(setting, frames))
        context = stack.enter_context(zmq.Context())

        def path(buffered: bool) -> Callable[[], int]:
            told, shape = setting.directory / f"go{buffered:d}", ",".join(map(str, SHAPE))
            port = stack.enter_context(serving(_PRODUCER, shape, told, *run.chunks()))
            if buffered:
                port = stack.enter_context(serving(_BUFFER, port))
            pull = stack.enter_context(context.socket(zmq.PULL))
            go = stack.enter_context(context.socket(zmq.PUSH))
            go.linger = 0
            pull.connect(f"tcp://127.0.0.1:{port}")
            go.connect(f"ipc://{told}")

            def pulled() -> int:
                go.send(b"go")
                total = 0
                for _ in range(frames // ROWS):
                    with h5py.File(io.BytesIO(pull.recv(copy=False).buffer), "r") as file:
                        total += int(file["/data/frames"][...].sum(dtype=np.uint64))
                return total

            return pulled

        contenders: dict[str, Callable[[], object]] = {
            "LCLStreamer's path": path(buffered=True),
            "its path without the buffer": path(buffered=False),
            "lcls_dask": run.reduced,
        }
        if len({work() for work in contenders.values()}) > 1:
            raise RuntimeError("the paths gave different frames")
        tls = stack.enter_context(serving(SENDER, run.facility.gateway, run.store / NAME))
        contenders["bare TLS socket"] = lambda: received(run.facility, run.identity, tls, frames * FRAME)
        timings = interleaved(setting.repeats, contenders)
    print(f"  sum of {NAME}: {frames} frames of 2 MiB, {ROWS} in a batch or chunk; ours over mutual TLS, theirs plain")
    for name, timing in timings.items():
        show(name, timing, size=frames * FRAME)
    theirs, unbuffered, ours, tls_alone = timings.values()
    ratio("throughput over LCLStreamer's path", theirs, ours, 1.5, at_least=True)
    ratio("throughput over its path without the buffer", unbuffered, ours)
    ratio("what TLS alone would have over its path", theirs, tls_alone)
