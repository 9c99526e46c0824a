"""A Dask server's streams, of which only what belongs there is seen."""

from collections.abc import Callable
from typing import Any

from distributed import Scheduler

from ..peer import Role
from . import tables
from .admission import Caller
from .guarded import Guarded, Handler


class Streams:
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
