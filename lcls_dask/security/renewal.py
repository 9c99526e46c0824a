"""Renewing a certificate before it ends, in a thread of the process that presents it."""

import logging
import threading
import time
from pathlib import Path

from .. import config
from ..errors import AccessError, LclsError
from .identity import load_identity
from .issuer_client import renew_if_due

_log = logging.getLogger(__name__)

#: Seconds between two attempts, while the issuer does not answer.
_RETRY = 5.0
_RUNNING: dict[Path, threading.Thread] = {}
_LOCK = threading.Lock()


def start(directory: Path) -> None:
    """Keep the certificate in an identity's directory good from now on, as long as this process lives.

    It is renewed when half of its time has gone. Nothing happens without ``lcls.issuer``. What the issuer
    refuses is told in the log and not asked again: the certificate then ends when its time is over.

    Parameters
    ----------
    directory : Path
    """
    issuer, path = config.issuer(), directory.absolute()
    if issuer is None:
        return
    with _LOCK:
        if path not in _RUNNING or not _RUNNING[path].is_alive():
            thread = threading.Thread(target=_keep, args=(path, issuer), name="lcls-renewal", daemon=True)
            _RUNNING[path] = thread
            thread.start()


def _keep(directory: Path, issuer: str) -> None:
    while True:
        try:
            identity = load_identity(directory)
            time.sleep(max(0.0, identity.peer.half_time - time.time()))
            identity = renew_if_due(identity, issuer)
            _log.info("the certificate is good until %s", time.ctime(identity.peer.not_after))
        except FileNotFoundError:
            return  # the cluster is over
        except AccessError as error:
            if not directory.exists():
                return
            _log.error("the certificate is not renewed any more: %s", error)
            return
        except (LclsError, OSError) as error:
            _log.warning("the certificate could not be renewed yet: %s", error)
            time.sleep(_RETRY)
