"""The certificates of one cluster: of its scheduler, its manager and its workers, made for it and removed with it."""

import asyncio
import getpass
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import config
from ..errors import IdentityError, LclsError
from ..security import (
    FileRevocations,
    Identity,
    PolicyFile,
    Right,
    Role,
    create_identity,
    create_revocations,
    find_identity,
    load_identity,
    renewal,
)
from ..security import certificates as cert
from ..security.access import Operation
from ..security.enrolment import Enrolment, create_enrolment
from ..security.files import make_private_directory, read_private
from ..security.introductions import accept
from ..security.issuer import create_issuer
from ..security.issuer_client import close_cluster, open_cluster
from ..security.trust import trusted

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Domain:
    """Who signs for a cluster, and who its owner is there.

    Attributes
    ----------
    issuer : str
        Address: ``https://host:port``.
    owner : Identity
        Of the user.
    facility : bool
        Whether it is the facility's issuer, whose gateways know what it has signed.
    close : callable
        Ends what was started for it.
    """

    issuer: str
    owner: Identity
    facility: bool
    close: Callable[[], None]


@dataclass(frozen=True)
class Minted:
    """The identities of a cluster.

    Attributes
    ----------
    cluster : str
    domain : Domain
    directory : Path
        On this machine, for this user alone: all identities are in it.
    scheduler, manager : Path
        Their identities.
    enrolment : Enrolment
        One-time secrets of workers.
    """

    cluster: str
    domain: Domain
    directory: Path
    scheduler: Path
    manager: Path
    enrolment: Enrolment

    def close(self) -> None:
        """End the cluster at the issuer, and remove its keys and secrets."""
        for identity in self.directory.iterdir():
            renewal.stop(identity)
        try:
            close_cluster(load_identity(self.manager), self.domain.issuer, self.cluster)
        except (LclsError, OSError) as error:
            _log.warning("the issuer does not know yet that %s is over: %s", self.cluster, error)
        self.domain.close()
        for directory in (self.enrolment.directory, self.directory):
            shutil.rmtree(directory, ignore_errors=True)


def facility_domain(identity: str | os.PathLike[str] | None = None) -> Domain | None:
    """The facility's issuer and the user's own identity; None where ``lcls.issuer`` names none."""
    issuer = config.issuer()
    return None if issuer is None else Domain(issuer, load_identity(find_identity(identity)), True, lambda: None)


def own_domain(host: str) -> Domain:
    """An issuer for one cluster, served by a thread of this process: for a laptop, and where a facility has none.

    Its certificates open no gateway.

    Parameters
    ----------
    host : str
        Address of this machine at which workers reach it.

    Returns
    -------
    Domain
    """
    from ..security.issuer_service import make_server, serving

    base = Path(tempfile.mkdtemp(prefix="lcls-issuer-"))
    issuer = create_issuer(base / "issuer", f"issuer {base.name[-8:]}", hosts=[host])
    user = getpass.getuser()
    owner = create_identity(base / "owner", Role.USER, user)
    introduction = issuer.sign(cert.certificate_pem(owner.certificate), Role.USER, user)
    owner = accept(owner.directory, json.dumps(introduction), trust=True)
    policy, revoked = base / "policy.toml", config.revocations() or base / "revoked.txt"
    policy.touch(0o600)
    create_revocations(revoked)
    parts = issuer, PolicyFile(policy), FileRevocations(revoked, interval=0)
    ready: threading.Event = threading.Event()
    told: list[int | BaseException] = []
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def _serve() -> None:
        async with serving(make_server(*parts), host, 0) as port:
            told.append(port)
            ready.set()
            await stop.wait()

    def _run() -> None:
        try:
            loop.run_until_complete(_serve())
        except BaseException as error:
            told.append(error)
            raise
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=_run, name="lcls-issuer", daemon=True)
    thread.start()
    ready.wait()
    if isinstance(told[0], BaseException):
        raise IdentityError(f"an issuer cannot be served on {host}: {told[0]}")

    def _close() -> None:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        shutil.rmtree(base, ignore_errors=True)

    return Domain(f"https://{host}:{told[0]}", owner, False, _close)


def mint(
    domain: Domain, experiments: Iterable[str] | None, hours: float, worker_hours: float, shared: Path | None = None
) -> Minted:
    """Make the certificates of a new cluster.

    Parameters
    ----------
    domain : Domain
    experiments : iterable of str, optional
        What its workers may read; all that its owner may, where it is not given.
    hours, worker_hours : float
        For which certificates are good, of its scheduler and manager, and of its workers; they are renewed at half of
        them.
    shared : Path, optional
        Directory that the workers' machines see, for their secrets; on this machine where it is not given.

    Returns
    -------
    Minted

    Raises
    ------
    AccessError
        The issuer does not grant it.
    OSError
        The issuer cannot be reached.
    """
    user, cluster = domain.owner.peer.user, f"{time.strftime('%Y%m%d')}-{uuid.uuid4().hex[:8]}"
    base = Path(tempfile.mkdtemp(prefix="lcls-cluster-"))
    try:
        made = {
            role: create_identity(base / role, role, user, cluster=cluster) for role in (Role.SCHEDULER, Role.MANAGER)
        }
        requests = {str(role): _request(identity) for role, identity in made.items()}
        operations = frozenset({Operation.LIST, Operation.INFO, Operation.READ, Operation.DIRECT})
        rights = None if experiments is None else [Right(name, operations) for name in experiments]
        signed = open_cluster(domain.owner, domain.issuer, cluster, requests, rights, hours, worker_hours)
        for role, identity in made.items():
            accept(identity.directory, json.dumps(signed[role]), trust=True)
        if shared is not None:
            make_private_directory(shared)
        (authority,) = trusted(made[Role.MANAGER].directory)
        secrets = (base if shared is None else shared) / f"{cluster}-secrets"
        enrolment = create_enrolment(secrets, domain.issuer, authority, user, cluster)
    except BaseException:
        shutil.rmtree(base, ignore_errors=True)
        raise
    return Minted(cluster, domain, base, made[Role.SCHEDULER].directory, made[Role.MANAGER].directory, enrolment)


def _request(identity: Identity) -> bytes:
    key = cert.load_key(read_private(identity.key_file))
    return cert.certificate_pem(cert.request(key, identity.certificate))
