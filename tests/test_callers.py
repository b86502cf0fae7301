"""Nothing in the package lies about unused: every definition has a caller in the package, or is public."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import equipoise

PACKAGE = Path(equipoise.__file__).parent
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
Definition = ast.FunctionDef | ast.ClassDef

# Called by others under these names: PyYAML, evolution frameworks, pickle, Rich, Click, Numba, vllm-ascend, the
# import system.
CALLED_BY_OTHERS = {
    "construct_mapping",
    "evaluate",
    "find_class",
    "get_call_template",
    "get_overload",
    "add_overload",
    "_compile_core",
    "_optimize_final_module",
    "_finalize_final_module",
    "load_overload",
    "save_overload",
    "persistent_load",
    "process_renderables",
    "invoke",
    "get_command",
    "write_dl",
    "formatter_class",
    "make_context",
    "on_start",
    "on_end",
    "set_new_ep_size",
    "restore",  # of a Balancer: servers call it
    "num_fetches",  # of a transfer plan: engines call it and what follows
    "link_bytes",
}


def definitions(tree: ast.Module) -> Iterator[Definition]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node


def used_names(tree: ast.AST) -> Counter[str]:
    """How often each name is read, imported, looked up or written down as a string, anywhere."""
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found[node.id] += 1
        elif isinstance(node, ast.Attribute):
            found[node.attr] += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(node.value.replace(":", " ").split())  # registries name classes as "module:Class"
    return found


def is_command(node: Definition) -> bool:
    """Whether Typer calls it: it carries a decorator like ``@app.command()``."""
    return any(
        isinstance(part, ast.Attribute) and part.attr in {"command", "callback"}
        for mark in node.decorator_list
        for part in ast.walk(mark)
    )


def test_every_definition_has_a_caller() -> None:
    used: Counter[str] = Counter()
    for tree in TREES.values():
        used += used_names(tree)
    unused = []
    for path, tree in TREES.items():
        for node in definitions(tree):
            dunder = node.name.startswith("__") and node.name.endswith("__")
            if dunder or node.name in CALLED_BY_OTHERS or node.name in equipoise.__all__ or is_command(node):
                continue
            inside = used_names(node)[node.name]  # recursion is no caller
            if used[node.name] <= inside:
                unused.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}")
    assert not unused, "\n".join(unused)


def test_an_unused_definition_is_seen() -> None:
    tree = ast.parse("def f():\n    return f()\n\ndef g():\n    return 1\n\nx = g()")
    used = used_names(tree)
    f, g = definitions(tree)
    assert used["f"] <= used_names(f)["f"]
    assert used["g"] > used_names(g)["g"]
