"""What a Dask process let in and what it refused: one JSON object a line, one file a process."""

import json
import os
import time
from pathlib import Path
from socket import gethostname
from threading import Lock
from typing import Any

#: Seconds within which equal refusals are counted instead of written one by one.
WINDOW = 5.0
#: Distinct refusals that are counted at one time; beyond, each is written.
_MOST = 4096


class Audit:
    """The file of one process; never a token, a ticket or a key.

    Parameters
    ----------
    directory : Path
    process : str
        Of which role the process is.

    Raises
    ------
    OSError
        It cannot be written.

    Examples
    --------
    >>> audit = Audit(Path("audit"), "scheduler")
    >>> audit.write("connect", "refused", reason="another user", user="bob")
    >>> json.loads(audit.path.read_text())["reason"]
    'another user'
    """

    def __init__(self, directory: Path, process: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        began = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.path = directory / f"{process}-{began}-{gethostname()}-{os.getpid()}-{os.urandom(4).hex()}.audit.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._process = process
        self._lock = Lock()
        self._refused: dict[str, tuple[float, int]] = {}

    def write(self, event: str, decision: str, **fields: Any) -> None:
        """Append a line; of equal refusals only the first, and later how many there were.

        Parameters
        ----------
        event : str
            What was wanted: ``connect``, ``answer``, ``op``, ``stream``, ``page``, ...
        decision : str
            ``allowed``, ``refused``, ``dropped`` or ``ended``.
        **fields
            Who, from where, why.

        Raises
        ------
        OSError
            It could not be written.
        """
        record = {"process": self._process, "event": event, "decision": decision, **fields}
        with self._lock:
            if decision in ("refused", "dropped"):
                equal, now = json.dumps(record, sort_keys=True), time.monotonic()
                since, count = self._refused.get(equal, (now, 0))
                if count:
                    self._refused[equal] = since, count + 1
                    return
                if len(self._refused) < _MOST:
                    self._refused[equal] = now, 1
            self._append(record, 1)

    def flush(self, *, everything: bool = False) -> None:
        """Write how many refusals were like one that was written; call it every second or so."""
        now = time.monotonic()
        with self._lock:
            for equal, (since, count) in list(self._refused.items()):
                if everything or now - since >= WINDOW:
                    if count > 1:
                        self._append(json.loads(equal), count - 1)
                    del self._refused[equal]

    def _append(self, record: dict[str, Any], count: int) -> None:
        line = json.dumps({"time": round(time.time(), 6), **record, "count": count}, separators=(",", ":")) + "\n"
        data = line.encode()
        if os.write(self._file, data) != len(data):
            raise OSError(f"{self.path}: the audit could not be written")
