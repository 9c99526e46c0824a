"""One of the gateway's processes: it serves until it is told to stop or its supervisor is gone."""

import asyncio
import ctypes
import logging
import multiprocessing
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from ..errors import LclsError
from ..formats import memory
from .audit import AuditLog
from .authority import Authority
from .connections import SWEEP, Connections
from .limits import Usage
from .logs import log_as_json
from .metrics import Metrics
from .reading import Reader
from .runs import Runs
from .seen import Seen
from .service import Service
from .settings import Settings
from .state import State

_log = logging.getLogger(__name__)

_BACKLOG = 1024
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


@dataclass(frozen=True)
class Place:
    """What the supervisor gives one process.

    Attributes
    ----------
    row : int
        Of the table of usage.
    table : Path
    seen : Path
        Directory of `Seen`.
    revoked : Path
        What other gateways have revoked.
    port : int
        Which the supervisor has reserved.
    """

    row: int
    table: Path
    seen: Path
    revoked: Path
    port: int


def listening_socket(host: str, port: int, *, listen: bool = True) -> socket.socket:
    """A socket that shares its port with the other processes of the gateway."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    if listen:
        sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def run(settings: Settings, place: Place, ready: Pipe) -> None:
    """Serve until SIGTERM. The entry of a process of its own.

    Parameters
    ----------
    settings : Settings
    place : Place
    ready : multiprocessing connection
        Is sent an empty line when connections are accepted, or why they will never be.
    """
    log_as_json()
    _keep_memory()
    _allow_files()
    try:
        asyncio.run(_serve(settings, place, ready))
    except LclsError as error:
        ready.send(str(error))
        raise SystemExit(1) from None


async def _serve(settings: Settings, place: Place, ready: Pipe) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    parent = multiprocessing.parent_process()
    if parent is not None:
        loop.add_reader(parent.sentinel, stopped.set)  # nobody is left to restart, to index or to stop this one

    # chunks are read by threads of their own: none waits until somebody's list of a thousand new runs is made
    pools = {name: ThreadPoolExecutor(settings.threads, thread_name_prefix=name) for name in ("read", "look")}
    runs, state = Runs(settings.root, Seen(place.seen)), State(settings.state)
    authority = Authority(settings, place.revoked)
    usage = Usage(place.table, place.row, settings.processes, settings.limits)
    audit, metrics = AuditLog(settings.audit), Metrics()
    reader = Reader(runs, authority.authoriser, state)
    service = Service(reader, authority.authoriser, audit, usage, pools["read"], pools["look"], settings.threads)
    connections = Connections(service, authority.context(), usage, metrics, settings.timeouts, authority.revoked)
    connections.listen(listening_socket(settings.host, place.port))
    loop.add_signal_handler(signal.SIGHUP, runs.forget)
    tasks = [
        loop.create_task(_every(SWEEP, task))
        for task in (partial(_sweep, connections), partial(_renew, connections, authority), partial(_flush, audit))
    ]
    ready.send("")
    await stopped.wait()
    if parent is not None:
        loop.remove_reader(parent.sentinel)
    await connections.drain()
    for task in tasks:
        task.cancel()
    audit.close()
    state.close()
    for pool in pools.values():
        pool.shutdown(wait=False, cancel_futures=True)


def _keep_memory() -> None:
    """Have the allocator reuse what chunks leave behind: fresh pages for each would cost as much as reading it.

    `_give_back_memory` returns it when nobody asks for anything.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc alone
    if option is not None:
        for name, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30)):
            option(name, value)


def _give_back_memory() -> None:
    """Return what chunks have left behind, and have the allocator do so, too."""
    memory.release()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)


def _allow_files() -> None:
    """Let this process have as many files and connections as the system allows: one user's could else be all."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _every(seconds: float, do: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again, whatever comes of it."""
    told = ""
    while True:
        await asyncio.sleep(seconds)
        try:
            await do()
            told = ""
        except (LclsError, OSError) as error:
            if told != str(error):
                _log.warning("the sweep found a fault", extra={"fields": {"error": str(error)}})
            told = str(error)
        except Exception:
            _log.exception("the sweep failed")


async def _sweep(connections: Connections) -> None:
    """Connections that have expired or take too long; nothing here waits for a disk but what is revoked."""
    connections.sweep()
    if connections.quiet():
        await asyncio.get_running_loop().run_in_executor(None, _give_back_memory)


async def _renew(connections: Connections, authority: Authority) -> None:
    """New certificates and keys."""
    context = await asyncio.get_running_loop().run_in_executor(None, authority.renewed)
    if context is not None:
        connections.use(context)


async def _flush(audit: AuditLog) -> None:
    """Counted refusals."""
    audit.flush()
