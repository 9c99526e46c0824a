"""The decision: the certificate says who, the policy whose experiment it is, the capability what of it."""

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from biscuit_auth import AuthorizationError, AuthorizerBuilder, Biscuit

from ..errors import PolicyError
from .access import METADATA, Access, Decision, Operation, Reason
from .capability import FIRST_RUN, LAST_RUN, AttenuationError, Capability, read
from .issuer_keys import IssuerKeys, TokenError, contained
from .peer import Peer, Role
from .policy import Policy
from .revocations import Revocations

logger = logging.getLogger(__name__)

#: Who reads data: people and what computes for them. A scheduler's and a manager's certificate opens no run.
READERS: Final = frozenset({Role.USER, Role.WORKER})
#: Seconds that a decision is kept at most: what a facility's own policy source may be late.
LONGEST_KEPT: Final = 30.0
#: Seconds between two looks at whether policy or revocations have changed; they themselves look once a second.
_LOOK: Final = 0.25
#: The library's default of 1 ms is passed on a busy machine. What may be evaluated is bounded by `read` instead.
_LIMIT = timedelta(seconds=5)


class Authoriser:
    """Decides about each access; holds public keys only.

    Parameters
    ----------
    keys : IssuerKeys
    policy : Policy
    revocations : Revocations
    clock : callable
        Seconds since the epoch.
    size : int
        Decisions that are kept.
    """

    def __init__(
        self,
        keys: IssuerKeys,
        policy: Policy,
        revocations: Revocations,
        clock: Callable[[], float] = time.time,
        size: int = 65_536,
    ) -> None:
        self._keys = keys
        self._policy = policy
        self._revocations = revocations
        self._clock = clock
        self._size = size
        self._kept: dict[tuple[bytes, str, Access], Decision] = {}
        self._version: Hashable = None
        self._looked = -math.inf
        self._lock = threading.Lock()

    def decide(self, peer: Peer, token: str | None, access: Access) -> Decision:
        """Whether a peer may do something.

        Parameters
        ----------
        peer : Peer
            From the verified certificate of the connection.
        token : str or None
        access : Access

        Returns
        -------
        Decision
            What is allowed is kept until the token or the certificate expires, 30 s at most, and is forgotten when
            the policy or the revocations change. What is refused is looked at anew each time, so that
            nobody can push the decisions of others out.
        """
        if token is None:
            return self._identify(peer, None)[0]
        now = self._clock()
        if not self._looked <= now < self._looked + _LOOK:
            try:
                self._look(now)
            except Exception as error:
                return self._policy_failed(error, now)
        # the token itself is kept nowhere
        key = (hashlib.sha256(token.encode(errors="replace")).digest(), peer.thumbprint, access)
        kept = self._kept.get(key)
        if kept is not None and now < kept.expires:
            return kept
        version = self._version
        decision = self._decide(peer, token, access, now)
        if decision.allowed:
            with self._lock:
                # what was decided by a policy that has changed meanwhile is not kept
                if version == self._version:
                    if len(self._kept) >= self._size:
                        del self._kept[next(iter(self._kept))]
                    self._kept[key] = decision
        return decision

    def authenticate(self, peer: Peer, token: str | None) -> Decision:
        """Whether a token is good for anything at all, in this peer's hands.

        Parameters
        ----------
        peer : Peer
        token : str or None

        Returns
        -------
        Decision
            Allowed: known issuer, not expired or revoked, the certificate it is bound to, a role that reads.
        """
        return self._identify(peer, token)[0]

    def experiments(self, peer: Peer, token: str | None) -> frozenset[str]:
        """Experiments whose runs a peer may list.

        Parameters
        ----------
        peer : Peer
        token : str or None

        Returns
        -------
        frozenset of str
            Empty without a good token; `authenticate` tells that apart from a user without experiments.

        Raises
        ------
        PolicyError
            The policy cannot be asked.
        """
        _, _, capability = self._identify(peer, token)
        if capability is None:
            return frozenset()
        try:
            hers = self._policy.experiments(peer.user)
        except Exception as error:
            self._policy_failed(error, self._clock())
            raise PolicyError("the policy cannot be asked at the moment: try again") from error
        named = {right.experiment for right in capability.rights if Operation.LIST in right.operations}
        return frozenset(
            name for name in hers & named if self.decide(peer, token, Access(Operation.LIST, name)).allowed
        )

    def use(self, keys: IssuerKeys) -> None:
        """Verify tokens by other keys from now on; what was decided by the former ones is forgotten."""
        with self._lock:
            self._keys, self._kept, self._version = keys, {}, None

    def _look(self, now: float) -> None:
        version = (self._policy.version, self._revocations.version)
        with self._lock:
            if version != self._version:
                self._kept = {}
                self._version = version
            self._looked = now

    def _decide(self, peer: Peer, token: str, access: Access, now: float) -> Decision:
        known, biscuit, capability = self._identify(peer, token)
        if biscuit is None or capability is None:
            return known
        try:
            # what a user is no member of looks the same whether or not it exists: nothing else is asked first
            hers = self._policy.operations(peer.user, access.experiment)
        except Exception as error:
            return self._policy_failed(error, now)
        reason = Reason.OK
        if not hers:
            reason = Reason.NOT_A_MEMBER
        elif access.operation not in hers:
            reason = Reason.OPERATION_NOT_GRANTED
        else:
            reason = _covers(biscuit, capability, peer, access, now)
        return Decision(reason is Reason.OK, reason, known.token_id, known.expires)

    def _identify(self, peer: Peer, token: str | None) -> tuple[Decision, Biscuit | None, Capability | None]:
        now = self._clock()

        def refused(reason: Reason, token_id: str | None = None) -> tuple[Decision, None, None]:
            return Decision(False, reason, token_id, now), None, None

        if now >= peer.not_after:
            return refused(Reason.CERTIFICATE_EXPIRED)
        if peer.serial in self._revocations:
            return refused(Reason.CERTIFICATE_REVOKED)
        if peer.role not in READERS:
            return refused(Reason.WRONG_ROLE)
        if not token:
            return refused(Reason.NO_TOKEN)
        try:
            biscuit = self._keys.verify(token)
            capability = read(biscuit)
        except AttenuationError:
            return refused(Reason.BAD_ATTENUATION)
        except TokenError:
            return refused(Reason.BAD_SIGNATURE)
        token_id = capability.revocation_ids[-1]
        if any(identifier in self._revocations for identifier in capability.revocation_ids):
            return refused(Reason.REVOKED, token_id)
        if capability.holder != peer.thumbprint:
            return refused(Reason.OTHER_CERTIFICATE, token_id)
        if capability.user != peer.user:
            return refused(Reason.OTHER_USER, token_id)
        if now >= capability.expires:
            return refused(Reason.EXPIRED, token_id)
        until = min(capability.expires, peer.not_after, now + LONGEST_KEPT)
        return Decision(True, Reason.OK, token_id, until), biscuit, capability

    def _policy_failed(self, error: Exception, now: float) -> Decision:
        logger.error("the policy cannot be asked, so nothing is allowed: %s: %s", type(error).__name__, error)
        return Decision(False, Reason.POLICY_FAILED, None, now)


def _covers(biscuit: Biscuit, capability: Capability, peer: Peer, access: Access, now: float) -> Reason:
    """Let the biscuit library decide; its rules see facts of the first block and of ours, never of appended ones."""
    metadata = access.operation in METADATA
    code = [
        "time({now}); peer({peer}); client({user}); operation({operation}); experiment({experiment});",
    ]
    values: dict[str, Any] = {
        "now": datetime.fromtimestamp(int(now), UTC),
        "peer": peer.thumbprint,
        "user": peer.user,
        "operation": str(access.operation),
        "experiment": access.experiment,
    }
    conditions = ["experiment($e), operation($o), right($e, $o, $first, $last, $pattern)"]
    if access.run is not None:
        code.append("run({run});")
        values["run"] = access.run
        conditions.append("run($r), $first <= $r, $r <= $last")
    elif metadata:
        code.append("whole_experiment(true);")
    else:
        conditions.append(f"$first == {FIRST_RUN}, $last == {LAST_RUN}")
    if metadata:
        code.append("metadata(true);")
    elif access.detector is not None:
        code.append("detector({detector});")
        values["detector"] = access.detector
        conditions.append("detector($d), $d.matches($pattern)")
    else:
        conditions.append('$pattern == "^.*$"')
    code.append(f"allow if {', '.join(conditions)};")

    def authorise() -> str | None:
        builder = AuthorizerBuilder(" ".join(code), values)
        limits = builder.limits()  # type: ignore[attr-defined]  # missing in the library's annotations
        limits.max_time = _LIMIT
        builder.set_limits(limits)  # type: ignore[attr-defined]
        try:
            builder.build(biscuit).authorize()
        except AuthorizationError as error:
            return str(error)
        return None

    refusal = contained(authorise)
    return Reason.OK if refusal is None else _reason(refusal, capability, access)


def _reason(refusal: str, capability: Capability, access: Access) -> Reason:
    """Name for the audit what the library has refused."""
    rights = [right for right in capability.rights if right.experiment == access.experiment]
    if not rights:
        return Reason.OTHER_EXPERIMENT
    rights = [right for right in rights if access.operation in right.operations]
    if not rights:
        return Reason.OTHER_OPERATION
    if "no matching policy" in refusal:
        run = access.run
        if run is not None:
            rights = [right for right in rights if right.first <= run <= right.last]
        elif access.operation not in METADATA:
            rights = [right for right in rights if (right.first, right.last) == (FIRST_RUN, LAST_RUN)]
        return Reason.OTHER_DETECTOR if rights else Reason.RUN_OUT_OF_RANGE
    for part, reason in (
        ("check if experiment(", Reason.OTHER_EXPERIMENT),
        ("check if operation(", Reason.OTHER_OPERATION),
        ("check if run(", Reason.RUN_OUT_OF_RANGE),
        ("check if detector(", Reason.OTHER_DETECTOR),
    ):
        if part in refusal:
            return reason
    return Reason.EXPIRED if "time(" in refusal else Reason.BAD_ATTENUATION
