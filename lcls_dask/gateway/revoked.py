"""Revocations that all gateways of a facility share: a file of their own, and one of what the others have said."""

import os
from collections.abc import Hashable

from ..security.revocations import FileRevocations


class SharedRevocations:
    """A `Revocations` of several files.

    Each is looked at by every process, at most a second after it has changed. What the state database says is in a
    file too (the gateway's first process writes it), so that a process which starts while the database is away
    knows what was revoked before.

    Parameters
    ----------
    *paths : path-like

    Raises
    ------
    PolicyError
        One of the files is not there.
    """

    def __init__(self, *paths: str | os.PathLike[str]) -> None:
        self._lists = [FileRevocations(path) for path in paths]

    @property
    def version(self) -> Hashable:
        """How often each has changed."""
        return tuple(listed.version for listed in self._lists)

    def __contains__(self, identifier: object, /) -> bool:
        return any(identifier in listed for listed in self._lists)
