"""Settings: ``dask.config`` under ``lcls``, and the environment variables that stand in for them."""

import os
from pathlib import Path

import dask.config

DEFAULTS = {
    "index-cache": None,  # directory of run indexes; None: the user's cache directory
    "root": None,  # directory of experiments that lcls:// is read from without a gateway
    "gateway": None,  # address of the gateway that lcls:// is read from
    "identity": None,  # directory with this user's key and certificates
    "token": None,  # file that holds the token; None: "token" in the identity's directory
    "issuer": None,  # address of the issuer that renews certificate and token; None: the token's file is all
    "token-minutes": 10,  # how long a token from the issuer shall last
    "patience": 60,  # seconds for which a gateway that does not answer is asked again
    "direct": True,  # read the facility's own files where the gateway says so and they are seen from here
    "chunk-cache": None,  # directory in which chunks from a gateway are kept; None: none are
    "chunk-cache-bytes": 10_000_000_000,  # most that it may hold
    "quiet-after": 60,  # seconds without a write, after which a run without an end counts as cut
}

dask.config.update_defaults({"lcls": DEFAULTS})


def _setting(name: str) -> str | None:
    value = dask.config.get(f"lcls.{name}", None)
    return value if value is not None else os.environ.get("LCLS_" + name.upper().replace("-", "_"))


def index_cache() -> Path:
    """Directory of run indexes: ``lcls.index-cache``, ``LCLS_INDEX_CACHE``, or the user's cache."""
    chosen = _setting("index-cache")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "lcls_dask" / "index"


def root() -> Path | None:
    """Directory of experiments: ``lcls.root`` or ``LCLS_ROOT``."""
    chosen = _setting("root")
    return Path(chosen).expanduser() if chosen else None


def gateway() -> str | None:
    """Address of the gateway: ``lcls.gateway`` or ``LCLS_GATEWAY``."""
    return _setting("gateway")


def identity() -> Path:
    """Directory of the identity: ``lcls.identity``, ``LCLS_IDENTITY``, ``CERTIFIED_CONFIG``, or the user's own."""
    chosen = _setting("identity") or os.environ.get("CERTIFIED_CONFIG")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "lcls_dask" / "identity"


def token_file() -> Path | None:
    """File of the token: ``lcls.token`` or ``LCLS_TOKEN``; never the token itself, which others could see."""
    chosen = _setting("token")
    return Path(chosen).expanduser() if chosen else None


def issuer() -> str | None:
    """Address of the issuer: ``lcls.issuer`` or ``LCLS_ISSUER``."""
    return _setting("issuer")


def token_minutes() -> float:
    """How long a token shall last."""
    return float(dask.config.get("lcls.token-minutes"))


def patience() -> float:
    """Seconds for which a gateway that does not answer is asked again."""
    return float(dask.config.get("lcls.patience"))


def direct() -> bool:
    """Whether the facility's own files are read where the gateway allows it."""
    return bool(dask.config.get("lcls.direct"))


def chunk_cache() -> Path | None:
    """Directory of kept chunks: ``lcls.chunk-cache`` or ``LCLS_CHUNK_CACHE``."""
    chosen = _setting("chunk-cache")
    return Path(chosen).expanduser() if chosen else None


def chunk_cache_bytes() -> int:
    """Bytes of chunks that are kept."""
    return int(dask.config.get("lcls.chunk-cache-bytes"))


def quiet_after() -> float:
    """Seconds without a write after which a run that has no end counts as cut, not live."""
    return float(dask.config.get("lcls.quiet-after"))
