"""A Dask server's operations, refused by default."""

import inspect
import multiprocessing
import os
from typing import Any, Final

from distributed import Nanny, Scheduler, Worker
from distributed.comm.core import CommClosedError
from distributed.core import Server

from ...errors import AccessError, GuardError
from ..peer import Role
from . import tables
from .guard import Guard
from .guarded import Guarded, Handler
from .pages import gate_pages
from .streams import Streams

#: A guarded nanny tells its worker, which is a child of its process. `dask worker` forgets preloads of a nanny that are
#: in its configuration, not on its command line: without a word such a one would be open to all.
_NANNY = "LCLS_GUARDED_NANNY"

_SERVERS: Final[tuple[tuple[type[Server], tables.Table, Role], ...]] = (
    (Scheduler, tables.SCHEDULER, Role.SCHEDULER),
    (Worker, tables.WORKER, Role.WORKER),
    (Nanny, tables.NANNY, Role.WORKER),
)


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
    server.handle_stream = Streams(server.handle_stream, guarded)
    return guarded


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
        and isinstance(server.handle_stream, Streams)
    )


def unknown_operations(server: Server) -> set[str]:
    """Operations that a server has and no table knows; they are refused."""
    if not isinstance(server.handlers, GuardedHandlers):
        raise GuardError(f"{server!r} is not guarded")
    return set(server.handlers) - set(server.handlers.guarded.table)
