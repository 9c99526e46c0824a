"""Who belongs to which experiment, and what members may do: one TOML file, or a facility's own source.

::

    [groups]
    tmo-staff = ["bob", "carol"]

    [experiments.tmox42619]
    members = ["alice", "@tmo-staff"]
    operations = ["list", "info", "read"]     # the default
    direct_reads = true                       # may also read the facility's own files; POSIX is the boundary then

    [experiments.xpptut15.members]            # or one by one
    dave = ["list", "info"]

    [source]                                  # a facility's own data base, asked besides
    use = "portal.members:Portal"             # a dotted name, or the name of an entry point of "lcls_dask.policy"
    options = { url = "https://portal.example" }
"""

import importlib
import importlib.metadata
import os
import re
import time
import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import PolicyError
from .access import Operation
from .watched import WatchedFile

ENTRY_POINTS = "lcls_dask.policy"
DEFAULT_OPERATIONS = frozenset({Operation.LIST, Operation.INFO, Operation.READ})
EXPERIMENT = re.compile(r"[a-z][a-z0-9_]{1,31}")

Grants = Mapping[str, frozenset[Operation]]


class Policy(Protocol):
    """What a facility's own source has to give; `PolicyFile` is the one that comes with the package."""

    @property
    def version(self) -> Hashable:
        """Changes whenever an answer may have changed."""
        ...

    def operations(self, user: str, experiment: str) -> frozenset[Operation]:
        """What a user may do with an experiment: nothing where she is no member, or there is no such experiment."""
        ...

    def experiments(self, user: str) -> frozenset[str]:
        """The experiments a user is a member of."""
        ...


@dataclass(frozen=True)
class Table:
    """A policy file's content: for each user, her experiments and what she may do with each.

    Attributes
    ----------
    grants : dict of str to dict of str to frozenset of Operation
    source : tuple or None
        Name of the facility's own source, and its options.
    """

    grants: Mapping[str, Grants]
    source: tuple[str, dict[str, Any]] | None = None


class PolicyFile:
    """A policy in a TOML file, in force a second after the file has changed.

    A file that is malformed is refused as a whole; what was read before stays, and the log tells.

    Parameters
    ----------
    path : path-like
    interval : float
        Seconds between two looks at the file.
    monotonic : callable
        The clock, in seconds.

    Raises
    ------
    PolicyError
        The file is not there or malformed.

    Examples
    --------
    >>> from pathlib import Path
    >>> _ = Path("policy.toml").write_text('[experiments.tmox42619]\\nmembers = ["alice"]')
    >>> sorted(PolicyFile("policy.toml").operations("alice", "tmox42619"))
    [<Operation.INFO: 'info'>, <Operation.LIST: 'list'>, <Operation.READ: 'read'>]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        interval: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opened: tuple[tuple[str, dict[str, Any]], Policy] | None = None
        self._file = WatchedFile(path, self._parse, interval, monotonic)

    @property
    def version(self) -> Hashable:
        """How often the file has changed, and the version of the facility's source."""
        _, source = self._file.current()
        return self._file.generation, None if source is None else source.version

    def operations(self, user: str, experiment: str) -> frozenset[Operation]:
        """What a user may do with an experiment.

        Parameters
        ----------
        user, experiment : str

        Returns
        -------
        frozenset of Operation
            Empty where she is no member, or there is no such experiment.
        """
        table, source = self._file.current()
        granted = table.grants.get(user, {}).get(experiment, frozenset())
        return granted if source is None else granted | source.operations(user, experiment)

    def experiments(self, user: str) -> frozenset[str]:
        """The experiments a user is a member of.

        Parameters
        ----------
        user : str

        Returns
        -------
        frozenset of str
        """
        table, source = self._file.current()
        own = frozenset(table.grants.get(user, {}))
        return own if source is None else own | source.experiments(user)

    def __repr__(self) -> str:
        return f"PolicyFile({str(self._file.path)!r})"

    def _parse(self, data: bytes) -> tuple[Table, Policy | None]:
        table = parse_policy(data)
        if table.source is None:
            self._opened = None
        elif self._opened is None or self._opened[0] != table.source:
            # the same source under the same options is kept, with its connections and caches
            self._opened = table.source, _open_source(*table.source)
        return table, None if self._opened is None else self._opened[1]


def parse_policy(data: bytes) -> Table:
    """Read the text of a policy file.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    Table

    Raises
    ------
    PolicyError
        It is no TOML, or holds anything that is not understood: a misspelt key must not widen or narrow anything
        in silence.

    Examples
    --------
    >>> dict(parse_policy(b'[experiments.tmox42619]\\nmembers = ["alice"]\\noperations = ["list"]').grants["alice"])
    {'tmox42619': frozenset({<Operation.LIST: 'list'>})}
    """
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # of the text, its encoding, a number too long, or nested too deeply
        raise PolicyError(f"the policy is no TOML: {error}") from None
    _known(document, {"groups", "experiments", "source"}, "the policy")
    groups = {name: _names(members, f"group {name}") for name, members in _table(document, "groups").items()}
    grants: dict[str, dict[str, frozenset[Operation]]] = {}
    for experiment, entry in _table(document, "experiments").items():
        if not EXPERIMENT.fullmatch(experiment):
            raise PolicyError(f"the policy names {experiment[:40]!r}, which is no experiment such as tmox42619")
        for user, operations in _experiment(experiment, entry, groups).items():
            grants.setdefault(user, {})[experiment] = operations
    return Table(grants, _source(document.get("source")))


def _experiment(name: str, entry: object, groups: Mapping[str, list[str]]) -> dict[str, frozenset[Operation]]:
    where = f"experiment {name}"
    if not isinstance(entry, dict):
        raise PolicyError(f"{where} of the policy is no table")
    _known(entry, {"members", "operations", "direct_reads"}, where)
    default = _operations(entry["operations"], where) if "operations" in entry else DEFAULT_OPERATIONS
    members = entry.get("members", [])
    pairs: Iterable[tuple[str, frozenset[Operation]]]
    if isinstance(members, dict):
        pairs = [(member, _operations(operations, f"{member} of {where}")) for member, operations in members.items()]
    else:
        pairs = [(member, default) for member in _names(members, where)]
    direct = entry.get("direct_reads", False)
    if not isinstance(direct, bool):
        raise PolicyError(f"direct_reads of {where} of the policy must be true or false")
    found: dict[str, frozenset[Operation]] = {}
    for member, operations in pairs:
        # the operation "direct" follows from one switch for an experiment, so that none has it by oversight
        granted = operations - {Operation.DIRECT}
        if direct and Operation.READ in granted:
            granted |= {Operation.DIRECT}
        if member.startswith("@") and member[1:] not in groups:
            raise PolicyError(f"{where} of the policy names the group {member[1:]!r}, which is not there")
        for user in groups[member[1:]] if member.startswith("@") else [member]:
            found[user] = found.get(user, frozenset()) | granted
    return found


def _source(entry: object) -> tuple[str, dict[str, Any]] | None:
    if entry is None:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("use"), str):
        raise PolicyError('source of the policy needs use = "package.module:name"')
    _known(entry, {"use", "options"}, "source")
    return entry["use"], _table(entry, "options")


def _open_source(name: str, options: dict[str, Any]) -> Policy:
    try:
        if ":" in name:
            module, _, attribute = name.partition(":")
            factory = getattr(importlib.import_module(module), attribute)
        else:
            (entry,) = importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)
            factory = entry.load()
        source: Policy = factory(**options)
    except Exception as error:
        # anything may go wrong in a facility's own code: whatever it is, the file is refused
        raise PolicyError(f"source {name!r} of the policy cannot be opened: {type(error).__name__}: {error}") from error
    return source


def _operations(value: object, where: str) -> frozenset[Operation]:
    try:
        return frozenset(Operation(name) for name in _names(value, where))
    except ValueError as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"{where} of the policy: {error}; known are {', '.join(Operation)}") from None


def _names(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise PolicyError(f"{where} of the policy needs a list of names")
    return value


def _table(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise PolicyError(f"{key} of the policy is no table")
    return value


def _known(table: Mapping[str, Any], keys: set[str], where: str) -> None:
    unknown = sorted(set(table) - keys)
    if unknown:
        raise PolicyError(f"{where} holds {unknown[0]!r}, which is not known; known are {', '.join(sorted(keys))}")
