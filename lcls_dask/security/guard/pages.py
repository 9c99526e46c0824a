"""The gate before a Dask server's web pages and their websockets: the dashboard is for the cluster's owner alone.

The owner asks the scheduler over TLS for a ticket, good for one sign-in within a minute. The browser that brings it
gets a cookie. Tickets and cookies live in the scheduler's memory and nowhere else.
"""

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode
from weakref import WeakKeyDictionary

from distributed import Client
from tornado.httputil import HTTPServerRequest
from tornado.web import Application, RequestHandler

from .admission import Caller
from .guard import Guard

#: Pages that say nothing of anybody's work: whether the process lives, and which plots a dashboard has.
OPEN = frozenset({"/health", "/individual-plots.json"})
TICKET_SECONDS = 60.0
SESSION_SECONDS = 12 * 3600.0
#: Tickets, or sessions, at one time.
_MOST = 1000
_PARAMETER = "ticket"


@dataclass(eq=False)
class Pages:
    """Who has signed in to the pages of one server.

    Attributes
    ----------
    guard : Guard
    cookie : str
        Its name, other than that of any other cluster at the same address.
    """

    guard: Guard
    cookie: str
    _tickets: dict[str, tuple[Caller, float]] = field(default_factory=dict)
    _sessions: dict[str, tuple[Caller, float]] = field(default_factory=dict)
    #: Websockets and other connections by the session that they belong to.
    _streams: WeakKeyDictionary[Any, str] = field(default_factory=WeakKeyDictionary)

    def ticket(self, comm: Any) -> str:
        """A new ticket for whom is at the other end of a guarded connection."""
        return _new(self._tickets, comm.caller, TICKET_SECONDS)

    def redeem(self, ticket: str) -> str | None:
        """A session for a ticket, once; None where it is no ticket or no longer one."""
        caller = self._holder(self._tickets, ticket)
        self._tickets.pop(ticket, None)
        return None if caller is None else _new(self._sessions, caller, SESSION_SECONDS)

    def signed_in(self, request: HTTPServerRequest) -> Caller | None:
        """Who has sent a request, None where nobody has signed in."""
        morsel = request.cookies.get(self.cookie)
        caller = None if morsel is None else self._holder(self._sessions, morsel.value)
        if caller is not None and morsel is not None and request.headers.get("Upgrade") is not None:
            self._streams[request.connection.stream] = morsel.value  # type: ignore[union-attr]
        return caller

    def sweep(self) -> None:
        """Close the websockets of sessions that have ended."""
        for stream, session in list(self._streams.items()):
            if self._holder(self._sessions, session) is None and not stream.closed():
                stream.close()
                self.guard.refuse("page", "session ended", "")

    def _holder(self, kept: dict[str, tuple[Caller, float]], secret: str) -> Caller | None:
        caller, until = kept.get(secret, (None, 0.0))
        if caller is None or time.monotonic() > until or self.guard.lapsed(caller):
            return None
        return caller


def gate_pages(server: Any, guard: Guard) -> Pages:
    """Put the gate before a server's pages, now or as soon as it has any.

    Parameters
    ----------
    server : distributed.Scheduler, Worker or Nanny
    guard : Guard

    Returns
    -------
    Pages
    """
    pages = Pages(guard, f"lcls-dask-{re.sub('[^A-Za-z0-9]', '', str(server.id))[-12:]}")
    guard.sweeps.add(pages.sweep)
    if hasattr(server, "http_application"):
        _gate(server.http_application, pages)
    elif hasattr(server, "start_http_server"):
        start = server.start_http_server

        def start_http_server(*arguments: Any, **keywords: Any) -> None:
            start(*arguments, **keywords)
            _gate(server.http_application, pages)

        server.start_http_server = start_http_server
    return pages


def is_gated(server: Any, guard: Guard) -> bool:
    """Whether a server's pages are behind that guard; a nanny has none."""
    application = getattr(server, "http_application", None)
    if application is None:
        return not hasattr(server, "http_server")
    gate = getattr(application, "find_handler", None)
    return isinstance(gate, _Gate) and gate.pages.guard is guard


def dashboard_link(client: Any) -> str:
    """Link to the dashboard that signs its reader in, once and within a minute.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster's owner.

    Returns
    -------
    str

    Raises
    ------
    AccessError
        The client may not have one.
    """
    ticket = client.sync(client.scheduler.dashboard_ticket)
    # not the client's own link, which may be made by this function
    link = vars(Client)["dashboard_link"].fget(client)
    return f"{link}?{urlencode({_PARAMETER: ticket})}"


class _Gate:
    """`Application.find_handler`, behind which pages, static files and Bokeh's websockets are found."""

    def __init__(self, application: Application, pages: Pages) -> None:
        self.application, self.pages, self.stock = application, pages, application.find_handler

    def __call__(self, request: HTTPServerRequest, **arguments: Any) -> Any:
        if request.path in OPEN or self.pages.signed_in(request) is not None:
            return self.stock(request, **arguments)
        query = parse_qsl(request.query, keep_blank_values=True)
        tickets = [value for name, value in query if name == _PARAMETER]
        address = f"http://{request.remote_ip}:0"
        if tickets and request.method == "GET" and (session := self.pages.redeem(tickets[0])) is not None:
            self.pages.guard.audit.write("page", "allowed", reason="signed in", op=request.path, address=address[7:-2])
            rest = urlencode([(name, value) for name, value in query if name != _PARAMETER])
            # relative, as only the browser knows the prefix of a proxy in between
            where = (request.path.rpartition("/")[2] or ".") + (f"?{rest}" if rest else "")
            target = {"name": self.pages.cookie, "session": session, "where": where}
            return self.application.get_handler_delegate(request, _SignedIn, target)
        self.pages.guard.refuse("page", "wrong ticket" if tickets else "not signed in", address, op=request.path[:200])
        return self.application.get_handler_delegate(request, _Refused)


class _Refused(RequestHandler):
    """Whatever is asked: not without signing in."""

    def prepare(self) -> None:
        self.set_status(401)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.finish("For the cluster's owner alone: open the link that dashboard_link(client) of lcls_dask gives.\n")


class _SignedIn(RequestHandler):
    """The cookie, and the page that was wanted."""

    def initialize(self, name: str, session: str, where: str) -> None:
        self.name, self.session, self.where = name, session, where

    def get(self, *_: str) -> None:
        # no path: behind a proxy the pages are below one that only the browser knows
        secure = "; Secure" if self.request.protocol == "https" else ""
        self.set_header("Set-Cookie", f"{self.name}={self.session}; HttpOnly; SameSite=Lax{secure}")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Location", self.where)
        self.set_status(303)


def _new(kept: dict[str, tuple[Caller, float]], caller: Caller, seconds: float) -> str:
    now = time.monotonic()
    for secret in [secret for secret, (_, until) in kept.items() if until < now]:
        del kept[secret]
    while len(kept) >= _MOST:
        del kept[next(iter(kept))]
    secret = secrets.token_urlsafe(32)
    kept[secret] = caller, now + seconds
    return secret


def _gate(application: Application, pages: Pages) -> None:
    application.find_handler = _Gate(application, pages)  # type: ignore[method-assign]
