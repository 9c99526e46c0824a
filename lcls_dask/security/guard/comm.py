"""Dask's TLS transport with a guard before the first read, and the refusal of every other transport.

A Dask message may hold a pickle, and the first one comes in the handshake. So who is at the other end is decided
between the TLS handshake and the first byte that is read, on both sides.
"""

import asyncio
from collections.abc import Callable
from ssl import SSLError
from typing import Any

from distributed.comm import registry
from distributed.comm.core import Comm, FatalCommClosedError
from distributed.comm.registry import Backend
from distributed.comm.tcp import TLS, TLSBackend, TLSConnector, TLSListener
from tornado.iostream import SSLIOStream

from ...errors import GuardError, IdentityError
from .admission import Caller, caller_of
from .dispatch import guard_server
from .guard import Guard, guard_behind

#: Seconds in which a TLS handshake must be done.
HANDSHAKE = 30.0

#: Takes what was read, gives what may be seen of it.
Gate = Callable[[Any], Any]

_process: Guard | None = None


class GuardedTLS(TLS):
    """A connection whose other end has been admitted.

    Attributes
    ----------
    caller : Caller
    dialled : bool
        Whether this process has opened it.
    gate : callable or None
        Filters what is read, once the connection is a stream.
    """

    caller: Caller
    dialled = False
    gate: Gate | None = None

    def _read_extra(self) -> None:
        super()._read_extra()
        self.caller = caller_of(certificate_of(self.stream) or b"")

    async def read(self, deserializers: Any = None) -> Any:
        """Read a message."""
        message = await super().read(deserializers=deserializers)
        return message if self.gate is None else self.gate(message)


class GuardedListener(TLSListener):
    """A listener that closes on whom its guard does not admit, and guards the server that it serves."""

    comm_class = GuardedTLS

    def __init__(self, guard: Guard, address: str, comm_handler: Any, deserialize: bool, **arguments: Any) -> None:
        arguments["ssl_context"] = guard.server
        super().__init__(address, comm_handler, deserialize, **arguments)
        self.guard = guard
        #: The Dask server, guarded before the first connection.
        self.served = guard_server(getattr(comm_handler, "__self__", None), guard)

    async def start(self) -> None:
        """Listen."""
        self.guard.begin()
        await super().start()

    async def on_connection(self, comm: Comm, handshake_overrides: dict[str, Any] | None = None) -> None:
        """Read the first message of somebody who was admitted."""
        assert isinstance(comm, GuardedTLS)
        self.guard.watch(comm)
        await super().on_connection(comm, handshake_overrides)

    async def _prepare_stream(self, stream: SSLIOStream, address: str) -> SSLIOStream | None:
        try:
            await asyncio.wait_for(stream.wait_for_handshake(), HANDSHAKE)
            self.guard.admit(certificate_of(stream), address)
        except IdentityError:
            stream.close()
            return None
        except (TimeoutError, OSError) as error:
            # also an audit that cannot be written: what would not be on record does not happen
            stream.close()
            self.guard.refuse("connect", _why(getattr(error, "real_error", None) or stream.error or error), address)
            return None
        return stream


class GuardedConnector(TLSConnector):
    """A connector that checks who has answered."""

    comm_class = GuardedTLS

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    async def connect(self, address: str, deserialize: bool = True, **arguments: Any) -> Comm:
        """Connect, or raise without having read anything of whom the guard refuses."""
        arguments["ssl_context"] = self.guard.client
        try:
            comm: GuardedTLS = await super().connect(address, deserialize, **arguments)
        except IdentityError as error:
            raise FatalCommClosedError(str(error)) from None
        try:
            self.guard.check_answer(certificate_of(comm.stream), comm.peer_address)
        except IdentityError as error:
            comm.abort()
            raise FatalCommClosedError(str(error)) from None
        comm.dialled = True
        self.guard.watch(comm)
        return comm


class _Chooser:
    """The connector of the guard that a TLS context belongs to; contexts come with each call."""

    async def connect(self, address: str, deserialize: bool = True, **arguments: Any) -> Any:
        guard = guard_behind(arguments.get("ssl_context")) or _process
        connector = TLSConnector() if guard is None else GuardedConnector(guard)
        return await connector.connect(address, deserialize, **arguments)


class GuardedBackend(TLSBackend):
    """``tls://``, guarded wherever the context is a guard's, and everywhere in a process that `install` has guarded."""

    def get_connector(self) -> _Chooser:
        """Something that connects."""
        return _Chooser()

    def get_listener(self, loc: str, handle_comm: Any, deserialize: bool, **arguments: Any) -> Any:
        """Something that listens."""
        guard = guard_behind(arguments.get("ssl_context")) or _process
        if guard is None:
            return TLSListener(loc, handle_comm, deserialize, **arguments)
        return GuardedListener(guard, loc, handle_comm, deserialize, **arguments)


class RefusedBackend(Backend):
    """Any other transport: it knows addresses, but neither listens nor connects for whom is guarded.

    Parameters
    ----------
    scheme : str
    stock : Backend or None
    """

    def __init__(self, scheme: str, stock: Backend | None) -> None:
        self._scheme, self._stock = scheme, stock

    def get_connector(self) -> Any:
        """Something that connects, where nothing is guarded."""
        if _process is not None:
            raise self._refused()
        return _Unguarded(self._scheme, self._known().get_connector())

    def get_listener(self, loc: str, handle_comm: Any, deserialize: bool, **arguments: Any) -> Any:
        """Something that listens, where nothing is guarded."""
        if _process is not None or guard_behind(arguments.get("ssl_context")) is not None:
            raise self._refused()
        return self._known().get_listener(loc, handle_comm, deserialize, **arguments)

    def get_address_host(self, loc: str) -> str:
        """Host of an address."""
        return str(self._known().get_address_host(loc))

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        """Host and port of an address."""
        host, port = self._known().get_address_host_port(loc)
        return host, port

    def resolve_address(self, loc: str) -> str:
        """Canonical form of an address."""
        return str(self._known().resolve_address(loc))

    def get_local_address_for(self, loc: str) -> str:
        """Address here that another one can reach."""
        return str(self._known().get_local_address_for(loc))

    def _known(self) -> Backend:
        if self._stock is None:
            raise self._refused()
        return self._stock

    def _refused(self) -> GuardError:
        if _process is not None:
            _process.refuse("transport", f"{self._scheme}:// is not tls://", "")
        return GuardError(f"{self._scheme}:// is refused here: a guarded Dask process speaks tls:// alone")


class _Unguarded:
    """Another transport's connector, for what has no guard."""

    def __init__(self, scheme: str, stock: Any) -> None:
        self._scheme, self._stock = scheme, stock

    async def connect(self, address: str, deserialize: bool = True, **arguments: Any) -> Any:
        if guard_behind(arguments.get("ssl_context")) is not None:
            raise FatalCommClosedError(f"{self._scheme}://{address} is refused: a guarded Dask process is at tls://")
        return await self._stock.connect(address, deserialize=deserialize, **arguments)


class GuardedBackends(dict[str, Backend]):
    """Distributed's table of transports, in which only ``tls`` is one."""

    def __setitem__(self, scheme: str, backend: Backend) -> None:
        """Take a transport that is registered later: it is refused like the others."""
        super().__setitem__(scheme, RefusedBackend(scheme, backend))

    def get(self, scheme: str, default: Any = None) -> Any:
        """The transport of a scheme; whatever an entry point would have brought is refused like the others."""
        if (backend := super().get(scheme)) is not None:
            return backend
        return RefusedBackend(scheme, None) if _process is not None else default


def install_transports(process: Guard | None = None) -> None:
    """Guard ``tls://`` in this process, once; with a guard for the process, refuse all other schemes too.

    Parameters
    ----------
    process : Guard, optional
        Of every connection that brings no other one's TLS context.

    Raises
    ------
    GuardError
        The process has another guard already.
    """
    global _process
    if not isinstance(registry.backends, GuardedBackends):
        refused = {
            scheme: RefusedBackend(scheme, stock) for scheme, stock in registry.backends.items() if scheme != "tls"
        }
        registry.backends = GuardedBackends(refused, tls=GuardedBackend())
    if process is not None:
        if _process not in (None, process):
            raise GuardError(f"this process is guarded for {_process!r} already: one Dask server a process")
        _process = process


def is_guarded(listener: object, guard: Guard) -> bool:
    """Whether a listener is ours, with that guard, and the transports are as `install_transports` has left them."""
    return (
        isinstance(listener, GuardedListener)
        and listener.guard is guard
        and isinstance(registry.backends, GuardedBackends)
        and isinstance(registry.backends["tls"], GuardedBackend)
        and all(isinstance(backend, RefusedBackend) for scheme, backend in registry.backends.items() if scheme != "tls")
    )


def certificate_of(stream: Any) -> bytes | None:
    """The certificate at the other end, None where the connection is closed already."""
    socket = getattr(stream, "socket", None)
    der: bytes | None = None if socket is None else socket.getpeercert(binary_form=True)
    return der


def _why(error: BaseException) -> str:
    """Why a handshake failed, without OpenSSL's line numbers, so that equal refusals are equal."""
    if isinstance(error, asyncio.TimeoutError):
        return "TLS: handshake timeout"
    if isinstance(error, SSLError) and error.reason:
        message = getattr(error, "verify_message", "") or error.reason.replace("_", " ").lower()
        return f"TLS: {message}"
    return f"TLS: connection closed ({type(error).__name__})"
