"""A tiny random Qwen3-MoE served by vLLM itself, with expert parallelism and the plug-in through its entry point.

Only in the virtual environment of ``make test-engines-vllm``. vLLM's CPU backend refuses to balance experts, so a
shim of these tests stands in for what it lacks (``shim/``); the token ids show that weights and maps fit together.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny_model import make

HERE = Path(__file__).parent
TOKENS = 80
QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "EQUIPOISE_NUM_THREADS": "1",
}


@dataclass
class Served:
    """What came of serving once."""

    ids: list[list[int]]
    log: str
    seen: list[dict[str, Any]] = field(default_factory=list)
    """what the shim has written down of commits and rearrangements, in order"""

    @property
    def rearrangements(self) -> list[int]:
        """Slots that each rearrangement committed with another expert than before."""
        moved: list[int] = []
        for one in self.seen:
            if one.get("layer", 0) == 0 and "moved" in one:
                moved.append(0)
            if "moved" in one:
                moved[-1] += one["moved"]
        return moved


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    make(path / "model")
    return path


def serve(folder: Path, name: str, asked: dict[str, Any], **environ: str) -> Served:
    witness = folder / f"{name}.witness"
    own = (
        {"EQUIPOISE_VLLM": "1", "TEST_CPU_SHIM": "1", "TEST_WITNESS": str(witness)}
        if asked.get("eplb")
        else {}
    )
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / "serve.py"),
            str(folder / "model"),
            json.dumps({"tokens": TOKENS, **asked}),
        ],
        env={**os.environ, **QUIET, **own, **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
    log = done.stdout + done.stderr
    found = re.search(r"^IDS (.*)$", done.stdout, re.MULTILINE)
    assert found, log[-4000:]
    lines = witness.read_text().splitlines() if witness.exists() else []
    return Served(json.loads(found[1]), log, [json.loads(line) for line in lines])


@pytest.fixture(scope="module")
def alone(folder):
    """The ids of one process without expert parallelism, and without anything of ours."""
    return serve(folder, "alone", {}).ids


@pytest.fixture(scope="module")
def recorded(folder):
    """Served synchronously, with recording on."""
    return serve(folder, "sync", {"tp": 2, "eplb": True}, EQUIPOISE_RECORD=str(folder / "recording"))


@pytest.fixture(scope="module")
def asynchronous(folder):
    return serve(folder, "async", {"tp": 2, "eplb": True, "async": True})


@pytest.mark.parametrize("mode", ["recorded", "asynchronous"])
def test_tokens_are_those_of_one_process(mode, alone, request):
    served = request.getfixturevalue(mode)
    assert sum(moved > 0 for moved in served.rearrangements) >= 3, served.rearrangements
    assert served.ids == alone
    assert served.log.count("decision=move") >= 3


def test_data_parallel_ranks_share_their_experts(folder, alone):
    """Two data parallel ranks of one process each, whose experts are spread over both: DP=2, EP=2."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> Served:
        own = {"VLLM_DP_RANK": str(number), "VLLM_DP_RANK_LOCAL": str(number), "VLLM_DP_SIZE": "2"}
        where = {"VLLM_DP_MASTER_IP": "127.0.0.1", "VLLM_DP_MASTER_PORT": str(port)}
        return serve(folder, f"dp{number}", {"eplb": True}, **own, **where)

    with ThreadPoolExecutor(2) as both:
        ranks = list(both.map(rank, range(2)))
    assert [served.ids for served in ranks] == [alone, alone]
    assert sum(moved > 0 for moved in ranks[0].rearrangements) >= 3
    # The lowest expert parallel rank plans, and no other.
    assert [served.log.count("decision=") > 0 for served in ranks] == [True, False]


def test_weights_that_do_not_move_are_seen(folder, alone):
    """The negative control: maps are committed and weights stay where they are."""
    broken = serve(folder, "broken", {"tp": 2, "eplb": True}, TEST_BREAK="1")
    assert sum(broken.rearrangements) > 0
    assert broken.ids != alone


def test_the_first_rearrangement_waits_for_nothing(recorded, capsys):
    """Kernels are warm before serving: the thread that serves is not blocked longer the first time."""
    spent = [one["rearranged_s"] for one in recorded.seen if "rearranged_s" in one]
    ratio = spent[0] / max(spent[1:])
    with capsys.disabled():
        print(f"\nthe first rearrangement blocks {ratio:.2f} times as long as the longest later one")
    assert (
        ratio < 10
    )  # a kernel that is loaded from the cache takes 50 times as long, one that is compiled 1000 times


def command(*arguments: str) -> str:
    code = "from equipoise.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_was_recorded_is_planned_and_served(folder, recorded, alone):
    """record, inspect, plan, replay, serve; in the asynchronous mode, which by itself commits a layer a pass."""
    recording, placement = str(folder / "recording"), str(folder / "placement.safetensors")
    assert "16" in command("inspect", recording)
    command("replay", recording, "--ranks", "2", "--redundant", "4", "--history", "2")
    command("plan", recording, "--ranks", "2", "--redundant", "4", "--format", "equipoise", "-o", placement)
    served = serve(
        folder,
        "static",
        {"tp": 2, "eplb": True, "async": True},
        EQUIPOISE_PLACEMENT=placement,
        EQUIPOISE_POLICY="static",
    )
    import equipoise as eq

    wanted = eq.load_placement(placement).phy2log.tolist()
    first = next(one for one in served.seen if "map" in one)
    assert first["passes"] <= 1  # in force for the second pass at the latest
    assert first["map"] == wanted
    assert first["moved"] > 0
    assert all(one["moved"] == 0 for one in served.seen if "layer" in one)  # and kept
    assert len([one for one in served.seen if "rearranged_s" in one]) >= 3
    assert served.ids == alone


def test_observing_moves_nothing(folder, alone):
    served = serve(folder, "observe", {"tp": 2, "eplb": True, "tokens": 40}, EQUIPOISE_MODE="observe")
    assert sum(served.rearrangements) == 0
    assert "decision=would-move" in served.log
    assert served.ids == [ids[:40] for ids in alone]


def test_a_placement_that_does_not_fit_stops_the_start(folder):
    import equipoise as eq

    file = folder / "other.safetensors"
    eq.save_placement(eq.contiguous_placement(3, 16, 4, 20), file, "equipoise")
    with pytest.raises(AssertionError, match="WorkerProc initialization failed"):
        serve(folder, "refused", {"tp": 2, "eplb": True}, EQUIPOISE_PLACEMENT=str(file))
