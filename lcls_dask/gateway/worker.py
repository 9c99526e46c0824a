"""One of the gateway's processes: it serves until it is told to stop or its supervisor is gone."""

import asyncio
import ctypes
import logging
import multiprocessing
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from ..errors import LclsError
from .audit import AuditLog
from .authority import Authority
from .connections import SWEEP, Connections
from .limits import Usage
from .logs import log_as_json
from .metrics import Metrics
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
    port : int
        Which the supervisor has reserved.
    """

    row: int
    table: Path
    seen: Path
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

    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="read")
    runs, state = Runs(settings.root, Seen(place.seen)), State(settings.state)
    authority = Authority(settings)
    usage = Usage(place.table, place.row, settings.processes, settings.limits)
    audit, metrics = AuditLog(settings.audit), Metrics()
    service = Service(runs, authority.authoriser, audit, usage, state, pool)
    connections = Connections(service, authority.context(), usage, metrics, settings.timeouts, authority.revoked)
    connections.add_sockets([listening_socket(settings.host, place.port)])
    loop.add_signal_handler(signal.SIGHUP, runs.forget)
    sweeping = loop.create_task(_sweep(connections, authority, audit, state, pool))
    ready.send("")
    await stopped.wait()
    if parent is not None:
        loop.remove_reader(parent.sentinel)
    await connections.drain()
    sweeping.cancel()
    audit.close()
    state.close()
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
    """Have the allocator return what chunks have left behind."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)


async def _sweep(
    connections: Connections, authority: Authority, audit: AuditLog, state: State, pool: ThreadPoolExecutor
) -> None:
    """Every two seconds: what was revoked, new certificates, expired connections, counted refusals."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP)
        connections.sweep()  # first, and whatever else fails
        try:
            audit.flush()
            if connections.quiet():
                await loop.run_in_executor(pool, _give_back_memory)
            if await loop.run_in_executor(pool, authority.changed):
                connections.use(authority.context())
            await loop.run_in_executor(pool, authority.refresh, state)
        except (LclsError, OSError) as error:
            _log.warning("the sweep found a fault", extra={"fields": {"error": str(error)}})
        except Exception:
            _log.exception("the sweep failed")
