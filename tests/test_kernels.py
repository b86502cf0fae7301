"""What the sources of kernels promise: few arguments, each named in the docstring, arrays with their shape."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import equipoise

PACKAGE = Path(equipoise.__file__).parent
MOST_ARGUMENTS = 7
OF_ARRAYS = {"size", "shape", "sort", "max", "argmax", "argmin", "sum"}


def kernels() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(mark, ast.Name) and mark.id == "kernel" for mark in node.decorator_list
            ):
                yield f"{path.relative_to(PACKAGE).with_suffix('')}:{node.name}", node


KERNELS = dict(kernels())


def arrays_of(function: ast.FunctionDef) -> set[str]:
    """The arguments that are indexed, walked over or asked for their size: arrays, whatever they are called."""
    names = {argument.arg for argument in function.args.args}
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            found.add(node.value.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in OF_ARRAYS:
            found.add(node.value.id)
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Name):
            found.add(node.iter.id)
    return found & names


def test_kernels_are_found() -> None:
    assert {"search/swaps:best_swap", "planning/pack:pack_greedy"} <= set(KERNELS)
    assert len(KERNELS) > 40


@pytest.mark.parametrize("name", KERNELS)
def test_arguments_are_few_and_told(name: str) -> None:
    function = KERNELS[name]
    arguments = [argument.arg for argument in function.args.args]
    assert len(arguments) <= MOST_ARGUMENTS
    text = re.sub(r"\s+", " ", ast.get_docstring(function) or "")
    missing = [argument for argument in arguments if not re.search(rf"``{argument}( \[|``)", text)]
    assert not missing, f"the docstring does not name {missing}"
    shapeless = [argument for argument in arrays_of(function) if f"``{argument} [" not in text]
    assert not shapeless, f"the docstring has no shape for {shapeless}"


# Numba's own code for these takes longer to compile than the kernels around it.
SLOW_TO_COMPILE = {
    "argsort",
    "median",
    "nonzero",
    "partition",
    "percentile",
    "quantile",
    "sort",
    "unique",
    "where",
}


def slow_to_compile(function: ast.FunctionDef) -> set[str]:
    """What a kernel uses of that, and whether it assigns whole arrays, which compiles the text of an error."""
    found = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)} & SLOW_TO_COMPILE
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and not isinstance(node.value, (ast.Constant, ast.UnaryOp)):
            for target in node.targets:
                if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Slice):
                    constant = isinstance(node.value, ast.Attribute) and node.value.attr == "inf"
                    found |= set() if constant else {"slice assignment"}
    return found


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_use_nothing_that_is_slow_to_compile(name: str) -> None:
    assert not slow_to_compile(KERNELS[name])


def test_what_is_slow_to_compile_is_recognised() -> None:
    code = "def f(a, b):\n    a.sort()\n    b[:] = a\n    b[:] = 0\n    b[1:] = -np.inf"
    function = ast.parse(code).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert slow_to_compile(function) == {"sort", "slice assignment"}


def test_arrays_are_recognised() -> None:
    """The check above can fail: a kernel that uses an array without saying its shape is seen."""
    code = "def f(a, b, c, d):\n    for x in d:\n        a[0] = b.size + c"
    function = ast.parse(code).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert arrays_of(function) == {"a", "b", "d"}
