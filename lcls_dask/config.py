"""Settings: ``dask.config`` under ``lcls``, and the environment variables that stand in for them."""

import os
from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_timedelta

DEFAULTS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("lcls_dask.yaml").read_text())

dask.config.update_defaults(DEFAULTS)


def _setting(name: str) -> str | None:
    value = dask.config.get(f"lcls.{name}", None)
    return value if value is not None else os.environ.get("LCLS_" + name.upper().replace("-", "_"))


def chosen() -> dict[str, str]:
    """Settings, those of clusters apart, that are not the defaults: what another process of this user needs to know."""
    found = {name: _setting(name) for name in DEFAULTS["lcls"] if name != "cluster"}
    return {name: str(value) for name, value in found.items() if value != DEFAULTS["lcls"][name]}


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


def audit() -> Path | None:
    """Directory of a Dask process's audit: ``lcls.audit`` or ``LCLS_AUDIT``."""
    chosen = _setting("audit")
    return Path(chosen).expanduser() if chosen else None


def revocations() -> Path | None:
    """File of revoked certificates: ``lcls.revocations`` or ``LCLS_REVOCATIONS``."""
    chosen = _setting("revocations")
    return Path(chosen).expanduser() if chosen else None


def sweep() -> float:
    """Seconds between looks of a Dask process at the certificates of its connections."""
    return float(dask.config.get("lcls.sweep"))


def quiet_after() -> float:
    """Seconds without a write after which a run that has no end counts as cut, not live."""
    return float(dask.config.get("lcls.quiet-after"))


def cluster(name: str) -> Any:
    """A setting of clusters: ``lcls.cluster.<name>``."""
    return dask.config.get(f"lcls.cluster.{name}")


def cluster_directory() -> Path:
    """Directory of enrolment secrets that jobs see: ``lcls.cluster.directory``, or one in the user's home."""
    given = cluster("directory")
    return Path(given).expanduser() if given else _state() / "clusters"


def cluster_audit() -> Path:
    """Directory of a cluster's audit: ``lcls.audit``, or one in the user's home, as its identities do not stay."""
    return audit() or _state() / "audit"


def cluster_logs() -> Path:
    """Directory of jobs' logs, where dask-jobqueue is not told another."""
    return cluster_directory() / "logs"


def retire_before(walltime: float) -> float:
    """Seconds before the end of their walltime at which workers retire."""
    return min(float(parse_timedelta(cluster("retire-before"))), walltime / 10)


def _state() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "lcls_dask"
