"""Whom an identity trusts: authorities of servers and clients, issuers of tokens, and the services that it knows."""

import os
import re
from dataclasses import dataclass

import yaml
from cryptography import x509

from ..errors import IdentityError
from . import certificates as cert
from .files import check_directory, make_private_directory, read_public, write_public
from .identity import find_identity, inside
from .issuer_keys import IssuerKeys
from .peer import is_authority

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


def trust_issuer(directory: str | os.PathLike[str], authority: x509.Certificate, pem: bytes) -> None:
    """Trust the tokens that an issuer signs.

    Parameters
    ----------
    directory : path-like
    authority : cryptography.x509.Certificate
        Of the issuer.
    pem : bytes
        Its public key for tokens.

    Raises
    ------
    IdentityError
        It is no such key.
    """
    IssuerKeys([pem])
    target = find_identity(directory) / "known_issuers"
    make_private_directory(target)
    write_public(target / f"{_authority_alias(authority)}.pub", pem)


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


def know_service(directory: str | os.PathLike[str], alias: object, service: Service) -> None:
    """Keep a service.

    Parameters
    ----------
    directory : path-like
    alias : str
    service : Service

    Raises
    ------
    IdentityError
        The alias is none.
    """
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        raise IdentityError(f"{str(alias)[:80]!r} is no alias of a service: letters, digits and . _ -")
    certificate = cert.certificate_to_base64(service.certificate) if service.certificate else None
    entry = {"url": service.url, "cert": certificate, "auths": list(service.signers)}
    target = find_identity(directory) / "known_servers"
    make_private_directory(target)
    write_public(inside(target, f"{alias}.yaml"), yaml.safe_dump(entry).encode())


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


def _authority_alias(authority: x509.Certificate) -> str:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return f"ca-{identifier.digest.hex()[:16]}"
