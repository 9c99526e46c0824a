"""The gateway over mutual TLS against nginx serving the same chunk files: large chunks, small ones, many clients."""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

from lcls_dask.gateway.revoked import SharedRevocations
from lcls_dask.security import Access, Authoriser, IssuerKeys, Operation, PolicyFile, load_identity
from lcls_dask.security.tls import client_context
from tests.gateway_rig import Facility, Gateway, write_store

from .served import EXPERIMENT, UNLIMITED
from .timing import Contender, Setting, Timing, compare, interleaved, ratio, show

BIG, SMALL = "det.raw.big", "det.raw.small"
CLIENTS = 64

#: wrk cannot present a certificate; this makes the library do it for every context that it makes.
_PRESENT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
void *SSL_CTX_new(const void *method) {
    void *(*make)(const void *) = dlsym(RTLD_NEXT, "SSL_CTX_new");
    int (*certificate)(void *, const char *) = dlsym(RTLD_NEXT, "SSL_CTX_use_certificate_chain_file");
    int (*key)(void *, const char *, int) = dlsym(RTLD_NEXT, "SSL_CTX_use_PrivateKey_file");
    void *context = make(method);
    if (!context || certificate(context, getenv("CLIENT_CRT")) != 1 || key(context, getenv("CLIENT_KEY"), 1) != 1)
        abort();
    return context;
}
"""

_NGINX = """
daemon off; worker_processes 1; pid {base}/pid; error_log {base}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
  client_body_temp_path {base}/a; proxy_temp_path {base}/b; fastcgi_temp_path {base}/c;
  uwsgi_temp_path {base}/d; scgi_temp_path {base}/e;
  server {{
    listen 127.0.0.1:{port} ssl; root {root};
    ssl_certificate "{certificate}"; ssl_certificate_key "{key}";
    ssl_client_certificate "{authority}"; ssl_verify_client on; ssl_protocols TLSv1.2 TLSv1.3;
  }}
}}
"""


def run(setting: Setting) -> None:
    """Measure."""
    if shutil.which("nginx") is None:
        print("  SKIPPED: nginx is not installed, there is nothing to compare with")
        return
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # a server and its client are two
    facility = Facility(setting.directory)
    rows = setting.size(128, 8)
    store = facility.root / EXPERIMENT / "r0001.zarr"
    shapes = {BIG: (8, (rows, 1024, 1024)), SMALL: (1, (16, 2048)), "timestamp": (1, (1,))}
    write_store(store, EXPERIMENT, 1, shapes)
    alice = facility.identity("alice")
    facility.allow({EXPERIMENT: ["alice"]})
    token = facility.token(alice, EXPERIMENT)
    gateway = Gateway(facility, UNLIMITED).start()
    try:
        with nginx(facility) as (port, pid):
            (worker,) = gateway.workers()
            context = client_context(load_identity(alice))
            pinned = f"/v1/runs/{EXPERIMENT}/r0001@{1:032x}/zarr/"
            one = Peer(gateway.port, context, lambda key: pinned + key, token, worker)
            other = Peer(port, context, lambda key: f"/{EXPERIMENT}/r0001.zarr/{key}", token, pid)
            chunks = [f"{BIG}/c/{number}/0/0" for number in range(rows // 8)]
            seconds = large(setting, one, other, chunks)
            many(setting, one, chunks)
            per_request = small(setting, one, other, alice)
            authorisation(facility, alice, token, seconds, per_request)
    finally:
        gateway.stop()


class Peer:
    """A server, and what its keys are called there."""

    def __init__(
        self, port: int, context: ssl.SSLContext, target: Callable[[str], str], token: str, process: int
    ) -> None:
        self.port, self.target, self.token = port, target, token
        self._context, self._process = context, process
        self._buffer = bytearray(1 << 25)

    def connect(self) -> ssl.SSLSocket:
        """A connection."""
        raw = socket.create_connection(("127.0.0.1", self.port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._context.wrap_socket(raw, server_hostname="localhost")

    def cpu(self) -> float:
        """CPU seconds that the serving process has used."""
        threads = Path(f"/proc/{self._process}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def fetch(self, connection: ssl.SSLSocket, key: str, buffer: bytearray | None = None) -> int:
        """Ask for a key and take its bytes; how many."""
        buffer = self._buffer if buffer is None else buffer
        head = f"GET {self.target(key)} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n\r\n"
        connection.sendall(head.encode())
        view, got, end = memoryview(buffer), 0, -1
        while end < 0:
            got += connection.recv_into(view[got : got + 4096])
            end = buffer.find(b"\r\n\r\n", 0, got)
        told = bytes(view[:end])
        if b" 200 " not in told[:16]:
            raise RuntimeError(told.splitlines()[0].decode())
        size = int(re.search(rb"(?i)content-length: (\d+)", told)[1])  # type: ignore[index]
        while got < end + 4 + size:
            got += connection.recv_into(view[got : end + 4 + size])
        return size


def timed(peer: Peer, work: Callable[[], object]) -> Contender:
    """A contender whose CPU time is the server's."""

    def contend() -> tuple[float, float]:
        cpu, wall = peer.cpu(), time.perf_counter()
        work()
        return time.perf_counter() - wall, peer.cpu() - cpu

    return contend


def large(setting: Setting, one: Peer, other: Peer, chunks: list[str]) -> float:
    """One client, chunks of 16 MiB, one from here and one from there in turn; seconds that one takes."""
    ours, theirs = cycle(chunks), cycle(chunks)
    with one.connect() as to_one, other.connect() as to_other:
        timings = interleaved(
            setting.repeats * len(chunks),
            {
                "gateway": timed(one, lambda: one.fetch(to_one, next(ours))),
                "nginx": timed(other, lambda: other.fetch(to_other, next(theirs))),
            },
        )
    print(f"  one client, chunks of 16 MiB, {len(chunks)} of them in turn")
    for name, timing in timings.items():
        show(name, timing, size=1 << 24)
    ratio("throughput over nginx's", timings["nginx"], timings["gateway"], 0.95, at_least=True)
    return timings["gateway"].median


def many(setting: Setting, one: Peer, chunks: list[str]) -> None:
    """Many clients against one: the same chunks in all."""
    clients = setting.size(CLIENTS, 4)
    work = [chunks[number % len(chunks)] for number in range(max(clients, len(chunks)))]
    connections = [one.connect() for _ in range(clients)]
    buffers = [bytearray((16 << 20) + 8192) for _ in range(clients)]

    def fetch(at: int) -> int:
        return one.fetch(connections[at], work[at], buffers[at])

    def together() -> None:
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(fetch, range(clients)))

    def alone() -> None:
        for at in range(clients):
            one.fetch(connections[0], work[at], buffers[0])

    timings = interleaved(setting.repeats, {"together": timed(one, together), "alone": timed(one, alone)})
    for connection in connections:
        connection.close()
    ratio(f"{clients} clients over one, aggregate", timings["alone"], timings["together"], 0.9, at_least=True)


def small(setting: Setting, one: Peer, other: Peer, identity: Path) -> float:
    """Chunks of 4 kB at saturation; CPU seconds that one costs the gateway."""
    shim = setting.directory / "present.so"
    if shutil.which("wrk") is None or shutil.which("cc") is None:
        print("  SKIPPED: wrk or a C compiler is not installed, there is no load generator")
        return float("nan")
    source = setting.directory / "present.c"
    source.write_text(_PRESENT)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
    known = load_identity(identity)
    environment = {**os.environ, "LD_PRELOAD": str(shim), "CLIENT_CRT": str(known.certificate_file)}
    environment["CLIENT_KEY"] = str(known.key_file)
    seconds = setting.size(4, 1)
    rates: dict[str, list[float]] = {"gateway": [], "nginx": []}
    cost = []
    for _ in range(setting.repeats):
        for name, peer in (("gateway", one), ("nginx", other)):
            url = f"https://localhost:{peer.port}{peer.target(f'{SMALL}/c/3/0')}"
            before = peer.cpu()
            done = subprocess.run(
                ["wrk", "-t1", "-c16", f"-d{seconds}", "-H", f"Authorization: Bearer {peer.token}", url],
                env=environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
            if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
                raise RuntimeError(done.stdout)
            rates[name].append(float(re.search(r"Requests/sec: +([0-9.]+)", done.stdout)[1]))  # type: ignore[index]
            if name == "gateway":
                cost.append((peer.cpu() - before) / (rates[name][-1] * seconds))
    for name, told in rates.items():
        print(f"  {name + ', chunks of 4 kB':36}{max(told):10,.0f} requests/s at best")
    compare("requests/s over nginx's, best", max(rates["gateway"]) / max(rates["nginx"]), 0.1, at_least=True)
    return min(cost)


def authorisation(facility: Facility, identity: Path, token: str, chunk: float, request: float) -> None:
    """What a cached decision costs, beside what it decides about."""
    keys = IssuerKeys.load(facility.gateway / "known_issuers")
    authoriser = Authoriser(keys, PolicyFile(facility.policy), SharedRevocations(facility.revocations))
    peer, access = load_identity(identity).peer, Access(Operation.READ, EXPERIMENT, 1, "det")
    assert authoriser.decide(peer, token, access).allowed
    count = 2000

    def decide() -> None:
        for _ in range(count):
            authoriser.decide(peer, token, access)

    timing: Timing = interleaved(5, {"cached": decide})["cached"]
    cached = min(timing.cpu) / count
    print(f"  a cached decision takes {cached * 1e6:.1f} us")
    compare("authorisation over a chunk of 16 MiB", 100 * cached / chunk, 3, unit=" %")
    if request == request:
        compare("authorisation over a request for 4 kB", 100 * cached / request, 3, unit=" %")


@contextmanager
def nginx(facility: Facility) -> Iterator[tuple[int, int]]:
    """An nginx of one worker that serves the facility's root; its port and its worker's process id."""
    base = facility.base / "nginx"
    base.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = load_identity(facility.gateway)
    (base / "nginx.conf").write_text(
        _NGINX.format(base=base, port=port, root=facility.root, certificate=known.certificate_file, key=known.key_file,
                      authority=facility.base / "site" / "CA.crt")
    )  # fmt: skip
    if os.geteuid() == 0:  # its worker would be another user, who may not enter a private directory
        text = (base / "nginx.conf").read_text()
        (base / "nginx.conf").write_text(f"user root;\n{text}")
    process = subprocess.Popen(["nginx", "-p", str(base), "-c", str(base / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield port, int(children[0])
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(10)
