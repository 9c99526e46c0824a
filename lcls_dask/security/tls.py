"""TLS 1.2 or later, with a certificate demanded of both sides."""

import ssl
import time
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509

from ..errors import IdentityError
from .certificates import certificate_pem
from .files import read_private
from .identity import Identity
from .peer import Peer, Role, peer_of
from .trust import trusted

_ABOUT_TIME = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


def server_context(identity: Identity, trust: Iterable[x509.Certificate] | None = None) -> ssl.SSLContext:
    """Context of a server that turns away, in the handshake, whoever has no certificate of a trusted authority.

    Parameters
    ----------
    identity : Identity
    trust : iterable of cryptography.x509.Certificate, optional
        Authorities of clients; those in ``known_clients`` by default, its own not among them.

    Returns
    -------
    ssl.SSLContext
        Loading a renewed certificate into it (`reload_certificate`) is enough for new connections.

    Raises
    ------
    IdentityError
        No authority is trusted, or others can read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _prepared(context, identity, trusted(identity.directory) if trust is None else trust)


def client_context(identity: Identity, trust: Iterable[x509.Certificate] | None = None) -> ssl.SSLContext:
    """Context of a client that presents its certificate and checks the server's, its host name too.

    Parameters
    ----------
    identity : Identity
    trust : iterable of cryptography.x509.Certificate, optional
        Authorities of servers; those in ``known_servers`` by default, its own not among them.

    Returns
    -------
    ssl.SSLContext

    Raises
    ------
    IdentityError
        No authority is trusted, or others can read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return _prepared(context, identity, trusted(identity.directory, "known_servers") if trust is None else trust)


def anonymous_context(trust: Iterable[x509.Certificate]) -> ssl.SSLContext:
    """Context of a client that has no certificate yet, and checks the server's and its host name.

    Parameters
    ----------
    trust : iterable of cryptography.x509.Certificate
        Authorities of servers.

    Returns
    -------
    ssl.SSLContext
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _hardened(context, trust)
    return context


def reload_certificate(context: ssl.SSLContext, identity: Identity) -> None:
    """Present another certificate on connections that are made from now on.

    Parameters
    ----------
    context : ssl.SSLContext
    identity : Identity

    Raises
    ------
    IdentityError
        Key and certificate do not fit, or others can read the key.
    """
    read_private(identity.key_file)  # the mode is checked each time
    try:
        context.load_cert_chain(identity.certificate_file, identity.key_file)
    except (ssl.SSLError, OSError):
        raise IdentityError(
            f"{identity.certificate_file} and {identity.key_file} do not fit; look with lcls-dask identity list"
        ) from None


def check_role(der: bytes | None, role: Role) -> Peer:
    """Whom a connection leads to, and that it has the role that was expected.

    A host name alone tells a gateway from a worker on the same machine in nothing.

    Parameters
    ----------
    der : bytes or None
        ``getpeercert(binary_form=True)``.
    role : Role

    Returns
    -------
    Peer

    Raises
    ------
    IdentityError
        There is no certificate, or it has another role.
    """
    if der is None:
        raise IdentityError("the other side has shown no certificate")
    peer = peer_of(der)
    if peer.role is not role:
        raise IdentityError(f"the other side is a {peer.role} of {peer.user}, expected was: {role}")
    return peer


def untrusted(error: ssl.SSLCertVerificationError) -> str:
    """Why this side does not trust a certificate; with its own clock, where that has decided.

    Parameters
    ----------
    error : ssl.SSLCertVerificationError

    Returns
    -------
    str
    """
    said = f"its certificate cannot be trusted: {error.verify_message}"
    if error.verify_code in _ABOUT_TIME:
        now = datetime.fromtimestamp(time.time(), UTC)
        said += f", if this machine's clock is right, which says {now:%Y-%m-%d %H:%M:%S UTC}"
    return said


def _prepared(context: ssl.SSLContext, identity: Identity, trust: Iterable[x509.Certificate]) -> ssl.SSLContext:
    authorities = list(trust)
    if not authorities:
        raise IdentityError(f"{identity.directory} trusts no authority: lcls-dask identity trust CA.crt")
    _hardened(context, authorities)
    reload_certificate(context, identity)
    return context


def _hardened(context: ssl.SSLContext, trust: Iterable[x509.Certificate]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=b"".join(map(certificate_pem, trust)).decode())
