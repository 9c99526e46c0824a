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

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """What one connection presents: a token is bound to the certificate.

    Attributes
    ----------
    context : ssl.SSLContext
    token : str or None
    generation : int
        Of the certificate.
    """

    context: ssl.SSLContext
    token: str | None
    generation: int

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
            if issuer is None:
                if time.time() > self._identity.peer.not_after:
                    raise IdentityError(
                        f"{self._directory}: the certificate has expired; lcls-dask identity rotate, or set lcls.issuer"
                    )
                self._read_token()
            else:
                self._renew(issuer, refused)
            return Pass(self._context, self._token, self._generation)

    def _renew(self, issuer: str, refused: bool) -> None:
        now = time.time()
        if now > self._certificate_half or self._written != _stamp(self._identity.certificate_file):
            try:
                self._use(renew_if_due(self._identity, issuer), self._generation + 1)
            except (LclsError, OSError) as error:
                if now > self._identity.peer.not_after:
                    raise
                self._certificate_half = now + 60  # it lasts as long again: ask later
                _log.warning("the certificate could not be renewed yet: %s", error)
        if not refused and now < self._token_half:
            return
        try:
            token = fetch_token(self._identity, issuer, minutes=config.token_minutes())
        except (LclsError, OSError) as error:
            if refused or now > self._token_end:
                raise
            self._token_half = now + 10
            _log.warning("the token could not be renewed yet: %s", error)
            return
        self._token, self._token_end = token, read_unverified(token).expires
        self._token_half = _half(now, self._token_end)

    def _read_token(self) -> None:
        path = config.token_file() or self._directory / TOKEN_FILE
        try:
            stamp = _stamp(path)
        except FileNotFoundError:
            self._token = self._stamp = None  # the gateway says what is missing
            return
        if stamp != self._stamp:
            self._token, self._stamp = read_private(path).decode("ascii", "replace").strip(), stamp

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
