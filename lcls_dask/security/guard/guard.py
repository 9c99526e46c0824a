"""One identity's guard: its TLS contexts, whom it admits, its audit, and the sweep of what has lapsed."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Container
from pathlib import Path
from ssl import SSLContext
from threading import Lock
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

from ... import config
from ...errors import IdentityError, LclsError
from ..identity import find_identity, load_identity
from ..peer import Peer, Role
from ..revocations import FileRevocations
from ..tls import client_context, reload_certificate, server_context
from .admission import ANSWERS, CALLERS, Caller, caller_of, check_own, refusal
from .audit import Audit

logger = logging.getLogger(__name__)

#: A peer whose certificate ends within so many sweeps is dialled again, to see whether it has a new one.
_AHEAD = 10.0


class Link(Protocol):
    """What the sweep needs of a connection; `comm.GuardedTLS` is one."""

    caller: Caller
    dialled: bool

    @property
    def peer_address(self) -> str:
        """Address of the other end."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    def closed(self) -> bool:
        """Whether it is closed."""
        ...


class Guard:
    """What one identity admits, in one process.

    Parameters
    ----------
    directory : Path
        Of a scheduler, worker, manager or user.

    Attributes
    ----------
    own : Peer
        Whom others see.
    server, client : ssl.SSLContext
        For listening, for dialling. A renewed certificate is loaded into both.
    audit : Audit

    Raises
    ------
    IdentityError
        The identity is not safe, has no part in a cluster, or trusts no authority.
    OSError
        The audit cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.identity = load_identity(directory)
        self.own = self.identity.peer
        check_own(self.own)
        self.server = server_context(self.identity)
        self.client = client_context(self.identity)
        # addresses come and go with jobs: who answers is told by role, user and cluster, not by a host name
        self.client.check_hostname = False
        self.audit = Audit(config.audit() or self.identity.directory / "audit", str(self.own.role))
        list_ = config.revocations()
        self._revoked: Container[str] = FileRevocations(list_) if list_ else frozenset()
        self._latest: dict[str, Peer] = {}
        self._links: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakSet[Link]] = WeakKeyDictionary()
        #: What else lapses with a certificate; called at each sweep.
        self.sweeps: set[Callable[[], None]] = set()
        self._told = ""

    def __repr__(self) -> str:
        return f"<Guard of the {self.own.role} of {self.own.user}, cluster {self.own.cluster}>"

    def admit(self, der: bytes | None, address: str) -> Caller:
        """Let in who has connected, or refuse it; either is in the audit.

        Parameters
        ----------
        der : bytes or None
            Its certificate, verified by TLS.
        address : str

        Returns
        -------
        Caller

        Raises
        ------
        IdentityError
            It may not connect.
        OSError
            The audit cannot be written.
        """
        return self._decide("connect", der, address, CALLERS.get(self.own.role, frozenset()))

    def check_answer(self, der: bytes | None, address: str) -> Caller:
        """Accept who has answered, or refuse it, as `admit`."""
        return self._decide("answer", der, address, ANSWERS[self.own.role])

    def refuse(self, event: str, reason: str, address: str, caller: Caller | None = None, **fields: Any) -> None:
        """Write a refusal into the audit."""
        self.audit.write(event, "refused", reason=reason, address=_host(address), **_who(caller), **fields)

    def lapsed(self, caller: Caller) -> str | None:
        """Why somebody who was admitted may stay no longer, None where it may.

        Its newest certificate counts, if it is for the same key and has been seen; a revoked one does not come
        back by a new one.
        """
        latest = self._latest.get(caller.key, caller.peer)
        if caller.peer.serial in self._revoked:
            return "certificate revoked"
        if latest.serial in self._revoked:
            return "certificate revoked"
        return "certificate expired" if time.time() > latest.not_after else None

    def watch(self, link: Link) -> None:
        """End a connection when the certificate behind it lapses. Called in the event loop that serves it."""
        self.begin().add(link)

    def begin(self) -> WeakSet[Link]:
        """Sweep from now on, in the running event loop; gives the connections that it looks at."""
        loop = asyncio.get_running_loop()
        links = self._links.get(loop)
        if links is None:
            links = self._links[loop] = WeakSet()
            loop.call_later(config.sweep(), self._sweep, loop)
        return links

    def _decide(self, event: str, der: bytes | None, address: str, roles: Container[Role]) -> Caller:
        caller = None
        try:
            caller = caller_of(der or b"")
            reason = refusal(self.own, caller.peer, roles, self._revoked, time.time())
        except IdentityError as error:
            reason = str(error)
        if reason is not None or caller is None:
            self.refuse(event, str(reason), address, caller)
            raise IdentityError(f"{address}: {_named(caller)} is refused ({reason}) by the {_described(self.own)}")
        known = self._latest.get(caller.key)
        if known is None or known.not_after <= caller.peer.not_after:
            self._latest[caller.key] = caller.peer
        self.audit.write(event, "allowed", reason="ok", address=_host(address), **_who(caller))
        return caller

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(config.sweep(), self._sweep, loop)
        links = [link for link in self._links.get(loop, ()) if not link.closed()]
        for link in links:
            if reason := self.lapsed(link.caller):
                who = _who(link.caller)
                logger.warning("%s: connection of %s ended: %s", link.peer_address, _named(link.caller), reason)
                link.abort()
                self._audit("connection", "ended", reason=reason, address=_host(link.peer_address), **who)
        for also in list(self.sweeps):
            also()
        renewed = self._renewed()
        soon = time.time() + _AHEAD * config.sweep()
        again = {
            link.peer_address
            for link in links
            if link.dialled and not link.closed() and (renewed or self._ends(link.caller) < soon)
        }
        for address in again:
            # kept by the loop until it is done
            task = loop.create_task(self._dial(address))
            task.add_done_callback(_seen)
        try:
            self.audit.flush()
        except OSError as error:
            logger.error("the audit cannot be written: %s", error)

    def _ends(self, caller: Caller) -> float:
        return self._latest.get(caller.key, caller.peer).not_after

    def _audit(self, event: str, decision: str, **fields: Any) -> None:
        # the connection is closed already: an audit on a full disk must not keep the others open
        try:
            self.audit.write(event, decision, **fields)
        except OSError as error:
            logger.error("the audit cannot be written: %s", error)

    def _renewed(self) -> bool:
        """Load a newer certificate for the same names from the identity's directory, where there is one."""
        try:
            identity = load_identity(self.identity.directory)
            if identity.certificate == self.identity.certificate:
                return False
            new = identity.peer
            if (new.role, new.user, new.cluster) != (self.own.role, self.own.user, self.own.cluster):
                raise IdentityError(f"{identity.certificate_file} is for another role, user or cluster")
            for context in (self.server, self.client):
                reload_certificate(context, identity)
        except (LclsError, OSError) as error:
            if str(error) != self._told:
                self._told = str(error)
                logger.warning("the certificate in use stays: %s", error)
            return False
        self.identity, self.own = identity, new
        self._audit("certificate", "allowed", reason="renewed", certificate=new.serial)
        return True

    async def _dial(self, address: str) -> None:
        from distributed.comm.core import connect

        comm = await connect(address, timeout=10, ssl_context=self.client, require_encryption=True)
        await comm.close()


_guards: dict[Path, Guard] = {}
_by_context: WeakKeyDictionary[SSLContext, Guard] = WeakKeyDictionary()
_lock = Lock()


def guard_of(directory: str | os.PathLike[str] | None = None) -> Guard:
    """The guard of an identity; one for each directory and process.

    Parameters
    ----------
    directory : path-like, optional
        As `lcls_dask.security.find_identity`.

    Returns
    -------
    Guard

    Raises
    ------
    IdentityError
        The identity is not there or not safe, or has no part in a cluster.
    """
    base = find_identity(directory).resolve()
    with _lock:
        if base not in _guards:
            guard = _guards[base] = Guard(base)
            _by_context[guard.server] = _by_context[guard.client] = guard
        return _guards[base]


def guard_behind(context: object) -> Guard | None:
    """The guard that a TLS context belongs to, None where it is nobody's."""
    return _by_context.get(context) if isinstance(context, SSLContext) else None


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("a peer could not be dialled again: %s", error)


def _who(caller: Caller | None) -> dict[str, str | None]:
    if caller is None:
        return {"user": "", "role": "", "cluster": None, "certificate": ""}
    peer = caller.peer
    return {"user": peer.user, "role": str(peer.role), "cluster": peer.cluster, "certificate": peer.serial}


def _described(peer: Peer) -> str:
    return f"{peer.role} of {peer.user}" + (f", cluster {peer.cluster}" if peer.cluster else "")


def _named(caller: Caller | None) -> str:
    return "a stranger" if caller is None else f"the {_described(caller.peer)}"


def _host(address: str) -> str:
    # without the port, so that equal refusals are equal
    return address.rpartition("://")[2].rpartition(":")[0].strip("[]")
