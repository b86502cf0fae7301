"""Writes the API reference to a folder: ``make docs``.

The page of the package has the public names; the pages of its modules have what extensions need.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import equipoise

MODULES = ["equipoise", "!equipoise.cli", "!equipoise.planning.torch_backend"]


def main(folder: Path) -> None:
    for name in equipoise.__all__:
        getattr(equipoise, name)  # lazy names are only documented once they are there
    pdoc.render.configure(docformat="numpy", footer_text=f"equipoise {equipoise.__version__}")
    pdoc.pdoc(*MODULES, output_directory=folder)
    print(f"{folder / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
