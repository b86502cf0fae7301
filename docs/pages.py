"""Makes the documentation as pages, guides and API reference under one search: ``make docs``.

The guides are README.md, docs/ and the changelog; the reference is made from the docstrings. Sphinx reads a copy in
which links fit, so that the same files are read well in the repository.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import equipoise

ROOT = Path(__file__).resolve().parents[1]
CARD = "src/equipoise/demo/data/card.json"
GUIDES = {
    "Use": (
        "choosing-a-policy",
        "formats",
        "live",
        "runtime",
        "dispatch",
        "decode",
        "communication",
        "replay",
        "recommend",
        "sweep",
        "scoring",
        "metrics",
        "demo",
        "versions",
    ),
    "Understand": ("algorithm", "synthetic", "architecture", "examples/README", "changes"),
}
MODULES = {
    "equipoise": "the public names",
    "equipoise.control": "when to move: balancer, gate, cost model, forecasts",
    "equipoise.runtime": "live, over torch.distributed",
    "equipoise.engines.torch_moe": "plain torch models, expert parallel",
    "equipoise.replay": "held-out replay of a recording",
    "equipoise.advice": "what to serve with",
    "equipoise.sweep": "grids of replays",
    "equipoise.scoring": "scoring policies written as programs",
    "equipoise.policy.protocol": "what a policy is and can do",
    "equipoise.formats.base": "what a format is",
    "equipoise.planning.objective": "what is minimised",
    "equipoise.report.html": "the page of a replay",
}
SETTINGS = {
    "project": "Equipoise",
    "extensions": ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"],
    "html_theme": "furo",
    "html_title": f"Equipoise {equipoise.__version__}",
    "html_show_copyright": False,
    "myst_heading_anchors": 4,
    "default_role": "code",
    "autodoc_member_order": "bysource",
    "autodoc_typehints": "signature",
    "napoleon_google_docstring": False,
    "napoleon_use_rtype": False,
    "suppress_warnings": ["ref.python"],  # types of fields that are called as fields are: bytes
}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copy_guides(source: Path) -> None:
    """README and docs/, with links that fit where the copies lie."""
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(ROOT / "examples", source / "examples")  # its pages link to the files
    shutil.copy(ROOT / CARD, source)
    card = Path(CARD).name
    for page in source.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        write(page, text.replace("](../README.md", "](index.md").replace(f"](../{CARD}", f"]({card}"))
    links = {"docs/": "", "CHANGELOG.md": "changes.md", CARD: card}
    for name, path in {"index": "README.md", "changes": "CHANGELOG.md"}.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        for old, new in links.items():
            text = text.replace(f"]({old}", f"]({new}")
        write(source / f"{name}.md", text + (contents() if name == "index" else ""))


def contents() -> str:
    """The contents of the site, as trees for Sphinx."""
    trees = {**GUIDES, "Reference": tuple(f"api/{name}" for name in MODULES)}
    parts = [
        "```{{toctree}}\n:hidden:\n:caption: {}\n\n{}\n```".format(name, "\n".join(pages))
        for name, pages in trees.items()
    ]
    return "\n\n" + "\n\n".join(parts) + "\n"


def reference(name: str, seen: dict[int, str]) -> str:
    """The page of a module: its public names where it has them, else what it defines.

    ``seen`` are the objects described so far; what stands on another page is named alone.
    """
    module = import_module(name)
    public = getattr(module, "__all__", None)
    title = f"{name}: {MODULES[name]}"
    parts = [
        title,
        "=" * len(title),
        "",
        f".. automodule:: {name}",
        *(["   :members:"] if public is None else []),
        "",
    ]
    for each in public or ():
        found = getattr(module, each)
        elsewhere = seen.setdefault(id(found), f"{name}.{each}")
        if elsewhere != f"{name}.{each}":
            parts += [f"`{each}` is :py:obj:`{elsewhere}`.", ""]
        elif inspect.isclass(found):
            parts += [f".. autoclass:: {name}.{each}", "   :members:", ""]
        elif callable(found):
            parts += [f".. autofunction:: {name}.{each}", ""]
        else:
            parts += [
                f".. py:data:: {each}",
                "",
                f"   A mapping of {', '.join(f'`{key}`' for key in found)}.",
                "",
            ]
    return "\n".join(parts)


def described(docstring: str) -> str:
    """The docstring with ``name : text`` as a name and its text; NumPy's style has a type in that place."""
    return re.sub(r"^(\w[\w, ]*) : (\S.*)$", r"\1\n    \2", docstring, flags=re.MULTILINE)


def describe(app: Sphinx, what: str, name: str, found: object, options: Any, lines: list[str]) -> None:
    """Sphinx's event: change a docstring in place."""
    _of_fields[name] = list(lines)
    lines[:] = described("\n".join(lines)).splitlines()


def leave_fields(app: Sphinx, what: str, name: str, found: object, options: Any, lines: list[str]) -> None:
    """Put the docstring of a field back: napoleon takes what stands before a colon for its type."""
    if what == "attribute":
        lines[:] = _of_fields[name]


_of_fields: dict[str, list[str]] = {}


def main(folder: Path) -> int:
    source = folder.parent / f"{folder.name}-source"
    for old in (source, folder):
        shutil.rmtree(old, ignore_errors=True)
    copy_guides(source)
    seen: dict[int, str] = {}
    for name in MODULES:
        write(source / "api" / f"{name}.rst", reference(name, seen))
    trees = folder.parent / f"{folder.name}-trees"
    app = Sphinx(
        source,
        None,
        folder,
        trees,
        "html",
        confoverrides=SETTINGS,
        freshenv=True,
        status=None,
        warningiserror=True,
    )
    app.connect("autodoc-process-docstring", describe, priority=100)  # before napoleon reads it
    app.connect("autodoc-process-docstring", leave_fields, priority=900)
    app.build()
    print(f"{folder / 'index.html'}")
    return int(app.statuscode)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs").resolve()))
