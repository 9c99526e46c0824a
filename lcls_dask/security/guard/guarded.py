"""What a guard knows of a Dask server that it guards, and whether a request to it may be made."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..peer import Role
from . import tables
from .admission import Caller
from .guard import Guard
from .looks import only_looks

Handler = Callable[..., Any]


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
            old = self.clients.get(client)
            if old is not None and not _is_of(old, comm.caller):
                comm.abort()  # somebody else was faster
                return
            if old is not None and not old.closed():
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


def _is_of(comm: Any, caller: Caller) -> bool:
    """Whether a connection is of that caller; a renewed certificate is for the same key."""
    return comm is not None and comm.caller.key == caller.key
