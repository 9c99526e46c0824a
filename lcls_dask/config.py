"""Settings: ``dask.config`` under ``lcls``, and the environment variables that stand in for them."""

import os
from pathlib import Path

import dask.config

DEFAULTS = {
    "index-cache": None,  # directory of run indexes; None: the user's cache directory
    "root": None,  # directory of experiments that lcls:// is read from without a gateway
    "gateway": None,  # address of the gateway that lcls:// is read from
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


def quiet_after() -> float:
    """Seconds without a write after which a run that has no end counts as cut, not live."""
    return float(dask.config.get("lcls.quiet-after"))
