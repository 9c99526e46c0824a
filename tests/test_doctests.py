"""The examples in docstrings give what they say. They may use `run_path`, a small simulated run, and `run`."""

import doctest
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lcls_dask

FINDER = doctest.DocTestFinder(exclude_empty=True)
#: Lazy names are looked up by their own modules.
MODULES = sorted(module.name for module in pkgutil.walk_packages(lcls_dask.__path__, "lcls_dask."))


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run_path = tmp_path_factory.mktemp("doctest") / "run"
    lcls_dask.simulate(run_path, "scan", events=20)
    return {"lcls_dask": lcls_dask, "np": np, "run_path": run_path, "run": lcls_dask.open_run(run_path)}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, namespace: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    told: list[str] = []
    for test in FINDER.find(module, extraglobs=namespace):
        runner.run(test, out=told.append)
    assert runner.failures == 0, "".join(told)
