"""A scheduler's dashboard in a real Chromium: her own for the owner, closed to everybody else."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from dask_rig import Rig, running, until
from distributed import Client
from security_world import make_world

from lcls_dask.security import Role
from lcls_dask.security.guard import dashboard_link, security_of

pytest.importorskip("bokeh", reason="no bokeh, the dashboard is NOT tested: pip install -e '.[dashboard]'")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: the dashboard is NOT tested")


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running(make_world(tmp_path_factory.mktemp("world")), tmp_path_factory.mktemp("alice")) as rig:
        rig.scheduler()
        rig.worker()
        yield rig


@pytest.fixture
def client(alice: Rig) -> Iterator[Client]:
    with Client(alice.address, security=security_of(alice.person().directory), timeout=30) as client:
        client.wait_for_workers(1, timeout=60)
        yield client


@pytest.fixture
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        executable = shutil.which("chromium") or driver.chromium.executable_path
        if not Path(executable).exists():
            pytest.skip("no Chromium, the dashboard is NOT tested: python -m playwright install chromium")
        browser = driver.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


def test_the_owner_signs_in_once_and_watches(alice: Rig, client: Client, browser: "playwright.Browser") -> None:
    link = dashboard_link(client)
    owner, stranger = browser.new_context(), browser.new_context()
    page = owner.new_page()
    page.set_default_timeout(60_000)
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.goto(link)
    # what the page shows comes through Bokeh's websocket
    playwright.expect(page.locator(".bk-Figure").first).to_be_visible(timeout=60_000)
    assert "ticket" not in page.url
    assert urlsplit(sockets[0]).path == "/status/ws"
    cookie = owner.cookies()[0]
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    client.gather(client.map(lambda x: x + 1, range(20), pure=False))
    # the other pages, and those in frames as JupyterLab's Dask panel shows them
    for path in ("/info/main/workers.html", "/individual-task-stream", "/json/counts.json"):
        response = page.goto(client.dashboard_link.replace("/status", path))
        assert response is not None
        assert response.status == 200
    # a ticket is good once; nobody else has the cookie
    other = stranger.new_page()
    for address in (link, client.dashboard_link):
        response = other.goto(address)
        assert response is not None
        assert response.status == 401
    line = alice.processes[0].audited(event="page", decision="allowed", reason="signed in")
    assert line["op"] == "/status"


def test_the_dask_panel_of_jupyterlab(
    alice: Rig, client: Client, browser: "playwright.Browser", tmp_path: Path
) -> None:
    """Its plots are frames in JupyterLab's page: closed until the owner has signed in with another tab."""
    pytest.importorskip("dask_labextension", reason="no dask-labextension: the panel is NOT tested")
    from jupyter_rig import jupyterlab

    context = browser.new_context(viewport={"width": 1400, "height": 1000}, service_workers="block")
    context.set_default_timeout(80_000)
    with jupyterlab(tmp_path, tmp_path) as (_, address, token):
        page = context.new_page()
        page.goto(f"{address}/lab?reset&token={token}")
        page.locator('.jp-SideBar [data-id="dask-dashboard-launcher"]').click()
        field = page.locator(".dask-DaskDashboardLauncher input")
        field.fill(client.dashboard_link.removesuffix("/status"))
        field.press("Enter")
        page.get_by_role("button", name="Task Stream", exact=True).click()
        frame = page.frame_locator("iframe[src*='individual-task-stream']")
        playwright.expect(frame.get_by_text("For the cluster's owner alone")).to_be_visible(timeout=80_000)
        context.new_page().goto(dashboard_link(client))
        page.get_by_role("button", name="Progress", exact=True).click()
        frame = page.frame_locator("iframe[src*='individual-progress']")
        playwright.expect(frame.locator(".bk-Figure").first).to_be_visible(timeout=80_000)
        context.close()


def test_a_session_ends_with_the_certificate(alice: Rig, browser: "playwright.Browser") -> None:
    """Revoked: the open dashboard's websocket is closed within the sweep, and its pages are 401 again."""
    lost = alice.short_lived(3600, "lost")
    with Client(alice.address, security=security_of(lost.directory), timeout=30, set_as_default=False) as client:
        link = dashboard_link(client)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        closed: list[bool] = []
        page.on("websocket", lambda socket: socket.on("close", lambda _: closed.append(True)))
        page.goto(link)
        playwright.expect(page.locator(".bk-Figure").first).to_be_visible(timeout=60_000)
    alice.revoke(lost)
    alice.processes[0].audited(event="page", decision="refused", reason="session ended")

    def seen() -> bool:
        page.wait_for_timeout(100)  # lets the browser's events in
        return bool(closed)

    until(seen, "the websocket's end")
    response = page.goto(link.partition("?")[0])
    assert response is not None
    assert response.status == 401


def test_tickets_are_for_people(alice: Rig, client: Client) -> None:
    """Task code, which has a worker's certificate, gets none."""

    def ask() -> str:
        from distributed import worker_client

        with worker_client() as inner:
            return str(inner.sync(inner.scheduler.dashboard_ticket))

    with pytest.raises(PermissionError, match="dashboard_ticket is refused"):
        client.submit(ask).result(timeout=60)
    line = alice.processes[0].audited(event="op", decision="refused", op="dashboard_ticket")
    assert line["role"] == str(Role.WORKER)
