"""What a process knows about who may do what: its own certificate, whom it trusts, policy and revocations."""

import ssl

from ..security import Authoriser, IssuerKeys, Peer, PolicyFile, load_identity, server_context
from ..security.certificates import load_certificate
from ..security.files import read_public
from .revoked import SharedRevocations
from .settings import Settings
from .state import State


class Authority:
    """Built from files, at which `refresh` looks again.

    Parameters
    ----------
    settings : Settings

    Raises
    ------
    LclsError
        One of the files is missing, malformed, or readable by others.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._revocations = SharedRevocations(settings.revocations)
        keys = (
            IssuerKeys.load(*settings.issuers) if settings.issuers else load_identity(settings.identity).issuer_keys()
        )
        self.authoriser = Authoriser(keys, PolicyFile(settings.policy), self._revocations)
        self._stamp = _stamp(settings)

    def context(self) -> ssl.SSLContext:
        """TLS with the gateway's certificate as it is now; a client certificate is required."""
        trust = [load_certificate(read_public(path)) for path in self._settings.trust] or None
        return server_context(load_identity(self._settings.identity), trust)

    def revoked(self, peer: Peer) -> bool:
        """Whether a peer's certificate is revoked."""
        return peer.serial in self._revocations

    def changed(self) -> bool:
        """Whether the gateway's certificate, or whom it trusts, has changed since it was last asked."""
        stamp = _stamp(self._settings)
        changed, self._stamp = stamp != self._stamp, stamp
        return changed

    def refresh(self, state: State) -> None:
        """Fetch revocations from the state database.

        Raises
        ------
        StateError
        """
        self._revocations.refresh(state)


def _stamp(settings: Settings) -> tuple[tuple[str, int, int], ...]:
    found = []
    for place in (settings.identity, *settings.trust):
        for path in sorted(place.rglob("*.*")) if place.is_dir() else [place]:
            try:
                stat = path.stat()
            except FileNotFoundError:  # replaced at this very moment: the next look sees what by
                continue
            found.append((str(path), stat.st_mtime_ns, stat.st_ino))
    return tuple(found)
