"""A JupyterLab for the tests, in a process of its own, that no setting of the user reaches."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

SECONDS = 80  # for any one step, on a machine that is busy with other tests
# all cells are in the page, also those scrolled out of it, and nothing asks whether it may fetch news
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@contextmanager
def jupyterlab(base: Path, root: Path) -> Iterator[tuple[psutil.Popen, str, str]]:
    """JupyterLab of this interpreter, which shows a directory: its process, address and token."""
    for name, values in SETTINGS.items():
        file = base / "config" / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    token = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    environment |= {
        "IPYTHONDIR": str(base / "ipython"),
        "JUPYTER_CONFIG_DIR": str(base / "config"),
        "JUPYTER_DATA_DIR": str(base / "data"),
        "JUPYTER_RUNTIME_DIR": str(base / "runtime"),
        "JUPYTER_TOKEN": token,
    }
    # below the ports that the system hands out by itself; where it is taken, Jupyter tries others and says which
    port = 10_000 + secrets.randbelow(20_000)
    options = ["--allow-root", "--no-browser", "--expose-app-in-browser", "--ip=127.0.0.1", f"--port={port}"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    log = base / "jupyterlab.log"
    with log.open("wb") as sink:
        server = psutil.Popen(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + SECONDS
        while not (address := re.search(r"http://127\.0\.0\.1:\d+(?=/lab.*\n)", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield server, address[0], token
    finally:
        _end(server)


def _end(server: psutil.Popen) -> None:
    """Let Jupyter end its kernels and itself; what then is left of them is killed."""
    if server.poll() is None:
        family = [server, *server.children(recursive=True)]
        server.terminate()
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            process.kill()
        psutil.wait_procs(left)
