"""What an engine's operator sees of decisions: one line each, and a handful of series."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import equipoise
from equipoise import Balancer, Proposal, Topology
from equipoise.control import cost_model
from equipoise.engines.log import decision_line
from equipoise.engines.metrics import STATES, Metrics


def pairs(line: str) -> dict[str, str]:
    """The line as a log pipeline would take it apart."""
    assert "\n" not in line
    first, *rest = shlex.split(line)
    assert first == "equipoise"
    return dict(part.split("=", 1) for part in rest)


def proposals() -> list[Proposal]:
    """Real ones: first placement, a move, and what the gate keeps."""
    rng = np.random.default_rng(0)
    balancer = Balancer(
        Topology(4, 5), 3, 16, policy="greedy", max_moves=None, cost=cost_model("qwen3-30b"), horizon=1
    )
    found = []
    for scale in (1, 1, 1_000_000):
        balancer.observe((rng.lognormal(0, 1, (3, 16)) * 1000 * scale).astype(int))
        found.append(balancer.propose())
        balancer.commit(found[0].placement or found[0].plan)  # type: ignore[arg-type]
    return found


def test_the_line_says_what_was_decided_and_why() -> None:
    first, kept, moved = proposals()
    assert pairs(decision_line(first))["decision"] == "move"
    told = pairs(decision_line(kept, part="draft", expert_bytes=1000, seconds=0.01234))
    assert (told["part"], told["decision"], told["seconds"]) == ("draft", "keep", "0.0123")
    assert float(told["imbalance"]) == pytest.approx(kept.imbalance_now, abs=1e-4)
    assert float(told["planned"]) == pytest.approx(kept.imbalance_planned, abs=1e-4)
    assert (int(told["moves"]), int(told["bytes"])) == (kept.moves, kept.moves * 1000)
    assert told["reason"] == kept.reason
    assert {"gain_s", "cost_s"} <= set(told)
    assert pairs(decision_line(moved, observing=True))["decision"] == "would-move"
    assert "bytes" not in pairs(decision_line(moved))
    assert pairs(decision_line(kept, observing=True))["decision"] == "keep"


@given(st.text(max_size=40))
def test_whatever_a_reason_says_the_line_is_one_line(reason: str) -> None:
    """Reasons carry the words of policies of other packages."""
    line = decision_line(Proposal(None, None, reason=reason))
    assert line.isprintable()


def series(registry: object) -> dict[str, float]:
    client = pytest.importorskip("prometheus_client")
    found = {}
    for line in client.generate_latest(registry).decode().splitlines():
        if not line.startswith("#") and "_created" not in line and "_bucket" not in line:
            name, value = line.rsplit(" ", 1)
            found[name] = float(value)
    return found


def test_what_is_counted() -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    first, kept, moved = proposals()
    metrics = Metrics("target", registry)
    metrics.enter("balancing")
    for proposal in (first, kept, moved):
        metrics.decided(proposal, expert_bytes=1000, seconds=0.5)
    metrics.decided(moved, expert_bytes=1000, seconds=0.5, observing=True)
    metrics.failed()
    metrics.unwritten(3)
    found = series(registry)
    label = 'part="target"'
    assert found[f'equipoise_decisions_total{{decision="move",{label}}}'] == 3
    assert found[f'equipoise_decisions_total{{decision="keep",{label}}}'] == 1
    assert found[f'equipoise_decisions_total{{decision="failed",{label}}}'] == 1
    assert found[f"equipoise_moves_total{{{label}}}"] == first.moves + moved.moves
    assert found[f"equipoise_moved_bytes_total{{{label}}}"] == 1000 * (first.moves + moved.moves)
    assert found[f'equipoise_imbalance{{kind="now",{label}}}'] == moved.imbalance_now
    assert found[f"equipoise_plan_seconds_sum{{{label}}}"] == 2.0
    assert found[f"equipoise_unwritten_windows{{{label}}}"] == 3
    assert [found[f'equipoise_state{{{label},state="{s}"}}'] for s in STATES] == [0, 1, 0, 0]


def test_series_are_few_and_two_models_share_them() -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    for part in ("target", "draft", "target"):
        metrics = Metrics(part, registry)
        metrics.enter("observing")
        for proposal in proposals():
            metrics.decided(proposal)
        metrics.failed()
    assert len(series(registry)) <= 2 * 16


def test_a_registry_that_has_such_names_already(caplog: pytest.LogCaptureFixture) -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    client.Gauge("equipoise_state", "somebody else's", registry=registry)
    metrics = Metrics("target", registry)
    metrics.failed()
    assert "counts nothing for Prometheus" in caplog.text


def run(code: str, tmp_path: Path, **more: str) -> str:
    path = [str(Path(equipoise.__file__).parents[1]), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **more}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    return done.stdout


def test_without_the_client_nothing_happens(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from equipoise import Proposal; from equipoise.engines.metrics import Metrics\n"
        "metrics = Metrics(); metrics.enter('balancing'); metrics.failed(); metrics.unwritten(1)\n"
        "metrics.decided(Proposal(None, None, 3, 1.0, 1.0)); print('fine')\n"
    )
    assert run(code, tmp_path) == "fine\n"


def test_a_worker_is_collected_through_files(tmp_path: Path) -> None:
    """As engines do whose workers are processes: each writes files, the process that serves reads them."""
    pytest.importorskip("prometheus_client")
    worker = (
        "from equipoise.engines.metrics import Metrics\n"
        "metrics = Metrics('target'); metrics.enter('balancing'); metrics.failed()\n"
    )
    server = (
        "from prometheus_client import CollectorRegistry, generate_latest, multiprocess\n"
        "registry = CollectorRegistry(); multiprocess.MultiProcessCollector(registry)\n"
        "print(generate_latest(registry).decode())\n"
    )
    for _ in range(2):
        run(worker, tmp_path, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    told = run(server, tmp_path, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert 'equipoise_decisions_total{decision="failed",part="target"} 2.0' in told
    assert 'equipoise_state{part="target",state="balancing"} 1.0' in told
