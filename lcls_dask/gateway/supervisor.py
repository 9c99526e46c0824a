"""The gateway's first process: it starts the others, restarts what dies, and alone writes the index of the audit."""

import json
import logging
import multiprocessing
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Event, Thread

from ..errors import GatewayError, StateError
from ..security.files import write_public
from ..security.revocations import revoked_lines
from . import worker
from .limits import clear_row, create_table
from .logs import log_as_json
from .seen import Seen
from .settings import Settings
from .state import State

_log = logging.getLogger(__name__)

#: Seconds between looks at what the processes have appended to the audit.
INDEX_EVERY = 1.0
#: Seconds that the database may take at the end.
_PATIENCE = 10.0
_FIRST_START = 60.0
#: A process that lives for less than this is started again more and more slowly.
_SHORT = 5.0
_SLOWEST = 10.0


@dataclass
class _Child:
    row: int
    process: SpawnProcess | None = None
    ready: Pipe | None = None
    started: float = 0.0
    failures: int = 0
    again: float = field(default=0.0)


def serve(settings: Settings, announce: Callable[[str, int], None] | None = None) -> None:
    """Run a gateway until SIGTERM or SIGINT, then let requests end.

    Parameters
    ----------
    settings : Settings
    announce : callable, optional
        Called with host and port once all processes accept connections.

    Raises
    ------
    LclsError
        It cannot start: the message says why.
    """
    log_as_json()
    directory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="lcls-gateway-", dir=directory) as scratch:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch  # before anything imports the metrics
        settings.audit.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = State(settings.state)
        state.migrate()
        with worker.listening_socket(settings.host, settings.port, listen=False) as reserved:
            supervisor = _Supervisor(settings, Path(scratch), reserved.getsockname()[1])
            indexer = _Indexer(state, settings, supervisor.revoked)
            indexer.share()  # before anybody is served
            with supervisor.signals():
                indexer.start()
                try:
                    supervisor.run(announce)
                finally:
                    indexer.stop()
                    state.close()


class _Supervisor:
    def __init__(self, settings: Settings, scratch: Path, port: int) -> None:
        self._settings, self._port = settings, port
        self._table = scratch / "usage"
        create_table(self._table, settings.processes)
        self._seen = scratch / "seen"
        self._seen.mkdir()
        self.revoked = scratch / "revoked"
        self._children = [_Child(row) for row in range(settings.processes)]
        self._context = multiprocessing.get_context("spawn")
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = self._reload = False

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Take the signals that stop and reload, until everything has ended."""
        handlers = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop, signal.SIGHUP: self._again}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        waker = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(waker)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def run(self, announce: Callable[[str, int], None] | None) -> None:
        """Start all processes and keep them running until a signal says stop."""
        try:
            for child in self._children:
                self._start(child)
            self._await_first()
            if announce is not None and not self._stopping:
                announce(self._settings.host, self._port)
            while not self._stopping:
                self._watch()
        finally:
            self._end()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _again(self, *_: object) -> None:
        self._reload = True

    def _start(self, child: _Child) -> None:
        clear_row(self._table, child.row)
        child.ready, sender = self._context.Pipe(duplex=False)
        place = worker.Place(child.row, self._table, self._seen, self.revoked, self._port)
        child.process = self._context.Process(
            target=worker.run, args=(self._settings, place, sender), name=f"gateway-{child.row}"
        )
        child.started = time.monotonic()
        child.process.start()
        sender.close()

    def _await_first(self) -> None:
        """Wait until every process accepts connections.

        Raises
        ------
        GatewayError
            One does not.
        """
        end = time.monotonic() + _FIRST_START
        for child in self._children:
            assert child.ready is not None
            assert child.process is not None
            while not self._stopping:
                if child.ready.poll(0.1):
                    break
                if time.monotonic() > end:
                    raise GatewayError(f"process {child.row} did not start within {_FIRST_START:g} s; see its log")
            if self._stopping:
                return
            try:
                problem = child.ready.recv()
            except EOFError:
                child.process.join()
                problem = f"process {child.row} ended with status {child.process.exitcode}; see its log"
            if problem:
                raise GatewayError(problem)

    def _watch(self) -> None:
        """Sleep until something happens, then see to it."""
        now = time.monotonic()
        alive = {child.process.sentinel: child for child in self._children if child.process is not None}
        later = [child.again for child in self._children if child.process is None]
        woken = wait([*alive, self._wake_read], timeout=max(0.0, min(later) - now) if later else None)
        if self._wake_read in woken:
            _drain(self._wake_read)
        if self._reload:
            self._reload = False
            Seen(self._seen).forget()
            for child in self._children:
                _send(child, signal.SIGHUP)
        for sentinel in woken:
            if isinstance(sentinel, int) and sentinel in alive and not self._stopping:
                self._died(alive[sentinel])
        for child in self._children:
            if child.process is None and time.monotonic() >= child.again and not self._stopping:
                self._start(child)

    def _died(self, child: _Child) -> None:
        process = child.process
        assert process is not None
        process.join()
        _mark_dead(process.pid)
        lived = time.monotonic() - child.started
        child.failures = child.failures + 1 if lived < _SHORT else 0
        pause = min(_SLOWEST, 0.1 * 2**child.failures) if child.failures else 0.0
        said = {"row": child.row, "pid": process.pid, "status": process.exitcode, "again_in": pause}
        _log.error("a process died and is started again", extra={"fields": said})
        process.close()
        child.process, child.again = None, time.monotonic() + pause

    def _end(self) -> None:
        """Tell all processes to stop, and wait for them as long as they may take."""
        end = time.monotonic() + self._settings.timeouts.drain + 5.0
        for child in self._children:
            _send(child, signal.SIGTERM)
        for child in self._children:
            if child.process is None:
                continue
            child.process.join(max(0.0, end - time.monotonic()))
            if child.process.exitcode is None:
                _log.error("a process did not stop and is killed", extra={"fields": {"row": child.row}})
                child.process.kill()
                child.process.join()


class _Indexer(Thread):
    """Takes the audit and the list of revocations into the state database, and catches up when that was away."""

    def __init__(self, state: State, settings: Settings, revoked: Path) -> None:
        super().__init__(name="audit-index", daemon=True)
        self._state, self._settings, self._revoked = state, settings, revoked
        self._known: frozenset[str] | None = None
        self._done = Event()
        self._failing = False

    def run(self) -> None:
        """Index until stopped."""
        while not self._done.wait(INDEX_EVERY):
            self._index()

    def stop(self) -> None:
        """Take in the rest and end; not if the database does not answer at all."""
        self._done.set()
        self.join(_PATIENCE)
        if self.is_alive():
            _log.error("the state database does not answer: the rest of the audit is indexed at the next start")
        else:
            self._index()

    def share(self) -> None:
        """Tell other gateways what is revoked here, and this one's processes what is revoked anywhere.

        Raises
        ------
        StateError
        """
        self._state.share_revocations(revoked_lines(self._settings.revocations))
        known = self._state.revoked()
        if known != self._known:
            write_public(self._revoked, "".join(f"{identifier}\n" for identifier in sorted(known)).encode())
            self._known = known

    def _index(self) -> None:
        try:
            self.share()
            damaged = self._state.index_audit(self._settings.audit)
        except (StateError, OSError) as error:
            if not self._failing:
                _log.error("the audit is not indexed for now", extra={"fields": {"error": str(error)}})
            self._failing = True
            return
        if self._failing:
            _log.info("the audit is indexed again")
        self._failing = False
        if damaged:
            _log.warning("lines of the audit could not be read", extra={"fields": {"lines": damaged}})


def announce_as_json(host: str, port: int) -> None:
    """Tell whoever started the gateway where it listens."""
    print(
        json.dumps({"event": "listening", "host": host, "port": port, "pid": os.getpid()}), flush=True, file=sys.stdout
    )


def _mark_dead(pid: int | None) -> None:
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _send(child: _Child, number: signal.Signals) -> None:
    process = child.process
    if process is not None and process.is_alive() and process.pid is not None:
        os.kill(process.pid, number)


def _drain(descriptor: int) -> None:
    while select.select([descriptor], [], [], 0)[0]:
        if len(os.read(descriptor, 4096)) < 4096:
            break
