"""What a process knows about who may do what: its own certificate, whom it trusts, policy and revocations."""

import ssl
from pathlib import Path

from ..errors import IdentityError
from ..security import Authoriser, IssuerKeys, Peer, PolicyFile, load_identity, server_context
from ..security.certificates import load_certificate
from ..security.files import read_public
from .revoked import SharedRevocations
from .settings import Settings


class Authority:
    """Built from files, at which `renewed` looks again.

    Parameters
    ----------
    settings : Settings
    shared : Path
        The list of revocations that other gateways share with this one.

    Raises
    ------
    LclsError
        One of the files is missing, malformed, or readable by others.
    """

    def __init__(self, settings: Settings, shared: Path) -> None:
        self._settings = settings
        self._revocations = SharedRevocations(settings.revocations, shared)
        self._stamp = _stamp(settings)
        if not (keys := self._issuer_keys()):
            raise IdentityError("no issuer's public key is known: take biscuit.pub from the issuer's directory")
        self.authoriser = Authoriser(keys, PolicyFile(settings.policy), self._revocations)

    def context(self) -> ssl.SSLContext:
        """TLS with the gateway's certificate as it is now; a client certificate is required."""
        trust = [load_certificate(read_public(path)) for path in self._settings.trust] or None
        return server_context(load_identity(self._settings.identity), trust)

    def revoked(self, peer: Peer) -> bool:
        """Whether a peer's certificate is revoked."""
        return peer.serial in self._revocations

    def renewed(self) -> ssl.SSLContext | None:
        """Take what has changed of the gateway's certificate, of whom it trusts, and of issuers' keys.

        Returns
        -------
        ssl.SSLContext or None
            For new connections; None where nothing has changed since this last gave one.

        Raises
        ------
        IdentityError
            Something is not as it must be: what was in force stays, and the next call tries again.
        """
        stamp = _stamp(self._settings)
        if stamp == self._stamp:
            return None
        keys, context = self._issuer_keys(), self.context()
        self.authoriser.use(keys)
        self._stamp = stamp
        return context

    def _issuer_keys(self) -> IssuerKeys:
        return IssuerKeys.load(*(self._settings.issuers or [self._settings.identity / "known_issuers"]))


def _stamp(settings: Settings) -> tuple[tuple[str, int, int, int], ...]:
    found = []
    for place in (settings.identity, *settings.trust, *settings.issuers):
        for path in sorted(place.rglob("*.*")) if place.is_dir() else [place]:
            try:
                stat = path.stat()
            except FileNotFoundError:  # replaced at this very moment: the next look sees what by
                continue
            found.append((str(path), stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    return tuple(found)
