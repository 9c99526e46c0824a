"""From a request and a certificate to an answer: who may, what it is, and what the audit says of it."""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..errors import LclsError
from ..security import UNAUTHENTICATED, Access, Authoriser, Decision, Operation, Peer, Reason, Role
from . import catalogue, describe
from .audit import AuditLog, Entry
from .limits import Usage
from .metrics import CONTENT_TYPE, exposition
from .openapi import DOCUMENT
from .request import Request, parse_range
from .response import IMMUTABLE, NOT_FOUND, Response, error_response, json_response
from .routes import Kind, Route, route_of
from .runs import OpenRun, Runs, status_of
from .state import State

_log = logging.getLogger(__name__)

_OPERATIONS = {
    Kind.EXPERIMENT: Operation.LIST,
    Kind.RUN: Operation.INFO,
    Kind.NODE: Operation.INFO,
    Kind.KEY: Operation.INFO,  # of metadata and timestamps; READ of what belongs to a detector
    Kind.LISTING: Operation.INFO,
    Kind.DIRECT: Operation.DIRECT,
}
_RETRY = {"Retry-After": "1"}


@dataclass(frozen=True)
class Client:
    """Who is at the other end of a connection.

    Attributes
    ----------
    peer : Peer
    address : str
    within : bool
        Whether the user's connections are within the limit.
    """

    peer: Peer
    address: str
    within: bool = True


@dataclass(frozen=True)
class Answer:
    """A response, and what is said of it afterwards.

    Attributes
    ----------
    response : Response
    kind : str
        For the metrics.
    held : int
        Bytes counted as being sent, to be given back.
    """

    response: Response
    kind: str = ""
    held: int = 0


class Service:
    """Answers requests. Nothing here knows of sockets.

    Parameters
    ----------
    runs : Runs
    authoriser : Authoriser
    audit : AuditLog
    usage : Usage
    state : State
    pool, look : ThreadPoolExecutor
        In which chunks are read; and in which all else is done that may wait.
    """

    def __init__(
        self,
        runs: Runs,
        authoriser: Authoriser,
        audit: AuditLog,
        usage: Usage,
        state: State,
        pool: ThreadPoolExecutor,
        look: ThreadPoolExecutor,
    ) -> None:
        self._runs, self._authoriser, self._audit = runs, authoriser, audit
        self._usage, self._state, self._pool, self._look = usage, state, pool, look

    async def answer(self, request: Request, client: Client) -> Answer:
        """Answer a request; never raises, save for what ends the process."""
        route = route_of(request.target)
        entry = _entry(request, route, client)
        response, entry = self._judge(request, route, client, entry)
        if response is not None or route is None:
            return self._audited(request, client, route, response or NOT_FOUND, entry)
        if route.kind is Kind.HEALTH:  # answered also while all threads wait for a disk
            return self._audited(request, client, route, json_response({"status": "ok"}), entry)
        pool = self._pool if route.kind is Kind.KEY else self._look
        # reading and the audit both wait for a disk: one change of threads for the two
        return await asyncio.get_running_loop().run_in_executor(pool, self._carried_out, request, client, route, entry)

    def refuse(self, client: Client | None, reason: str, status: int = 0, address: str = "") -> None:
        """Audit a connection that ends before, or without, a request that could be understood."""
        entry = Entry(operation="connect", reason=reason, status=status, address=address)
        if client is not None:
            peer = client.peer
            entry = replace(entry, user=peer.user, role=str(peer.role), certificate=peer.serial, address=client.address)
        try:
            self._audit.write(entry)
        except OSError as error:
            _log.error("the audit cannot be written", extra={"fields": {"error": str(error)}})

    def sent(self, client: Client, answer: Answer) -> None:
        """Stop counting what was held for an answer: it was sent, or will never be."""
        if answer.held:
            self._usage.give_back(client.peer.user, answer.held)

    def _audited(
        self, request: Request, client: Client, route: Route | None, response: Response, entry: Entry
    ) -> Answer:
        kind = str(route.kind) if route else "other"
        size = response.size if entry.allowed and request.method != "HEAD" else 0
        user = client.peer.user
        if size and not self._usage.take(user, size):
            response = error_response(429, "too many bytes are on their way to you; wait", fields=_RETRY)
            entry, size = replace(entry, allowed=False, reason="too many bytes"), 0
        if entry.operation:
            try:
                self._audit.write(replace(entry, bytes=size, status=response.status))
            except OSError as error:
                _log.error("the audit cannot be written", extra={"fields": {"error": str(error)}})
                self._usage.give_back(user, size)
                return Answer(error_response(503, "the audit cannot be written; try again", fields=_RETRY), kind)
        return Answer(response, kind, size)

    def _judge(
        self, request: Request, route: Route | None, client: Client, entry: Entry
    ) -> tuple[Response | None, Entry]:
        """A refusal, or None where the request may be carried out; nothing here waits."""

        def no(response: Response, reason: str) -> tuple[Response, Entry]:
            return response, replace(entry, reason=reason)

        if not client.within:
            said = "too many connections"
            return no(error_response(429, f"{said}; close some", fields=_RETRY, close=True), said)
        if (wait := self._usage.request(client.peer.user)) is not None:
            said = "too many requests"
            # all alike, or who is refused faster than answered would fill the audit's disk
            entry = replace(entry, experiment="", run=None, operation="any", key="")
            return no(error_response(429, f"{said}; wait", fields={"Retry-After": str(wait)}), said)
        if route is None:
            return no(NOT_FOUND, "no such address")
        if request.method not in ("GET", "HEAD"):
            return no(error_response(405, "only GET and HEAD", fields={"Allow": "GET, HEAD"}), "method")
        if route.kind in (Kind.HEALTH, Kind.OPENAPI, Kind.METRICS):
            # open to certificates alone; not audited, since nothing of an experiment is in it
            if route.kind is Kind.METRICS and client.peer.role not in (Role.MANAGER, Role.GATEWAY):
                return no(error_response(403, "metrics are for managers and gateways"), "wrong role")
            return None, replace(entry, operation="", allowed=True)
        if route.kind is Kind.RUNS:
            decision = self._authoriser.authenticate(client.peer, request.token)
        else:
            operation = _OPERATIONS[route.kind] if route.detector is None else Operation.READ
            access = Access(operation, route.experiment, route.run, route.detector)
            decision = self._authoriser.decide(client.peer, request.token, access)
        entry = replace(entry, reason=decision.reason, token=decision.token_id, allowed=decision.allowed)
        return None if decision.allowed else _refusal(decision), entry

    def _carried_out(self, request: Request, client: Client, route: Route, entry: Entry) -> Answer:
        """Read what was asked for, and audit it; in a thread of its own."""
        try:
            response = self._read(request, route, client)
            if response is NOT_FOUND:
                entry = replace(entry, reason="nothing there")
        except (LclsError, OSError) as error:
            status, reason = status_of(error)
            response, entry = self._failed(status, error), replace(entry, allowed=False, reason=reason)
        except Exception as error:
            _log.error("internal error", exc_info=error, extra={"fields": {"target": request.target}})
            response, entry = self._failed(500, error), replace(entry, allowed=False, reason="internal error")
        return self._audited(request, client, route, response, entry)

    def _read(self, request: Request, route: Route, client: Client) -> Response:
        match route.kind:
            case Kind.OPENAPI:
                return json_response(DOCUMENT)
            case Kind.METRICS:
                return Response(200, {"Content-Type": CONTENT_TYPE}, exposition())
            case Kind.RUNS:
                names = self._authoriser.experiments(client.peer, request.token)
                return json_response({"experiments": catalogue.experiments(self._runs, names)})
            case Kind.EXPERIMENT:
                rows = catalogue.table(self._runs, self._state, route.experiment)
                return json_response({"experiment": route.experiment, "runs": rows})
        assert route.run is not None
        run = self._runs.open(route.experiment, route.run, route.snapshot)
        immutable = {"Cache-Control": IMMUTABLE}
        match route.kind:
            case Kind.RUN:
                pinned = route.snapshot and run.source.index.state != "live"
                return json_response(describe.run_document(run.source), fields=immutable if pinned else {})
            case Kind.NODE:
                node = run.source.index.nodes.get(f"/{route.key}")
                return json_response(describe.node_document(node), fields=immutable) if node else NOT_FOUND
            case Kind.LISTING:
                entries = describe.listing_document(list(run.keys.list_dir(route.key)))
                return json_response(entries, fields=immutable) if entries else NOT_FOUND
            case Kind.DIRECT:  # files may go away: what is told of them is not kept
                return json_response(describe.direct_document(run.source))
        return _key(request, route.key, run)

    def _failed(self, status: int, error: Exception) -> Response:
        if status == 404:
            return NOT_FOUND
        known = isinstance(error, LclsError)
        said = describe.without_root(str(error), str(self._runs.root)) if known else "something went wrong; try again"
        fields: Mapping[str, str] = _RETRY if status == 503 else {}
        return error_response(status, " ".join(said.split()), fields=fields)


def _key(request: Request, key: str, run: OpenRun) -> Response:
    """Bytes of a key, or of a range of it."""
    tag = run.etag(key)
    fields = {"ETag": tag, "Cache-Control": IMMUTABLE, "Accept-Ranges": "bytes"}
    known = request.fields.get("if-none-match")
    if known is not None and (known == "*" or tag in known) and key in run.keys:
        return Response(304, fields)
    # HEAD has no ranges (RFC 9110), and those of another representation are not wanted
    whole = request.method == "HEAD" or request.fields.get("if-range", tag) != tag
    span = None if whole else parse_range(request.fields.get("range"))
    piece = run.read(key, span)
    if piece is None:
        return NOT_FOUND
    fields["Content-Type"] = "application/json" if key.endswith("zarr.json") else "application/octet-stream"
    fields["Content-Digest"] = piece.digest
    if span is None:
        return Response(200, fields, piece.data)
    size = piece.data.nbytes
    if not size:
        said = f"the range is outside of {piece.total} bytes"
        return error_response(416, said, fields={"Content-Range": f"bytes */{piece.total}", "ETag": tag})
    fields["Content-Range"] = f"bytes {piece.start}-{piece.start + size - 1}/{piece.total}"
    return Response(206, fields, piece.data)


def _entry(request: Request, route: Route | None, client: Client) -> Entry:
    """What can be said before anything is decided."""
    peer = client.peer
    return Entry(
        user=peer.user,
        role=str(peer.role),
        certificate=peer.serial,
        experiment=route.experiment if route else "",
        run=route.run if route else None,
        operation=str(route.kind) if route else "other",
        key=route.key if route else request.target[:200],
        address=client.address,
    )


def _refusal(decision: Decision) -> Response:
    if decision.reason in UNAUTHENTICATED:
        said = f"{decision.reason}: present a capability that an issuer made for this certificate"
        return error_response(401, said, fields={"WWW-Authenticate": "Bearer"})
    if decision.reason == Reason.NOT_A_MEMBER:
        return NOT_FOUND
    if decision.reason == Reason.POLICY_FAILED:
        return error_response(503, "the policy cannot be read at the moment; try again", fields=_RETRY)
    return error_response(403, f"{decision.reason}: the capability does not cover this; ask its issuer for another")
