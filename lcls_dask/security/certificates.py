"""Keys and certificates, made with `cryptography`; in the forms that ``certified`` makes and reads."""

import base64
import binascii
import ipaddress
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import IdentityError
from .peer import BACKDATED_S, Role, hosts_of, is_authority, names_of, uris_for, uris_of

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
Subject = x509.Certificate | x509.CertificateSigningRequest

KEY_TYPES: Final = ("ed25519", "secp256r1")
_YEAR = timedelta(days=365)
#: How long a certificate is good for: hours for what computes, a year for people and services.
LIFETIMES: Final = {
    Role.USER: _YEAR,
    Role.GATEWAY: _YEAR,
    Role.ISSUER: _YEAR,
    Role.SCHEDULER: timedelta(hours=12),
    Role.WORKER: timedelta(hours=12),
    Role.MANAGER: timedelta(hours=12),
}
_AUTHORITY_LIFETIME = 10 * _YEAR
#: Short names of attributes that RFC 4514 has none for; the file names in ``id/`` are written with them.
_SHORT_NAMES = {
    NameOID.PSEUDONYM: "P",
    NameOID.DN_QUALIFIER: "DQ",
    NameOID.SERIAL_NUMBER: "S",
    NameOID.EMAIL_ADDRESS: "E",
    NameOID.TITLE: "T",
    NameOID.SURNAME: "SUR",
    NameOID.GIVEN_NAME: "NAME",
    NameOID.INITIALS: "IN",
    NameOID.GENERATION_QUALIFIER: "GEN",
}
_SERVERS = frozenset(Role) - {Role.USER, Role.MANAGER}


def new_key(key_type: str = "ed25519") -> PrivateKey:
    """Make a private key.

    Parameters
    ----------
    key_type : {"ed25519", "secp256r1"}

    Returns
    -------
    private key

    Raises
    ------
    IdentityError
        No such type.
    """
    if key_type == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if key_type == "secp256r1":
        return ec.generate_private_key(ec.SECP256R1())
    raise IdentityError(f"{key_type!r} is no type of key; known are {', '.join(KEY_TYPES)}")


def name_of(common_name: str, user: str | None = None) -> x509.Name:
    """Distinguished name of a person or a service."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if user is not None:
        attributes.append(x509.NameAttribute(NameOID.USER_ID, user))
    return x509.Name(attributes)


def authority_name(name: x509.Name) -> x509.Name:
    """Name of the authority that belongs to an identity, told apart from it as ``certified`` does."""
    return x509.Name([*name, x509.NameAttribute(NameOID.PSEUDONYM, "Signing Certificate")])


def rfc4514(name: x509.Name) -> str:
    """Distinguished name as text; the name of a signer's file in ``id/``.

    Examples
    --------
    >>> rfc4514(authority_name(name_of("Issuer")))
    'P=Signing Certificate,CN=Issuer'
    """
    return name.rfc4514_string(_SHORT_NAMES)


def new_authority(key: PrivateKey, name: x509.Name, clock: Callable[[], float] = time.time) -> x509.Certificate:
    """Certificate of an authority, signed by itself, which may sign people and processes but no further authority."""
    now = datetime.fromtimestamp(clock(), UTC)
    public = key.public_key()
    return (
        _builder(name, name, public, now, now + _AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(key, _hash(public))
    )


def sign(
    authority: x509.Certificate,
    authority_key: PrivateKey,
    public_key: PublicKey,
    name: x509.Name,
    role: Role,
    user: str,
    cluster: str | None = None,
    hosts: Iterable[str] = (),
    lifetime: timedelta | None = None,
    clock: Callable[[], float] = time.time,
) -> x509.Certificate:
    """Sign a certificate with exactly one role and one user.

    Parameters
    ----------
    authority : cryptography.x509.Certificate
    authority_key : private key
    public_key : public key
        Of the subject.
    name : cryptography.x509.Name
        Distinguished name of the subject; a user id in it (which ``certified`` goes by) is replaced by `user`.
    role : Role
    user : str
    cluster : str, optional
    hosts : iterable of str
        Host names and addresses of a server.
    lifetime : datetime.timedelta, optional
        By the role, where it is not given.
    clock : callable
        Seconds since the epoch.

    Returns
    -------
    cryptography.x509.Certificate

    Raises
    ------
    IdentityError
        A name is malformed, or the authority is none any more.
    """
    now = datetime.fromtimestamp(clock(), UTC)
    if not is_authority(authority) or now >= authority.not_valid_after_utc:
        raise IdentityError(f"{rfc4514(authority.subject)} may not sign certificates, or not any more")
    if name == authority.subject:
        raise IdentityError("the subject has the name of the authority: give it another --name")
    until = min(now + (LIFETIMES[role] if lifetime is None else lifetime), authority.not_valid_after_utc)
    names = [*map(x509.UniformResourceIdentifier, uris_for(role, user, cluster)), *map(_host, hosts)]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role in _SERVERS:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    signer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    named = x509.Name([a if a.oid != NameOID.USER_ID else x509.NameAttribute(NameOID.USER_ID, user) for a in name])
    return (
        _builder(named, authority.subject, public_key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, _hash(authority_key.public_key()))
    )


def lifetime_of(certificate: x509.Certificate) -> timedelta:
    """For how long a certificate was signed."""
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc - timedelta(seconds=BACKDATED_S)


def request(key: PrivateKey, certificate: x509.Certificate) -> x509.CertificateSigningRequest:
    """Ask for a certificate with the names of one that is there."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    builder = x509.CertificateSigningRequestBuilder().subject_name(certificate.subject)
    return builder.add_extension(names, critical=False).sign(key, _hash(key.public_key()))


def load_subject(data: bytes) -> Subject:
    """Read who asks for a certificate: a request or a certificate, PEM or base64 of DER.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    certificate or request

    Raises
    ------
    IdentityError
        It is neither, its signature is wrong, or its key is of a kind that is not accepted.
    """
    subject: Subject
    try:
        if b"CERTIFICATE REQUEST" in data:
            subject = x509.load_pem_x509_csr(data)
            if not subject.is_signature_valid:
                raise IdentityError("the request is not signed with the key it names")
        elif b"-----BEGIN" in data:
            subject = x509.load_pem_x509_certificate(data)
        else:
            subject = certificate_from_base64(data.decode())
    except (ValueError, UnicodeDecodeError):
        raise IdentityError("neither a request nor a certificate (PEM, or base64 of DER)") from None
    accepted(subject.public_key())
    return subject


def accepted(key: object) -> PublicKey:
    """Let an Ed25519 or P-256 public key pass, refuse others."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise IdentityError(f"a key of type {type(key).__name__} is not accepted: make one of {', '.join(KEY_TYPES)}")


def load_certificate(data: bytes) -> x509.Certificate:
    """Read a certificate, PEM or base64 of DER."""
    subject = load_subject(data)
    if not isinstance(subject, x509.Certificate):
        raise IdentityError("a request, where a certificate is needed")
    return subject


def load_key(data: bytes) -> PrivateKey:
    """Read a private key, PEM without a password."""
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError):
        raise IdentityError("not a private key (PEM, without a password)") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise IdentityError(f"a key of type {type(key).__name__} is not accepted: make one of {', '.join(KEY_TYPES)}")


def key_pem(key: PrivateKey) -> bytes:
    """A private key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_pem(certificate: Subject) -> bytes:
    """A certificate or request as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def certificate_to_base64(certificate: x509.Certificate) -> str:
    """A certificate as url-safe base64 of DER, the form in introductions and ``known_servers``."""
    return base64.urlsafe_b64encode(certificate.public_bytes(Encoding.DER)).decode()


def certificate_from_base64(text: str) -> x509.Certificate:
    """The certificate that `certificate_to_base64` has written."""
    try:
        return x509.load_der_x509_certificate(base64.b64decode(text.strip(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        raise IdentityError("not a certificate (base64 of DER)") from None


def is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority has signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return is_authority(authority)


def names_and_hosts(subject: Subject) -> tuple[Role, str, str | None, list[str]]:
    """Role, user, cluster and hosts that a certificate has, or a request asks for."""
    return *names_of(uris_of(subject)), hosts_of(subject)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: PublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=BACKDATED_S))
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise IdentityError(f"{name[:80]!r} is no host name (write international ones as xn--...)") from None


def _hash(public: PublicKey) -> hashes.SHA256 | None:
    return None if isinstance(public, ed25519.Ed25519PublicKey) else hashes.SHA256()
