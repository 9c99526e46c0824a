"""A Dask server's operations, refused by default, and its streams, of which only what belongs there is seen."""

import asyncio
import inspect
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from distributed import Nanny, Scheduler, Worker
from distributed.comm.core import CommClosedError
from distributed.core import Server

from ...errors import AccessError, GuardError
from ..peer import Role
from . import tables
from .admission import Caller
from .guard import Guard
from .looks import only_looks
from .pages import gate_pages

Handler = Callable[..., Any]

#: A guarded nanny tells its worker, which is a child of its process. `dask worker` forgets preloads of a nanny that are
#: in its configuration, not on its command line: without a word such a one would be open to all.
_NANNY = "LCLS_GUARDED_NANNY"

_SERVERS: Final[tuple[tuple[type[Server], tables.Table, Role], ...]] = (
    (Scheduler, tables.SCHEDULER, Role.SCHEDULER),
    (Worker, tables.WORKER, Role.WORKER),
    (Nanny, tables.NANNY, Role.WORKER),
)


@dataclass(eq=False)
class Guarded:
    """What a guard knows of a server that it guards.

    Attributes
    ----------
    server : distributed.core.Server
    guard : Guard
    table : Table
        Of its requests.
    clients, workers : dict
        Connections by the ids of clients and the addresses of workers that have registered on them.
    """

    server: Any
    guard: Guard
    table: tables.Table
    clients: dict[str, Any] = field(default_factory=dict)
    workers: dict[str, Any] = field(default_factory=dict)

    def why_not(self, operation: str, caller: Caller | None, arguments: dict[str, Any]) -> str | None:
        """Why an operation is refused, None where it is not."""
        if caller is None:
            return "not a guarded connection"
        roles = self.table.get(operation)
        if roles is None:
            return "unknown operation"
        role = caller.peer.role
        if role not in roles:
            if role in self.table.get("performance_report", ()) and only_looks(operation, arguments):
                return None
            return f"not for the role {role}"
        if operation == "register-client":
            return self._may_register(arguments.get("client"), caller)
        if operation == "register-worker":
            return self._may_join(arguments.get("address"), caller)
        if (client := arguments.get("client")) is not None and not _is_of(self.clients.get(client), caller):
            return "another client's id"
        if role is Role.MANAGER:
            return None
        if operation in ("broadcast", "proxy"):
            passed = (arguments.get("msg") or {}).get("op")
            return None if passed in tables.PASSED_ON else f"{str(passed)[:40]} is not passed on for the role {role}"
        return self._may_do_to(operation, caller, arguments) if role is Role.WORKER else None

    def _may_register(self, client: object, caller: Caller) -> str | None:
        if not isinstance(client, str):
            return "no id of a client"
        # one that was cut off comes back, under its id, while its old connection is not known to be dead;
        # others are names that the scheduler itself uses, as "fire-and-forget" and "queue-..."
        free = client not in self.server.clients or _is_of(self.clients.get(client), caller)
        return None if free else "the client's id is in use"

    async def register_client(self, stock: Handler, comm: Any, client: str, **arguments: Any) -> None:
        """Register a client, or register it again: then what is left of its old connection is ended first."""
        while client in self.server.clients or client in self.server.client_comms:
            if (old := self.clients.get(client)) is not None and not old.closed():
                old.abort()
                address = comm.peer_address.rpartition("://")[2].rpartition(":")[0]
                self.guard.audit.write("client", "ended", reason="came back", op=client, address=address)
            await asyncio.sleep(0.01)  # the old connection's own task takes it out of the scheduler's books
        if not comm.closed():
            await stock(comm, client=client, **arguments)

    def _may_join(self, address: object, caller: Caller) -> str | None:
        owner = self.workers.get(str(address)) if address in self.server.workers else None
        return None if owner is None or _is_of(owner, caller) else "another worker's address"

    def _may_do_to(self, operation: str, caller: Caller, arguments: dict[str, Any]) -> str | None:
        """A worker reports, retires and unregisters nobody but itself."""
        if operation == "retire_workers":
            if arguments.get("names") is not None or arguments.get("close_workers"):
                return "a worker retires itself alone"
            workers = arguments.get("workers") or [None]
        elif operation in ("heartbeat_worker", "unregister"):
            workers = [arguments.get("address")]
        elif operation == "set_resources":
            workers = [arguments.get("worker")]
        else:
            return None
        # one that is not known is none of anybody's: the scheduler answers that itself
        known = [self.workers.get(str(worker)) for worker in workers if worker is not None]
        own = len(known) == len(workers) and all(one is None or _is_of(one, caller) for one in known)
        return None if own else "another worker"


class GuardedHandlers(dict[str, Handler]):
    """A server's requests by name, each behind the question whether the caller may use it.

    Extensions add theirs at any time; what is not in the table is refused whoever asks.
    """

    def __init__(self, handlers: dict[str, Handler], guarded: Guarded) -> None:
        super().__init__(handlers)
        self.guarded = guarded
        # distributed looks at a handler's signature, and keeps what it has found
        self._kept: dict[str, tuple[Handler, Handler]] = {}

    def __getitem__(self, operation: str) -> Handler:
        stock = super().__getitem__(operation)
        kept = self._kept.get(operation)
        if kept is None or kept[0] is not stock:
            kept = self._kept[operation] = stock, _asked(operation, stock, self.guarded)
        return kept[1]

    def get(self, operation: str, default: Any = None) -> Any:
        """The guarded handler of an operation."""
        return self[operation] if operation in self else default


def guard_server(server: Any, guard: Guard) -> Guarded:
    """Put a guard before a Dask server's requests, streams and pages.

    Parameters
    ----------
    server : distributed.Scheduler, Worker or Nanny
    guard : Guard

    Returns
    -------
    Guarded

    Raises
    ------
    GuardError
        It is no such server, or the guard's role is another one.
    """
    if isinstance(handlers := getattr(server, "handlers", None), GuardedHandlers) and handlers.guarded.guard is guard:
        return handlers.guarded
    kind = type(server).__name__
    found = next(((table, role) for known, table, role in _SERVERS if isinstance(server, known)), None)
    if found is None:
        raise GuardError(f"{kind} is no Dask server that can be guarded: it may not listen")
    table, role = found
    if guard.own.role is not role:
        raise GuardError(f"a {kind} needs a certificate of a {role}, this one is of a {guard.own.role}")
    if getattr(server, "jupyter", False):
        raise GuardError("a scheduler with jupyter=True has a page that runs code for anybody: leave that out")
    guarded = Guarded(server, guard, table)
    if isinstance(server, Scheduler):
        server.handlers["dashboard_ticket"] = gate_pages(server, guard).ticket
    else:
        gate_pages(server, guard)
    if isinstance(server, Nanny):
        os.environ[_NANNY] = str(os.getpid())
    server.handlers = GuardedHandlers(server.handlers, guarded)
    server.handle_stream = _Streams(server.handle_stream, guarded)
    return guarded


class _Streams:
    """`Server.handle_stream`, of which each message passes a gate first."""

    def __init__(self, stock: Handler, guarded: Guarded) -> None:
        self.stock, self.guarded = stock, guarded

    async def __call__(self, comm: Any, extra: dict[str, Any] | None = None) -> None:
        extra = extra or {}
        comm.gate = _gate(comm, extra, self.guarded)
        kept, name = (self.guarded.clients, "client") if "client" in extra else (self.guarded.workers, "worker")
        mine = str(extra.get(name))
        kept[mine] = comm
        try:
            await self.stock(comm, extra)
        finally:
            if kept.get(mine) is comm:
                del kept[mine]


def _gate(comm: Any, extra: dict[str, Any], guarded: Guarded) -> Callable[[Any], Any]:
    """What of a stream's messages may be seen.

    Distributed lets a message's own ``client`` and ``worker`` win over those of its connection.
    """
    caller: Caller = comm.caller
    role = caller.peer.role
    operations: frozenset[str] = frozenset()
    mine, other = "worker", "client"
    if isinstance(guarded.server, Scheduler):
        if "client" in extra:
            mine, other, operations = "client", "worker", tables.CLIENT_STREAM
        elif "worker" in extra and role is Role.WORKER:
            operations = tables.WORKER_STREAM
    elif role is Role.SCHEDULER:
        operations = tables.SCHEDULER_STREAM
    own = extra.get(mine)
    # the scheduler's messages to a worker are about other workers, too
    bound = isinstance(guarded.server, Scheduler)
    address = comm.peer_address

    def passes(message: Any) -> bool:
        if type(message) is dict:
            operation = message.get("op")
            if type(operation) is str and (operation in operations or operation == "close-stream"):
                if not bound or (message.get(mine, own) == own and other not in message):
                    return True
                reason = f"another {mine if mine in message else other}'s id"
            else:
                reason = f"not for the stream of a {mine}"
        elif message == "OK":
            return True
        else:
            operation, reason = "", "no message"
        guarded.guard.audit.write(
            "stream",
            "dropped",
            reason=reason,
            op=str(operation)[:80],
            user=caller.peer.user,
            role=str(role),
            cluster=caller.peer.cluster,
            certificate=caller.peer.serial,
            address=address.rpartition("://")[2].rpartition(":")[0],
        )
        return False

    def gate(messages: Any) -> Any:
        if isinstance(messages, list | tuple):
            return [message for message in messages if passes(message)]
        return messages if passes(messages) else []

    return gate


def _asked(operation: str, stock: Handler, guarded: Guarded) -> Handler:
    """A handler that first asks whether its caller may use it."""
    signature = inspect.signature(stock)
    parameters = list(signature.parameters.values())
    wants_comm = bool(parameters) and parameters[0].name == "comm"

    def handler(comm: Any, **arguments: Any) -> Any:
        caller = getattr(comm, "caller", None)
        if (reason := guarded.why_not(operation, caller, arguments)) is not None:
            guarded.guard.refuse("op", reason, comm.peer_address, caller, op=operation)
            refusal = f"{operation} is refused by the {guarded.guard.own.role} ({reason}); the audit has it"
            if operation.startswith("register-"):
                # nobody reads an answer there: whoever asked would wait for ever
                comm.abort()
                raise CommClosedError(refusal)
            raise AccessError(refusal)
        if operation == "register-client":
            return guarded.register_client(stock, comm, **arguments)
        return stock(comm, **arguments) if wants_comm else stock(**arguments)

    comm = inspect.Parameter("comm", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    rest = [p for p in parameters if p.name != "comm" and p.kind is not inspect.Parameter.VAR_POSITIONAL]
    # distributed asks for "serializers" and for a first argument "comm", nothing else
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in rest if p.kind not in _VARIABLE]
    handler.__signature__ = inspect.Signature([comm, *keywords])  # type: ignore[attr-defined]
    handler.__name__ = operation
    return handler


def _is_of(comm: Any, caller: Caller) -> bool:
    """Whether a connection is of that caller; a renewed certificate is for the same key."""
    return comm is not None and comm.caller.key == caller.key


_VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def has_guarded_nanny() -> bool:
    """Whether this process is the child of one with a guarded nanny."""
    parent = multiprocessing.parent_process()
    return parent is not None and os.environ.get(_NANNY) == str(parent.pid)


def is_server_guarded(server: Server, guard: Guard) -> bool:
    """Whether requests and streams of a server are behind that guard."""
    return (
        isinstance(server.handlers, GuardedHandlers)
        and server.handlers.guarded.guard is guard
        and isinstance(server.handle_stream, _Streams)
    )


def unknown_operations(server: Server) -> set[str]:
    """Operations that a server has and no table knows; they are refused."""
    if not isinstance(server.handlers, GuardedHandlers):
        raise GuardError(f"{server!r} is not guarded")
    return set(server.handlers) - set(server.handlers.guarded.table)
