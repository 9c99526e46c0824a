"""The first example in a real JupyterLab in a real Chromium, without the internet: what a person sees is there."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "01_open_a_run.ipynb"
SECONDS = 80  # for any one step, on a machine that is busy with other tests
# all cells are in the page, also those scrolled out of it, and nothing asks whether it may fetch news
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
PICTURE = "img[src^='data:image/png']"
# a run's own HTML, xarray's of a dataset, the pictures of the two cells that plot
SEEN = {".lcls-run": 1, ".xr-wrap": 1, PICTURE: 2}
# [*] waits or runs; an error ends it all, and the cells after it are [ ] again
DONE = r"""() => {
    const shown = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(prompt => prompt.textContent)
    return /^\[\d+\]:$/.test(shown[0]) && !shown.includes("[*]:")
}"""

pytest.importorskip("jupyterlab", reason="no JupyterLab: pip install -e '.[test]'")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test]'")
playwright.expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture
def chromium() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        # the system's, or the one that playwright can fetch where one is not root
        executable = shutil.which("chromium") or driver.chromium.executable_path
        if not Path(executable).exists():
            pytest.skip("no Chromium: apt-get install chromium, or python -m playwright install chromium")
        browser = driver.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


def end(server: psutil.Popen) -> None:
    """Let Jupyter end its kernels and itself; what then is left of them is killed."""
    if server.poll() is None:
        family = [server, *server.children(recursive=True)]
        server.terminate()
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            process.kill()
        psutil.wait_procs(left)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[psutil.Popen, str, str]]:
    """A JupyterLab of this interpreter that no setting of the user reaches: its process, address and token."""
    root = tmp_path / "notebooks"
    root.mkdir()
    shutil.copy(NOTEBOOK, root)
    for name, values in SETTINGS.items():
        file = tmp_path / "config" / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    token = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    environment |= {
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTER_TOKEN": token,
    }
    # below the ports that the system hands out by itself; where it is taken, Jupyter tries others and says which
    port = 10_000 + secrets.randbelow(20_000)
    options = ["--allow-root", "--no-browser", "--expose-app-in-browser", "--ip=127.0.0.1", f"--port={port}"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    log = tmp_path / "jupyterlab.log"
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
        end(server)


def test_notebook_in_jupyterlab(
    chromium: "playwright.Browser", lab: tuple[psutil.Popen, str, str], tmp_path: Path
) -> None:
    server, address, token = lab
    outside: list[str] = []

    def block(route: "playwright.Route") -> None:
        outside.append(route.request.url)
        route.abort()

    context = chromium.new_context(viewport={"width": 1280, "height": 1000}, service_workers="block")
    context.set_default_timeout(SECONDS * 1000)
    context.route(re.compile(r"^(?!http://127\.0\.0\.1:|data:|blob:)"), block)
    page = context.new_page()
    try:
        page.goto(f"{address}/lab/tree/{NOTEBOOK.name}?token={token}")
        idle = page.get_by_text(re.compile(r"^Python 3.*\| Idle$"))
        idle.wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_function(DONE)
        idle.wait_for()

        notebook = page.evaluate("jupyterapp.shell.currentWidget.content.model.toJSON()")
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"] == []
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))

        # the kernel is a child of the server and runs the Python that runs this test
        (kernel,) = server.children()
        assert kernel.cmdline()[:3] == [sys.executable, "-m", "ipykernel_launcher"]

        for selector, count in SEEN.items():
            outputs = page.locator(f".jp-OutputArea-output {selector}")
            playwright.expect(outputs).to_have_count(count)
            for output in outputs.all():
                output.scroll_into_view_if_needed()
                playwright.expect(output).to_be_in_viewport()
                box = output.bounding_box()
                assert box is not None
                assert box["width"] > 300, selector
                assert box["height"] > 100, selector
        playwright.expect(page.locator(".lcls-run")).to_contain_text("2,000")
        for picture in page.locator(PICTURE).all():
            assert picture.evaluate("image => image.complete && image.naturalWidth") > 300
        assert outside == []
    finally:
        page.screenshot(path=tmp_path / "page.png")
        context.close()
