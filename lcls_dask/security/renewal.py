"""Renewing a certificate before it ends, in a thread of the process that presents it."""

import logging
import threading
import time
from pathlib import Path

from .. import config
from ..errors import LclsError
from .identity import load_identity
from .issuer_client import is_refusal, renew_if_due

_log = logging.getLogger(__name__)

#: Seconds between two attempts, while the issuer does not answer.
_RETRY = 5.0
_RUNNING: dict[Path, tuple[threading.Thread, threading.Event]] = {}
_LOCK = threading.Lock()


def start(directory: Path, issuer: str | None = None) -> None:
    """Keep the certificate in an identity's directory good from now on, as long as this process lives.

    It is renewed when half of its time has gone; nothing happens without an issuer. What the issuer
    refuses is told in the log and not asked again: the certificate then ends when its time is over.

    Parameters
    ----------
    directory : Path
    issuer : str, optional
        Address; ``lcls.issuer`` by default.
    """
    issuer, path = issuer or config.issuer(), directory.absolute()
    if issuer is None:
        return
    with _LOCK:
        if path not in _RUNNING or not _RUNNING[path][0].is_alive():
            end = threading.Event()
            thread = threading.Thread(target=_keep, args=(path, issuer, end), name="lcls-renewal", daemon=True)
            _RUNNING[path] = thread, end
            thread.start()


def stop(directory: Path) -> None:
    """Let the certificate in an identity's directory end when its time is over.

    Parameters
    ----------
    directory : Path
    """
    with _LOCK:
        running = _RUNNING.pop(directory.absolute(), None)
    if running is not None:
        running[1].set()


def _keep(directory: Path, issuer: str, end: threading.Event) -> None:
    pause = 0.0
    while not end.wait(pause):
        try:
            identity = load_identity(directory)
            if time.time() >= identity.peer.half_time:
                identity = renew_if_due(identity, issuer)
                _log.info("the certificate is good until %s", time.ctime(identity.peer.not_after))
            pause = max(0.0, identity.peer.half_time - time.time())
        except (LclsError, OSError) as error:
            if is_refusal(error):
                if not end.is_set():
                    _log.error("the certificate is not renewed any more: %s", error)
                return
            _log.warning("the certificate could not be renewed yet: %s", error)
            pause = _RETRY
