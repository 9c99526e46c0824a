"""``lcls-dask doctor``: what this installation is, and whether it works."""

import os
import platform
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from .. import config
from ..display import size_text
from ..errors import LclsError
from .output import as_json, print_json, print_table

CORE = ("lcls_dask", "numpy", "numba", "dask", "distributed", "xarray", "zarr", "fsspec", "h5py")
#: Packages that are not always there, and the extra that brings each.
OPTIONAL = {"hdf5plugin": "hdf5", "matplotlib": "plot", "jupyterlab": "jupyter", "psana": "psana"}

Check = tuple[str, str, str]


@click.command()
@as_json
@click.pass_context
def doctor(ctx: click.Context, json_: bool) -> None:
    """Print versions and settings, and try out what reading a run needs.

    Exits with 1 where a check fails.
    """
    checks = [*_versions(), *_settings(), *_machine(), _cache(), _sample()]
    failed = [name for name, state, _ in checks if state == "FAILED"]
    if json_:
        print_json([dict(zip(("check", "state", "detail"), check, strict=True)) for check in checks])
    else:
        print_table(("check", "state", "detail"), checks)
    ctx.exit(1 if failed else 0)


def _versions() -> Iterator[Check]:
    yield "python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}"
    for name in CORE:
        try:
            yield name, "ok", version(name)
        except PackageNotFoundError:
            yield name, "FAILED", f"not installed: pip install {name}"
    for name, extra in OPTIONAL.items():
        try:
            yield name, "ok", version(name)
        except PackageNotFoundError:
            yield name, "absent", f"optional: pip install 'lcls_dask[{extra}]'"


def _settings() -> Iterator[Check]:
    yield "lcls.index-cache", "set", str(config.index_cache())
    for name, value in (("root", config.root()), ("gateway", config.gateway())):
        yield f"lcls.{name}", "unset" if value is None else "set", "" if value is None else str(value)
    yield "lcls.quiet-after", "set", f"{config.quiet_after():g} s"


def _machine() -> Iterator[Check]:
    from distributed.system import MEMORY_LIMIT

    yield "cpu", "ok", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} usable"
    yield "memory", "ok", size_text(MEMORY_LIMIT)


def _cache() -> Check:
    folder = config.index_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return "index cache", "FAILED", f"{error}; set LCLS_INDEX_CACHE to a directory that you can write"
    return "index cache", "ok", "writable"


def _sample() -> Check:
    from .. import open_run, simulate

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(folder) / "run"
            simulate(path, kind="tof", events=64, seed=1)
            events = open_run(path).dataset().sizes["event"]
        except (LclsError, OSError, ValueError) as error:
            return "sample read", "FAILED", f"{type(error).__name__}: {error}"
    return "sample read", "ok" if events == 64 else "FAILED", f"{events} of 64 simulated events"
