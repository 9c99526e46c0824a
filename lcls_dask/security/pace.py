"""How often each user may ask for something that costs: a signature, and a line on disk."""

import math
import time
from collections.abc import Callable

#: Seconds' worth that may be asked for at once: the workers of a big job start together.
_BURST = 60.0
#: Users that are told apart; beyond, those who have not asked for a minute are forgotten.
_MOST = 10_000


class Pace:
    """A budget for each user, which fills again as time goes by.

    Parameters
    ----------
    rate : float
        Requests a second; sixty times as many at once.
    monotonic : callable
        The clock, in seconds.

    Examples
    --------
    >>> pace = Pace(0.05, monotonic=lambda: 100.0)
    >>> [pace.wait("alice") for _ in range(4)], pace.wait("bob")
    ([0, 0, 0, 20], 0)
    """

    def __init__(self, rate: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._monotonic = rate, monotonic
        self._spent: dict[str, tuple[float, float]] = {}

    def wait(self, user: str) -> int:
        """Count a request.

        Parameters
        ----------
        user : str

        Returns
        -------
        int
            0 where it is within the budget; else, and it does not count, how many seconds to wait.
        """
        now = self._monotonic()
        spent, since = self._spent.get(user, (0.0, now))
        spent = max(0.0, spent - (now - since) * self._rate)
        if (over := spent + 1 - _BURST * self._rate) > 0 and spent > 0:
            return math.ceil(over / self._rate)
        if len(self._spent) >= _MOST:
            self._spent = {name: kept for name, kept in self._spent.items() if now - kept[1] < _BURST}
        self._spent[user] = spent + 1, now
        return 0
