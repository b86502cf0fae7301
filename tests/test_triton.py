"""Kernels for Triton become machine code, and say what their arguments are."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import equipoise

PACKAGE = Path(equipoise.__file__).parent


def is_jit(mark: ast.expr) -> bool:
    return ast.unparse(mark).startswith("triton.jit")


KERNELS = {
    node.name: node
    for path in sorted(PACKAGE.rglob("triton_*.py"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef) and any(map(is_jit, node.decorator_list))
}
BACKENDS = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("triton_backend.py"))
LAUNCHED = {name for name in KERNELS if re.search(rf"\b{name}\[", BACKENDS)}


def is_constant(argument: ast.arg) -> bool:
    return argument.annotation is not None and ast.unparse(argument.annotation) == "tl.constexpr"


def test_kernels_are_found() -> None:
    assert {"split_layer", "place_block", "pack_candidate", "mend"} <= LAUNCHED
    assert set(KERNELS) > LAUNCHED


@pytest.mark.parametrize("name", KERNELS)
def test_arguments_are_few_and_told(name: str) -> None:
    arguments = [argument for argument in KERNELS[name].args.args if not is_constant(argument)]
    assert len(arguments) <= 7
    text = re.sub(r"\s+", " ", ast.get_docstring(KERNELS[name]) or "")
    assert [a.arg for a in arguments if not re.search(rf"``{a.arg}( \[|``)", text)] == []


def test_every_kernel_becomes_machine_code_without_fused_sums(tmp_path: Path) -> None:
    """With the options of its backend. A fused product and sum rounds once where the reference rounds twice."""
    pytest.importorskip("torch")
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = [sys.executable, str(Path(__file__).with_name("compile_kernels.py"))]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    fused = dict(line.split() for line in done.stdout.splitlines())
    assert set(fused) == LAUNCHED
    assert set(fused.values()) == {"0"}
