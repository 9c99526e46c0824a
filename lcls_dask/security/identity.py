"""An identity: a directory in the layout of ``certified``, so that both programs read what the other wrote.

::

    CA.key  CA.crt                  this identity's own authority, with which it introduces others
    id.key  id.crt                  this identity, signed by its own authority
    id/<signer>.crt                 the same key, signed by others; named by the signer's distinguished name
    known_servers/<alias>.yaml      services: url, certificate of their authority, names of accepted signers
    known_servers/*.crt             authorities whose servers are trusted
    known_clients/*.crt             authorities whose clients are trusted
    known_issuers/*.pub             (this package's) public keys that tokens are verified with

Keys are 0600, directories 0700; what others could read, or change, is refused.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography import x509

from .. import config
from ..errors import IdentityError, TargetExistsError
from . import certificates as cert
from .capability import IssuerKeys
from .files import (
    check_directory,
    make_private_directory,
    read_private,
    read_public,
    write_private,
    write_public,
)
from .peer import Peer, Role, is_authority, peer_of_certificate

#: The token's file in an identity's directory, where ``lcls.token`` names no other one.
TOKEN_FILE: Final = "token"

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Service:
    """A service that an identity knows.

    Attributes
    ----------
    url : str
    certificate : cryptography.x509.Certificate or None
        Of the authority that signs for it.
    signers : tuple of str
        Names of signers whose introductions it accepts.
    """

    url: str
    certificate: x509.Certificate | None
    signers: tuple[str, ...]


@dataclass(frozen=True)
class Identity:
    """A directory with a key and certificates for it. The key itself is not kept in memory.

    Attributes
    ----------
    directory : Path
    certificate : cryptography.x509.Certificate
        The one to present.
    certificate_file : Path
    """

    directory: Path
    certificate: x509.Certificate
    certificate_file: Path

    @property
    def key_file(self) -> Path:
        """The private key's file."""
        return self.directory / "id.key"

    @property
    def peer(self) -> Peer:
        """Whom others see."""
        return peer_of_certificate(self.certificate)

    def issuer_keys(self) -> IssuerKeys:
        """Public keys that this identity verifies tokens with."""
        return IssuerKeys.load(self.directory / "known_issuers")


def find_identity(directory: str | os.PathLike[str] | None = None) -> Path:
    """Where the identity is: argument, ``lcls.identity``, ``CERTIFIED_CONFIG``, or the user's directory.

    Parameters
    ----------
    directory : path-like, optional

    Returns
    -------
    Path
        It need not be there.

    Examples
    --------
    >>> find_identity("here").name
    'here'
    """
    if directory is not None:
        return Path(directory).expanduser()
    return config.identity()


def load_identity(directory: str | os.PathLike[str] | None = None, signer: str | None = None) -> Identity:
    """Read an identity and check its files' modes.

    Parameters
    ----------
    directory : path-like, optional
        As `find_identity`.
    signer : str, optional
        Distinguished name (RFC 4514) of the signer whose introduction to present. Without it: the
        introduction that lasts longest, or where there is none ``id.crt``.

    Returns
    -------
    Identity

    Raises
    ------
    IdentityError
        It is not there, others can read the key or write a certificate, or key and certificate do not fit.
    """
    base = find_identity(directory)
    check_directory(base)
    public = cert.load_key(read_private(base / "id.key")).public_key()
    own = [(file, certificate) for file, certificate in _introductions(base) if certificate.public_key() == public]
    if signer is not None:
        own = [(file, certificate) for file, certificate in own if cert.rfc4514(certificate.issuer) == signer]
        if not own:
            raise IdentityError(f"{base} has no certificate signed by {signer}: lcls-dask identity accept it")
    if own:
        file, certificate = max(own, key=lambda entry: entry[1].not_valid_after_utc)
    else:
        file, certificate = base / "id.crt", cert.load_certificate(read_public(base / "id.crt"))
        if certificate.public_key() != public:
            raise IdentityError(
                f"{file} is not for the key {base / 'id.key'}: lcls-dask identity rotate makes new ones"
            )
    return Identity(base, certificate, file)


def create_identity(
    directory: str | os.PathLike[str],
    role: Role,
    user: str,
    *,
    cluster: str | None = None,
    name: str | None = None,
    hosts: Iterable[str] = (),
    key_type: str = "ed25519",
    lifetime: timedelta | None = None,
    clock: Callable[[], float] = time.time,
) -> Identity:
    """Make an identity with an authority of its own; nobody trusts it until somebody introduces it.

    Parameters
    ----------
    directory : path-like
        Must be empty or not there.
    role : Role
    user : str
    cluster : str, optional
    name : str, optional
        Common name; user and role by default.
    hosts : iterable of str
        Host names and addresses of a server.
    key_type : {"ed25519", "secp256r1"}
    lifetime : datetime.timedelta, optional
        By the role, where it is not given.
    clock : callable
        Seconds since the epoch.

    Returns
    -------
    Identity

    Raises
    ------
    TargetExistsError
        Something is there already.
    IdentityError
        A name is malformed.

    Examples
    --------
    >>> create_identity("alice", Role.USER, "alice").peer.user
    'alice'
    """
    base = Path(directory).expanduser()
    if base.exists() and any(base.iterdir()):
        raise TargetExistsError(f"{base} is not empty: choose another directory, or lcls-dask identity rotate")
    subject = cert.name_of(name or f"{user} {role}", user)
    authority_key, key = cert.new_key(key_type), cert.new_key(key_type)
    authority = cert.new_authority(authority_key, cert.authority_name(subject), clock)
    certificate = cert.sign(
        authority, authority_key, key.public_key(), subject, role, user, cluster, hosts, lifetime, clock
    )
    for folder in (base, base / "id", base / "known_servers", base / "known_clients", base / "known_issuers"):
        make_private_directory(folder)
    write_private(base / "CA.key", cert.key_pem(authority_key))
    write_public(base / "CA.crt", cert.certificate_pem(authority))
    write_private(base / "id.key", cert.key_pem(key))
    write_public(base / "id.crt", cert.certificate_pem(certificate))
    return load_identity(base)


def introduce(
    directory: str | os.PathLike[str],
    subject: bytes,
    *,
    role: Role | None = None,
    user: str | None = None,
    cluster: str | None = None,
    hosts: Iterable[str] | None = None,
    lifetime: timedelta | None = None,
    services: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Sign another's certificate or request with the authority of an identity.

    Parameters
    ----------
    directory : path-like
        The identity that signs.
    subject : bytes
        A request, or the certificate to sign anew: PEM, or base64 of DER.
    role, user, cluster, hosts : optional
        What the certificate shall say; what the subject says of itself where it is not given.
    lifetime : datetime.timedelta, optional
        By the role, where it is not given.
    services : dict of str to str, optional
        Aliases and URLs of services that the subject shall know.
    clock : callable
        Seconds since the epoch.

    Returns
    -------
    dict
        The introduction, as ``certified introduce`` writes it: `signed_cert`, `ca_cert` and maybe `services`.

    Raises
    ------
    IdentityError
        The subject names no role or user and none is given, or this identity has no authority.
    """
    base = find_identity(directory)
    check_directory(base)
    authority_key = cert.load_key(read_private(base / "CA.key"))
    authority = cert.load_certificate(read_public(base / "CA.crt"))
    loaded = cert.load_subject(subject)
    if is_authority(loaded):
        raise IdentityError("the subject is an authority; introduce its id.crt")
    if role is None or user is None:
        role_there, user_there, cluster_there, hosts_there = cert.names_and_hosts(loaded)
        role, user = role or role_there, user or user_there
        cluster = cluster or cluster_there
        hosts = hosts_there if hosts is None else hosts
    name = loaded.subject if list(loaded.subject) else cert.name_of(f"{user} {role}", user)
    signed = cert.sign(
        authority,
        authority_key,
        cert.accepted(loaded.public_key()),
        name,
        role,
        user,
        cluster,
        hosts or (),
        lifetime,
        clock,
    )
    introduction: dict[str, Any] = {
        "signed_cert": cert.certificate_to_base64(signed),
        "ca_cert": cert.certificate_to_base64(authority),
    }
    return introduction | ({"services": dict(services)} if services else {})


def accept(directory: str | os.PathLike[str], introduction: str | bytes, trust: bool = False) -> Identity:
    """Keep a certificate that somebody else has signed for this identity.

    Parameters
    ----------
    directory : path-like
    introduction : str or bytes
        JSON with `signed_cert` and `ca_cert`, maybe `services` and an issuer's `issuer_key`.
    trust : bool
        Also trust the signer's servers and clients, and the tokens of its issuer.

    Returns
    -------
    Identity
        With the certificate that was signed.

    Raises
    ------
    IdentityError
        It is for another key, the signature is wrong, or it is no introduction.
    """
    base = find_identity(directory)
    check_directory(base)
    try:
        content = json.loads(introduction)
        signed = cert.certificate_from_base64(str(content["signed_cert"]))
        authority = cert.certificate_from_base64(str(content["ca_cert"]))
    except (ValueError, KeyError, TypeError):
        raise IdentityError(
            "no introduction: JSON with signed_cert and ca_cert, as identity introduce writes it"
        ) from None
    if not cert.is_signed_by(signed, authority) or is_authority(signed):
        raise IdentityError("the introduction's certificate is not signed by the authority beside it")
    public = cert.load_key(read_private(base / "id.key")).public_key()
    if signed.public_key() != public:
        raise IdentityError(f"the introduction is for another key than {base / 'id.key'}")
    peer_of_certificate(signed)
    signer = cert.rfc4514(authority.subject)
    make_private_directory(base / "id")
    write_public(_inside(base / "id", f"{signer}.crt"), cert.certificate_pem(signed))
    for alias, url in (content.get("services") or {}).items():
        entry = {"url": str(url), "cert": content["ca_cert"], "auths": [signer]}
        make_private_directory(base / "known_servers")
        write_public(_inside(base / "known_servers", f"{_alias(alias)}.yaml"), yaml.safe_dump(entry).encode())
    if trust:
        trust_authority(base, authority)
        if "issuer_key" in content:
            pem = str(content["issuer_key"]).encode()
            IssuerKeys([pem])
            make_private_directory(base / "known_issuers")
            write_public(base / "known_issuers" / f"{_authority_alias(authority)}.pub", pem)
    return load_identity(base, signer)


def trust_authority(directory: str | os.PathLike[str], authority: x509.Certificate) -> None:
    """Trust servers and clients that an authority has signed.

    Parameters
    ----------
    directory : path-like
    authority : cryptography.x509.Certificate

    Raises
    ------
    IdentityError
        It is no authority.
    """
    if not is_authority(authority):
        raise IdentityError("only an authority can be trusted to sign: give its CA.crt")
    for folder in ("known_servers", "known_clients"):
        target = find_identity(directory) / folder
        make_private_directory(target)
        write_public(target / f"{_authority_alias(authority)}.crt", cert.certificate_pem(authority))


def trusted(directory: str | os.PathLike[str], folder: str = "known_clients") -> list[x509.Certificate]:
    """Authorities that an identity trusts, its own not among them.

    A gateway that trusted the authority whose key lies beside its own would be an issuer, and so would be
    whoever breaks into it. ``certified`` puts that one there as ``self.crt``.

    Parameters
    ----------
    directory : path-like
    folder : {"known_clients", "known_servers"}

    Returns
    -------
    list of cryptography.x509.Certificate

    Raises
    ------
    IdentityError
        Others can write there, or a file is no certificate.
    """
    base = find_identity(directory)
    if not (base / folder).is_dir():
        return []
    check_directory(base / folder)
    own = read_public(base / "CA.crt") if (base / "CA.crt").is_file() else None
    found = [cert.load_certificate(read_public(file)) for file in sorted((base / folder).glob("*.crt"))]
    return [authority for authority in found if own is None or authority != cert.load_certificate(own)]


def known_services(directory: str | os.PathLike[str]) -> dict[str, Service]:
    """Services that an identity knows, by alias.

    Parameters
    ----------
    directory : path-like

    Returns
    -------
    dict of str to Service

    Raises
    ------
    IdentityError
        A file cannot be understood, or others can write it.
    """
    services = {}
    for file in sorted((find_identity(directory) / "known_servers").glob("*.yaml")):
        try:
            entry = yaml.safe_load(read_public(file))
            certificate = cert.certificate_from_base64(str(entry["cert"])) if entry.get("cert") else None
            services[file.stem] = Service(str(entry["url"]), certificate, tuple(map(str, entry.get("auths") or ())))
        except (yaml.YAMLError, KeyError, TypeError, AttributeError):
            raise IdentityError(f"{file} is no service: it needs url, cert and auths") from None
    return services


def list_certificates(directory: str | os.PathLike[str]) -> list[tuple[Path, x509.Certificate]]:
    """All certificates of an identity, its own first, then those of others.

    Parameters
    ----------
    directory : path-like

    Returns
    -------
    list of tuple
        File and certificate.
    """
    base = find_identity(directory)
    check_directory(base)
    files = [base / "id.crt", *sorted((base / "id").glob("*.crt")), base / "CA.crt"]
    files += [file for folder in ("known_servers", "known_clients") for file in sorted((base / folder).glob("*.crt"))]
    return [(file, cert.load_certificate(read_public(file))) for file in files if file.is_file()]


def rotate_identity(
    directory: str | os.PathLike[str], key_type: str = "ed25519", clock: Callable[[], float] = time.time
) -> Identity:
    """Give an identity a new key, for the same names; introductions of the old key are removed.

    Parameters
    ----------
    directory : path-like
    key_type : {"ed25519", "secp256r1"}
    clock : callable
        Seconds since the epoch.

    Returns
    -------
    Identity
        Signed by its own authority; ask for new introductions.

    Raises
    ------
    IdentityError
        As `load_identity`, or the identity has no authority of its own.
    """
    identity = load_identity(directory)
    base = identity.directory
    authority_key = cert.load_key(read_private(base / "CA.key"))
    authority = cert.load_certificate(read_public(base / "CA.crt"))
    role, user, cluster, hosts = cert.names_and_hosts(identity.certificate)
    key = cert.new_key(key_type)
    subject = identity.certificate.subject
    certificate = cert.sign(
        authority, authority_key, key.public_key(), subject, role, user, cluster, hosts, None, clock
    )
    for file in (base / "id").glob("*.crt"):
        file.unlink()
    write_private(base / "id.key", cert.key_pem(key))
    write_public(base / "id.crt", cert.certificate_pem(certificate))
    return load_identity(base)


def _introductions(base: Path) -> Iterator[tuple[Path, x509.Certificate]]:
    if (base / "id").is_dir():
        check_directory(base / "id")
        for file in sorted((base / "id").glob("*.crt")):
            yield file, cert.load_certificate(read_public(file))


def _inside(folder: Path, name: str) -> Path:
    # a distinguished name is anything that its owner has chosen
    if "/" in name or "\0" in name or name.startswith(".") or len(name.encode()) > 255:
        raise IdentityError(f"{name[:80]!r} cannot be the name of a file: the signer needs another name")
    return folder / name


def _alias(name: object) -> str:
    if not isinstance(name, str) or not _ALIAS.fullmatch(name):
        raise IdentityError(f"{str(name)[:80]!r} is no alias of a service: letters, digits and . _ -")
    return name


def _authority_alias(authority: x509.Certificate) -> str:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return f"ca-{identifier.digest.hex()[:16]}"
