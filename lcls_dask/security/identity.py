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

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from .. import config
from ..errors import IdentityError, TargetExistsError
from . import certificates as cert
from .files import (
    check_directory,
    make_private_directory,
    read_private,
    read_public,
    write_private,
    write_public,
)
from .issuer_keys import IssuerKeys
from .peer import Peer, Role, peer_of_certificate

#: The token's file in an identity's directory, where ``lcls.token`` names no other one.
TOKEN_FILE: Final = "token"


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
        """Public keys that this identity verifies tokens with; there may be none."""
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

    The old key is not looked at: it may be what has gone wrong, and a rotation that was interrupted is done again.

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
        There is no identity, or it has no authority of its own.
    """
    base = find_identity(directory)
    check_directory(base)
    introduced = [certificate for _, certificate in _introductions(base)]
    old = max(introduced, key=lambda certificate: certificate.not_valid_after_utc, default=None)
    if old is None:
        old = cert.load_certificate(read_public(base / "id.crt"))
    authority_key = cert.load_key(read_private(base / "CA.key"))
    authority = cert.load_certificate(read_public(base / "CA.crt"))
    role, user, cluster, hosts = cert.names_and_hosts(old)
    key = cert.new_key(key_type)
    certificate = cert.sign(
        authority, authority_key, key.public_key(), old.subject, role, user, cluster, hosts, None, clock
    )
    write_public(base / "id.crt", cert.certificate_pem(certificate))
    write_private(base / "id.key", cert.key_pem(key))
    for file in (base / "id").glob("*.crt"):
        file.unlink()
    return load_identity(base)


def inside(folder: Path, name: str) -> Path:
    """A file in a folder, by a name that somebody else has chosen: a distinguished name is anything."""
    if "/" in name or "\0" in name or name.startswith(".") or len(name.encode()) > 255:
        raise IdentityError(f"{name[:80]!r} cannot be the name of a file: the signer needs another name")
    return folder / name


def _introductions(base: Path) -> Iterator[tuple[Path, x509.Certificate]]:
    if (base / "id").is_dir():
        check_directory(base / "id")
        for file in sorted((base / "id").glob("*.crt")):
            yield file, cert.load_certificate(read_public(file))
