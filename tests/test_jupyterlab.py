"""The first example in a real JupyterLab in a real Chromium, without the internet: what a person sees is there."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from jupyter_rig import SECONDS, jupyterlab

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "01_open_a_run.ipynb"
PICTURE = "img[src^='data:image/png']"
# a run's own HTML, xarray's of a dataset, the pictures of the two cells that plot
SEEN = {".lcls-run": 1, ".xr-wrap": 1, PICTURE: 2}
# [*] waits or runs; an error ends it all, and the cells after it are [ ] again
DONE = r"""() => {
    const shown = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(prompt => prompt.textContent)
    return /^\[\d+\]:$/.test(shown[0]) && !shown.includes("[*]:")
}"""

pytest.importorskip("jupyterlab", reason="no JupyterLab, the notebook is NOT opened in it: pip install -e '.[test]'")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: the notebook is NOT opened")
playwright.expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture
def chromium() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        # the system's, or the one that playwright can fetch where one is not root
        executable = shutil.which("chromium") or driver.chromium.executable_path
        if not Path(executable).exists():
            pytest.skip("no Chromium, the notebook in JupyterLab is NOT tested: python -m playwright install chromium")
        browser = driver.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[psutil.Popen, str, str]]:
    """With the notebook; its process, address and token."""
    root = tmp_path / "notebooks"
    root.mkdir()
    shutil.copy(NOTEBOOK, root)
    with jupyterlab(tmp_path, root) as running:
        yield running


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
