"""The issuer as a small service: renews certificates, gives tokens that policy grants, lets workers join clusters.

============================  =============================================  ==========================================
method and path               body                                           answer
============================  =============================================  ==========================================
``POST /v1/certificates``     a certificate request (PEM)                    `signed_cert`, `ca_cert`, `issuer_key`
``POST /v1/tokens``           JSON: `rights` (or none, for all), `minutes`   `token`, `token_id`, `expires`
``POST /v1/clusters``         JSON: `cluster`, `requests` (of its            for each of both an introduction
                              `scheduler` and its `manager`), `rights`,
                              `hours`, `worker_hours`
``DELETE /v1/clusters/<id>``                                                 (nothing)
``POST /v1/secrets``          JSON: `hashes`, `minutes`                      `deadline`
``POST /v1/enrolments``       JSON: `secret`, `request`                      an introduction, and maybe `token`
============================  =============================================  ==========================================

It decides by the certificate of the connection alone: nothing in a request can name another user. Only who brings an
enrolment secret has no certificate yet; see `lcls_dask.security.delegation`.
"""

import asyncio
import json
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from cryptography import x509
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from ..errors import AccessError, IdentityError
from .access import Operation
from .capability import FIRST_RUN, LAST_RUN, Right, read_unverified
from .delegation import LONGEST, Delegation, Delegations
from .issuer import DEFAULT_MINUTES, Issuer, narrowed
from .issuer_keys import TokenError
from .pace import Pace
from .peer import Peer, peer_of
from .policy import Policy
from .revocations import Revocations
from .tls import server_context

logger = logging.getLogger(__name__)

#: Requests a second of one user: a cluster of 600 workers may start at once.
REQUESTS = 10.0
_MAX_BODY = 64 * 1024


class _Handler(RequestHandler):
    issuer: Issuer
    policy: Policy
    revocations: Revocations
    pace: Pace
    delegations: Delegations
    peer: Peer
    certificate: x509.Certificate

    def initialize(self, issuer: Issuer, policy: Policy, revocations: Revocations, pace: Pace) -> None:
        self.issuer, self.policy, self.revocations, self.pace = issuer, policy, revocations, pace
        self.delegations = Delegations(issuer, revocations)

    def prepare(self) -> None:
        # at each request, not at the handshake only: certificates end while connections last
        der = self.request.get_ssl_certificate(binary_form=True)
        if not isinstance(der, bytes):
            raise IdentityError("no certificate was presented")
        self.peer = peer_of(der)
        self.certificate = x509.load_der_x509_certificate(der)
        if self.issuer.clock() >= self.peer.not_after:
            raise IdentityError("the certificate has expired: ask the issuer's operator for a new one")
        if self.peer.serial in self.revocations:
            raise IdentityError("the certificate was revoked: ask the issuer's operator for a new one")
        self.keep_pace(self.peer.user)

    def keep_pace(self, who: str) -> None:
        """Answer at once, and do nothing more, where somebody asks too often."""
        if wait := self.pace.wait(who):
            self.set_status(429)
            self.set_header("Retry-After", str(wait))
            self.finish({"error": f"too many requests of {who}: wait {wait} s"})
            logger.info("too many requests of %s", who)

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, AccessError):
            super().log_exception(typ, value, tb)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if isinstance(error, TokenError):
            status_code = 400
        elif isinstance(error, AccessError):
            status_code = 401 if isinstance(error, IdentityError) else 403
        self.set_status(status_code)
        self.finish({"error": str(error) if isinstance(error, AccessError) else self._reason})
        user = self.peer.user if hasattr(self, "peer") else "unknown"
        logger.info("%s %.200r of %s refused: %s", self.request.method, self.request.path, user, error)


class _Certificates(_Handler):
    def post(self) -> None:
        delegation: Delegation | None = self.delegations.of(self.peer)
        try:
            lifetime = None if delegation is None else delegation.lifetime_of(self.peer.role)
            renewed = self.issuer.renew(self.certificate, self.request.body, self.revocations, lifetime)
        except IdentityError as error:
            raise TokenError(str(error)) from None
        self.delegations.renewed(self.peer, renewed)
        self.finish(renewed)
        logger.info("renewed the certificate of %s (%s), serial %s", self.peer.user, self.peer.role, self.peer.serial)


class _Tokens(_Handler):
    def post(self) -> None:
        wanted, minutes = parse_wish(self.request.body)
        delegation: Delegation | None = self.delegations.of(self.peer)
        if delegation is not None:
            wanted = delegation.limited(wanted)
        token = self.issuer.token(self.peer, narrowed(self.policy, self.peer.user, wanted), minutes)
        told = read_unverified(token)
        self.finish({"token": token, "token_id": told.revocation_ids[0], "expires": told.expires})
        logger.info("token %.16s for %s (%s)", told.revocation_ids[0], self.peer.user, self.peer.role)


class _Clusters(_Handler):
    def post(self) -> None:
        wish = _object(self.request.body, {"cluster", "requests", "rights", "hours", "worker_hours"})
        try:
            cluster = str(wish["cluster"])
            requests = {str(name): str(pem).encode() for name, pem in wish["requests"].items()}
            rights = None if wish.get("rights") is None else [_right(**entry) for entry in wish["rights"]]
            longest = LONGEST / timedelta(hours=1)
            lifetime = timedelta(hours=float(wish.get("hours", longest)))
            of_workers = timedelta(hours=float(wish.get("worker_hours", longest)))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            raise TokenError(
                'expected JSON such as {"cluster": "c1", "requests": {"scheduler": PEM, "manager": PEM}}'
            ) from None
        if rights is not None:
            rights = narrowed(self.policy, self.peer.user, rights)
        try:
            self.finish(self.delegations.open(self.peer, cluster, requests, rights, lifetime, of_workers))
        except IdentityError as error:
            raise TokenError(str(error)) from None
        logger.info("cluster %s of %s", cluster, self.peer.user)


class _Cluster(_Handler):
    def delete(self, cluster: str) -> None:
        self.delegations.close(self.peer, cluster)
        self.set_status(204)
        logger.info("cluster %s of %s is closed", cluster, self.peer.user)


class _Secrets(_Handler):
    def post(self) -> None:
        wish = _object(self.request.body, {"hashes", "minutes"})
        try:
            hashes, minutes = list(wish["hashes"]), float(wish["minutes"])
        except (ValueError, TypeError, KeyError):
            raise TokenError('expected JSON such as {"hashes": [SHA-256, ...], "minutes": 60}') from None
        self.finish({"deadline": self.delegations.announce(self.peer, hashes, minutes)})


class _Enrolments(_Handler):
    def prepare(self) -> None:
        # it is the secret that counts: who brings one has no certificate yet, and no user whose budget could be spent
        self.keep_pace(f"somebody at {self.request.remote_ip}")

    def post(self) -> None:
        wish = _object(self.request.body, {"secret", "request"})
        secret, request = wish.get("secret"), wish.get("request")
        if not isinstance(secret, str) or not isinstance(request, str):
            raise TokenError('expected JSON such as {"secret": ..., "request": PEM}')
        self.finish(self.delegations.enrol(secret, request.encode(), self.policy, str(self.request.remote_ip)))


class _Health(_Handler):
    def get(self) -> None:
        self.finish({"status": "ok"})


class _NotFound(_Handler):
    def prepare(self) -> None:
        super().prepare()
        if not self._finished:
            raise HTTPError(404)


def parse_wish(body: bytes) -> tuple[list[Right] | None, float]:
    """Read what a token is asked for.

    Parameters
    ----------
    body : bytes
        JSON, may be empty: `minutes`; `rights`, a list of objects with `experiment` and maybe `operations`, `runs`
        (first and last) and `detectors`.

    Returns
    -------
    rights : list of Right or None
        None: all that is granted.
    minutes : float

    Raises
    ------
    TokenError
        It cannot be understood.

    Examples
    --------
    >>> parse_wish(b'{"minutes": 5}')
    (None, 5.0)
    """
    try:
        wish = json.loads(body or b"{}")
        unknown = set(wish) - {"rights", "minutes"}
        minutes = float(wish.get("minutes", DEFAULT_MINUTES))
        if unknown:
            raise TokenError(f"{sorted(unknown)[0]!r} is not known; known are rights and minutes")
        if wish.get("rights") is None:
            return None, minutes
        return [_right(**entry) for entry in wish["rights"]], minutes
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise TokenError('expected JSON such as {"rights": [{"experiment": "tmox42619"}], "minutes": 10}') from None


def _object(body: bytes, known: set[str]) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or set(content) - known:
        raise TokenError(f"expected JSON with {', '.join(sorted(known))}")
    return content


def _right(
    experiment: str, operations: list[str] | None = None, runs: list[int] | None = None, detectors: str = "*"
) -> Right:
    first, last = (FIRST_RUN, LAST_RUN) if runs is None else runs
    allowed = frozenset(Operation if operations is None else map(Operation, operations))
    return Right(experiment, allowed, int(first), int(last), detectors)


def make_server(issuer: Issuer, policy: Policy, revocations: Revocations, requests: float = REQUESTS) -> HTTPServer:
    """Put the service together; it trusts certificates that this issuer has signed and no others.

    A connection without a certificate can bring an enrolment secret, and nothing else.

    Parameters
    ----------
    issuer : Issuer
    policy : Policy
    revocations : Revocations
        Not behind its list, or what is revoked could be renewed.
    requests : float
        Of each user in a second, on average over a minute.

    Returns
    -------
    tornado.httpserver.HTTPServer
    """
    context: ssl.SSLContext = server_context(issuer.identity, [issuer.authority])
    context.verify_mode = ssl.CERT_OPTIONAL
    parts = {"issuer": issuer, "policy": policy, "revocations": revocations, "pace": Pace(requests)}
    handlers = {
        "/v1/certificates": _Certificates,
        "/v1/tokens": _Tokens,
        "/v1/clusters": _Clusters,
        "/v1/clusters/([^/]+)": _Cluster,
        "/v1/secrets": _Secrets,
        "/v1/enrolments": _Enrolments,
        "/healthz": _Health,
    }
    routes = [(path, handler, parts) for path, handler in handlers.items()]
    return HTTPServer(
        Application(routes, default_handler_class=_NotFound, default_handler_args=parts),
        ssl_options=context,
        max_body_size=_MAX_BODY,
        max_buffer_size=2 * _MAX_BODY,
        max_header_size=16 * 1024,
        body_timeout=10,
        idle_connection_timeout=30,
    )


@asynccontextmanager
async def serving(server: HTTPServer, address: str, port: int) -> AsyncIterator[int]:
    """Accept connections while this lasts.

    Parameters
    ----------
    server : tornado.httpserver.HTTPServer
    address : str
    port : int
        0: any that is free.

    Yields
    ------
    int
        The port.
    """
    sockets = bind_sockets(port, address)
    server.add_sockets(sockets)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()


async def serve(server: HTTPServer, address: str, port: int, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Parameters
    ----------
    server : tornado.httpserver.HTTPServer
    address : str
    port : int
        0: any that is free.
    ready : callable
        Told the port once connections are accepted.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(server, address, port) as bound:
        ready(bound)
        await stop.wait()
