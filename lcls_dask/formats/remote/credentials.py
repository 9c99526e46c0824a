"""Who this process is: its certificate and its token, found on this machine, renewed, and never sent to another."""

import logging
import os
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ... import config
from ...errors import IdentityError, LclsError
from ...security import Identity, Role, client_context, find_identity, load_identity
from ...security.capability import read_unverified
from ...security.files import read_private
from ...security.identity import TOKEN_FILE
from ...security.issuer_client import fetch_token, renew_if_due
from .clocks import utc

_log = logging.getLogger(__name__)

#: Seconds between two requests for a new certificate, unless it lasts only minutes.
_SOON = 60.0


@dataclass(frozen=True)
class Pass:
    """What one connection presents: a token is bound to the certificate.

    Attributes
    ----------
    context : ssl.SSLContext
    token : str or None
    generation : int
        Of the certificate.
    lasts : (float, float)
        From when to when the certificate is good, in seconds since the epoch.
    """

    context: ssl.SSLContext
    token: str | None
    generation: int
    lasts: tuple[float, float]

    def __repr__(self) -> str:
        return f"Pass(generation={self.generation})"


class Credentials:
    """An identity's certificate, and a token for it: from a file, or from an issuer.

    With ``lcls.issuer`` both are renewed when half of their time has gone.

    Parameters
    ----------
    directory : Path
        The identity.

    Raises
    ------
    IdentityError
        There is none, or others can read its key or its token.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._use(load_identity(directory), 0)

    def _use(self, identity: Identity, generation: int) -> None:
        self._identity, self._generation = identity, generation
        self._written = _stamp(identity.certificate_file)  # before it is read once more
        self._context = client_context(identity)
        self._certificate_half = identity.peer.half_time
        self._token: str | None = None
        self._token_half = self._token_end = 0.0
        self._stamp: tuple[int, int] | None = None
        if identity.peer.role is Role.WORKER:
            self._take_enrolled()

    def _take_enrolled(self) -> None:
        """The token that a worker was given with its certificate, for as long as both belong together."""
        try:
            token = read_private(self._directory / TOKEN_FILE).decode("ascii", "replace").strip()
            told = read_unverified(token)
        except IdentityError:
            return
        if told.holder == self._identity.peer.thumbprint:
            self._token, self._token_end = token, told.expires
            self._token_half = _half(time.time(), told.expires)

    def current(self, *, refused: bool = False) -> Pass:
        """What to present now.

        Parameters
        ----------
        refused : bool
            The last token was not accepted: get another one where that can be.

        Returns
        -------
        Pass
        """
        with self._lock:
            issuer = config.issuer()
            changed = (self._read_token() or refused) if issuer is None else self._renewed_elsewhere()
            if changed or time.time() > self._certificate_half:
                self._take_renewed()
            if issuer is None:
                self._without_issuer()
            else:
                self._renew(issuer, refused)
            lasts = self._identity.peer.not_before, self._identity.peer.not_after
            return Pass(self._context, self._token, self._generation, lasts)

    def _take_renewed(self) -> None:
        """Present the certificate that another process, or a person, has put into the directory since."""
        try:
            now = load_identity(self._directory)
        except IdentityError as error:  # it may be half written at this moment
            _log.warning("the identity cannot be read again: %s", error)
            return
        if now.certificate != self._identity.certificate:
            self._use(now, self._generation + 1)
        else:
            self._written = _stamp(now.certificate_file)

    def _renewed_elsewhere(self) -> bool:
        """Whether another process has put a certificate in the place of this one; a nanny renews for its workers."""
        try:
            return _stamp(self._identity.certificate_file) != self._written
        except FileNotFoundError:  # its key was rotated, and nobody has signed the new one yet
            return False

    def _without_issuer(self) -> None:
        """Make do with what lies in the directory."""
        now, end = time.time(), self._identity.peer.not_after
        if now > end:
            raise IdentityError(
                f"{self._directory}: the certificate was good until {utc(end)}, and this "
                f"machine's clock says {utc(now)}; lcls-dask identity rotate, or set lcls.issuer"
            )
        if now > self._certificate_half:
            self._certificate_half = min(now + _SOON, end)  # looked for again, but not at each request
        self._read_token()

    def _renew(self, issuer: str, refused: bool) -> None:
        now = time.time()
        if now > self._certificate_half:
            soon = min(_SOON, (self._identity.peer.not_after - self._identity.peer.half_time) / 2)
            try:
                self._use(renew_if_due(self._identity, issuer), self._generation + 1)
                # where this machine's clock is wrong, it may seem to be old already: not at each request
                self._certificate_half = max(self._certificate_half, now + soon)
            except (LclsError, OSError) as error:
                if now > self._identity.peer.not_after:
                    raise
                self._certificate_half = now + soon  # it lasts as long again: ask later
                _log.warning("the certificate could not be renewed yet: %s", error)
        if not refused and now < self._token_half:
            return
        minutes = config.token_minutes()
        try:
            # by this context: a token is bound to the certificate that asks for it, and another process may have
            # put another one into the directory since
            token = fetch_token(self._identity, issuer, minutes=minutes, context=self._context)
        except (LclsError, OSError) as error:
            if refused or now > self._token_end:
                raise
            self._token_half = now + 10
            _log.warning("the token could not be renewed yet: %s", error)
            return
        # by this clock alone: the issuer's may say something else
        self._token, self._token_end = token, now + 60 * minutes
        self._token_half = _half(now, self._token_end)

    def _read_token(self) -> bool:
        """Read the token's file where it has changed; whether it has."""
        path = config.token_file() or self._directory / TOKEN_FILE
        try:
            stamp = _stamp(path)
        except FileNotFoundError:
            self._token = self._stamp = None  # the gateway says what is missing
            return False
        if stamp == self._stamp:
            return False
        self._token, self._stamp = read_private(path).decode("ascii", "replace").strip(), stamp
        return True

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials stay in the process that found them")

    def __repr__(self) -> str:
        return f"Credentials({str(self._directory)!r})"


def _stamp(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_ino


def _half(begin: float, end: float) -> float:
    return begin + (end - begin) / 2


_FOUND: dict[Path, Credentials] = {}
_LOCK = threading.Lock()


def credentials(directory: str | os.PathLike[str] | None = None) -> Credentials:
    """This process's credentials, found once.

    Parameters
    ----------
    directory : path-like, optional
        As `find_identity`: ``lcls.identity``, ``CERTIFIED_CONFIG``, or the user's directory by default.

    Returns
    -------
    Credentials
    """
    path = find_identity(directory).absolute()
    with _LOCK:
        if path not in _FOUND:
            _FOUND[path] = Credentials(path)
        return _FOUND[path]
