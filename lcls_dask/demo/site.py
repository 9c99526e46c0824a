"""A small site around the demo's runs: an issuer, identities, a policy, and a gateway in a process of its own."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from dask import config

from ..errors import GatewayError
from ..gateway.audit import SUFFIX, parse_line
from ..security import Right, Role, create_identity, create_revocations, load_identity
from ..security.certificates import certificate_pem, load_certificate
from ..security.files import make_private_directory, read_public, write_private
from ..security.introductions import accept
from ..security.issuer import create_issuer, narrowed, open_issuer
from ..security.policy import PolicyFile
from ..security.trust import trust_authority

_SERVE = "import sys; from lcls_dask.cli import main; sys.exit(main())"
_HOSTS = ("localhost", "127.0.0.1")
#: As long as a token can be: nothing here renews it, and the demo is over sooner.
_MINUTES = 60.0


@dataclass(frozen=True)
class Site:
    """A directory that only its owner can enter, with all keys, the policy and the audit.

    Attributes
    ----------
    folder : Path
    runs : Path
        Root of the experiments that the gateway serves.
    """

    folder: Path
    runs: Path

    @property
    def audit_folder(self) -> Path:
        """Where the gateway's processes write who read what."""
        return self.folder / "audit"

    @property
    def policy(self) -> Path:
        """Who belongs to which experiment."""
        return self.folder / "policy.toml"

    @property
    def revocations(self) -> Path:
        """What is no longer good."""
        return self.folder / "revoked.txt"

    def identity(
        self,
        name: str,
        role: Role = Role.USER,
        *,
        user: str | None = None,
        hosts: Iterable[str] = (),
        issuer: str = "issuer",
        lifetime: timedelta | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Path:
        """Make an identity that an issuer has signed, and that trusts the site's own.

        Parameters
        ----------
        name : str
            Of its directory; of the user too, where no other is given.
        role : Role
        user : str, optional
        hosts : iterable of str
        issuer : str
            Directory of who signs.
        lifetime : datetime.timedelta, optional
        clock : callable
            The issuer's.

        Returns
        -------
        Path
        """
        directory = self.folder / name
        made = create_identity(directory, role, user or name, hosts=hosts)
        signer = open_issuer(self.folder / issuer, clock)
        subject = certificate_pem(made.certificate)
        signed = signer.sign(subject, role, user or name, hosts=hosts, lifetime=lifetime)
        accept(directory, json.dumps(signed), trust=True)
        trust_authority(directory, load_certificate(read_public(self.folder / "issuer" / "CA.crt")))
        return directory

    def token(
        self,
        identity: Path,
        rights: Iterable[Right] | None = None,
        *,
        issuer: str = "issuer",
        clock: Callable[[], float] = time.time,
    ) -> str:
        """Sign a token for an identity's certificate.

        Parameters
        ----------
        identity : Path
        rights : iterable of Right, optional
            All that policy grants, where it is not given.
        issuer : str
            Directory of who signs.
        clock : callable
            The issuer's.

        Returns
        -------
        str
        """
        peer = load_identity(identity).peer
        granted = narrowed(PolicyFile(self.policy), peer.user) if rights is None else rights
        return open_issuer(self.folder / issuer, clock).token(peer, granted, _MINUTES)

    def audit(self) -> list[Mapping[str, Any]]:
        """All that the audit says, in the order of time."""
        lines = [line for file in self.audit_folder.glob(f"*{SUFFIX}") for line in file.read_bytes().splitlines()]
        return sorted(filter(None, map(parse_line, lines)), key=lambda record: float(record["time"]))


def build_site(folder: Path, runs: Path, members: Mapping[str, str]) -> Site:
    """Make the issuer, the gateway's identity, and for each user an identity with a token for her experiment.

    Parameters
    ----------
    folder : Path
        Empty; made private.
    runs : Path
        Root of the experiments.
    members : mapping of str to str
        The one experiment of each user.

    Returns
    -------
    Site

    Examples
    --------
    >>> build_site(Path("site"), Path("runs"), {"alice": "tmosim01"}).policy.read_text()  # doctest: +SKIP
    '[experiments.tmosim01]\\nmembers = ["alice"]\\n'
    """
    make_private_directory(folder)
    site = Site(folder, runs)
    create_issuer(folder / "issuer")
    policy = "".join(f'[experiments.{experiment}]\nmembers = ["{user}"]\n' for user, experiment in members.items())
    write_private(site.policy, policy.encode())
    create_revocations(site.revocations)
    site.identity("gateway", Role.GATEWAY, hosts=_HOSTS)
    for user in members:
        identity = site.identity(user)
        write_private(identity / "token", site.token(identity).encode())
    return site


@contextmanager
def serving(site: Site) -> Iterator[int]:
    """Run ``lcls-dask serve`` on this machine.

    Parameters
    ----------
    site : Site

    Yields
    ------
    int
        The port, of 127.0.0.1.

    Raises
    ------
    GatewayError
        It does not start.
    """
    command = [sys.executable, "-c", _SERVE, "serve", "--port", "0", "--root", site.runs]
    command += ["--identity", site.folder / "gateway", "--policy", site.policy, "--revocations", site.revocations]
    command += ["--audit", site.audit_folder, "--state", f"sqlite:///{site.folder / 'gateway.db'}"]
    log = site.folder / "gateway.log"
    with (
        log.open("wb") as told,
        subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=told, umask=0o077) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                said = log.read_text(errors="replace").strip().splitlines()
                raise GatewayError(f"the demo's gateway did not start: {said[-1] if said else 'it said nothing'}")
            yield int(json.loads(line)["port"])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def acting_as(site: Site, user: str, port: int) -> Iterator[None]:
    """Be a user: this process, and the Dask workers that it starts meanwhile, know where her identity lies.

    The gateway is not asked where the files are: they are on this machine, and all shall come through it.

    Parameters
    ----------
    site : Site
    user : str
    port : int
        Of the gateway.
    """
    settings = {"gateway": f"https://localhost:{port}", "identity": str(site.folder / user), "direct": False}
    with config.set({f"lcls.{name}": value for name, value in settings.items()}):
        yield


def secrets_in(site: Site, data: bytes) -> int:
    """How many of the site's tokens and private keys some bytes hold.

    Parameters
    ----------
    site : Site
    data : bytes

    Returns
    -------
    int
    """
    private = (path for path in site.folder.rglob("*") if path.name == "token" or path.suffix == ".key")
    return sum(path.read_bytes().strip() in data for path in private)
