"""Every example runs as it stands, in an empty folder, as a reader would run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SAYS = {
    "plan_from_sglang": r"imbalance \d\.\d+ on later windows",
    "plan_from_vllm": r"10% of all slots: [1-9] fetches",
    "custom_policy": r"snake +held-out 1\.\d+",
    "evolve_policy": r"has not seen: 0\.\d+ -> 0\.\d+",
}


def run(folder: Path, *command: object) -> str:
    settings = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script(script, tmp_path):
    if script.stem == "evolve_policy" and not sys.platform.startswith("linux"):
        pytest.skip("programs are scored on Linux only")
    arguments = ["1"] if script.stem == "evolve_policy" else []
    assert re.search(SAYS[script.stem], run(tmp_path, script, *arguments))


def test_an_example_takes_the_file_that_it_is_given(tmp_path):
    run(tmp_path, FOLDER / "plan_from_sglang.py")
    (tmp_path / "dump.json").rename(tmp_path / "mine.json")
    assert "mine.json" in run(tmp_path, FOLDER / "plan_from_sglang.py", "mine.json")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(notebook, tmp_path):
    """The cells in their order, in one process; what Jupyter adds (drawing) is left out."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(cells))
    assert "ranks with" in run(tmp_path, "-W", "ignore", script)
    drawn = [
        out
        for cell in content["cells"]
        for out in cell.get("outputs", [])
        if "image/png" in out.get("data", {})
    ]
    assert len(drawn) == "\n".join(cells).count(
        "plt.show()"
    )  # the figures are there to be seen without running it


def test_the_list_of_examples_is_whole():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([^)]+)\)", text)) == {path.name for path in (*SCRIPTS, *NOTEBOOKS)}
