"""The direction of imports: every file imports only from its own floor of the house and from those below.

The floors are those of docs/architecture.md. Imports are read with ``ast``, those inside functions and under
TYPE_CHECKING included.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "chronograd"

# From the ground up. A name is a folder or a file of the package; names on one floor do not import one another.
FLOORS = (
    ("chunk_register", "files"),
    ("sources",),
    ("kernels", "streamed", "style", "truncation"),
    ("recurrence",),
    ("carry", "estimate"),
    ("modes",),
    ("stretch", "support"),
    ("advance",),
    ("advance_forward",),
    ("gradient",),
    ("data", "measure", "testing"),
    ("training",),
    ("show",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = ("chronograd", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def resolve(module: str) -> str:
    """The module or package that holds ``module``: the longest known name it begins with."""
    while module not in MODULES and "." in module:
        module = module.rpartition(".")[0]
    return module


def imports(path: Path, *, on_loading: bool = False) -> set[str]:
    """The package's own modules that a file imports; ``on_loading`` leaves out what waits for a call."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    found = set()
    waiting = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if on_loading and isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        if on_loading and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return {resolve(name) for name in found if name.split(".")[0] == "chronograd"}


def floor_of(module: str) -> str:
    """The folder or file directly under the package."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down(path):
    here = floor_of(module_of(path))
    if not here:
        return  # the package itself only re-exports
    assert here in HEIGHT, f"{here} has no floor: give it one here and in docs/architecture.md"
    for target in imports(path):
        there = floor_of(target)
        # The package's own root holds the version number.
        if there and there != here:
            assert HEIGHT[there] < HEIGHT[here], f"{module_of(path)} imports {target}, which is not below it"


def test_no_circle():
    """No file is reached again through what it imports when it is loaded."""
    graph = {
        module: {target for target in imports(path, on_loading=True) if target not in ("chronograd", module)}
        for module, path in MODULES.items()
    }
    done, path = set(), []

    def visit(module):
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        path.append(module)
        # A package's __init__ gathers its own files; they import one another, not it.
        for target in graph[module]:
            visit(target)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_floors_exist():
    """No name in the table is left over."""
    for name in HEIGHT:
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists(), name


def test_modes_know_no_truncation_class():
    for path in FILES:
        if floor_of(module_of(path)) == "modes":
            assert not any(floor_of(target) == "truncation" for target in imports(path)), path.name
        if floor_of(module_of(path)) == "truncation":
            assert {floor_of(target) for target in imports(path)} <= {"truncation"}, path.name
