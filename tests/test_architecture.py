"""The house of docs/architecture.md: imports point downwards, and importing the package is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import equipoise

PACKAGE = Path(equipoise.__file__).parent
BASE = {"errors", "lazy", "topology", "placement", "trace", "metrics", "synthetic", "problem", "routes"}
# What each room may import; beside itself and the base types, which may import only each other.
ALLOWED = {
    "planning": set(),
    "search": {"planning"},
    "policy": {"planning", "search"},
    "dispatch": {"planning"},
    "plans": {"planning", "policy", "dispatch"},
    "formats": set(),
    "control": {"policy", "plans", "formats"},
    "runtime": {"planning", "policy", "plans", "formats", "control"},
    "replay": {"policy", "plans", "formats", "control"},
    "scoring": {"policy", "formats", "control"},
    "advice": {"policy", "plans", "control", "replay"},
    "sweep": {"policy", "formats", "control", "replay"},
    "report": {"plans", "formats", "control", "replay", "scoring", "sweep", "advice"},
    "engines": {"policy", "plans", "formats", "control", "runtime", "dispatch"},
    "demo": {"dispatch", "plans", "formats", "control", "runtime", "engines", "report"},
    "cli": {
        "policy",
        "plans",
        "formats",
        "control",
        "replay",
        "scoring",
        "sweep",
        "advice",
        "report",
        "runtime",
        "engines",
        "demo",
    },
    "__main__": {"cli"},
}
HEAVY = {
    "torch",
    "numba",
    "llvmlite",
    "scipy",
    "matplotlib",
    "safetensors",
    "typer",
    "rich",
    "yaml",
    "pandas",
    "ray",
    "pyarrow",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def rooms_imported(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and the rooms (or base modules) of this package that they import, wherever in the file."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*origin, *filter(None, [node.module])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == PACKAGE.name and len(parts) > 1:
                yield node.lineno, parts[1]


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    room = room_of(path)
    if room == "__init__":
        return  # the public names come from all rooms
    allowed = BASE | {room, "__version__"} | ALLOWED.get(room, set())
    wrong = [f"line {line}: {name}" for line, name in rooms_imported(path) if name not in allowed]
    assert not wrong, f"{room} must not import {wrong}"


def test_every_room_is_known():
    """A new room has to be given its place."""
    assert {room_of(path) for path in FILES} - BASE - {"__init__"} <= set(ALLOWED)


def test_imports_are_found():
    """The check above can fail: it sees relative, absolute and late imports."""
    assert {"policy", "report"} <= {name for _, name in rooms_imported(PACKAGE / "cli" / "plan.py")}
    assert "planning" in {name for _, name in rooms_imported(PACKAGE / "policy" / "greedy.py")}


@pytest.mark.parametrize("statement", ["import equipoise", "import equipoise; equipoise.Topology(2, 2)"])
def test_importing_the_package_is_light(statement):
    code = f"{statement}; import sys; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not HEAVY & {name.split(".")[0] for name in found}


@pytest.mark.parametrize("package", ["equipoise", "equipoise.runtime"])
def test_names_that_are_imported_on_first_use(package):
    """Listed before they are, then kept; torch is named where it is missing, and another name is none."""
    code = f"""
import sys
sys.modules["torch"] = None
import {package} as package
from equipoise import MissingDependencyError
assert "LiveBalancer" not in vars(package)
assert set(package.__all__) <= set(dir(package))
try:
    package.LiveBalancer
except MissingDependencyError as error:
    print(error)
try:
    package.nothing
except AttributeError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needs, unknown = found.stdout.splitlines()
    assert needs.endswith(".LiveBalancer needs torch: pip install 'equipoise[torch]'")
    assert unknown == f"module {package!r} has no attribute 'nothing'"
    from importlib import import_module

    module = import_module(package)
    assert module.Pace is vars(module)["Pace"]


def test_all_public_names_exist():
    for name in equipoise.__all__:
        assert getattr(equipoise, name).__doc__, name
    with pytest.raises(AttributeError):
        equipoise.nothing_of_this_name  # noqa: B018


def test_policies_is_the_registry_whatever_was_imported_first():
    code = "import equipoise.plans.plan, equipoise as eq; eq.plan; print(*eq.policies)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "greedy" in found.split()


def test_the_command_hears_ctrl_c_before_it_imports_anything():
    """What is imported before the first signal handler is set is a few small files."""
    code = "import equipoise.cli, sys; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not (HEAVY | {"numpy"}) & {name.split(".")[0] for name in found}


def test_the_command_starts_without_planning():
    """``equipoise --help`` must not wait for Numba."""
    code = "import equipoise.cli, equipoise.cli.plan, equipoise.cli.demo, sys; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numba", "scipy", "matplotlib"} & {name.split(".")[0] for name in found}


@pytest.mark.parametrize("folder", ["benchmarks", "tests"])
def test_no_script_changes_where_modules_are_found(folder):
    """Benchmarks know nothing of tests; what both use lies in benchmarks."""
    for path in (Path(__file__).parents[1] / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert not ast.unparse(node.func).startswith("sys.path."), f"{path}:{node.lineno}"
