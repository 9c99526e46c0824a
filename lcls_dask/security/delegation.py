"""What an issuer keeps of Dask clusters: whose each one is, what its workers may read, and who may still join it.

A user who starts a cluster delegates to it: the issuer signs the certificates of its scheduler and its manager, and
notes the rights of its workers. The manager announces one-time secrets by their hashes; whoever brings such a secret
gets a worker's certificate of this cluster, once. Everything ends when the user or the manager closes the cluster, when
the user's or the manager's certificate is revoked, or when the manager has not renewed its own for a lifetime.

::

    clusters/<user>/<cluster>.json      the delegation; kept when it is closed, as its certificates may last longer
    secrets/<hash>.json                 announced: user, cluster, deadline
    secrets/<hash>.used                 the same, once it was brought
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from ..errors import AccessError, IdentityError
from .access import Operation
from .capability import ANY_DETECTOR, Right
from .certificates import LIFETIMES, certificate_from_base64
from .files import locked, make_private_directory, read_private, write_private
from .issuer import DEFAULT_MINUTES, Issuer, narrowed
from .issuer_keys import TokenError
from .peer import NAME, Peer, Role, peer_of_certificate, uris_for
from .policy import Policy
from .revocations import Revocations

#: Secrets that a cluster may have announced at one time.
MAX_SECRETS: Final = 4096
LONGEST: Final = LIFETIMES[Role.WORKER]
LONGEST_DEADLINE: Final = timedelta(hours=24)

_HASH = re.compile(r"[0-9a-f]{64}")
_OF_A_CLUSTER: Final = frozenset({Role.SCHEDULER, Role.MANAGER, Role.WORKER})


class SecretError(IdentityError):
    """An enrolment secret is not known, was brought before, or is too late."""


@dataclass(frozen=True)
class Delegation:
    """What a user has delegated to a cluster.

    Attributes
    ----------
    user, cluster : str
    by : str
        Serial of the user's certificate.
    rights : tuple of Right or None
        What its workers may read at most; None: all that policy grants the user.
    lifetime, worker_lifetime : datetime.timedelta
        Of the certificates of its scheduler and manager, and of its workers.
    until : float
        Seconds since the epoch; later each time that the manager renews its certificate.
    managers : tuple of str
        Serials of its manager's certificates, the newest last: revoking any of them ends the cluster.
    closed : bool
    """

    user: str
    cluster: str
    by: str
    rights: tuple[Right, ...] | None
    lifetime: timedelta
    worker_lifetime: timedelta
    until: float
    managers: tuple[str, ...] = ()
    closed: bool = False

    def lifetime_of(self, role: Role) -> timedelta:
        """How long a certificate of one of its processes is good."""
        return self.worker_lifetime if role is Role.WORKER else self.lifetime

    def limited(self, wanted: Iterable[Right] | None) -> list[Right] | None:
        """The part of what is wanted that was delegated; None: all that policy grants.

        Parameters
        ----------
        wanted : iterable of Right, optional

        Returns
        -------
        list of Right or None

        Raises
        ------
        AccessError
            Of something that is wanted nothing was delegated.
        """
        if wanted is None:
            return None if self.rights is None else list(self.rights)
        if self.rights is None:
            return list(wanted)
        limited = []
        for right in wanted:
            parts = [part for part in (_common(right, own) for own in self.rights) if part is not None]
            if not parts:
                raise AccessError(f"nothing of this was delegated to the cluster {self.cluster} for {right.experiment}")
            limited += parts
        return limited


@dataclass(frozen=True)
class Delegations:
    """All delegations of an issuer.

    Attributes
    ----------
    issuer : Issuer
    revocations : Revocations
    """

    issuer: Issuer
    revocations: Revocations

    def open(
        self,
        user: Peer,
        cluster: str,
        requests: Mapping[str, bytes],
        rights: Iterable[Right] | None = None,
        lifetime: timedelta = LONGEST,
        worker_lifetime: timedelta = LONGEST,
    ) -> dict[str, Any]:
        """Delegate to a new cluster, and sign the certificates of its scheduler and its manager.

        Parameters
        ----------
        user : Peer
            Who delegates, a person.
        cluster : str
            A name that this user has given to no cluster before.
        requests : dict of str to bytes
            For `scheduler` and `manager`, a certificate request (PEM).
        rights : iterable of Right, optional
            What its workers may read at most.
        lifetime, worker_lifetime : datetime.timedelta
            Of the certificates of its scheduler and manager, and of its workers; 12 hours at most, and no longer than
            the user's own is good now.

        Returns
        -------
        dict
            For each of the two its introduction.

        Raises
        ------
        AccessError
            Not a person, or the name was given before.
        IdentityError
            A request is none, or a name is malformed.
        """
        if user.role is not Role.USER:
            raise AccessError(f"a {user.role} cannot start clusters; a user can")
        for asked in (lifetime, worker_lifetime):
            if not timedelta(0) < asked <= LONGEST:
                raise TokenError(f"certificates for {asked}: give more than none and at most {LONGEST}")
        if set(requests) != {Role.SCHEDULER, Role.MANAGER}:
            raise TokenError("a cluster needs two requests, of its scheduler and its manager")
        uris_for(Role.MANAGER, user.user, cluster)  # is the name well-formed? it becomes a file's
        now = self.issuer.clock()
        # they are renewed for as long, without the user: no longer than her own is good now
        left = timedelta(seconds=user.not_after - now)
        lifetime, worker_lifetime = min(lifetime, left), min(worker_lifetime, left)
        until = now + lifetime.total_seconds()
        granted = None if rights is None else tuple(rights)
        delegation = Delegation(user.user, cluster, user.serial, granted, lifetime, worker_lifetime, until)
        with self._alone():
            if self._path(user.user, cluster).exists():
                raise AccessError(f"{user.user} has had a cluster {cluster}: give the new one another name")
            manager = self._signed(delegation, Role.MANAGER, requests[Role.MANAGER])
            delegation = replace(delegation, managers=(_peer(manager).serial,))
            scheduler = self._signed(delegation, Role.SCHEDULER, requests[Role.SCHEDULER])
            self._keep(delegation)
        return {Role.SCHEDULER: scheduler, Role.MANAGER: manager}

    def announce(self, manager: Peer, hashes: Iterable[str], minutes: float) -> float:
        """Note secrets that workers will bring.

        Parameters
        ----------
        manager : Peer
            Of the cluster; nothing else says which one it is.
        hashes : iterable of str
            SHA-256 of each secret, hexadecimal.
        minutes : float
            For which they are good, a day at most.

        Returns
        -------
        float
            When their time is over, seconds since the epoch.

        Raises
        ------
        AccessError
            Not a manager, or the cluster is closed.
        """
        delegation = self.of(manager)
        if delegation is None or manager.role is not Role.MANAGER:
            raise AccessError(f"a {manager.role} cannot let workers join; a cluster's manager can")
        named = list(hashes)
        if not 0 < minutes * 60 <= LONGEST_DEADLINE.total_seconds():
            raise TokenError(f"secrets for {minutes:g} minutes: give more than 0 and at most a day")
        if not all(isinstance(name, str) and _HASH.fullmatch(name) for name in named):
            raise TokenError("a secret is announced by its SHA-256, 64 hexadecimal digits")
        deadline = self.issuer.clock() + minutes * 60
        entry = {"user": delegation.user, "cluster": delegation.cluster, "deadline": deadline}
        make_private_directory(self._secrets)
        if len(named) + self._purge(entry) > MAX_SECRETS:
            raise TokenError(f"at most {MAX_SECRETS} secrets of a cluster can be announced at a time")
        for name in named:
            if (self._secrets / f"{name}.json").exists() or (self._secrets / f"{name}.used").exists():
                raise TokenError("this secret was announced before: make a new one")
            write_private(self._secrets / f"{name}.json", json.dumps(entry).encode())
        return deadline

    def enrol(self, secret: str, request: bytes, policy: Policy, address: str) -> dict[str, Any]:
        """Give a certificate and a first token to a worker that brings a secret.

        Parameters
        ----------
        secret : str
        request : bytes
            Its certificate request (PEM); only its key and distinguished name are used.
        policy : Policy
        address : str
            Where it comes from, for the audit.

        Returns
        -------
        dict
            The introduction, as `Issuer.sign` gives it, and `token` where policy grants anything.

        Raises
        ------
        SecretError
            It is not known, was brought before, or is too late.
        IdentityError
            The cluster is closed, or it is no request.
        """
        name = hashlib.sha256(secret.encode()).hexdigest()
        waiting, used = self._secrets / f"{name}.json", self._secrets / f"{name}.used"
        try:
            os.rename(waiting, used)  # of two that bring it at once, one comes first
        except FileNotFoundError:
            if used.exists():
                entry = json.loads(read_private(used))
                told = {"user": entry["user"], "cluster": entry["cluster"], "secret_id": name[:16]}
                self.issuer.record(kind="refused", reason="secret used before", address=address, **told)
                raise SecretError("the enrolment secret was used before: this worker may not be the first") from None
            raise SecretError("the enrolment secret is not known: the cluster's manager makes them") from None
        entry = json.loads(read_private(used))
        told = {"user": entry["user"], "cluster": entry["cluster"], "secret_id": name[:16], "address": address}
        if self.issuer.clock() >= entry["deadline"]:
            self.issuer.record(kind="refused", reason="secret too late", **told)
            raise SecretError("the enrolment secret is too late: the cluster's manager makes new ones")
        delegation = self._good(self._find(entry["user"], entry["cluster"]))
        introduction = self._signed(delegation, Role.WORKER, request)
        holder = _peer(introduction)
        self.issuer.record(kind="enrolment", serial=holder.serial, **told)
        try:
            rights = narrowed(policy, holder.user, delegation.limited(None))
        except AccessError:
            return introduction  # it can compute, and reads what needs no gateway
        return introduction | {"token": self.issuer.token(holder, rights, DEFAULT_MINUTES)}

    def of(self, peer: Peer) -> Delegation | None:
        """The delegation by which a process of a cluster acts; None for a person or a service.

        Parameters
        ----------
        peer : Peer

        Returns
        -------
        Delegation or None
            None also for a certificate of a cluster that an operator has signed by hand.

        Raises
        ------
        IdentityError
            It is closed or over, or the user's certificate was revoked.
        """
        if peer.role not in _OF_A_CLUSTER or peer.cluster is None:
            return None
        if not self._path(peer.user, peer.cluster).exists():
            return None
        return self._good(self._find(peer.user, peer.cluster))

    def renewed(self, peer: Peer, introduction: Mapping[str, Any]) -> None:
        """A cluster goes on, since its manager has renewed its certificate; of other processes nothing is noted.

        Parameters
        ----------
        peer : Peer
            Who has renewed its certificate.
        introduction : dict
            The new one, as `Issuer.renew` gives it.

        Raises
        ------
        IdentityError
            The cluster was closed meanwhile, which this must not undo.
        """
        if peer.role is not Role.MANAGER:
            return
        with self._alone():
            if (delegation := self.of(peer)) is not None:
                until = self.issuer.clock() + delegation.lifetime.total_seconds()
                managers = (*delegation.managers, _peer(introduction).serial)
                self._keep(replace(delegation, until=until, managers=managers))

    def close(self, peer: Peer, cluster: str) -> None:
        """End a cluster: nobody joins it any more, and its certificates and tokens are not renewed.

        Parameters
        ----------
        peer : Peer
            Its user or its manager.
        cluster : str

        Raises
        ------
        AccessError
            There is no such cluster of this user.
        """
        own = peer.role is Role.USER or (peer.role is Role.MANAGER and peer.cluster == cluster)
        # a name of a path's part may hold what leads elsewhere
        if not own or not NAME.fullmatch(cluster) or not self._path(peer.user, cluster).exists():
            raise AccessError(f"{peer.user} has no cluster {cluster} that this certificate could close")
        with self._alone():
            self._keep(replace(self._find(peer.user, cluster), closed=True))
        for path, entry in self._announced():
            if (entry["user"], entry["cluster"]) == (peer.user, cluster):
                path.unlink(missing_ok=True)

    def _alone(self) -> AbstractContextManager[int]:
        """While a delegation is read and written again: several services may share an issuer's directory."""
        return locked(self.issuer.directory / "clusters.lock", 0o600)

    @property
    def _secrets(self) -> Path:
        return self.issuer.directory / "secrets"

    def _path(self, user: str, cluster: str) -> Path:
        # both are names of certificates, which hold no slash and begin with a letter or a digit
        return self.issuer.directory / "clusters" / user / f"{cluster}.json"

    def _signed(self, delegation: Delegation, role: Role, request: bytes) -> dict[str, Any]:
        if b"CERTIFICATE REQUEST" not in request:
            raise IdentityError("a cluster's processes bring certificate requests, which prove that they hold the key")
        return self.issuer.sign(
            request,
            role,
            delegation.user,
            cluster=delegation.cluster,
            lifetime=delegation.lifetime_of(role),
            parent=(delegation.by, *delegation.managers)[-1],
            revocations=self.revocations,
        )

    def _good(self, delegation: Delegation) -> Delegation:
        if delegation.by in self.revocations:
            raise IdentityError(f"the certificate of {delegation.user} was revoked, and with it her clusters")
        if any(serial in self.revocations for serial in delegation.managers):
            raise IdentityError(f"the manager's certificate was revoked, and with it the cluster {delegation.cluster}")
        if delegation.closed or self.issuer.clock() >= delegation.until:
            raise IdentityError(f"the cluster {delegation.cluster} of {delegation.user} is closed: start a new one")
        return delegation

    def _find(self, user: str, cluster: str) -> Delegation:
        entry = json.loads(read_private(self._path(user, cluster)))
        for name in ("lifetime", "worker_lifetime"):
            entry[name] = timedelta(seconds=entry[name])
        if entry["rights"] is not None:
            entry["rights"] = tuple(map(_right, entry["rights"]))
        return Delegation(**entry | {"managers": tuple(entry["managers"])})

    def _keep(self, delegation: Delegation) -> None:
        rights = delegation.rights
        entry = vars(delegation) | {
            "rights": None if rights is None else [vars(right) for right in rights],
            "lifetime": delegation.lifetime.total_seconds(),
            "worker_lifetime": delegation.worker_lifetime.total_seconds(),
        }
        path = self._path(delegation.user, delegation.cluster)
        make_private_directory(path.parent)
        write_private(path, json.dumps(entry, default=sorted).encode())  # the operations are a set

    def _announced(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in [*self._secrets.glob("*.json"), *self._secrets.glob("*.used")]:
            try:
                yield path, json.loads(read_private(path))
            except IdentityError:
                continue  # brought or forgotten in this very moment

    def _purge(self, own: Mapping[str, Any]) -> int:
        """Forget secrets a day after their time, and count those of a cluster that wait."""
        count = 0
        for path, entry in self._announced():
            if self.issuer.clock() >= entry["deadline"] + LONGEST_DEADLINE.total_seconds():
                path.unlink(missing_ok=True)
            elif path.suffix == ".json" and (entry["user"], entry["cluster"]) == (own["user"], own["cluster"]):
                count += 1
        return count


def _peer(introduction: Mapping[str, Any]) -> Peer:
    """Whom the certificate of an introduction names."""
    return peer_of_certificate(certificate_from_base64(introduction["signed_cert"]))


def _right(entry: Mapping[str, Any]) -> Right:
    return Right(**{**entry, "operations": frozenset(map(Operation, entry["operations"]))})


def _common(right: Right, own: Right) -> Right | None:
    """What two rights have in common; of two different globs nobody can say that, so nothing."""
    operations = right.operations & own.operations
    first, last = max(right.first, own.first), min(right.last, own.last)
    if right.detectors not in (own.detectors, ANY_DETECTOR) and own.detectors != ANY_DETECTOR:
        return None
    if right.experiment != own.experiment or not operations or first > last:
        return None
    detectors = own.detectors if right.detectors == ANY_DETECTOR else right.detectors
    return Right(right.experiment, operations, first, last, detectors)
