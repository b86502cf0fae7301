"""The evaluator file that OpenEvolve, ShinkaEvolve and SkyDiscover call as it stands.

Which trace and protocol it uses stands in the environment: ``EQUIPOISE_TRACE`` (a path) and
``EQUIPOISE_PROTOCOL``; ``EQUIPOISE_SALT`` repeats an earlier run. See ``docs/scoring.md``; ``python -m
equipoise.scoring --path`` prints where this file lies. It is loaded by path, outside its package, hence the
absolute imports.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from equipoise.errors import ArgumentError, EquipoiseError
from equipoise.scoring import Score, score_program
from equipoise.scoring.messages import bounded
from equipoise.scoring.process import clean_up_on_sigterm
from equipoise.trace import LoadTrace


def evaluate(program_path: str, trace: str | None = None, protocol: str | None = None) -> dict[str, Any]:
    """Score the program at a path: metrics by name, among them ``combined_score``.

    Parameters
    ----------
    program_path : a Python file with ``rebalance_experts``
    trace : path of the trace; ``EQUIPOISE_TRACE`` unless given
    protocol : ``EQUIPOISE_PROTOCOL`` unless given, else "equipoise"

    Returns
    -------
    numbers by name; a refused program has ``combined_score`` 0 and the reason under ``error``

    Raises
    ------
    EquipoiseError
        if the trace is missing or the protocol unknown: no program's fault, so it is not scored as one
    """
    return _numbers(_score(program_path, trace, protocol))


def _score(program_path: str, trace: str | None = None, protocol: str | None = None) -> Score:
    path = trace or os.environ.get("EQUIPOISE_TRACE")
    if not path:
        raise ArgumentError("no trace to score on: set EQUIPOISE_TRACE to the path of one")
    return score_program(
        program_path,
        _load(path),
        protocol or os.environ.get("EQUIPOISE_PROTOCOL", "equipoise"),
        salt=os.environ.get("EQUIPOISE_SALT"),
    )


def _numbers(score: Score) -> dict[str, Any]:
    result: dict[str, Any] = {"combined_score": score.combined_score, **score.metrics}
    if score.error is not None:
        result["error"] = score.error
    return result


@lru_cache(maxsize=1)
def _load(path: str) -> LoadTrace:
    from equipoise.formats import load_trace

    return load_trace(path)


def main(arguments: list[str] | None = None) -> None:
    """The command-line forms: ShinkaEvolve's (two files in a folder) and SkyDiscover's (JSON on stdout)."""
    parser = argparse.ArgumentParser(prog="python -m equipoise.scoring", description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", help="the program; its scores go to standard output as JSON")
    parser.add_argument("--program_path", help="the program, as ShinkaEvolve names it")
    parser.add_argument("--results_dir", type=Path, help="folder for metrics.json and correct.json")
    parser.add_argument("--path", action="store_true", help="print where the evaluator file lies")
    options, _ = parser.parse_known_args(arguments)
    if options.path:
        print(os.path.abspath(__file__))
        return
    program = options.program_path or options.program
    if program is None:
        parser.error("name a program")
    clean_up_on_sigterm()
    try:
        score = _score(program)
    except EquipoiseError as error:
        print(f"error: {bounded(str(error))}", file=sys.stderr)
        sys.exit(2)
    print(f"salt of this run: {score.salt}", file=sys.stderr)
    result = _numbers(score)
    reason = result.pop("error", None)
    if options.results_dir is not None:
        options.results_dir.mkdir(parents=True, exist_ok=True)
        _write(options.results_dir / "metrics.json", result)
        _write(options.results_dir / "correct.json", {"correct": reason is None, "error": reason})
        return
    answer: dict[str, Any] = {
        "status": "success" if reason is None else "error",
        "combined_score": result["combined_score"],
        "metrics": result,
    }
    if reason is not None:
        answer["artifacts"] = {"error": reason}
    print(json.dumps(answer))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
