"""How a worker that a batch system has started comes to its certificate: a directory of one-time secrets.

All jobs of a cluster run one script, which may name a path but hold no secret. So the cluster's manager keeps secrets
in a directory that only its user can enter; each job takes one, by renaming it, and brings it to the issuer, which
gives a certificate for it once. The job's key is made in the job and stays on its machine.

::

    issuer.json         address of the issuer, user, cluster
    issuer.crt          authority of the issuer
    waiting/<name>      a secret and its deadline
    taken/<name>        the same, while the job that has taken it is on the way to the issuer
"""

import hashlib
import json
import os
import secrets
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ..errors import AccessError, IdentityError, UnreachableError
from . import certificates as cert
from .files import check_private_directory, make_private_directory, read_private, write_private
from .identity import TOKEN_FILE, Identity, create_identity
from .introductions import accept
from .issuer_client import announce_secrets, ask, connected
from .peer import Role
from .tls import anonymous_context


@dataclass(frozen=True)
class Enrolment:
    """A directory of secrets.

    Attributes
    ----------
    directory : Path
    issuer : str
        Address: ``https://host:port``.
    user, cluster : str
    """

    directory: Path
    issuer: str
    user: str
    cluster: str

    @property
    def waiting(self) -> list[Path]:
        """Secrets that nobody has taken and that are good for more than half of their time, the oldest first."""
        now = time.time()
        return [path for path in _names(self.directory / "waiting") if _half_time(path) > now]

    def add(self, manager: Identity, count: int, minutes: float) -> None:
        """Announce new secrets, and put them there; remove those whose time is over.

        Parameters
        ----------
        manager : Identity
            Of the cluster.
        count : int
        minutes : float
            For which they are good.

        Raises
        ------
        AccessError
            The cluster is closed.
        OSError
            The issuer cannot be reached.
        """
        made = [secrets.token_urlsafe(32) for _ in range(count)]
        deadline = announce_secrets(manager, self.issuer, [_hash(secret) for secret in made], minutes)
        begin = time.time()
        for number, secret in enumerate(made):
            # the name tells when to replace it and when it ends, and nothing of the secret
            name = f"{begin + minutes * 30:.0f}-{deadline:.0f}-{number:04d}-{secrets.token_hex(4)}"
            write_private(self.directory / "waiting" / name, secret.encode())
        for folder in ("waiting", "taken"):
            for path in _names(self.directory / folder):
                if _deadline(path) < time.time():
                    path.unlink(missing_ok=True)

    def take(self) -> str | None:
        """Take a secret that nobody else has taken.

        Returns
        -------
        str or None
            None: there is none now.
        """
        for path in reversed(_names(self.directory / "waiting")):
            if _deadline(path) <= time.time():
                continue
            own = self.directory / "taken" / path.name
            try:
                os.rename(path, own)
            except FileNotFoundError:
                continue  # another job was first
            secret = read_private(own).decode()
            own.unlink()
            return secret
        return None


def create_enrolment(directory: Path, issuer: str, authority: x509.Certificate, user: str, cluster: str) -> Enrolment:
    """Make a directory of secrets, without any.

    Parameters
    ----------
    directory : Path
        Where the jobs can see it.
    issuer : str
        Address: ``https://host:port``.
    authority : cryptography.x509.Certificate
        Of the issuer.
    user, cluster : str

    Returns
    -------
    Enrolment
    """
    for folder in (directory, directory / "waiting", directory / "taken"):
        make_private_directory(folder)
    write_private(directory / "issuer.crt", cert.certificate_pem(authority))
    about = {"issuer": issuer, "user": user, "cluster": cluster}
    write_private(directory / "issuer.json", json.dumps(about).encode())
    return Enrolment(directory, issuer, user, cluster)


def open_enrolment(directory: Path) -> Enrolment:
    """Open a directory of secrets.

    Parameters
    ----------
    directory : Path

    Returns
    -------
    Enrolment

    Raises
    ------
    IdentityError
        It is none, or others could look into it.
    """
    for folder in (directory, directory / "waiting", directory / "taken"):
        check_private_directory(folder)
    try:
        about = json.loads(read_private(directory / "issuer.json"))
        return Enrolment(directory, str(about["issuer"]), str(about["user"]), str(about["cluster"]))
    except (ValueError, KeyError, TypeError):
        raise IdentityError(f"{directory / 'issuer.json'} is damaged: start the cluster again") from None


def enrol(directory: Path, target: Path, patience: float = 60.0) -> Identity:
    """Become a worker of a cluster: make a key, take a secret, and bring both to the issuer.

    Parameters
    ----------
    directory : Path
        Of secrets.
    target : Path
        For the identity; must be empty or not there.
    patience : float
        Seconds to wait for a secret, and for an issuer that does not answer.

    Returns
    -------
    Identity

    Raises
    ------
    IdentityError
        The issuer refuses, or is none.
    UnreachableError
        There was no secret, or no issuer, in time.
    """
    enrolment = open_enrolment(directory)
    made = create_identity(target, Role.WORKER, enrolment.user, cluster=enrolment.cluster)
    key = cert.load_key(read_private(made.key_file))
    request = cert.certificate_pem(cert.request(key, made.certificate)).decode()
    context = anonymous_context([cert.load_certificate(read_private(directory / "issuer.crt"))])
    end, pause, trouble = time.monotonic() + patience, 0.05, f"{directory} holds no secret that is still good"
    while True:
        try:
            # a secret is taken once the issuer is there, and is sent once: who sends it twice looks like a thief
            with connected(enrolment.issuer, context) as connection:
                if (secret := enrolment.take()) is not None:
                    body = json.dumps({"secret": secret, "request": request}).encode()
                    answer = ask(connection, enrolment.issuer, "POST", "/v1/enrolments", body)
                    break
        except AccessError:
            raise
        except ssl.SSLError as error:
            raise IdentityError(f"{enrolment.issuer} is not this cluster's issuer ({error.reason})") from None
        except OSError as error:
            trouble = f"{enrolment.issuer} does not answer ({error.strerror or type(error).__name__})"
        if time.monotonic() > end:
            raise UnreachableError(f"{trouble}, for {patience:g} s: does the process that started the cluster run?")
        time.sleep(pause)
        pause = min(2 * pause, 2.0)
    token = answer.pop("token", None)
    identity = accept(target, json.dumps(answer), trust=True)
    if token is not None:
        write_private(target / TOKEN_FILE, str(token).encode())
    return identity


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _names(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _half_time(path: Path) -> float:
    return float(path.name.split("-")[0])


def _deadline(path: Path) -> float:
    return float(path.name.split("-")[1])
