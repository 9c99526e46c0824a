"""Times that were compared, for messages: what is refused for its time may be good, and a clock wrong."""

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from ...errors import LclsError
from ...security.capability import read_unverified

#: Seconds by which the clocks of two machines may differ without a word.
_SLACK = 60.0


def utc(seconds: float) -> str:
    """A time as people read it.

    Examples
    --------
    >>> utc(0)
    '1970-01-01 00:00:00 UTC'
    """
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S UTC}"


def of_refusal(said: str, date: str | None, token: str | None) -> str:
    """What to add where a token was refused.

    Parameters
    ----------
    said : str
        By the gateway.
    date : str or None
        Its clock, as HTTP writes it.
    token : str or None

    Returns
    -------
    str
        Empty where time has nothing to do with it.

    Examples
    --------
    >>> of_refusal("no token", None, None)
    ''
    """
    now = time.time()
    theirs = _parsed(date)
    apart = theirs is not None and abs(theirs - now) > _SLACK
    if not apart and not said.startswith("expired"):
        return ""
    parts = []
    if token is not None and (expires := _expires(token)) is not None:
        parts.append(f"the token is good until {utc(expires)}")
    if theirs is not None:
        parts.append(f"the gateway's clock says {utc(theirs)}")
    parts.append(f"this machine's says {utc(now)}" + (": one of the two is wrong" if apart else ""))
    return f" ({', '.join(parts)})"


def of_certificate(first: float, last: float) -> str:
    """What to add where somebody else does not accept a certificate, maybe for its time."""
    return (
        f"; it is good from {utc(first)} to {utc(last)}, this machine's clock says {utc(time.time())}, "
        "the gateway's may differ"
    )


def _expires(token: str) -> float | None:
    try:
        return read_unverified(token).expires
    except LclsError:
        return None


def _parsed(date: str | None) -> float | None:
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
