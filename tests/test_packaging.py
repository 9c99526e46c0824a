"""What is installed is what is here, imports lightly, and needs what it says it needs."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = ["bokeh", "distributed", "h5py", "matplotlib", "numba", "pandas", "xarray", "zarr"]

_IMPORT = """
import json, sys, time
start = time.process_time()
import lcls_dask
print(json.dumps({"seconds": time.process_time() - start, "modules": sorted(sys.modules)}))
"""


def test_import_is_light() -> None:
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True).stdout)
        for _ in range(5)
    ]
    assert not set(HEAVY) & set(runs[0]["modules"])
    assert min(run["seconds"] for run in runs) < 0.3


def test_listed_packages_are_the_tree() -> None:
    tree = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "lcls_dask").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == tree | {"lcls_dask.plugins"}


def test_every_package_has_an_init() -> None:
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        folder = PROJECT["tool"]["setuptools"]["package-dir"].get(package, package.replace(".", "/"))
        assert (ROOT / folder / "__init__.py").is_file(), package


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [("console_scripts", name, value) for name, value in PROJECT["project"]["scripts"].items()]
    + [
        (group, name, value)
        for group, entries in PROJECT["project"]["entry-points"].items()
        for name, value in entries.items()
    ],
)
def test_entry_points_resolve(group: str, name: str, value: str) -> None:
    (installed,) = importlib.metadata.distribution("lcls_dask").entry_points.select(group=group, name=name)
    assert installed.value == value
    assert callable(installed.load())


def test_environment_agrees_with_the_project() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == PROJECT["project"]["name"]
    assert f"python{PROJECT['project']['requires-python']}" in conda
    # nothing but Python itself comes from anywhere else than pyproject.toml
    assert {re.split(r"[<>=]", entry)[0] for entry in conda} == {"python", "pip"}
    (line,) = pip
    match = re.fullmatch(r"-e \.\[(?P<extras>[a-z0-9,]+)\]", line)
    assert match is not None
    assert set(match["extras"].split(",")) <= PROJECT["project"]["optional-dependencies"].keys()


def test_the_extra_all_names_extras_that_exist() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (line,) = extras["all"]
    names = line.removeprefix("lcls_dask[").removesuffix("]").split(",")
    assert set(names) == extras.keys() - {"all", "test", "lint", "bench", "psana"}


def test_requirements_of_one_package_agree_in_all_extras() -> None:
    wanted: dict[str, set[str]] = {}
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in [*PROJECT["project"]["dependencies"], *(r for extra in extras for r in extra)]:
        match = re.fullmatch(r"(?P<name>[A-Za-z0-9_-]+)(?P<bound>.*)", requirement)
        assert match is not None, requirement
        wanted.setdefault(match["name"], set()).add(match["bound"])
    assert {name: bounds for name, bounds in wanted.items() if len(bounds) > 1} == {}


@pytest.fixture(scope="module")
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own files elsewhere, since building writes beside them."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("lcls_dask", "plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def build(source: Path, out: Path, hook: str) -> Path:
    code = f"import setuptools.build_meta as b; print(b.{hook}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def test_wheel_holds_everything(source_copy: Path, tmp_path: Path) -> None:
    wheel = build(source_copy, tmp_path, "build_wheel")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"lcls_dask/plugins/__init__.py", "lcls_dask/py.typed"} <= names
    modules = {str(path.relative_to(source_copy)) for path in (source_copy / "lcls_dask").rglob("*.py")}
    assert modules <= names
    assert not any(name.startswith(("tests/", "plugins/", "benchmarks/")) for name in names)


def test_editable_build_finds_the_plugins(source_copy: Path, tmp_path: Path) -> None:
    wheel = build(source_copy, tmp_path, "build_editable")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = f"import site; site.addsitedir({str(site)!r}); import lcls_dask.plugins as p; print(p.__file__)"
    # isolated, so that neither the working directory nor another installation of the package answers
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(source_copy / "plugins" / "__init__.py")


def test_no_machine_path_and_no_registry_host_in_the_repository() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files are kept was NOT tested")
    forbidden = re.compile("|".join(["/" + "work/", "/home/" + r"\w", r"pypi\." + "org", "pythonhosted" + r"\."]))
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png", ".xtc2", ".h5"}:
            found += [
                f"{name}:{number}"
                for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
                if forbidden.search(line)
            ]
    assert found == []
