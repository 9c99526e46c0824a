"""A supply of enrolment secrets for as long as a cluster lives: jobs are added, requeued and started again."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from ..errors import LclsError
from ..security import load_identity
from ..security.enrolment import Enrolment
from ..security.issuer_client import is_refusal

_log = logging.getLogger(__name__)

#: Most secrets of one announcement.
_AT_ONCE = 256


class Supply:
    """Keeps secrets in a directory, in a thread of this process.

    Parameters
    ----------
    enrolment : Enrolment
    manager : Path
        Identity of the cluster's manager.
    minutes : float
        For which a secret is good; it is replaced when half of them have gone.
    demand : callable
        How many secrets there shall be now.
    interval : float
        Seconds between two looks.
    """

    def __init__(
        self, enrolment: Enrolment, manager: Path, minutes: float, demand: Callable[[], int], interval: float = 0.5
    ) -> None:
        self._enrolment, self._manager = enrolment, manager
        self._minutes, self._demand, self._interval = minutes, demand, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lcls-secrets", daemon=True)

    def start(self) -> None:
        """Fill the directory, then keep it filled.

        Raises
        ------
        AccessError
            The issuer refuses.
        OSError
            It cannot be reached.
        """
        self._fill()
        self._thread.start()

    def close(self) -> None:
        """Add none any more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self._fill()
            except (LclsError, OSError) as error:
                if is_refusal(error):
                    if not self._stop.is_set():
                        _log.error("no worker can join any more: %s", error)
                    return
                _log.warning("no new enrolment secrets yet: %s", error)

    def _fill(self) -> None:
        lacking = self._demand() - len(self._enrolment.waiting)
        if lacking > 0:
            self._enrolment.add(load_identity(self._manager), min(lacking, _AT_ONCE), self._minutes)
