"""Writes the API reference to a folder: ``make docs``.

The page of the package has the public names; the pages of its modules have what extensions need.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pdoc
import pdoc.docstrings
import pdoc.render

import equipoise

MODULES = ["equipoise", "!equipoise.cli", "!equipoise.planning.torch_backend"]


def described(docstring: str) -> str:
    """The docstring with ``name : text`` as a name and its text; NumPy's style has a type in that place."""
    return re.sub(r"^(\w[\w, ]*) : (\S.*)$", r"\1\n    \2", docstring, flags=re.MULTILINE)


def main(folder: Path) -> None:
    for name in equipoise.__all__:
        getattr(equipoise, name)  # lazy names are only documented once they are there
    pdoc.render.configure(docformat="numpy", footer_text=f"equipoise {equipoise.__version__}")
    numpy_style = pdoc.docstrings.numpy
    pdoc.docstrings.numpy = lambda docstring: numpy_style(described(docstring))
    pdoc.pdoc(*MODULES, output_directory=folder)
    print(f"{folder / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
