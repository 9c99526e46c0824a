"""The issuer: the one place with the keys that sign certificates and tokens.

Its directory is an identity (``certified`` can read it) and besides holds ``biscuit.key`` and ``biscuit.pub``, the pair
that tokens are signed and verified with, and ``issued.jsonl``, what it has signed. Gateways and readers get
``CA.crt`` and ``biscuit.pub``.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import biscuit_auth
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ..errors import AccessError, IdentityError, TargetExistsError
from . import certificates as cert
from .authoriser import READERS
from .capability import Right, TokenError, issue, read_unverified
from .files import read_private, read_public, write_private, write_public
from .identity import Identity, create_identity, find_identity, introduce, load_identity
from .peer import Peer, Role, hosts_of, peer_of_certificate
from .policy import Policy

DEFAULT_MINUTES: Final = 10.0
LONGEST_MINUTES: Final = 60.0


@dataclass(frozen=True)
class Issuer:
    """An issuer's directory, opened for signing.

    Attributes
    ----------
    identity : Identity
    authority : cryptography.x509.Certificate
    clock : callable
        Seconds since the epoch.
    """

    identity: Identity
    authority: x509.Certificate
    clock: Callable[[], float] = time.time
    _authority_key: cert.PrivateKey = field(repr=False, kw_only=True)
    _token_key: biscuit_auth.PrivateKey = field(repr=False, kw_only=True)

    @property
    def directory(self) -> Path:
        """Where the keys are."""
        return self.identity.directory

    @property
    def public_key(self) -> bytes:
        """The public key that verifies its tokens, PEM."""
        return read_public(self.directory / "biscuit.pub")

    def sign(
        self,
        subject: bytes,
        role: Role,
        user: str,
        *,
        cluster: str | None = None,
        hosts: Iterable[str] = (),
        lifetime: timedelta | None = None,
        services: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> dict[str, Any]:
        """Sign a certificate for whom the caller has found to be that user.

        Parameters
        ----------
        subject : bytes
            A request or a certificate, PEM or base64 of DER; only its key and distinguished name are used.
        role : Role
        user : str
        cluster : str, optional
        hosts : iterable of str
            Host names and addresses of a server.
        lifetime : datetime.timedelta, optional
            By the role, where it is not given.
        services : dict of str to str, optional
            Aliases and URLs of services that the subject shall know.
        parent : str, optional
            Serial of the certificate whose holder has asked for it; who revokes that one can revoke this one too.

        Returns
        -------
        dict
            The introduction, as `lcls_dask.security.identity.introduce` gives it, and `issuer_key`.

        Raises
        ------
        IdentityError
            The subject is neither, its key is not accepted, or a name is malformed.
        """
        introduction = introduce(
            self.directory,
            subject,
            role=role,
            user=user,
            cluster=cluster,
            hosts=hosts,
            lifetime=lifetime,
            services=services,
            clock=self.clock,
        )
        self._record_certificate(cert.certificate_from_base64(introduction["signed_cert"]), parent)
        return introduction | {"issuer_key": self.public_key.decode()}

    def renew(self, certificate: x509.Certificate, request: bytes, lifetime: timedelta | None = None) -> dict[str, Any]:
        """Sign the certificate of somebody who has presented a good one, for the same names.

        Parameters
        ----------
        certificate : cryptography.x509.Certificate
            The one presented, verified by TLS.
        request : bytes
            A certificate request (PEM); only its key is used.
        lifetime : datetime.timedelta, optional
            By the role, where it is not given.

        Returns
        -------
        dict
            The introduction, as `sign` gives it.

        Raises
        ------
        IdentityError
            It is no request, or not signed with its key.
        """
        peer = peer_of_certificate(certificate)
        subject = cert.load_subject(request)
        if not isinstance(subject, x509.CertificateSigningRequest):
            raise IdentityError("renewing takes a certificate request, which proves that its key is held")
        signed = cert.sign(
            self.authority,
            self._authority_key,
            cert.accepted(subject.public_key()),
            certificate.subject,
            peer.role,
            peer.user,
            peer.cluster,
            hosts_of(certificate),
            lifetime,
            clock=self.clock,
        )
        self._record_certificate(signed, peer.serial)
        return {
            "signed_cert": cert.certificate_to_base64(signed),
            "ca_cert": cert.certificate_to_base64(self.authority),
            "issuer_key": self.public_key.decode(),
        }

    def token(self, holder: Peer, rights: Iterable[Right], minutes: float = DEFAULT_MINUTES) -> str:
        """Sign a token, bound to a certificate.

        Parameters
        ----------
        holder : Peer
        rights : iterable of Right
        minutes : float
            60 at most; never beyond the certificate's end.

        Returns
        -------
        str

        Raises
        ------
        TokenError
            It would last too long, allow nothing, or is for a role that reads nothing.
        """
        if not 0 < minutes <= LONGEST_MINUTES:
            raise TokenError(f"a token for {minutes:g} minutes: give more than 0 and at most {LONGEST_MINUTES:g}")
        if holder.role not in READERS:
            raise TokenError(f"a {holder.role} reads no data: tokens are for {' and '.join(sorted(READERS))}")
        granted = list(rights)
        expires = min(self.clock() + minutes * 60, holder.not_after)
        token = issue(self._token_key, holder.user, holder.thumbprint, granted, expires)
        self.record(
            kind="token",
            token_id=read_unverified(token).revocation_ids[0],
            user=holder.user,
            serial=holder.serial,
            until=_text(expires),
            rights=[
                [right.experiment, sorted(right.operations), right.first, right.last, right.detectors]
                for right in granted
            ],
        )
        return token

    def renewed_from(self, serial: str) -> list[str]:
        """Serials of certificates that came from one, directly or not, itself first: renewed, or of its clusters.

        Who has stolen a key may have renewed its certificate, or started a cluster: revoking one serial is not enough.
        """
        found = [serial]
        for entry in self.issued():
            if entry.get("renews") in found:
                found.append(entry["serial"])
        return found

    def issued(self) -> Iterator[dict[str, Any]]:
        """What was signed, the oldest first."""
        path = self.directory / "issued.jsonl"
        if path.exists():
            for line in read_private(path).splitlines():
                yield json.loads(line)

    def record(self, **entry: Any) -> None:
        """Append a line to ``issued.jsonl``; never a key, a token or a secret.

        Parameters
        ----------
        **entry
            What JSON can hold.
        """
        line = json.dumps({"time": _text(self.clock()), **entry}) + "\n"
        descriptor = os.open(
            self.directory / "issued.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _record_certificate(self, certificate: x509.Certificate, parent: str | None = None) -> None:
        peer = peer_of_certificate(certificate)
        self.record(
            kind="certificate",
            serial=peer.serial,
            role=str(peer.role),
            user=peer.user,
            cluster=peer.cluster,
            until=_text(peer.not_after),
            renews=parent,
        )


def create_issuer(
    directory: str | os.PathLike[str],
    name: str = "LCLS issuer",
    hosts: Iterable[str] = (),
    key_type: str = "ed25519",
    clock: Callable[[], float] = time.time,
) -> Issuer:
    """Make an issuer: an authority, an identity to serve with, and a pair of keys for tokens.

    Parameters
    ----------
    directory : path-like
        Must be empty or not there.
    name : str
        Common name; signed certificates tell it.
    hosts : iterable of str
        Where it will be reached, should it serve.
    key_type : {"ed25519", "secp256r1"}
        Of the keys for certificates; tokens are always signed with Ed25519.
    clock : callable
        Seconds since the epoch.

    Returns
    -------
    Issuer

    Raises
    ------
    TargetExistsError
        Something is there already.

    Examples
    --------
    >>> create_issuer("issuer").identity.peer.role
    <Role.ISSUER: 'issuer'>
    """
    base = Path(directory).expanduser()
    if base.exists() and any(base.iterdir()):
        raise TargetExistsError(f"{base} is not empty: an issuer needs a directory of its own")
    create_identity(base, Role.ISSUER, "issuer", name=name, hosts=hosts, key_type=key_type, clock=clock)
    # always Ed25519: anybody can turn an ECDSA signature into another that is good too, and a token's signature is its
    # revocation id
    key = cert.new_key("ed25519")
    write_private(base / "biscuit.key", cert.key_pem(key))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_public(base / "biscuit.pub", public)
    return open_issuer(base, clock)


def open_issuer(directory: str | os.PathLike[str], clock: Callable[[], float] = time.time) -> Issuer:
    """Open an issuer's directory.

    Parameters
    ----------
    directory : path-like
    clock : callable
        Seconds since the epoch.

    Returns
    -------
    Issuer

    Raises
    ------
    IdentityError
        There is no issuer, or others can read a key.
    """
    base = find_identity(directory)
    identity = load_identity(base)
    authority_key = cert.load_key(read_private(base / "CA.key"))
    authority = cert.load_certificate(read_public(base / "CA.crt"))
    token_key = cert.load_key(read_private(base / "biscuit.key"))
    return Issuer(identity, authority, clock, _authority_key=authority_key, _token_key=_for_tokens(token_key))


def narrowed(policy: Policy, user: str, wanted: Iterable[Right] | None = None) -> list[Right]:
    """What a policy grants a user of what is wanted, or everything.

    Parameters
    ----------
    policy : Policy
    user : str
    wanted : iterable of Right, optional

    Returns
    -------
    list of Right

    Raises
    ------
    AccessError
        Of something that is wanted nothing is granted. The same is said of an experiment that is not there.
    """
    if wanted is None:
        granted = {name: policy.operations(user, name) for name in sorted(policy.experiments(user))}
        rights = [Right(name, allowed) for name, allowed in granted.items() if allowed]
        if not rights:
            raise AccessError(f"{user} is a member of no experiment: ask its principal investigator")
        return rights
    rights = []
    for right in wanted:
        operations = right.operations & policy.operations(user, right.experiment)
        if not operations:
            raise AccessError(f"nothing of this is granted to {user} for {right.experiment}: ask for other experiments")
        rights.append(Right(right.experiment, operations, right.first, right.last, right.detectors))
    return rights


def thumbprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, hexadecimal: what a token is bound to."""
    return certificate.fingerprint(SHA256()).hex()


def _for_tokens(key: cert.PrivateKey) -> biscuit_auth.PrivateKey:
    return biscuit_auth.PrivateKey.from_pem(cert.key_pem(key).decode())  # type: ignore[attr-defined,no-any-return]


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
