"""Revocations that all gateways of a facility share: a file of their own, and what the state database says."""

import os
from collections.abc import Hashable

from ..security.revocations import FileRevocations, Revocations
from .state import State


class SharedRevocations:
    """A `Revocations` of a file and of the state database.

    The file is looked at by every process, at most a second after it has changed. What the database says is fetched by
    `refresh`; while it cannot be reached, what it said last stays in force.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    PolicyError
        The file is not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: Revocations = FileRevocations(path)
        self._shared: frozenset[str] = frozenset()
        self._generation = 0

    @property
    def version(self) -> Hashable:
        """How often either has changed."""
        return self._file.version, self._generation

    def __contains__(self, identifier: object, /) -> bool:
        return identifier in self._shared or identifier in self._file

    def refresh(self, state: State) -> None:
        """Fetch what the database says.

        Raises
        ------
        StateError
        """
        shared = state.revoked()
        if shared != self._shared:
            self._shared = shared
            self._generation += 1
