"""Introductions: an authority signs for another identity, which keeps what was signed."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from ..errors import IdentityError
from . import certificates as cert
from .files import check_directory, make_private_directory, read_private, read_public, write_public
from .identity import Identity, find_identity, inside, load_identity
from .peer import Role, is_authority, peer_of_certificate
from .trust import Service, know_service, trust_authority, trust_issuer


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
        services = {alias: str(url) for alias, url in (content.get("services") or {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
    write_public(inside(base / "id", f"{signer}.crt"), cert.certificate_pem(signed))
    for alias, url in services.items():
        know_service(base, alias, Service(url, authority, (signer,)))
    if trust:
        trust_authority(base, authority)
        if "issuer_key" in content:
            trust_issuer(base, authority, str(content["issuer_key"]).encode())
    return load_identity(base, signer)
