"""What all tests share: where the real data is, an index cache of their own, and a loud word about psana."""

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LCLS_DASK_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Directory of the real LCLS files."""
    if not (DATA / "lcls2").is_dir():
        pytest.skip(f"no real LCLS files: {DATA / 'lcls2'} is not a directory, they are NOT tested; set LCLS_DASK_DATA")
    return DATA


@pytest.fixture(autouse=True)
def own_index_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads what another run of the tests, or the user, has left in the cache."""
    cache = tmp_path_factory.mktemp("index-cache")
    monkeypatch.setenv("LCLS_INDEX_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def slurm_node() -> Iterator[Path]:
    """A Slurm of one node, shared by all tests of jobs; its directory."""
    from cluster_rig import slurm

    with slurm() as directory:
        yield directory


@pytest.fixture(scope="session")
def cluster_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated runs that clusters reduce; nothing writes into them."""
    from cluster_rig import write_runs

    root = tmp_path_factory.mktemp("cluster-runs")
    write_runs(root)
    return root


def _psana() -> str | None:
    try:
        return importlib.metadata.version("psana")
    except importlib.metadata.PackageNotFoundError:
        return None


def pytest_report_header() -> list[str]:
    return [
        f"psana: {_psana() or 'NOT INSTALLED, the referee tests will be skipped'}",
        f"real data: {DATA if DATA.is_dir() else f'NOT FOUND at {DATA}, its tests will be skipped'}",
    ]


#: What takes longest comes first, so that no process is left alone with it.
FIRST = ("test_demo.py", "test_sfx_chain.py", "test_notebooks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _psana() is None:
        terminalreporter.section("psana is not installed", red=True, bold=True)
        terminalreporter.line("Values were NOT compared with psana, the referee: pip install -e '.[psana]'", red=True)
    if not DATA.is_dir():
        terminalreporter.section("the real data is missing", red=True, bold=True)
        terminalreporter.line(f"{DATA} is not there: set LCLS_DASK_DATA to read real LCLS files", red=True)
