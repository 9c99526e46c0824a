"""From the target of a request to what it names: pure, and before anything touches the file system."""

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, unquote_to_bytes

_KEY = r"[!-\"$->@-~]*"  # printable ASCII without ? and #: nothing here has a query
_RUNS = re.compile(
    r"/v1/runs(?:/(?P<experiment>[a-z][a-z0-9_]{1,31})(?:/r(?P<run>[0-9]{1,6})(?:@(?P<snapshot>[0-9a-f]{8,64})"
    rf"(?:/(?:(?P<direct>direct)|nodes/(?P<node>{_KEY})|zarr/(?P<key>{_KEY})))?)?)?)?"
)
_CHUNK = re.compile(r"(?:(?P<node>[^/]+)/)?(?P<name>[^/]+)/c(?:/[0-9]{1,18})*")
_SIMPLE = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)  # what most keys are, and what decoding leaves as it is
_METADATA = "zarr.json"
#: Variables and nodes that are the run's, not a detector's.
_SHARED = frozenset(("event", "timestamp", "time", "step", "pulse_id"))
_SHARED_NODES = frozenset(("steps",))


class Kind(StrEnum):
    """What a target names."""

    HEALTH = "healthz"
    METRICS = "metrics"
    OPENAPI = "openapi"
    RUNS = "runs"
    EXPERIMENT = "experiment"
    RUN = "run"
    NODE = "node"
    KEY = "key"
    LISTING = "listing"
    DIRECT = "direct"

    # Enum's own is written in Python, and this one is hashed several times a request
    __hash__ = str.__hash__


@dataclass(frozen=True)
class Route:
    """What a target names.

    Attributes
    ----------
    kind : Kind
    experiment : str
        Empty where none is named.
    run : int or None
    snapshot : str or None
    key : str
        Of zarr, without a slash at its end; or the path of a node.
    """

    kind: Kind
    experiment: str = ""
    run: int | None = None
    snapshot: str | None = None
    key: str = ""

    @property
    def detector(self) -> str | None:
        """The detector whose values are asked for; None for metadata and for what belongs to the whole run."""
        if self.kind is not Kind.KEY or self.key.rpartition("/")[2] == _METADATA:
            return None
        first = self.key.partition("/")[0]
        match = _CHUNK.fullmatch(self.key)
        if match is None or match["node"] is not None:
            return None if first in _SHARED_NODES else first
        return None if first in _SHARED else first.partition(".")[0]


_FIXED = {
    "/healthz": Route(Kind.HEALTH),
    "/metrics": Route(Kind.METRICS),
    "/v1/openapi.json": Route(Kind.OPENAPI),
}


def route_of(target: str) -> Route | None:
    """What a target names, None where it names nothing.

    Parameters
    ----------
    target : str
        As in the request line. Only keys may be percent-encoded, and only once.

    Returns
    -------
    Route or None

    Examples
    --------
    >>> route_of("/v1/runs/tmox42619/r0014@0a1b2c3d/zarr/hsd.raw.value/c/0").detector
    'hsd'
    >>> route_of("/v1/runs/tmox42619/r0014@0a1b2c3d/zarr/%2e%2e/zarr.json") is None
    True
    """
    if target in _FIXED:
        return _FIXED[target]
    match = _RUNS.fullmatch(target)
    if match is None:
        return None
    experiment, run = match["experiment"], match["run"]
    if experiment is None:
        return Route(Kind.RUNS)
    if run is None:
        return Route(Kind.EXPERIMENT, experiment)
    kind, key = Kind.RUN, ""
    if match["direct"]:
        kind = Kind.DIRECT
    elif (encoded := match["node"]) is not None or (encoded := match["key"]) is not None:
        listing = match["node"] is None and (not encoded or encoded.endswith("/"))
        kind = Kind.NODE if match["node"] is not None else Kind.LISTING if listing else Kind.KEY
        decoded = _decode(encoded.removesuffix("/") if listing else encoded)
        if decoded is None:
            return None
        key = decoded
    return Route(kind, experiment, int(run), match["snapshot"], key)


def _decode(encoded: str) -> str | None:
    """A percent-encoded key, None where it could be taken for anything but a name in a hierarchy."""
    if not encoded or _SIMPLE.fullmatch(encoded):
        return encoded
    try:
        key = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        return None
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in key or not key.isprintable():
        return None
    return key if encoded.count("/") == len(parts) - 1 else None  # an encoded slash would be read in two ways


def target_of(route: Route) -> str:
    """How a client writes what a route names.

    Examples
    --------
    >>> target_of(Route(Kind.KEY, "tmox42619", 14, "0a1b2c3d", "timestamp/c/0"))
    '/v1/runs/tmox42619/r0014@0a1b2c3d/zarr/timestamp/c/0'
    """
    if route.kind in (Kind.HEALTH, Kind.METRICS):
        return f"/{route.kind}"
    if route.kind is Kind.OPENAPI:
        return "/v1/openapi.json"
    target = "/v1/runs" + (f"/{route.experiment}" if route.experiment else "")
    if route.run is not None:
        target += f"/r{route.run:04d}" + (f"@{route.snapshot}" if route.snapshot else "")
    key = quote(route.key, safe="/:@!$&'()*+,;=~")
    match route.kind:
        case Kind.DIRECT:
            return f"{target}/direct"
        case Kind.NODE:
            return f"{target}/nodes/{key}"
        case Kind.KEY:
            return f"{target}/zarr/{key}"
        case Kind.LISTING:
            return f"{target}/zarr/{key}/" if key else f"{target}/zarr/"
    return target
