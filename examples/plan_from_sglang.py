"""From a dump of SGLang's expert distribution recorder to the file of `--init-expert-location`.

    python examples/plan_from_sglang.py [DUMP]

Without a dump a synthetic one is made, as the recorder's mode `stat` writes it: tokens a step for every layer of the
model and every logical expert.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import equipoise as eq

RANKS, SPARE = 8, 1


def synthetic_dump(path: Path) -> Path:
    """What a server would have recorded: 8 steps of an OLMoE-shaped model."""
    trace = eq.synthetic_trace(num_layers=16, num_experts=64, num_windows=8, seed=0)
    path.write_text(json.dumps({"rank": 0, "logical_count": trace.counts.tolist()}))
    return path


def main(dump: Path) -> None:
    trace = eq.load_trace(dump)
    print(f"read {trace}")

    topology = eq.Topology(RANKS, slots_per_rank=trace.num_experts // RANKS + SPARE)
    plan = eq.plan(trace, topology, held_out=len(trace) > 1)
    report = plan.report
    both = f"{report.before.mean_imbalance:.3f} -> {report.after.mean_imbalance:.3f}"
    print(f"imbalance {both} on what it was planned from")
    if report.held_out is not None:
        print(f"imbalance {report.held_out.after.mean_imbalance:.3f} on later windows")

    eq.save_placement(plan.placement, "placement.json", format="sglang")
    served = eq.load_placement("placement.json", num_ranks=RANKS)
    assert (served.phy2log == plan.placement.phy2log).all()  # what the server reads is what was planned
    print(
        "serve with: python -m sglang.launch_server ... --init-expert-location placement.json "
        f"--ep-num-redundant-experts {topology.num_slots - trace.num_experts}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else synthetic_dump(Path("dump.json")))
