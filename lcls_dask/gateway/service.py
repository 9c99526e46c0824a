"""From a request and a certificate to an answer: who may, what is read, and what the audit says of it."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..security import UNAUTHENTICATED, Access, Authoriser, Decision, Operation, Peer, Reason, Role
from .audit import AuditLog, Entry
from .limits import Usage
from .open_run import Rest
from .reading import Found, Reader
from .request import Request
from .response import NOT_FOUND, RETRY, Response, error_response, json_response
from .routes import Kind, Route, route_of
from .together import Together

_log = logging.getLogger(__name__)

_OPERATIONS = {
    Kind.EXPERIMENT: Operation.LIST,
    Kind.RUN: Operation.INFO,
    Kind.NODE: Operation.INFO,
    Kind.KEY: Operation.INFO,  # of metadata and timestamps; READ of what belongs to a detector
    Kind.LISTING: Operation.INFO,
    Kind.DIRECT: Operation.DIRECT,
}
#: Open to certificates alone; not audited, since nothing of an experiment is in them.
_OPEN = frozenset((Kind.HEALTH, Kind.OPENAPI, Kind.METRICS))


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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Whether a request may be carried out, and if not, what is answered instead."""

    reason: str
    refusal: Response | None = None
    token: str | None = None
    # audited without what was asked for: who is refused faster than answered would fill the audit's disk
    alike: bool = False


@dataclass(frozen=True, slots=True)
class _Task:
    """A request, and what is known of it before anything is read."""

    request: Request
    client: Client
    route: Route | None
    verdict: _Verdict


class Service:
    """Answers requests. Nothing here knows of sockets.

    Parameters
    ----------
    reader : Reader
    authoriser : Authoriser
    audit : AuditLog
    usage : Usage
    pool, look : ThreadPoolExecutor
        In which chunks are read; and in which all else is done that may wait.
    threads : int
        How many the first one has.
    """

    def __init__(
        self,
        reader: Reader,
        authoriser: Authoriser,
        audit: AuditLog,
        usage: Usage,
        pool: ThreadPoolExecutor,
        look: ThreadPoolExecutor,
        threads: int,
    ) -> None:
        self._reader, self._authoriser, self._audit = reader, authoriser, audit
        self._usage, self._pool, self._look = usage, pool, look
        self._together: Together[_Task, Found, Answer] = Together(pool, threads, self._read, self._settle)

    async def answer(self, request: Request, client: Client) -> Answer:
        """Answer a request; never raises, save for what ends the process."""
        route = route_of(request.target)
        verdict = self._judge(request, route, client)
        task = _Task(request, client, route, verdict)
        if verdict.refusal is not None or route is None:
            return self._settle([(task, Found(verdict.refusal or NOT_FOUND, False, verdict.reason))])[0]
        if route.kind is Kind.HEALTH:  # answered also while all threads wait for a disk
            return self._settle([(task, Found(json_response({"status": "ok"})))])[0]
        # reading and the audit both wait for a disk: one change of threads for the two
        if self._reader.light(route):
            return await self._together.do(task)
        pool = self._pool if route.kind is Kind.KEY else self._look
        return await asyncio.get_running_loop().run_in_executor(pool, self._alone, task)

    def next_part(self, rest: Rest) -> asyncio.Future[memoryview]:
        """What of a body follows.

        Raises
        ------
        LclsError, OSError
            It cannot be read, or the files are no longer the same.
        """
        return asyncio.get_running_loop().run_in_executor(self._pool, rest.read)

    def refuse(self, client: Client | None, reason: str, status: int = 0, address: str = "") -> None:
        """Audit a connection that ends before, or without, a request that could be understood."""
        entry = Entry(operation="connect", reason=reason, status=status, address=address)
        if client is not None:
            peer = client.peer
            entry = replace(entry, user=peer.user, role=str(peer.role), certificate=peer.serial, address=client.address)
        try:
            self._audit.write([entry])
        except OSError as error:
            _log.error("the audit cannot be written", extra={"fields": {"error": str(error)}})

    def sent(self, client: Client, answer: Answer) -> None:
        """Stop counting what was held for an answer: it was sent, or will never be."""
        if answer.held:
            self._usage.give_back(client.peer.user, answer.held)

    def _judge(self, request: Request, route: Route | None, client: Client) -> _Verdict:
        """Whether a request may be carried out; nothing here waits."""
        if not client.within:
            said = "too many connections"
            return _Verdict(said, error_response(429, f"{said}; close some", fields=RETRY, close=True))
        if (wait := self._usage.request(client.peer.user)) is not None:
            said = "too many requests"
            refusal = error_response(429, f"{said}; wait", fields={"Retry-After": str(wait)})
            return _Verdict(said, refusal, alike=True)
        if route is None:
            return _Verdict("no such address", NOT_FOUND)
        if request.method not in ("GET", "HEAD"):
            return _Verdict("method", error_response(405, "only GET and HEAD", fields={"Allow": "GET, HEAD"}))
        if route.kind in _OPEN:
            if route.kind is Kind.METRICS and client.peer.role not in (Role.MANAGER, Role.GATEWAY):
                return _Verdict("wrong role", error_response(403, "metrics are for managers and gateways"))
            return _Verdict("")
        if route.kind is Kind.RUNS:
            decision = self._authoriser.authenticate(client.peer, request.token)
        else:
            detector = route.detector
            operation = _OPERATIONS[route.kind] if detector is None else Operation.READ
            access = Access(operation, route.experiment, route.run, detector)
            decision = self._authoriser.decide(client.peer, request.token, access)
        return _Verdict(decision.reason, None if decision.allowed else _refusal(decision), decision.token_id)

    def _alone(self, task: _Task) -> Answer:
        """Read what was asked for, and audit it; in a thread."""
        return self._settle([(task, self._read(task))])[0]

    def _read(self, task: _Task) -> Found:
        assert task.route is not None
        return self._reader.read(task.request, task.route, task.client.peer)

    def _settle(self, found: Sequence[tuple[_Task, Found]]) -> list[Answer]:
        """Count and audit answers: what is given here may be sent."""
        answers, entries = [], []
        for task, what in found:
            response, allowed, reason = what.response, what.allowed, what.reason or task.verdict.reason
            size = response.size if allowed and task.request.method != "HEAD" else 0
            if size and not self._usage.take(task.client.peer.user, size):
                response = error_response(429, "too many bytes are on their way to you; wait", fields=RETRY)
                allowed, reason, size = False, "too many bytes", 0
            answers.append(Answer(response, str(task.route.kind) if task.route else "other", size))
            if task.route is None or task.route.kind not in _OPEN or not allowed:
                entries.append(_entry(task, response.status, size, allowed, reason))
        try:
            self._audit.write(entries)
        except OSError as error:
            _log.error("the audit cannot be written", extra={"fields": {"error": str(error)}})
            for (task, _), answer in zip(found, answers, strict=True):
                self.sent(task.client, answer)
            unwritten = error_response(503, "the audit cannot be written; try again", fields=RETRY)
            return [Answer(unwritten, answer.kind) for answer in answers]
        return answers


def _entry(task: _Task, status: int, size: int, allowed: bool, reason: str) -> Entry:
    peer, route = task.client.peer, None if task.verdict.alike else task.route
    asked = ("any", "") if task.verdict.alike else ("other", task.request.target[:200])
    operation, key = (str(route.kind), route.key) if route else asked
    return Entry(
        user=peer.user,
        role=str(peer.role),
        certificate=peer.serial,
        experiment=route.experiment if route else "",
        run=route.run if route else None,
        operation=operation,
        key=key,
        bytes=size,
        allowed=allowed,
        reason=reason,
        status=status,
        token=task.verdict.token,
        address=task.client.address,
    )


def _refusal(decision: Decision) -> Response:
    if decision.reason in UNAUTHENTICATED:
        said = f"{decision.reason}: present a capability that an issuer made for this certificate"
        return error_response(401, said, fields={"WWW-Authenticate": "Bearer"})
    if decision.reason == Reason.NOT_A_MEMBER:
        return NOT_FOUND
    if decision.reason == Reason.POLICY_FAILED:
        return error_response(503, "the policy cannot be read at the moment; try again", fields=RETRY)
    return error_response(403, f"{decision.reason}: the capability does not cover this; ask its issuer for another")
