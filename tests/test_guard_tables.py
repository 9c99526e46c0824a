"""The tables of operations against the distributed that is installed: a new operation is seen before it is used."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Nanny, Scheduler, Worker
from distributed.core import Server

from lcls_dask.security import Role
from lcls_dask.security.guard import tables
from lcls_dask.security.guard.dispatch import GuardedHandlers
from lcls_dask.security.guard.guarded import Guarded


@pytest.fixture(scope="module")
def stock() -> dict[str, tuple[set[str], set[str]]]:
    """Requests and stream messages of each server, after everything has been registered that distributed registers."""

    def both(server: Server) -> tuple[set[str], set[str]]:
        return set(server.handlers), set(server.stream_handlers)

    async def look() -> dict[str, tuple[set[str], set[str]]]:
        async with (
            Scheduler(dashboard_address=":0", host="127.0.0.1") as scheduler,
            Worker(scheduler.address) as worker,
            Nanny(scheduler.address, nthreads=1) as nanny,
        ):
            return {"scheduler": both(scheduler), "worker": both(worker), "nanny": both(nanny)}

    return asyncio.run(look())


@pytest.mark.parametrize(
    ("server", "table"), [("scheduler", tables.SCHEDULER), ("worker", tables.WORKER), ("nanny", tables.NANNY)]
)
def test_every_request_has_its_roles(stock: Any, server: str, table: tables.Table) -> None:
    ours = set(table) - {"dashboard_ticket"}
    assert stock[server][0] - ours == set(), "distributed has new operations: decide who may use them"
    # what distributed no longer has is harmless; it is named so that the tables do not fill with the past
    assert ours - stock[server][0] == set()


def test_every_stream_message_has_its_place(stock: Any) -> None:
    assert stock["scheduler"][1] == tables.CLIENT_STREAM | tables.WORKER_STREAM
    assert not tables.CLIENT_STREAM & tables.WORKER_STREAM
    assert stock["worker"][1] == tables.SCHEDULER_STREAM
    assert stock["nanny"][1] == set()


def test_nobody_but_a_manager_runs_code_beside_tasks() -> None:
    for operation in ("run_function", "feed", "restart", "terminate", "register_scheduler_plugin"):
        assert tables.SCHEDULER[operation] == {Role.MANAGER}
    for operation in ("run", "run_coroutine", "plugin-add", "upload_file", "terminate"):
        assert tables.WORKER[operation] == {Role.SCHEDULER}
    for table in (tables.SCHEDULER, tables.WORKER, tables.NANNY):
        assert table["connection_stream"] == frozenset()


def test_an_operation_that_no_table_knows_is_refused() -> None:
    refused: list[str] = []
    guard = SimpleNamespace(refuse=lambda *line, **_: refused.append(line[1]), own=SimpleNamespace(role="scheduler"))
    server = SimpleNamespace(clients={}, workers={})
    handlers = GuardedHandlers({}, Guarded(server, guard, tables.SCHEDULER))  # type: ignore[arg-type]
    handlers["new_in_distributed"] = lambda: "done"
    manager = SimpleNamespace(peer=SimpleNamespace(role=Role.MANAGER), key="k")
    comm = SimpleNamespace(caller=manager, peer_address="tls://127.0.0.1:1")
    with pytest.raises(PermissionError, match="unknown operation"):
        handlers["new_in_distributed"](comm)
    assert refused == ["unknown operation"]
    assert handlers.get("new_in_distributed") is handlers["new_in_distributed"]
