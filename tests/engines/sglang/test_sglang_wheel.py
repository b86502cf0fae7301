"""The plug-in in the real SGLang 0.5.23: its loader, recorder, manager and updater, on gloo ranks.

What stands in is named in ``serving.py``. Not tested: CUDA, NCCL, a model that generates, Mooncake's groups. A rank
that is dead is one that SGLang takes for dead; it goes on taking part in collectives.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import serving
import torch
import torch.distributed as dist
from serving import Run, Server, locations, serve

from equipoise import Placement, imbalance, load_trace, rank_loads
from equipoise.policy.greedy import Greedy

ON = {"EQUIPOISE_SGLANG": "1"}
SERVERS = [Server(2), Server(4, experts=64, slots_per_rank=18)]
INTERVALS = 8


@pytest.fixture(scope="module", autouse=True)
def warmed() -> None:
    """Kernels are taken from the cache in every rank."""
    from equipoise.plans.warmup import PlanKind
    from equipoise.topology import Topology

    for current in (False, True):
        for windows in (1, 2):
            PlanKind(Topology(4, 5), 12, windows, current=current).warm()
    PlanKind(Topology(4, 5), 12, policy="greedy").warm()


def served(run: Run, intervals: int = INTERVALS) -> dict:
    """Serve for some plans; every slot's weights are checked after every pass."""
    maps, seconds = [run.phy2log], []
    for step in range(intervals * run.server.passes + 2 * run.server.layers):
        begun = time.perf_counter()
        run.forward(step)
        seconds.append(time.perf_counter() - begun)
        run.check_weights()
        maps.append(run.phy2log)
    return {"maps": np.stack(maps), "logical": np.stack(run.logical), "seconds": seconds}


def fetches(server: Server, maps: np.ndarray) -> int:
    placements = [Placement(phy2log, server.ranks, server.experts) for phy2log in maps]
    return sum(int(b.moves_from(a).sum()) for a, b in pairwise(placements))


def imbalance_after_plans(server: Server, found: dict) -> float:
    """Of every plan on the passes that came after it, until the next one; mean of plans and layers."""
    layers, per_plan = slice(server.dense, None), server.passes
    results = []
    for end in range(per_plan, len(found["logical"]) - per_plan, per_plan):
        placement = Placement(found["maps"][end + 1][layers], server.ranks, server.experts)
        came = found["logical"][end + 1 : end + 1 + per_plan, layers].sum(axis=0)
        results.append(imbalance(rank_loads(came, placement)).mean())
    return float(np.mean(results))


@pytest.mark.parametrize("server", SERVERS, ids=["2 ranks", "4 ranks"])
def test_fetches_are_half_of_sglangs_at_an_imbalance_like_its(server):
    """With the settings that it has unless told otherwise. The map of every rank is that of rank 0 at every pass."""
    own, ours = (serve(server, served, environment) for environment in ({}, ON))
    for found in (own, ours):
        for rank in found[1:]:
            np.testing.assert_array_equal(rank["maps"], found[0]["maps"])
    np.testing.assert_array_equal(own[0]["logical"], ours[0]["logical"])
    moved = [fetches(server, found[0]["maps"]) for found in (own, ours)]
    balance = [imbalance_after_plans(server, found[0]) for found in (own, ours)]
    print(
        f"\n{server.ranks} ranks, {server.layers - server.dense} x {server.experts}, {server.slots} slots a layer: "
        f"fetches {moved[0]} of SGLang's own, {moved[1]} ours; imbalance {balance[0]:.4f} and {balance[1]:.4f}"
    )
    assert 0 < moved[1] <= moved[0] / 2
    assert balance[1] <= balance[0] + 0.01


@pytest.mark.parametrize("chunk", [1, 2])
def test_layers_are_committed_in_chunks(chunk):
    server = Server(4, experts=16, slots_per_rank=6, layers_per_chunk=chunk)
    found = serve(server, partial(served, intervals=3), ON)
    maps = found[0]["maps"]
    at_once = ((maps[1:] != maps[:-1]).any(axis=2)).sum(axis=1)
    assert 0 < at_once.max() <= chunk
    assert sum(at_once) > chunk


def test_the_recorder_says_where_time_begins():
    def job(run: Run) -> list[int]:
        from equipoise.engines.sglang_engine import Engine

        modules = SimpleNamespace(expert_distribution=serving.recorders)
        seen = []
        for step in range(5):
            run.forward(step)
            seen.append(Engine(modules).oldest)
        return seen

    assert serve(Server(2, passes=8), job, {}) == [[1, 2, 3, 4, 5]] * 2


def test_observing_changes_no_map_that_is_served():
    def job(run: Run) -> list[torch.Tensor]:
        serving_now = locations.get_global_expert_location_metadata()
        before = [
            serving_now.physical_to_logical_map.clone(),
            serving_now.logical_to_all_physical_map.clone(),
        ]
        for step in range(2 * run.server.passes + 2):
            run.forward(step)
        after = [serving_now.physical_to_logical_map, serving_now.logical_to_all_physical_map]
        return [torch.equal(a, b) for a, b in zip(before, after, strict=True)]

    assert serve(Server(2), job, {**ON, "EQUIPOISE_MODE": "observe"}) == [[True, True]] * 2


def test_hit_passes_of_all_ranks_are_recorded(tmp_path, monkeypatch):
    """From SGLang's own recorder: the last passes before a plan, in which any rank's token chose the expert."""
    monkeypatch.setattr(serving, "TOKENS", 3)
    server = Server(2)

    def job(run: Run) -> np.ndarray:
        for step in range(run.server.passes + 1):
            run.forward(step)
        until = time.monotonic() + 20
        while run.rank == 0 and not list(tmp_path.glob("*.safetensors")) and time.monotonic() < until:
            time.sleep(0.02)
        return np.stack(run.logical)

    logical = serve(
        server, job, {**ON, "EQUIPOISE_RECORD": str(tmp_path), "EQUIPOISE_RECORD_UNIT": "batches"}
    )[0]
    trace = load_trace(tmp_path)
    hits = (logical[-server.passes :, server.dense :] > 0).sum(axis=0)
    assert (trace.unit, trace.batches.tolist()) == ("batches", [server.passes])
    assert trace.counts.tolist() == [hits.tolist()]
    assert len(np.unique(hits)) > 3


FAULTS = {
    "raises": lambda *_: 1 / 0,
    "hangs": lambda *_: time.sleep(60),
    "returns an illegal map": lambda *_: np.zeros((5, 40), int),
    "returns nothing": lambda *_: None,
}


def faulty(run: Run, fault: str) -> list:
    """Two plans that go wrong, and what the log says of them; a rank's threads must not keep it from ending."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("equipoise").addHandler(handler)
    logging.getLogger("equipoise").setLevel(logging.INFO)
    if run.rank == 0 and fault in FAULTS:
        Greedy.place = FAULTS[fault]
    before = run.phy2log
    for step in range(2 * run.server.passes + 2):
        if fault == "has no load":
            serving.TOKENS = 0
        run.forward(step)
        run.check_weights()
    return [np.array_equal(before, run.phy2log), lines]


@pytest.mark.parametrize("fault", [*FAULTS, "has no load"])
def test_when_planning_goes_wrong_all_ranks_serve_on(fault):
    environment = {
        **ON,
        "EQUIPOISE_POLICY": "greedy",
        "EQUIPOISE_MAX_MOVES": "none",
        "EQUIPOISE_DEADLINE_S": "0.5",
    }
    found = serve(Server(2), partial(faulty, fault=fault), environment)
    assert [kept for kept, _ in found] == [True, True]
    said = [line for line in found[0][1] if "decision=keep" in line]
    assert len(said) == 2
    assert not [line for line in found[1][1] if "decision=" in line]


def test_ranks_that_disagree_serve_on_with_what_each_holds():
    def job(run: Run) -> list:
        if run.rank == 1:  # as if a commit had been lost on this rank
            maps = locations.get_global_expert_location_metadata()
            maps.physical_to_logical_map_cpu[2, :2] = maps.physical_to_logical_map_cpu[2, :2].flip(0)
        before = run.phy2log
        for step in range(2 * run.server.passes + 2):
            run.forward(step)
        return [np.array_equal(before, run.phy2log)]

    assert serve(Server(2), job, ON) == [[True], [True]]


def test_the_loader_does_not_swallow_a_plug_in_that_does_not_fit(monkeypatch):
    """SGLang's own `load_plugins` logs and forgets exceptions; this is none."""
    monkeypatch.setattr(serving.plugins, "_plugins_loaded", False)
    monkeypatch.setenv("EQUIPOISE_SGLANG", "1")
    monkeypatch.setattr("sglang.srt.eplb.eplb_algorithms.rebalance_experts", lambda weight: None)
    with pytest.raises(SystemExit, match=r"equipoise: SGLang 0\.5\.23: .* takes \(weight\)"):
        serving.plugins.load_plugins()


def test_unless_asked_for_sglangs_own_function_stays():
    def job(run: Run) -> str:
        return serving.managers.ExpertLocationMetadata and serving.algorithms.rebalance_experts.__module__

    own = "sglang.srt.eplb.eplb_algorithms"
    assert serve(Server(2), job, {}) == [own, own]
    replaced = serve(
        Server(2), lambda _: getattr(serving.algorithms.rebalance_experts, "equipoise", False), ON
    )
    assert replaced == [True, True]


def test_recorded_loads_make_the_first_map(tmp_path):
    """``--init-expert-location`` with counts."""
    server = Server(2)
    counts = np.random.default_rng(0).poisson(100 * np.random.default_rng(1).lognormal(0, 1.2, (3, 6, 32)))
    counts[:, : server.dense] = 0
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"logical_count": counts.tolist()}))

    def job(run: Run) -> np.ndarray:
        locations.set_global_expert_location_metadata(None, allow_overwrite=True)
        return locations.compute_initial_expert_location_metadata(
            None, run.rank
        ).physical_to_logical_map_cpu.numpy()

    with_file = Server(2, options={"init_expert_location": str(path)})
    found = serve(with_file, job, ON)
    np.testing.assert_array_equal(found[0], found[1])
    loads = counts.sum(axis=0)[server.dense :]
    planned = Placement(found[0][server.dense :], server.ranks, server.experts)
    assert imbalance(rank_loads(loads, planned)).mean() < 1.02


def lose_a_rank(run: Run) -> dict:
    """SGLang's own way from a rank that is taken for dead to weights read anew from a disk, imitated by names."""
    state = serving.elastic.ElasticEPStateManager._build_state(
        ep_size=run.server.ranks, device=torch.device("cpu")
    )
    serving.elastic.ElasticEPStateManager._instance = state
    for step in range(3):
        run.forward(step)
    state.active_ranks[DEAD] = 0
    missing: dict = {}
    model = run.manager._get_model()
    model.generate_weight_name_filter = lambda experts: missing.update(experts) or "filter"

    def read_from_disk(path, load_format, weight_name_filter) -> None:
        ours = serving.weights_of(run.server, run.rank, run.planned[-1])
        for layer, experts in missing.items():
            for number, tensor in enumerate(run.weights[layer]):
                mine = run.planned[-1][layer].reshape(run.server.ranks, -1)[run.rank]
                tensor[np.isin(mine, experts)] = ours[layer][number][np.isin(mine, experts)]

    if run.rank == DEAD:  # it sends and takes nothing any more
        run.manager._get_expert_location_updater = lambda: SimpleNamespace(update=lambda *_, **__: {})
    run.manager._get_weight_updater = lambda: SimpleNamespace(update_weights_from_disk=read_from_disk)
    assert serving.elastic.maybe_rebalance_after_rank_fault(eplb_manager=run.manager)
    if run.rank != DEAD:
        run.check_weights()
    maps = locations.get_global_expert_location_metadata()
    return {"slots": maps.logical_to_all_physical_map_cpu.numpy(), "phy2log": run.phy2log}


DEAD = 1


def test_a_rank_that_is_gone_gets_no_token_and_no_expert_is_lost():
    server = Server(4, experts=32, slots_per_rank=12, options={"eplb_algorithm": "elasticity_aware"})
    # The updater's check of itself does not know of ranks that are gone.
    found = serve(server, lose_a_rank, {**ON, "SGLANG_EXPERT_LOCATION_UPDATER_CANARY": "0"})
    for rank in found[DEAD + 1 :]:
        np.testing.assert_array_equal(rank["phy2log"], found[0]["phy2log"])
    offered = found[0]["slots"][server.dense :]
    assert DEAD not in np.unique(offered[offered >= 0] // server.slots_per_rank)
    assert (offered >= 0).any(axis=2).all()


def test_where_the_world_has_grown_rank_0_plans_and_sglang_broadcasts():
    def job(run: Run) -> np.ndarray:
        state = serving.elastic.ElasticEPStateManager._build_state(ep_size=2, device=torch.device("cpu"))
        state.has_scaled = True
        state.scale_phase = "serving_expanded"
        serving.elastic.ElasticEPStateManager._instance = state
        for step in range(run.server.passes + 2):
            run.forward(step)
            run.check_weights()
        return run.phy2log

    server = Server(2, options={"eplb_algorithm": "elasticity_aware"})
    found = serve(server, job, ON)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != np.arange(40) % 32).any()


def rearranged(run: Run) -> dict:
    """Rearrangements that move about as many experts each, the first one too: before each, others are popular.

    Seconds of the serving thread are those that pass and those that it computes for, from when all ranks come to the
    manager; what was compiled or imported since serving began is told, too.
    """
    from numba.core import event

    turn, usual, draw = (
        run.manager.on_forward_pass_end,
        run.popularity.clone(),
        torch.Generator().manual_seed(3),
    )
    turns: list[tuple[float, float]] = []

    def timed() -> None:
        dist.barrier()
        begun = time.perf_counter(), time.thread_time()
        turn()
        turns.append((time.perf_counter() - begun[0], time.thread_time() - begun[1]))

    run.manager.on_forward_pass_end = timed
    maps, compiled, modules = [run.phy2log], event.RecordingListener(), set(sys.modules)
    with event.install_listener("numba:compile", compiled):
        for step in range(REARRANGEMENTS * run.server.passes + 1):
            if step % run.server.passes == 1:
                run.popularity[:] = usual[:, torch.randperm(run.server.experts, generator=draw)]
            run.forward(step)
            run.check_weights()
            if step and not step % run.server.passes:
                maps.append(run.phy2log)
    return {
        "turns": np.array(turns[run.server.passes :: run.server.passes]),
        "moves": [fetches(run.server, pair) for pair in pairwise(maps)],
        "imported": sorted(set(sys.modules) - modules),
        "compiled": len(compiled.buffer),
    }


STARTS, REARRANGEMENTS = 3, 6
ALL_AT_ONCE = {**ON, "EQUIPOISE_POLICY": "greedy", "EQUIPOISE_MAX_MOVES": "none"}
"""moves about as many experts as SGLang's own algorithm, each time"""


def test_a_first_rearrangement_finds_nothing_left_to_compile_or_import():
    """How long it takes beside later ones of as many moves is printed, and the same of SGLang's own."""
    server = SERVERS[1]
    for name, environment in (("SGLang's own", {}), ("Equipoise", ON), ("Equipoise, greedy", ALL_AT_ONCE)):
        found = [rank for _ in range(STARTS) for rank in serve(server, rearranged, environment)]
        assert [rank["compiled"] for rank in found] == [0] * len(found)
        assert [rank["imported"] for rank in found] == [[]] * len(found)
        moves = np.array([rank["moves"] for rank in found])
        assert moves.min() >= 0.8 * moves.max() > 0
        turns = np.array([rank["turns"] for rank in found[:: server.ranks]])
        passed, computed = np.median(turns[:, 0] / np.median(turns[:, 1:], axis=1), axis=0)
        print(
            f"\n{name}: first rearrangement / median of {REARRANGEMENTS - 1} later ones, {moves.min()} to "
            f"{moves.max()} moves each, median of {STARTS} starts: {passed:.2f} of the time that passes, "
            f"{computed:.2f} of the serving thread's CPU time"
        )
