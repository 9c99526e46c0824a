"""How a gateway is to run."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from .limits import Limits


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a client may take.

    Attributes
    ----------
    handshake, head : float
        To make the TLS connection; to send a whole head once it has begun.
    idle : float
        Between requests.
    slowest : float
        Bytes a second below which a client that is sent a body is given up, after `idle` seconds.
    drain : float
        That requests are given to end in when the gateway stops.
    """

    handshake: float = 10.0
    head: float = 10.0
    idle: float = 75.0
    slowest: float = 1 << 20
    drain: float = 30.0


@dataclass(frozen=True)
class Settings:
    """How a gateway is to run; all that its processes are given.

    Attributes
    ----------
    root : Path
        Directory of experiments.
    identity : Path
        The gateway's own, in `certified`'s layout.
    policy : Path
        Who belongs to which experiment.
    revocations : Path
        Serials and revocation ids that are no longer good.
    audit : Path
        Directory of the audit's files.
    state : str
        URL of the state database.
    trust : tuple of Path
        Certificates of the authorities that may introduce clients; those of the identity's ``known_clients`` without.
    issuers : tuple of Path
        Public keys of those who may sign capabilities; those of the identity's ``known_issuers`` without.
    host : str
    port : int
        0: any that is free.
    processes : int
    threads : int
        Of each process, that read files.
    limits : Limits
        Of each user.
    timeouts : Timeouts
    """

    root: Path
    identity: Path
    policy: Path
    revocations: Path
    audit: Path
    state: str
    trust: tuple[Path, ...] = ()
    issuers: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8443
    processes: int = 1
    threads: int = 4
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)


def state_directory() -> Path:
    """Where a gateway keeps its audit and its database if it is not told: the user's directory for such things."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "lcls_dask" / "gateway"
