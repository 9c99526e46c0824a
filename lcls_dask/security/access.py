"""What is asked of a gateway, and what it is told: plain values, known to every other module here."""

import enum
from dataclasses import dataclass


class Operation(enum.StrEnum):
    """What may be done with an experiment's data.

    Examples
    --------
    >>> Operation("read")
    <Operation.READ: 'read'>
    """

    LIST = "list"  #: see which runs there are
    INFO = "info"  #: metadata of a run, its timestamps among them
    READ = "read"  #: values of a detector
    DIRECT = "direct"  #: where the values lie in the facility's own files
    INGEST = "ingest"  #: write a run
    REQUEST = "request"  #: ask for a transfer

    # Enum's own is written in Python, and this one is hashed for each decision
    __hash__ = str.__hash__


#: Operations that tell of a run or an experiment, not of the values of one detector.
METADATA = frozenset({Operation.LIST, Operation.INFO})


@dataclass(frozen=True, slots=True)
class Access:
    """One thing that somebody wants to do.

    Attributes
    ----------
    operation : Operation
    experiment : str
    run : int or None
        None: the experiment as a whole. A capability for some runs only covers that for `LIST` and
        `INFO`; for any other operation it takes one for all runs.
    detector : str or None
        Name of the detector, such as ``"hsd"``. None: all detectors; a capability for some detectors
        only does not cover that. `LIST` and `INFO` do not look at it, so ask `INFO` for what belongs to
        no detector (metadata, timestamps).

    Examples
    --------
    >>> Access(Operation.READ, "tmox42619", 14, "hsd").run
    14
    """

    operation: Operation
    experiment: str
    run: int | None = None
    detector: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an access is allowed, and why.

    Attributes
    ----------
    allowed : bool
    reason : str
        ``"ok"``, or a short phrase for the audit; one of the `Reason` s.
    token_id : str or None
        Revocation id of the token's last block (hexadecimal). None where no token could be verified.
    expires : float
        Until when, in seconds since the epoch, the decision may be kept.
    """

    allowed: bool
    reason: str
    token_id: str | None
    expires: float


class Reason(enum.StrEnum):
    """Every reason that a `Decision` gives; the gateway's status codes follow from them.

    Examples
    --------
    >>> Reason.EXPIRED in UNAUTHENTICATED
    True
    """

    OK = "ok"
    CERTIFICATE_EXPIRED = "certificate expired"
    CERTIFICATE_REVOKED = "certificate revoked"
    WRONG_ROLE = "wrong role"
    NO_TOKEN = "no token"
    BAD_SIGNATURE = "bad signature"  # another issuer's key, tampered with, or garbage
    BAD_ATTENUATION = "bad attenuation"  # an appended block holds anything but a known check
    OTHER_CERTIFICATE = "other certificate"
    OTHER_USER = "other user"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NOT_A_MEMBER = "not a member"
    POLICY_FAILED = "policy unavailable"
    OTHER_EXPERIMENT = "other experiment"
    OTHER_OPERATION = "other operation"
    OPERATION_NOT_GRANTED = "operation not granted"
    RUN_OUT_OF_RANGE = "run out of range"
    OTHER_DETECTOR = "other detector"


#: 401: no token that is good for anything, whatever was asked for.
UNAUTHENTICATED = frozenset(
    {
        Reason.CERTIFICATE_EXPIRED,
        Reason.CERTIFICATE_REVOKED,
        Reason.NO_TOKEN,
        Reason.BAD_SIGNATURE,
        Reason.BAD_ATTENUATION,
        Reason.OTHER_CERTIFICATE,
        Reason.OTHER_USER,
        Reason.EXPIRED,
        Reason.REVOKED,
    }
)
