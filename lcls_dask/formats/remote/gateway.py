"""A gateway as its clients see it: pooled connections, and answers in spite of restarts."""

import atexit
import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import quote

from ... import config
from ...errors import (
    AccessError,
    FormatError,
    IdentityError,
    LclsError,
    RunNotFoundError,
    SnapshotError,
    UnreachableError,
)
from ...security.tls import untrusted
from .clocks import of_certificate, of_refusal
from .credentials import Credentials, Pass, credentials
from .http import Address, Answer, Connection, Get, parse_address

#: Connections that wait to be used again.
_MOST_IDLE = 16
#: Requests sent before their answers have come.
AHEAD = 4
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 5.0
#: The gateway, or something before it, is busy or away for a moment.
_TRY_AGAIN = frozenset((429, 502, 503, 504))
_SAFE = "/:@!$&'()*+,;=~"


def quoted(key: str) -> str:
    """A zarr key as it stands in a request."""
    return quote(key, safe=_SAFE)


@dataclass
class _Patience:
    """Waits longer and longer between attempts, until there were none that worked for too long."""

    address: Address
    begun: float = 0.0
    wait: float = _FIRST_WAIT

    def progress(self) -> None:
        self.begun, self.wait = 0.0, _FIRST_WAIT

    def pause(self, why: str, told: float | None = None, *, answered: bool = False) -> None:
        """Wait before the next attempt; `answered` where `why` is the gateway's own word.

        Raises
        ------
        UnreachableError
            There have been enough.
        """
        now = time.monotonic()
        self.begun = self.begun or now
        waited, limit = now - self.begun, config.patience()
        if waited > limit and answered:
            raise UnreachableError(
                f"{self.address}: has answered for {waited:.0f} s that {why}; lcls.patience says how long to try"
            )
        if waited > limit:
            raise UnreachableError(
                f"{self.address}: no answer for {waited:.0f} s ({why}); is the gateway running there? "
                "lcls.patience says how long to try"
            )
        # apart from each other: workers that lost a gateway together must not come back together
        time.sleep(told if told is not None else self.wait * random.uniform(0.5, 1.0))
        self.wait = min(2 * self.wait, _LONGEST_WAIT)


class Gateway:
    """A gateway, for all threads of a process.

    Parameters
    ----------
    address : Address
    credentials : Credentials
    """

    def __init__(self, address: Address, credentials: Credentials) -> None:
        self.address = address
        self._credentials = credentials
        self._idle: list[tuple[int, Connection]] = []
        self._lock = threading.Lock()
        self._process = os.getpid()

    def fetch(self, gets: Sequence[Get]) -> Iterator[Answer]:
        """Ask for several things, on one connection; answers come in order, whatever happens to it.

        Parameters
        ----------
        gets : sequence of Get

        Yields
        ------
        Answer
            Of a status below 300.

        Raises
        ------
        AccessError, RunNotFoundError, SnapshotError, FormatError
            The gateway refuses; the message is its own.
        UnreachableError
            It does not answer for longer than ``lcls.patience``.
        """
        patience, done, refused, fresh = _Patience(self.address), 0, False, False
        while done < len(gets):
            who = self._credentials.current(refused=refused)
            connection: Connection | None = None
            told: float | None = None
            answered = False
            try:
                connection, used = self._connection(who, fresh)
                for answer in connection.exchange(gets[done:], who.token, AHEAD):
                    if answer.status in _TRY_AGAIN:
                        told, why, answered = _seconds(answer.fields.get("retry-after")), _said(answer), True
                        break
                    if answer.status == 401 and not refused:
                        refused, told, why = True, 0.0, _said(answer)
                        break
                    if answer.status >= 300:
                        _raise(answer, gets[done], self.address, who.token)
                    done += 1
                    refused = False
                    patience.progress()
                    yield answer
                else:
                    self._keep(who, connection)
                    connection = None
                    continue
            except (IdentityError, ssl.SSLCertVerificationError) as error:
                raise IdentityError(f"{self.address}: {_told(error)}") from error
            except ssl.SSLError as error:
                if _about_us(error):
                    times = of_certificate(*who.lasts) if _about_time(error) else ""
                    raise AccessError(
                        f"{self.address}: does not accept this certificate ({_told(error)}{times}); "
                        "lcls-dask identity list shows it"
                    ) from error
                why = _told(error)
            except OSError as error:
                if isinstance(error, LclsError):
                    raise
                why = _told(error)
                if connection is not None and used and not fresh:
                    fresh = True  # a connection that lay idle may have been closed meanwhile: that is no failure
                    continue
            finally:
                if connection is not None:
                    connection.close()
            patience.pause(why, told, answered=answered)

    def document(self, target: str) -> Any:
        """A JSON document."""
        (answer,) = self.fetch([Get(target)])
        try:
            return json.loads(bytes(answer.body))
        except ValueError as error:
            raise FormatError(f"{self.address}{target}: is no JSON document; is a gateway there?") from error

    def _connection(self, who: Pass, fresh: bool) -> tuple[Connection, bool]:
        """A connection, and whether it was used before."""
        with self._lock:
            if self._process != os.getpid():  # a fork's connections are its parent's
                self._idle, self._process = [], os.getpid()
            while self._idle and not fresh:
                generation, connection = self._idle.pop()
                if generation == who.generation:
                    return connection, True
                connection.close()
        return Connection(self.address, who.context), False

    def _keep(self, who: Pass, connection: Connection) -> None:
        with self._lock:
            if connection.usable and len(self._idle) < _MOST_IDLE and self._process == os.getpid():
                self._idle.append((who.generation, connection))
                return
        connection.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a gateway's connections stay in the process that made them")

    def __repr__(self) -> str:
        return f"Gateway('{self.address}')"


def _seconds(text: str | None) -> float | None:
    return min(float(text), 60.0) if text is not None and text.isdigit() else None


def _told(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return untrusted(error)
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    return str(error) or type(error).__name__


def _about_us(error: ssl.SSLError) -> bool:
    """Whether the other side complains of our certificate (an alert that arrives after the handshake, in TLS 1.3)."""
    return "ALERT" in (error.reason or "") and "INTERNAL_ERROR" not in (error.reason or "")


def _about_time(error: ssl.SSLError) -> bool:
    """Whether it may be that the other side's clock is not ours: a certificate not good yet is a bad one to OpenSSL."""
    return any(word in (error.reason or "") for word in ("BAD_CERTIFICATE", "EXPIRED"))


def _said(answer: Answer) -> str:
    try:
        return str(json.loads(bytes(answer.body))["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status}"


def _raise(answer: Answer, get: Get, address: Address, token: str | None) -> NoReturn:
    """What a refusal means to who asked."""
    said, where = _said(answer), f"{address}{get.target.partition('/zarr/')[0]}"
    if answer.status == 401:
        times = of_refusal(said, answer.fields.get("date"), token)
        raise AccessError(f"{where}: {said}{times}; lcls-dask token issue, or set lcls.issuer")
    if answer.status == 403:
        raise AccessError(f"{where}: {said}")
    if answer.status == 404:
        raise RunNotFoundError(f"{where}: {said}")
    if answer.status == 410:
        raise SnapshotError(f"{where}: {said}")
    raise FormatError(f"{where}: the gateway cannot give {get.target.partition('/zarr/')[2] or 'it'}: {said}")


_GATEWAYS: dict[tuple[Address, int], Gateway] = {}
_LOCK = threading.Lock()


@atexit.register
def _hang_up() -> None:
    for gateway in list(_GATEWAYS.values()):
        gateway.close()


def gateway_at(address: str, find: Callable[[], Credentials] = credentials) -> Gateway:
    """The gateway at an address, once in each process and for each identity.

    Parameters
    ----------
    address : str
    find : callable
        Finds the credentials to present there.

    Returns
    -------
    Gateway
    """
    parsed, mine = parse_address(address), find()
    with _LOCK:
        return _GATEWAYS.setdefault((parsed, id(mine)), Gateway(parsed, mine))
