"""The issuer: the one place with the keys that sign certificates and tokens.

Its directory is an identity (``certified`` can read it) and besides holds ``biscuit.key`` and ``biscuit.pub``, the pair
that tokens are signed and verified with, and ``issued.jsonl``, what it has signed. Gateways and readers get
``CA.crt`` and ``biscuit.pub``.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
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
from .capability import Right, read_unverified
from .files import append, locked, read_private, read_public, write_private, write_public
from .identity import Identity, create_identity, find_identity, load_identity
from .introductions import introduce
from .issuer_keys import TokenError
from .peer import Peer, Role, hosts_of, peer_of_certificate
from .policy import Policy
from .revocations import Revocations, revoke
from .tokens import issue

logger = logging.getLogger(__name__)

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
        revocations: Revocations | None = None,
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
        revocations : Revocations, optional
            Whether it names `parent` is asked at the last moment, so that nothing escapes `revoke`.

        Returns
        -------
        dict
            The introduction, as `lcls_dask.security.introductions.introduce` gives it, and `issuer_key`.

        Raises
        ------
        IdentityError
            The subject is neither, its key is not accepted, a name is malformed, or `parent` is revoked.
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
        signed = cert.certificate_from_base64(introduction["signed_cert"])
        with self._ledger() as ledger:
            if parent is not None:
                _check(parent, revocations)
            self._record(ledger, **_certificate(signed), renews=parent)
        return introduction | {"issuer_key": self.public_key.decode()}

    def renew(
        self,
        certificate: x509.Certificate,
        request: bytes,
        revocations: Revocations | None = None,
        lifetime: timedelta | None = None,
    ) -> dict[str, Any]:
        """Sign the certificate of somebody who has presented a good one, for the same names and no longer.

        Parameters
        ----------
        certificate : cryptography.x509.Certificate
            The one presented, verified by TLS.
        request : bytes
            A certificate request (PEM); only its key is used.
        revocations : Revocations, optional
            Asked at the last moment, so that nothing escapes `revoke`; it must not be behind its list.
        lifetime : datetime.timedelta, optional
            Less than that of the certificate presented, which it lasts as long as otherwise.

        Returns
        -------
        dict
            The introduction, as `sign` gives it.

        Raises
        ------
        IdentityError
            It is no request, or not signed with its key, or the certificate is revoked.
        """
        peer = peer_of_certificate(certificate)
        subject = cert.load_subject(request)
        if not isinstance(subject, x509.CertificateSigningRequest):
            raise IdentityError("renewing takes a certificate request, which proves that its key is held")
        longest = cert.lifetime_of(certificate)
        with self._ledger() as ledger:
            _check(peer.serial, revocations)
            signed = cert.sign(
                self.authority,
                self._authority_key,
                cert.accepted(subject.public_key()),
                certificate.subject,
                peer.role,
                peer.user,
                peer.cluster,
                hosts_of(certificate),
                longest if lifetime is None else min(lifetime, longest),
                self.clock,
            )
            self._record(ledger, **_certificate(signed), renews=peer.serial)
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

    def revoke(self, serial: str, path: str | os.PathLike[str], reason: str) -> list[str]:
        """Revoke a certificate and all that came from it, as `renewed_from` finds them.

        Nothing is signed meanwhile: who has stolen a key could else renew its certificate faster than it is revoked.

        Parameters
        ----------
        serial : str
            Hexadecimal.
        path : path-like
            The list of revocations.
        reason : str

        Returns
        -------
        list of str
            Serials that are now on the list.
        """
        with self._ledger():
            serials = self.renewed_from(serial)
            revoke(path, serials, reason)
        return serials

    def renewed_from(self, serial: str) -> list[str]:
        """Serials of certificates that came from one, directly or not, itself first: renewed, or of its clusters.

        Who has stolen a key may have renewed its certificate, or started a cluster: revoking one serial is not enough.
        A cluster is its manager's: with any certificate of that go all of the cluster, the older ones too.
        """
        found = dict.fromkeys([serial])
        signed = [entry for entry in self.issued() if entry["kind"] == "certificate"]
        for entry in signed:
            if entry["renews"] in found:
                found[entry["serial"]] = None
        managers = [entry for entry in signed if entry["serial"] in found and entry["role"] == Role.MANAGER]
        ended = {(entry["user"], entry["cluster"]) for entry in managers if entry["cluster"] is not None}
        found |= dict.fromkeys(entry["serial"] for entry in signed if (entry["user"], entry["cluster"]) in ended)
        return list(found)

    def issued(self) -> Iterator[dict[str, Any]]:
        """What was signed, the oldest first; a line that a full disk has cut, of what was never given out, is none."""
        path = self.directory / "issued.jsonl"
        if path.exists():
            for line in read_private(path).splitlines():
                try:
                    yield json.loads(line)
                except ValueError:
                    logger.warning("%s: a line is cut and passed over", path)

    def record(self, **entry: Any) -> None:
        """Append a line to ``issued.jsonl``; never a key, a token or a secret.

        Parameters
        ----------
        **entry
            What JSON can hold.

        Raises
        ------
        OSError
            The disk is full: what is not recorded must not be given out.
        """
        with self._ledger() as ledger:
            self._record(ledger, **entry)

    def _ledger(self) -> AbstractContextManager[int]:
        """The list of what was signed, for one process at a time."""
        return locked(self.directory / "issued.jsonl", 0o600)

    def _record(self, ledger: int, **entry: Any) -> None:
        append(ledger, (json.dumps({"time": _text(self.clock()), **entry}) + "\n").encode())


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


def _check(serial: str, revocations: Revocations | None) -> None:
    if revocations is not None and serial in revocations:
        raise IdentityError("the certificate was revoked: ask the issuer's operator for a new one")


def _certificate(certificate: x509.Certificate) -> dict[str, Any]:
    peer = peer_of_certificate(certificate)
    return {
        "kind": "certificate",
        "serial": peer.serial,
        "role": str(peer.role),
        "user": peer.user,
        "cluster": peer.cluster,
        "until": _text(peer.not_after),
    }


def thumbprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, hexadecimal: what a token is bound to."""
    return certificate.fingerprint(SHA256()).hex()


def _for_tokens(key: cert.PrivateKey) -> biscuit_auth.PrivateKey:
    return biscuit_auth.PrivateKey.from_pem(cert.key_pem(key).decode())  # type: ignore[attr-defined,no-any-return]


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
