"""Who may connect to whom inside one user's Dask cluster: a pure rule over two certificates."""

import hashlib
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ...errors import IdentityError
from ..peer import Peer, Role, peer_of

#: Whom a listener of a role lets in.
CALLERS: Final = {
    Role.SCHEDULER: frozenset({Role.USER, Role.WORKER, Role.MANAGER}),
    Role.WORKER: frozenset({Role.SCHEDULER, Role.WORKER}),
}
#: Who may answer when a role dials.
ANSWERS: Final = {
    Role.USER: frozenset({Role.SCHEDULER}),
    Role.MANAGER: frozenset({Role.SCHEDULER}),
    Role.WORKER: frozenset({Role.SCHEDULER, Role.WORKER}),
    Role.SCHEDULER: frozenset({Role.WORKER}),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """The other end of a connection.

    Attributes
    ----------
    peer : Peer
        Whom its certificate names.
    key : str
        SHA-256 of its public key, hexadecimal: a renewed certificate is for the same key.
    """

    peer: Peer
    key: str


@lru_cache(maxsize=1024)
def caller_of(der: bytes) -> Caller:
    """Whom a certificate names that TLS has verified.

    Parameters
    ----------
    der : bytes

    Returns
    -------
    Caller

    Raises
    ------
    IdentityError
        It names not exactly one role and one user.
    """
    peer = peer_of(der)
    public = x509.load_der_x509_certificate(der).public_key()
    return Caller(
        peer, hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    )


def refusal(own: Peer, other: Peer, roles: Container[Role], revoked: Container[str], now: float) -> str | None:
    """Why two processes may not talk, None where they may.

    Parameters
    ----------
    own, other : Peer
    roles : container of Role
        Roles that `other` may have: `CALLERS` or `ANSWERS` of one's own role.
    revoked : container of str
        Serials.
    now : float
        Seconds since the epoch.

    Returns
    -------
    str or None
        The reason as the audit has it.

    Examples
    --------
    >>> alice = Peer(Role.SCHEDULER, "alice", "c1", "1", "", 0.0, 9.0)
    >>> bob = Peer(Role.USER, "bob", None, "2", "", 0.0, 9.0)
    >>> refusal(alice, bob, CALLERS[Role.SCHEDULER], (), 1.0)
    'another user'
    """
    if other.user != own.user:
        return "another user"
    if other.role not in roles:
        return "wrong role"
    # people belong to no cluster; whatever else there is does, and the scheduler that a user dials may be any of hers
    if other.cluster != own.cluster and not (
        (other.role is Role.USER and other.cluster is None) or (own.role is Role.USER and own.cluster is None)
    ):
        return "another cluster"
    if now > other.not_after:
        return "certificate expired"
    if now < other.not_before:
        return "certificate not yet valid"
    return "certificate revoked" if other.serial in revoked else None


def check_own(peer: Peer) -> None:
    """Refuse a certificate that no process of a cluster, and nobody who uses one, can have.

    Parameters
    ----------
    peer : Peer

    Raises
    ------
    IdentityError
        The role is none of a cluster's, or a process names no cluster.
    """
    if peer.role not in ANSWERS:
        raise IdentityError(f"a {peer.role} has no part in a Dask cluster: use a certificate of {', '.join(ANSWERS)}")
    if peer.role is not Role.USER and peer.cluster is None:
        raise IdentityError(f"the {peer.role}'s certificate names no cluster: sign it with --cluster")
