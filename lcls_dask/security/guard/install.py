"""Guards put into a process, the settings that bring them to Dask's own classes, and the proof that they are there."""

import asyncio
import logging
import os
import ssl
import sys
from typing import Any, NoReturn

import dask.config
from distributed import Scheduler
from distributed.core import Server
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.security import Security

from ...errors import GuardError
from ..peer import Role
from .comm import GuardedListener, install_transports, is_guarded
from .dispatch import has_guarded_nanny, is_server_guarded, unknown_operations
from .guard import Guard, guard_of
from .pages import is_gated

logger = logging.getLogger(__name__)

Directory = str | os.PathLike[str]

#: Seconds in which a listener must have closed on a stranger.
_PROBE = 10.0


def install(directory: Directory | None = None, role: Role | None = None) -> Guard:
    """Guard this process, which is to be one Dask server, before the server is made.

    From now on it speaks ``tls://`` alone, with the identity's certificate, and every Dask server in it that listens
    is guarded: who may connect, what it may ask, and the web pages.

    Parameters
    ----------
    directory : path-like, optional
        The identity, as `lcls_dask.security.find_identity`.
    role : Role, optional
        What it must be.

    Returns
    -------
    Guard

    Raises
    ------
    IdentityError
        The identity is not there or not safe.
    GuardError
        It is of another role, or the process is guarded already with another identity.
    """
    guard = guard_of(directory)
    if role is not None and guard.own.role is not role:
        raise GuardError(f"{guard.identity.directory} is the identity of a {guard.own.role}: needed is a {role}'s")
    install_transports(guard)
    dask.config.set({"distributed.comm.require-encryption": True, "distributed.comm.default-scheme": "tls"})
    return guard


class GuardedSecurity(Security):
    """Settings of TLS that hold identities' directories, and no keys.

    Parameters
    ----------
    directories : dict of str to str
        By Dask's names of roles: ``client``, ``scheduler``, ``worker``.
    """

    def __init__(self, directories: dict[str, str]) -> None:
        super().__init__(require_encryption=True)
        self.directories = directories

    def get_connection_args(self, role: str) -> dict[str, Any]:
        """Arguments of connections; a process that uses them can speak guarded TLS from then on."""
        return {"ssl_context": self._guard(role).client, "require_encryption": True, "extra_conn_args": {}}

    def get_listen_args(self, role: str) -> dict[str, Any]:
        """Arguments of listeners."""
        return {"ssl_context": self._guard(role).server, "require_encryption": True}

    def get_tls_config_for_role(self, role: str) -> dict[str, Any]:
        """Nothing: a process on another machine has an identity of its own, and no key goes into a command line."""
        return {}

    def __repr__(self) -> str:
        return f"GuardedSecurity({self.directories})"

    def _repr_html_(self) -> str:
        return f"<code>{self!r}</code>"

    def _guard(self, role: str) -> Guard:
        install_transports()
        try:
            return guard_of(self.directories[role])
        except KeyError:
            raise GuardError(f"these settings have no identity of a {role}: give security_of one") from None


def security_of(
    client: Directory, *, scheduler: Directory | None = None, worker: Directory | None = None
) -> GuardedSecurity:
    """Settings for `distributed.Client` and clusters, in a process that may have other Dask work as well.

    Parameters
    ----------
    client : path-like
        Identity of a user, for a client, or of a manager, for a cluster.
    scheduler, worker : path-like, optional
        Identities of the processes of a cluster that is started with these settings.

    Returns
    -------
    distributed.Security
        It can be pickled, and holds paths alone.

    Raises
    ------
    IdentityError
        The client's identity is not there or not safe.
    """
    given = {"client": client, "scheduler": scheduler, "worker": worker}
    directories = {role: str(guard_of(path).identity.directory) for role, path in given.items() if path is not None}
    install_transports()
    return GuardedSecurity(directories)


def missing(server: Server, guard: Guard) -> list[str]:
    """What of a server is not guarded, in words.

    Parameters
    ----------
    server : distributed.Scheduler, Worker or Nanny
    guard : Guard

    Returns
    -------
    list of str
        Empty where all is well.
    """
    found = []
    if not server.listeners:
        found.append("it does not listen")
    if not all(is_guarded(listener, guard) for listener in server.listeners):
        found.append("a listener, or another transport, has no guard")
    if not is_server_guarded(server, guard):
        found.append("requests or streams have no guard")
    if not is_gated(server, guard):
        found.append("the web pages have no gate")
    if getattr(server, "jupyter", False):
        found.append("jupyter=True lets anybody run code")
    return found


async def verify(server: Server) -> Guard:
    """See that a server is guarded, and that its listener does turn a stranger away.

    Parameters
    ----------
    server : distributed.Scheduler, Worker or Nanny

    Returns
    -------
    Guard

    Raises
    ------
    GuardError
        Something is missing.
    """
    listener = server.listener
    if not isinstance(listener, GuardedListener):
        raise GuardError(f"{server!r} listens without a guard: start it with lcls_dask.plugins, on tls://")
    guard = listener.guard
    if found := missing(server, guard):
        raise GuardError(f"{server!r} is not guarded: {'; '.join(found)}")
    for one in server.listeners:
        await _turns_away(one)
    if unknown := unknown_operations(server):
        logger.warning("operations that are not known here are refused: %s", ", ".join(sorted(unknown)))
    guard.audit.write("start", "allowed", reason="guarded", op=type(server).__name__, address=server.address)
    return guard


async def _turns_away(listener: Any) -> None:
    """Connect without a certificate; whatever is then read is one word too many."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = listener.get_host_port()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    heard = b""
    try:
        async with asyncio.timeout(_PROBE):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                heard = await reader.read(1)
            finally:
                writer.close()
    except (ssl.SSLError, ConnectionError):
        return
    except TimeoutError:
        raise GuardError(f"{listener.contact_address} does not turn strangers away") from None
    if heard:
        raise GuardError(f"{listener.contact_address} answers strangers")


class SchedulerGuard(SchedulerPlugin):
    """A scheduler's proof that it is guarded, before it does anything, and the audit of who comes and goes.

    Distributed does nothing about exceptions in a plugin's other methods; only `start` can stop it.
    """

    name = "lcls-guard"

    async def start(self, scheduler: Scheduler) -> None:
        """Verify, or raise, which stops the scheduler's start."""
        self._guard = await verify(scheduler)

    def add_client(self, scheduler: Scheduler, client: str) -> None:
        """Write into the audit who has come."""
        self._guard.audit.write("client", "allowed", reason="joined", op=client)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Write into the audit who has gone."""
        self._guard.audit.write("client", "ended", reason="left", op=client)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Write into the audit which worker has come."""
        self._guard.audit.write("worker", "allowed", reason="joined", address=worker)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Write into the audit which worker has gone."""
        self._guard.audit.write("worker", "ended", reason="left", address=worker)


async def verify_or_exit(server: Server) -> Guard:
    """`verify` where an exception would be swallowed, as in a preload: the process ends instead.

    Parameters
    ----------
    server : distributed.Worker or Nanny

    Returns
    -------
    Guard
    """
    try:
        nanny = getattr(server, "nanny", None)
        if nanny is not None and not has_guarded_nanny():
            raise GuardError("the nanny is not guarded: give dask worker --preload-nanny lcls_dask.plugins.nanny")
        return await verify(server)
    except BaseException as error:
        stop(error)


def stop(error: BaseException) -> NoReturn:
    """End a process that is not guarded, at once and not as if all were well."""
    print(f"lcls_dask: this process ends, as it is not guarded: {error}", file=sys.stderr, flush=True)
    os._exit(78)  # EX_CONFIG
