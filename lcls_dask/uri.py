"""``lcls://<experiment>/r<NNNN>[@<snapshot>]``: parsed and written in one place."""

import re
from dataclasses import dataclass

from .errors import UriError

SCHEME = "lcls"
_URI = re.compile(
    r"lcls://(?P<experiment>[a-z][a-z0-9_]{1,31})"
    r"(?:/r(?P<run>\d{1,6})(?:@(?P<snapshot>[0-9a-f]{8,64}))?(?:/(?P<key>[^\0]*))?)?/?"
)


@dataclass(frozen=True)
class RunUri:
    """The parts of an ``lcls://`` URI.

    Attributes
    ----------
    experiment : str
    run : int or None
        None where the URI names an experiment.
    snapshot : str or None
    key : str
        What follows the run: a zarr key, or empty.

    Examples
    --------
    >>> str(RunUri("tmox42619", 14, "0a1b2c3d"))
    'lcls://tmox42619/r0014@0a1b2c3d'
    """

    experiment: str
    run: int | None = None
    snapshot: str | None = None
    key: str = ""

    def __str__(self) -> str:
        text = f"{SCHEME}://{self.experiment}"
        if self.run is not None:
            text += f"/r{self.run:04d}"
            text += f"@{self.snapshot}" if self.snapshot else ""
            text += f"/{self.key}" if self.key else ""
        return text


def is_uri(text: str) -> bool:
    """Whether the text claims to be an ``lcls://`` URI (it may still be a wrong one)."""
    return text.startswith(f"{SCHEME}://")


def parse_uri(text: str) -> RunUri:
    """Take an ``lcls://`` URI apart.

    Parameters
    ----------
    text : str

    Returns
    -------
    RunUri

    Raises
    ------
    UriError
        It is not one, or a part of it is malformed.

    Examples
    --------
    >>> parse_uri("lcls://xpptut15/r0014").run
    14
    """
    match = _URI.fullmatch(text)
    key = (match["key"] or "") if match else ""
    if match is None or any(part in ("..", ".") for part in key.split("/")):
        raise UriError(
            f"{text[:200]!r} is not an lcls URI; write lcls://<experiment>/r<NNNN>[@<snapshot>], "
            "for example lcls://xpptut15/r0014"
        )
    run = match["run"]
    return RunUri(match["experiment"], None if run is None else int(run), match["snapshot"], key)
