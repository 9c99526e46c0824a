"""Who is at the other end of a TLS connection: one role and one user, read from its certificate."""

import enum
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509

from ..errors import IdentityError

_URN = "urn:lcls:"
#: Names of users and clusters: what a file name, a log line and a URI can hold without quoting.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
#: Clocks differ by some seconds: a certificate begins so long before it is signed, and is good at once everywhere.
BACKDATED_S = 60.0


class Role(enum.StrEnum):
    """What a certificate's holder is; a certificate has exactly one role.

    Examples
    --------
    >>> Role("worker")
    <Role.WORKER: 'worker'>
    """

    USER = "user"
    SCHEDULER = "scheduler"
    WORKER = "worker"
    MANAGER = "manager"
    GATEWAY = "gateway"
    ISSUER = "issuer"


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom a certificate names.

    Attributes
    ----------
    role : Role
    user : str
        On whose behalf the holder acts: a worker of alice's cluster has the user alice.
    cluster : str or None
    serial : str
        Serial number, hexadecimal without leading zeros.
    thumbprint : str
        SHA-256 of the certificate (DER), hexadecimal.
    not_before, not_after : float
        Seconds since the epoch.
    """

    role: Role
    user: str
    cluster: str | None
    serial: str
    thumbprint: str
    not_before: float
    not_after: float

    @property
    def half_time(self) -> float:
        """When half of the time from its signing to its end has gone: then it is renewed. Seconds since the epoch."""
        return (min(self.not_before + BACKDATED_S, self.not_after) + self.not_after) / 2


def peer_of(der: bytes) -> Peer:
    """Read role, user and cluster from a certificate that TLS has verified.

    Parameters
    ----------
    der : bytes
        The certificate, as ``getpeercert(binary_form=True)`` gives it.

    Returns
    -------
    Peer

    Raises
    ------
    IdentityError
        It is no certificate of a person or a process with exactly one role and exactly one user. Whether it is
        signed by anybody, and valid now, is for TLS and the authoriser to say.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
    except ValueError:
        raise IdentityError("the peer's certificate cannot be parsed; make one with lcls-dask identity") from None
    return peer_of_certificate(certificate, hashlib.sha256(der).hexdigest())


def peer_of_certificate(certificate: x509.Certificate, thumbprint: str | None = None) -> Peer:
    """Read role, user and cluster from a parsed certificate.

    Parameters
    ----------
    certificate : cryptography.x509.Certificate
    thumbprint : str, optional
        Where it is known already.

    Returns
    -------
    Peer

    Raises
    ------
    IdentityError
        As `peer_of`.
    """
    if is_authority(certificate):
        raise IdentityError("the certificate is an authority's, made for signing; present id.crt")
    role, user, cluster = names_of(uris_of(certificate))
    if thumbprint is None:
        from cryptography.hazmat.primitives.hashes import SHA256

        thumbprint = certificate.fingerprint(SHA256()).hex()
    return Peer(
        role,
        user,
        cluster,
        f"{certificate.serial_number:x}",
        thumbprint,
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def names_of(uris: Iterable[str]) -> tuple[Role, str, str | None]:
    """Role, user and cluster that ``urn:lcls:`` URIs name; other URIs are passed over.

    Parameters
    ----------
    uris : iterable of str

    Returns
    -------
    role : Role
    user : str
    cluster : str or None

    Raises
    ------
    IdentityError
        There is not exactly one role and one user, there are several clusters, or a name is malformed.

    Examples
    --------
    >>> names_of(["urn:lcls:role:worker", "urn:lcls:user:alice", "urn:lcls:cluster:c1"])
    (<Role.WORKER: 'worker'>, 'alice', 'c1')
    """
    found: dict[str, list[str]] = {"role": [], "user": [], "cluster": []}
    for uri in uris:
        if uri.lower().startswith(_URN):
            kind, _, value = uri[len(_URN) :].partition(":")
            if kind not in found or not NAME.fullmatch(value):
                raise IdentityError(f"the certificate names {uri[:120]!r}, which is no role, user or cluster")
            found[kind].append(value)
    for kind, most in (("role", "exactly one"), ("user", "exactly one"), ("cluster", "at most one")):
        if len(found[kind]) > 1 or (not found[kind] and kind != "cluster"):
            raise IdentityError(
                f"the certificate names {len(found[kind])} {kind}s, needed is {most}: ask for a new one"
            )
    try:
        role = Role(found["role"][0])
    except ValueError:
        known = ", ".join(Role)
        raise IdentityError(f"the certificate names the role {found['role'][0]!r}; known are {known}") from None
    return role, found["user"][0], found["cluster"][0] if found["cluster"] else None


def uris_for(role: Role, user: str, cluster: str | None = None) -> list[str]:
    """Write role, user and cluster as URIs of a certificate.

    Parameters
    ----------
    role : Role
    user : str
    cluster : str, optional

    Returns
    -------
    list of str

    Raises
    ------
    IdentityError
        A name is malformed.

    Examples
    --------
    >>> uris_for(Role.USER, "alice")
    ['urn:lcls:role:user', 'urn:lcls:user:alice']
    """
    for what, name in (("user", user), ("cluster", cluster)):
        if name is not None and not NAME.fullmatch(name):
            raise IdentityError(f"{name[:80]!r} is no name of a {what}: letters, digits and . _ @ -, 64 at most")
    uris = [f"{_URN}role:{role}", f"{_URN}user:{user}"]
    return uris if cluster is None else [*uris, f"{_URN}cluster:{cluster}"]


def uris_of(source: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """URIs among the alternative names of a certificate or a request, in their order."""
    return _alternative_names(source, x509.UniformResourceIdentifier)


def hosts_of(source: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """Host names and addresses among the alternative names of a certificate or a request."""
    return [*_alternative_names(source, x509.DNSName), *_alternative_names(source, x509.IPAddress)]


def is_authority(source: x509.Certificate | x509.CertificateSigningRequest) -> bool:
    """Whether a certificate may sign others."""
    try:
        return source.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _alternative_names(
    source: x509.Certificate | x509.CertificateSigningRequest,
    kind: type[x509.UniformResourceIdentifier] | type[x509.DNSName] | type[x509.IPAddress],
) -> list[str]:
    try:
        names = source.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except (ValueError, x509.DuplicateExtension):
        raise IdentityError("the certificate's alternative names cannot be parsed: ask for a new one") from None
    return [str(value) for value in names.get_values_for_type(kind)]
