"""What an intruder tries at the demo's gateway, what it answers, and what its audit says of that."""

import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from biscuit_auth import BlockBuilder

from ..security import IssuerKeys, Operation, Right, Role, client_context, load_identity, revoke
from ..security.issuer import create_issuer
from .page import Check
from .site import Site

COLUMNS = ("what was tried", "what the gateway answered", "what its audit says", "")
_HOST = "localhost"
_READ = frozenset((Operation.LIST, Operation.INFO, Operation.READ))
#: Seconds for the gateway to hear of a revocation, or to write its audit.
_LONGEST = 15.0


@dataclass(frozen=True)
class Attempt:
    """Bytes sent to the gateway.

    Attributes
    ----------
    tried : str
        For people.
    reason : str
        With which the audit must refuse it, or how that begins; ``"ok"`` where it must be allowed.
    request : bytes
    context : ssl.SSLContext or None
        With whose certificate; None: without TLS.
    patience : float
        Seconds for which it may still be allowed.
    """

    tried: str
    reason: str
    request: bytes
    context: ssl.SSLContext | None
    patience: float = 0.0


@dataclass(frozen=True)
class Target:
    """What the intruder is after.

    Attributes
    ----------
    experiment : str
    run : int
    snapshot : str
    key : str
        Of a chunk of detector values.
    """

    experiment: str
    run: int
    snapshot: str
    key: str

    @property
    def path(self) -> str:
        """The run, as the gateway names it."""
        return f"/v1/runs/{self.experiment}/r{self.run:04d}@{self.snapshot}"

    @property
    def chunk(self) -> str:
        """The chunk."""
        return f"{self.path}/zarr/{self.key}"


def attempts(site: Site, target: Target, owner: str, other: str) -> Iterator[Attempt]:
    """Everything that is tried, each when the one before is over; the first one must be allowed.

    Parameters
    ----------
    site : Site
    target : Target
        Of the owner's run.
    owner, other : str
        Users: a member of the target's experiment, and one of another experiment.

    Yields
    ------
    Attempt

    Examples
    --------
    >>> next(attempts(site, target, "alice", "bob")).reason  # doctest: +SKIP
    'ok'
    """
    hers, his = site.folder / owner, site.folder / other
    good, bobs = _token(hers), _token(his)
    asks = _request(target.chunk, good)
    as_owner, as_other = client_context(load_identity(hers)), client_context(load_identity(his))
    yield Attempt(f"nothing: {owner} reads a chunk of her run", "ok", asks, as_owner)

    yield Attempt("plain HTTP, no TLS", "TLS: ", asks, None)
    nobody = ssl.create_default_context(cafile=site.folder / "issuer" / "CA.crt")
    yield Attempt(f"{owner}'s token, no certificate", "TLS: ", asks, nobody)
    create_issuer(site.folder / "forger")
    forged = site.identity("forged", user=owner, issuer="forger")
    yield Attempt(f"a certificate for {owner} by another authority of the same name", "TLS: ", asks, _as(forged))
    old = site.identity("old", user=owner, lifetime=timedelta(hours=1), clock=_two_hours_ago)
    yield Attempt("a certificate that has expired", "TLS: certificate has expired", asks, _as(old))
    scheduler = site.identity("scheduler", Role.SCHEDULER, user=owner)
    yield Attempt("a scheduler's certificate, which reads no data", "wrong role", asks, _as(scheduler))

    asks_too = _request(target.chunk, bobs)
    yield Attempt(f"{owner}'s run with {other}'s certificate and token", "not a member", asks_too, as_other)
    yield Attempt(f"{owner}'s token, stolen, with {other}'s certificate", "other certificate", asks, as_other)
    yield Attempt("no token", "no token", _request(target.chunk, None), as_owner)
    yield Attempt("garbage for a token", "bad signature", _request(target.chunk, "En0KEwoFZ3Vlc3Q"), as_owner)
    yield Attempt("one letter of the token changed", "bad signature", _request(target.chunk, _changed(good)), as_owner)
    of_forger = site.token(hers, [Right(target.experiment, _READ)], issuer="forger")
    yield Attempt("a token of another issuer", "bad signature", _request(target.chunk, of_forger), as_owner)
    expired = site.token(hers, clock=_two_hours_ago)
    yield Attempt("a token that has expired", "expired", _request(target.chunk, expired), as_owner)
    keys = IssuerKeys.load(site.folder / "gateway" / "known_issuers")
    other_run = site.token(hers, [Right(target.experiment, _READ, target.run + 1, target.run + 9)])
    yield Attempt("a token for other runs", "run out of range", _request(target.chunk, other_run), as_owner)
    more = BlockBuilder(f'right("{target.experiment}", "read", 0, 999999, "^.*$")')
    wider = keys.verify(other_run).append(more).to_base64()
    yield Attempt("the same, widened by a block", "bad attenuation", _request(target.chunk, wider), as_owner)
    other_detector = site.token(hers, [Right(target.experiment, _READ, detectors="gmd*")])
    yield Attempt("a token for another detector", "other detector", _request(target.chunk, other_detector), as_owner)
    revoked = site.token(hers)
    revoke(site.revocations, [keys.verify(revoked).revocation_ids[-1]], "the demo's")
    yield Attempt("a token that was revoked", "revoked", _request(target.chunk, revoked), as_owner, _LONGEST)
    direct = _request(f"{target.path}/direct", good)
    yield Attempt("where the files are, which policy keeps to itself", "operation not granted", direct, as_owner)

    for tried, path in (
        ("../../ in the path", f"/v1/runs/{target.experiment}/../../issuer/CA.key"),
        ("%2e%2e%2f in the key", f"{target.path}/zarr/%2e%2e%2f%2e%2e%2f%2e%2e%2fissuer%2fCA.key"),
        ("a NUL in the key", f"{target.chunk}%00"),
    ):
        yield Attempt(tried, "no such address", _request(path, good), as_owner)
    for tried, reason, request in (
        ("writing instead of reading", "method", asks.replace(b"GET", b"PUT", 1)),
        ("a second request smuggled in a body", "a request here has no body", _smuggled(asks)),
        ("HTTP/1.0", "not HTTP/1.1", asks.replace(b"HTTP/1.1", b"HTTP/1.0", 1)),
        ("the service's own metrics", "wrong role", _request("/metrics", good)),
    ):
        yield Attempt(tried, reason, request, as_owner)


def try_all(site: Site, port: int, found: Iterator[Attempt]) -> list[Check]:
    """Carry attempts out, one after the other, and look up what the audit says.

    Parameters
    ----------
    site : Site
    port : int
        Of the gateway.
    found : iterator of Attempt

    Returns
    -------
    list of Check
        Passed where the gateway refused, and its audit says so for the right reason.
    """
    # each from an address of its own, by which the audit's line is known
    return [_judge(site, port, attempt, f"127.0.1.{number}") for number, attempt in enumerate(found, 1)]


def _judge(site: Site, port: int, attempt: Attempt, address: str) -> Check:
    status, told = _send(port, attempt, address)
    end = time.monotonic() + attempt.patience
    while status == 200 and time.monotonic() < end:
        time.sleep(0.1)
        status, told = _send(port, attempt, address)
    allowed = 0 < status < 400
    line = _line(site, attempt.reason, address, "allowed" if allowed else "refused")
    said = f"{line['user']} {line['decision']}: {line['reason']}".strip() if line else "nothing of it"
    if attempt.reason == "ok":
        return Check(attempt.tried, told, said, allowed and line is not None, ("allowed", "NOT ALLOWED"))
    words = "refused", "SUCCEEDED" if allowed else "NOT AUDITED"
    return Check(attempt.tried, told, said, not allowed and line is not None, words)


def _line(site: Site, reason: str, address: str, decision: str) -> Mapping[str, Any] | None:
    """The audit's line about an attempt; one that has been allowed against all reason is found too."""
    reason = "ok" if decision == "allowed" else reason
    end = time.monotonic() + _LONGEST
    while time.monotonic() < end:
        for record in site.audit():
            right = (record["address"], record["decision"]) == (address, decision)
            if right and str(record["reason"]).startswith(reason):
                return record
        time.sleep(0.05)
    return None


def _send(port: int, attempt: Attempt, address: str) -> tuple[int, str]:
    """Status of the answer, 0 without one, and what it says."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), 30, (address, 0)) as plain:
            if attempt.context is None:
                received = _exchange(plain, attempt.request)
            else:
                with attempt.context.wrap_socket(plain, server_hostname=_HOST) as connection:
                    received = _exchange(connection, attempt.request)
    except (ConnectionError, ssl.SSLError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else None
        # an alert may be lost when the connection is reset
        return 0, f"hung up: {reason.replace('_', ' ').lower()}" if reason else "hung up"
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        return 0, "hung up"
    status = int(words[1])
    if status < 400:
        return status, f"{status}, {len(body):,} bytes"
    with suppress(ValueError, KeyError, TypeError):
        return status, f"{status} {json.loads(body)['error']}"
    return status, str(status)


def _exchange(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def _request(path: str, token: str | None) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {_HOST}", "Connection: close"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _smuggled(request: bytes) -> bytes:
    fields = b"\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    return request.removesuffix(b"\r\n\r\n") + fields + request


def _token(identity: Path) -> str:
    return (identity / "token").read_text()


def _changed(token: str) -> str:
    at = len(token) // 2
    return token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]


def _as(identity: Path) -> ssl.SSLContext:
    return client_context(load_identity(identity))


def _two_hours_ago() -> float:
    return time.time() - 7200
