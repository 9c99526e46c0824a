"""Capabilities: what a token, a biscuit, lets its holder do.

The issuer writes rights into the first block; whoever holds the token may append blocks that narrow it. Such a
block may hold *only* the checks that `attenuate` writes. Biscuits in general allow any Datalog there, which
could not widen anything, but could keep a gateway busy for minutes: the library's own limit on time is not
looked at within one join.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from biscuit_auth import Biscuit, UnverifiedBiscuit

from .access import Operation
from .issuer_keys import MAX_TOKEN_LENGTH, TokenError, contained
from .peer import NAME
from .policy import EXPERIMENT

FIRST_RUN: Final = 0
LAST_RUN: Final = 999_999  # of six digits, as in a URI
ANY_DETECTOR: Final = "*"
#: What can be checked in a millisecond.
MAX_BLOCKS: Final = 16
MAX_RIGHTS: Final = 32

_GLOB = re.compile(r"[A-Za-z0-9_.*?-]{1,64}")
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
_RUN = r"([0-9]{1,6})"
_NAME = r"[a-z][a-z0-9_]*"
# the library prints strings as they are, without escapes; so a check could be told as several, but each of
# them is one of these, and checks only narrow. A pattern is no longer than one of a glob: each decision tries it anew
_PATTERN = r"\^(?:[A-Za-z0-9_-]|\\\.|\.\*|\.){1,64}\$"
#: The checks that a block may hold, by what each looks at.
_CHECKS = {
    "time": re.compile(rf"check if time\(\$t\), \$t < ({_DATE})"),
    "run": re.compile(rf"check if run\(\$r\), \$r >= {_RUN}, \$r <= {_RUN} or whole_experiment\(true\)"),
    "detector": re.compile(rf'check if detector\(\$d\), \$d\.matches\("({_PATTERN})"\) or metadata\(true\)'),
    "operation": re.compile(rf'check if operation\("{_NAME}"\)(?: or operation\("{_NAME}"\))*'),
    "experiment": re.compile(rf'check if experiment\("{_NAME}"\)(?: or experiment\("{_NAME}"\))*'),
}
_AUTHORITY = {
    "user": re.compile(rf'user\("({NAME.pattern})"\)'),
    "holder": re.compile(r'holder\("([0-9a-f]{64})"\)'),
    "expires": re.compile(rf"expires\(({_DATE})\)"),
    "right": re.compile(rf'right\("({_NAME})", "({_NAME})", {_RUN}, {_RUN}, "({_PATTERN})"\)'),
    "peer": re.compile(r'check if peer\("[0-9a-f]{64}"\)'),
    "client": re.compile(rf'check if client\("{NAME.pattern}"\)'),
    "time": _CHECKS["time"],
}


class AttenuationError(TokenError):
    """A block that was appended to a token holds anything but a known check."""


@dataclass(frozen=True)
class Right:
    """Something that a token allows.

    Attributes
    ----------
    experiment : str
    operations : frozenset of Operation
    first, last : int
        Runs, both included.
    detectors : str
        Glob over names of detectors: ``*`` and ``?``.

    Raises
    ------
    TokenError
        A part of it is malformed; the experiment is always an exact name.

    Examples
    --------
    >>> Right("tmox42619", frozenset({Operation.READ}), 10, 20, "hsd*").last
    20
    """

    experiment: str
    operations: frozenset[Operation]
    first: int = FIRST_RUN
    last: int = LAST_RUN
    detectors: str = ANY_DETECTOR

    def __post_init__(self) -> None:
        if not EXPERIMENT.fullmatch(self.experiment):
            raise TokenError(f"{self.experiment[:40]!r} is no experiment: give its exact name, such as tmox42619")
        if not FIRST_RUN <= self.first <= self.last <= LAST_RUN:
            raise TokenError(f"{self.first} to {self.last} is no range of runs: first <= last <= {LAST_RUN}")
        if not _GLOB.fullmatch(self.detectors):
            raise TokenError(f"{self.detectors[:40]!r} is no glob over detectors: letters, digits and _ . - * ?")
        if not self.operations:
            raise TokenError(f"a right to {self.experiment} needs an operation: {', '.join(Operation)}")


@dataclass(frozen=True)
class Capability:
    """What a token says.

    Attributes
    ----------
    user : str
    holder : str
        SHA-256 of the certificate that has to present it, hexadecimal.
    expires : float
        Seconds since the epoch; the earliest of all blocks.
    rights : tuple of Right
        What the issuer granted.
    narrowed : tuple of str
        What appended blocks demand besides, as Datalog.
    revocation_ids : tuple of str
        One a block; revoking any of them revokes the token.
    """

    user: str
    holder: str
    expires: float
    rights: tuple[Right, ...]
    narrowed: tuple[str, ...]
    revocation_ids: tuple[str, ...]


def read(biscuit: Biscuit | UnverifiedBiscuit) -> Capability:
    """What a token says; every block must hold nothing but what `issue` and `attenuate` write.

    Parameters
    ----------
    biscuit : biscuit_auth.Biscuit or biscuit_auth.UnverifiedBiscuit

    Returns
    -------
    Capability

    Raises
    ------
    AttenuationError
        An appended block holds anything else.
    TokenError
        The first block does: it is no token of this package.
    """
    blocks = contained(biscuit.block_count)
    if blocks > MAX_BLOCKS:
        raise AttenuationError(f"the token was narrowed {blocks - 1} times, at most {MAX_BLOCKS - 1} are accepted")
    sources = [contained(lambda i=index: biscuit.block_source(i)) for index in range(blocks)]  # type: ignore[misc]
    facts: dict[str, list[tuple[str, ...]]] = {}
    for statement in _statements(sources[0]):
        kind, found = _match(statement, _AUTHORITY)
        if found is None:
            raise TokenError("the token is no capability of this package: ask the issuer for one")
        facts.setdefault(kind, []).append(found)
    if any(len(facts.get(kind, ())) != 1 for kind in ("user", "holder", "expires", "peer", "client", "time")):
        raise TokenError("the token is no capability of this package: ask the issuer for one")
    expiries = [_seconds(facts["expires"][0][0])]
    narrowed = []
    for index, source in enumerate(sources[1:], 1):
        # a block signed by a third party could be given trust by others, and there is no use for it here
        if isinstance(biscuit, Biscuit) and contained(lambda i=index: biscuit.block_external_key(i)) is not None:  # type: ignore[misc]
            raise AttenuationError("a block of the token is signed by a third party; narrow it with lcls-dask token")
        for statement in _statements(source):
            kind, found = _match(statement, _CHECKS)
            if found is None:
                raise AttenuationError("a block of the token holds more than checks; narrow it with lcls-dask token")
            if kind == "time":
                expiries.append(_seconds(found[0]))
            narrowed.append(statement)
    return Capability(
        facts["user"][0][0],
        facts["holder"][0][0],
        min(expiries),
        _rights(facts.get("right", [])),
        tuple(narrowed),
        tuple(contained(lambda: biscuit.revocation_ids)),
    )


def read_unverified(token: str) -> Capability:
    """What a token claims, without a look at its signatures: for people, never for a decision.

    Parameters
    ----------
    token : str

    Returns
    -------
    Capability

    Raises
    ------
    TokenError
        It is no token of this package.
    """
    if len(token) > MAX_TOKEN_LENGTH:
        raise TokenError(f"the token has {len(token)} characters, at most {MAX_TOKEN_LENGTH} are accepted")
    return read(contained(lambda: UnverifiedBiscuit.from_base64(token)))


def pattern_of(glob: str) -> str:
    """Regular expression of a glob, in the part of the language that Python and Rust share.

    Parameters
    ----------
    glob : str

    Returns
    -------
    str

    Examples
    --------
    >>> print(pattern_of("hsd*.v?"))
    ^hsd.*\\.v.$
    """
    parts = {"*": ".*", "?": ".", ".": r"\."}
    return "^" + "".join(parts.get(character, character) for character in glob) + "$"


def glob_of(pattern: str) -> str:
    """Glob of a regular expression that `pattern_of` wrote."""
    return re.sub(r"\\\.|\.\*|\.", lambda found: {"\\.": ".", ".*": "*", ".": "?"}[found[0]], pattern[1:-1])


def _rights(facts: Iterable[tuple[str, ...]]) -> tuple[Right, ...]:
    operations: dict[tuple[str, int, int, str], set[Operation]] = {}
    for experiment, operation, first, last, pattern in facts:
        key = experiment, int(first), int(last), glob_of(pattern)
        operations.setdefault(key, set()).add(Operation(operation))
    return tuple(
        Right(experiment, frozenset(allowed), first, last, detectors)
        for (experiment, first, last, detectors), allowed in operations.items()
    )


def _statements(source: str) -> list[str]:
    return [line.removesuffix(";") for line in source.splitlines() if line]


def _match(statement: str, known: Mapping[str, re.Pattern[str]]) -> tuple[str, tuple[str, ...] | None]:
    for kind, pattern in known.items():
        if found := pattern.fullmatch(statement):
            return kind, found.groups()
    return "", None


def _seconds(date: str) -> float:
    try:
        return datetime.fromisoformat(date).timestamp()
    except ValueError:  # of a text that only prints as a date
        raise AttenuationError("a block of the token names no moment; narrow it with lcls-dask token") from None
