"""Imports point down only, and no two modules import each other."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lcls_dask"

#: Rooms of the package and their layers; a room may import its own layer and those below.
LAYERS = {
    "model": 0,
    "uri": 0,
    "errors": 0,
    "config": 0,
    "formats": 1,
    "security": 1,
    "display": 1,  # for people, but of the model alone, so that Run can show itself with it
    "plugins": 1,
    "stores": 2,
    "gateway": 2,
    "cluster": 2,
    "access": 3,
    "facility": 4,
    "tof": 4,
    "sfx": 4,
    "reduce": 4,
    "batches": 4,
    "plot": 5,
    "cli": 5,
    "__main__": 5,
    "demo": 5,
}


def modules() -> dict[str, Path]:
    files = {path: path.relative_to(ROOT) for path in PACKAGE.rglob("*.py")}
    files |= {path: Path("lcls_dask") / path.relative_to(ROOT) for path in (ROOT / "plugins").rglob("*.py")}
    return {
        ".".join(relative.with_suffix("").parts).removesuffix(".__init__"): path
        for path, relative in files.items()
        if "__pycache__" not in path.parts
    }


MODULES = modules()


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements anywhere, in functions too, but not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from statements(node)


def imported(module: str, source: str, is_package: bool, known: frozenset[str]) -> set[str]:
    """Modules of this package that `source` imports."""
    found = set()
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        else:
            base = module.split(".")
            base = base[: len(base) - node.level + is_package] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` imports the module, `from module import name` the module
            names = {f"{prefix}.{alias.name}" if f"{prefix}.{alias.name}" in known else prefix for alias in node.names}
        found |= {name for name in names if name.split(".")[0] == "lcls_dask"}
    return found


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    return imported(module, path.read_text(), path.name == "__init__.py", frozenset(MODULES))


def layer(module: str) -> int | None:
    parts = module.split(".")
    return LAYERS[parts[1]] if len(parts) > 1 else None


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"lcls_dask"}))  # the package's face stands above all layers
def test_imports_point_down(module: str) -> None:
    own = layer(module)
    assert own is not None
    for target in imports_of(module):
        above = layer(target)
        assert above is not None or own == 5, f"{module} imports {target}, the face above it"
        assert above is None or above <= own, f"{module} (layer {own}) imports {target} (layer {above})"


def test_display_and_plugins_keep_to_the_bottom() -> None:
    for module in MODULES:
        if module.split(".")[1:2] == ["display"]:
            assert all(layer(target) == 0 for target in imports_of(module)), module


def test_no_cycles() -> None:
    # the face is left out: it fetches names from all layers when they are first used
    graph = {module: imports_of(module) - {module, "lcls_dask"} for module in MODULES if module != "lcls_dask"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other: " + " -> ".join(error.args[1]))


def test_the_walk_sees_every_kind_of_import() -> None:
    source = "\n".join(
        [
            "from ..model import Node",
            "from .. import errors",
            "from . import zarr_store",
            "import lcls_dask.uri",
            "def f():",
            "    from ..access.run import Run",
            "if TYPE_CHECKING:",
            "    from ..cli import main",
        ]
    )
    known = frozenset({"lcls_dask.model", "lcls_dask.errors", "lcls_dask.stores.zarr_store"})
    assert imported("lcls_dask.stores.x", source, False, known) == {
        "lcls_dask.model",
        "lcls_dask.errors",
        "lcls_dask.stores.zarr_store",
        "lcls_dask.uri",
        "lcls_dask.access.run",
    }
