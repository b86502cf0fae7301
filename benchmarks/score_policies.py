"""Every built-in policy under every scoring protocol, on a synthetic drifting trace.

    python benchmarks/score_policies.py

The first row is DeepSeek's algorithm in plain Python (`benchmarks/reference.py`), scored as any program is, in a
process of its own. Scores contain times, so they differ between machines and between runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from equipoise.policy.registry import policies
from equipoise.scoring import PROTOCOLS, Limits, Score, drifting_trace, score_program
from equipoise.scoring.salt import checked

REFERENCE = Path(__file__).with_name("reference.py")
PLAIN = "greedy in plain Python"
# On a busy machine a first, compiling call may take longer than the default allows.
LIMITS = Limits(start_seconds=600, call_seconds=120)


def scores(seed: int, salt: str | None = None) -> dict[str, dict[str, Score]]:
    """Outcome of every row under every protocol, all on one trace."""
    salt = checked(salt)
    trace = drifting_trace(seed, salt=salt)
    rows: dict[str, dict[str, Score]] = {PLAIN: {}}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "plain.py"
        program.write_text(REFERENCE.read_text() + "\n\nrebalance_experts = greedy\n")
        for protocol in PROTOCOLS:
            rows[PLAIN][protocol] = score_program(program, trace, protocol, limits=LIMITS, salt=salt)
    for name in policies:
        for ignore_groups in (False, True):
            label = f"`{name}`, groups " + ("ignored" if ignore_groups else "kept on nodes")
            rows[label] = {
                protocol: score_program(
                    name, trace, protocol, ignore_groups=ignore_groups, limits=LIMITS, salt=salt
                )
                for protocol in PROTOCOLS
            }
    return rows


def markdown(rows: dict[str, dict[str, Score]]) -> str:
    """The table, and a line for each protocol with its best row and that row's lead."""
    lines = [
        "| program | expert balance | GPU balance | moves | plan | " + " | ".join(PROTOCOLS) + " |",
        "|---|" + "---:|" * (4 + len(PROTOCOLS)),
    ]
    for label, outcomes in rows.items():
        if refused := next((o.error for o in outcomes.values() if o.error is not None), None):
            lines.append(f"| {label} | refused: {refused} |")
            continue
        metrics = outcomes["equipoise"].metrics
        cells = [
            label,
            f"{metrics['balancedness_score_expert']:.4f}",
            f"{metrics['balancedness_score_gpu']:.4f}",
            f"{metrics['moves']:.0%}",
            f"{metrics['times_algorithm'] * 1e3:.1f} ms",
            *(f"{o.combined_score:.{1 if p == 'leaderboard' else 4}f}" for p, o in outcomes.items()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| protocol | best | score | lead over the plain greedy |", "|---|---|---:|---:|"]
    for protocol in PROTOCOLS:
        best = max(rows, key=lambda label: rows[label][protocol].combined_score)
        top, plain = rows[best][protocol].combined_score, rows[PLAIN][protocol].combined_score
        digits = 1 if protocol == "leaderboard" else 4
        lines.append(
            f"| {protocol} | {best} | {top:.{digits}f} | {top - plain:+.{digits}f} ({top / plain - 1:+.1%}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--salt", help="of an earlier run, for the same trace")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = scores(options.seed, options.salt)
    if options.json:
        print(json.dumps({row: {p: s.as_dict() for p, s in o.items()} for row, o in rows.items()}, indent=2))
    else:
        print(f"{next(iter(rows[PLAIN].values())).source}; 11 windows of 100 steps\n")
        print(markdown(rows))


if __name__ == "__main__":
    main()
