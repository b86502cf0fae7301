"""Builds the wheel and tries it in an empty environment of each supported Python that is here: ``make test-wheel``.

    python tests/try_wheel.py [PYTHON...]

Without arguments the interpreters are looked for by their names and among those of pyenv. What is not here is said,
and no reason to fail; what is here has to install and to run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WANTED = re.findall(r"Programming Language :: Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())

USE = """
import numpy as np, equipoise as eq
trace = eq.synthetic_trace(4, 32, 8, seed=0)
eq.save_trace(trace, "loads.safetensors")
plan = eq.plan(trace, eq.Topology(8, 5))
assert plan.report.after.mean_imbalance < plan.report.before.mean_imbalance
print(plan.placement.phy2log.sum(), f"{plan.report.after.mean_imbalance:.6f}")
"""
COMMANDS = (
    ["--version"],
    ["plan", "loads.safetensors", "--ranks", "8", "--redundant", "8", "-o", "placement.json"],
    ["replay", "loads.safetensors", "--ranks", "8", "--redundant", "8", "--history", "2", "--html", "r.html"],
    ["recommend", "loads.safetensors", "--gpus", "4,8", "--model", "olmoe", "--html", "a.html"],
    ["doctor"],
)  # fmt: skip


def interpreters() -> dict[str, str]:
    """Each supported Python that is here."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for version in WANTED:
        near = sorted(pyenv.glob(f"{version}.*/bin/python"))
        for program in (*map(str, near), shutil.which(f"python{version}")):
            if program and runs(program, version):
                found[version] = program
    return found


def runs(program: str, version: str) -> bool:
    said = subprocess.run([program, "--version"], capture_output=True, text=True)
    return said.returncode == 0 and said.stdout.startswith(f"Python {version}.")


def build(folder: Path) -> Path:
    for command in (["build", "-o", folder, ROOT], ["twine", "check", "--strict"]):
        files = folder.iterdir() if command[0] == "twine" else ()
        done = subprocess.run([sys.executable, "-m", *command, *files], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{command[0]}\n{done.stdout}{done.stderr}")
    print("twine finds nothing wrong")
    (wheel,) = folder.glob("*.whl")
    return wheel


def attempt(program: str, wheel: Path, folder: Path) -> str:
    """Install the wheel where nothing else is, and use it; what the plan came to."""
    subprocess.run([program, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    settings["NUMBA_CACHE_DIR"] = str(folder / "kernels")

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env=settings,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
        return done.stdout

    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    found = run(python, "-c", USE)
    for command in COMMANDS:
        run(folder / "bin" / "equipoise", *command)
    return found.strip()


def main(programs: list[str]) -> None:
    here = {program: program for program in programs} or interpreters()
    with tempfile.TemporaryDirectory() as temporary:
        wheel = build(Path(temporary) / "dist")
        for name, program in here.items():
            print(f"Python {name}: {attempt(program, wheel, Path(temporary) / Path(name).name)}", flush=True)
    missing = [version for version in WANTED if version not in here and not programs]
    if missing:
        print(f"not here, and NOT tried: Python {', '.join(missing)}")


if __name__ == "__main__":
    main(sys.argv[1:])
