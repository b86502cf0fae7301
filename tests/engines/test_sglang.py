"""The SGLang plug-in without SGLang: against its recorded signatures, wrong ones, and whatever may go wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import entry_points
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fake_sglang import ElasticEPState, EplbAlgorithm, Fake, own_plan
from hypothesis import given
from hypothesis import strategies as st

from equipoise import Placement, contiguous_placement, imbalance, rank_loads
from equipoise.engines.layout import Layout
from equipoise.engines.settings import Settings
from equipoise.engines.sglang_engine import windows_of
from equipoise.engines.sglang_hooks import replace
from equipoise.errors import EquipoiseError, PlacementError

LAYERS, EXPERTS, RANKS, SLOTS = 4, 8, 4, 12
DENSE = 1


def start() -> np.ndarray:
    return np.array(contiguous_placement(LAYERS, EXPERTS, RANKS, SLOTS).phy2log)


def passes(seed: int = 0, count: int = 6) -> np.ndarray:
    """``[passes, L, E]``, the first layer dense."""
    rng = np.random.default_rng(seed)
    tokens = rng.poisson(200 * rng.lognormal(0, 1.2, (LAYERS, EXPERTS)), (count, LAYERS, EXPERTS)).astype(
        np.int32
    )
    tokens[:, :DENSE] = 0
    return tokens


def plugged(fake: Fake | None = None, **settings) -> Fake:
    fake = Fake(start(), EXPERTS, RANKS) if fake is None else fake
    replace(fake, Settings(**{"policy": "greedy", "max_moves": None, **settings}), "0.5.23")
    return fake


def begin(fake: Fake) -> None:
    """As SGLang does when all is ready to serve."""
    fake.eplb_manager.EPLBManager(
        model_config=None,
        get_model=lambda: SimpleNamespace(
            routed_experts_weights_of_layer={layer: [torch.zeros(3, 5)] for layer in range(DENSE, LAYERS)}
        ),
        get_expert_location_updater=None,
        get_expert_backup_client=None,
        get_weight_updater=None,
    )


def legal(maps, layers: int = LAYERS, experts: int = EXPERTS) -> np.ndarray:
    """The map, after all three have been checked against each other."""
    phy2log, log2phy, logcnt = (part.numpy() for part in maps)
    assert {part.dtype for part in maps} == {torch.int64}
    for layer in range(layers):
        for expert in range(experts):
            found = np.flatnonzero(phy2log[layer] == expert)
            assert len(found) == logcnt[layer, expert] >= 1
            assert sorted(slot for slot in log2phy[layer, expert] if slot >= 0) == list(found)
    return phy2log


class TestAnswer:
    def test_a_plan_is_legal_and_balances(self):
        tokens = passes()
        phy2log = legal(plugged().ask(tokens, SLOTS, RANKS))
        loads = tokens.sum(axis=0)[DENSE:]
        before, after = (Placement(m[DENSE:], RANKS, EXPERTS) for m in (start(), phy2log))
        assert imbalance(rank_loads(loads, after)).mean() < imbalance(rank_loads(loads, before)).mean() - 0.1

    def test_layers_without_load_stay(self):
        phy2log = legal(plugged().ask(passes(), SLOTS, RANKS))
        np.testing.assert_array_equal(phy2log[:DENSE], start()[:DENSE])
        assert (phy2log[DENSE:] != start()[DENSE:]).any()

    def test_a_budget_is_kept(self):
        fake = plugged(policy="robust", max_moves=3)
        phy2log = legal(fake.ask(passes(), SLOTS, RANKS))
        moves = Placement(phy2log, RANKS, EXPERTS).moves_from(Placement(start(), RANKS, EXPERTS)).sum()
        assert 0 < moves <= 3

    def test_observing_returns_every_map_as_it_is_served(self, caplog):
        fake = plugged(mode="observe")
        with caplog.at_level("INFO"):
            maps = fake.ask(passes(), SLOTS, RANKS)
        serving = fake.serving
        assert torch.equal(maps[0], serving.physical_to_logical_map_cpu)
        assert torch.equal(maps[1], serving.logical_to_all_physical_map_cpu)
        assert torch.equal(maps[2], serving.logical_to_all_physical_map_num_valid)
        assert maps[0].data_ptr() != serving.physical_to_logical_map_cpu.data_ptr()
        assert "decision=would-move" in caplog.text

    def test_one_line_for_each_decision(self, caplog):
        fake = plugged()
        with caplog.at_level("INFO"):
            fake.ask(passes(), SLOTS, RANKS)
        lines = [line for line in caplog.messages if "decision=" in line]
        assert len(lines) == 1
        assert {"imbalance", "planned", "moves", "reason"} <= {
            pair.split("=")[0] for pair in lines[0].split()
        }

    def test_a_stop_file_stops_it(self, tmp_path):
        fake = plugged(stop_file=tmp_path / "stop")
        (tmp_path / "stop").touch()
        np.testing.assert_array_equal(legal(fake.ask(passes(), SLOTS, RANKS)), start())

    def test_groups_stay_on_nodes_where_sglang_keeps_them_there(self):
        fake = plugged()
        seen = {}
        for algorithm in EplbAlgorithm:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "equipoise.policy.greedy.Greedy.place",
                    lambda _, problem, name=algorithm.name: (
                        seen.update({name: problem.topology}) or start()[DENSE:]
                    ),
                )
                fake.eplb_algorithms.rebalance_experts(
                    torch.as_tensor(passes()), SLOTS, SLOTS // RANKS, 4, 2, algorithm
                )
        assert (seen["deepseek"].num_groups, seen["deepseek"].num_nodes) == (1, 2)
        assert seen["deepseek_hierarchical"].num_groups == 4

    def test_windows_are_recorded(self, tmp_path):
        import equipoise as eq

        fake = plugged(record=tmp_path / "trace")
        fake.ask(passes(), SLOTS, RANKS)
        until = time.monotonic() + 20
        while not list((tmp_path / "trace").glob("*.safetensors")) and time.monotonic() < until:
            time.sleep(0.02)
        trace = eq.load_trace(tmp_path / "trace")
        np.testing.assert_array_equal(trace.counts, passes().sum(axis=0)[None, DENSE:])


class TestStart:
    def test_recorded_loads_make_the_first_map(self):
        fake = plugged(Fake())
        phy2log = legal(fake.ask(passes(), SLOTS, RANKS))
        again = legal(plugged(Fake()).ask(passes(), SLOTS, RANKS))
        np.testing.assert_array_equal(phy2log, again)
        loads = passes().sum(axis=0)[DENSE:]
        planned = Placement(phy2log[DENSE:], RANKS, EXPERTS)
        assert imbalance(rank_loads(loads, planned)).mean() < 1.5

    @pytest.mark.parametrize("settings", [{"mode": "observe"}, {"policy": "robust", "max_moves": 0.1}])
    def test_no_map_is_an_error(self, settings):
        """Loads that cannot be planned from, or nothing to be changed: SGLang's own plan."""
        tokens = passes() if "mode" in settings else passes() * 0
        own = own_plan(torch.as_tensor(tokens), SLOTS, SLOTS // RANKS, None, 1, EplbAlgorithm.deepseek)
        assert torch.equal(plugged(Fake(), **settings).ask(tokens, SLOTS, RANKS)[0], own[0])


class TestWindows:
    def test_time_begins_behind_the_cursor(self):
        tokens = np.arange(1, 7)[:, None, None] * np.ones((1, 1, 2), np.int64)
        ring = np.roll(tokens, 2, axis=0)  # the oldest pass lies in row 2
        found = windows_of(torch.as_tensor(ring), 2, 6)
        assert [int(counts[0, 0]) for counts, _ in found] == sorted(int(c[0, 0]) for c, _ in found)
        assert sum(steps for _, steps in found) == 6

    @given(
        size=st.integers(1, 12),
        written=st.integers(0, 30),
        skipped=st.integers(0, 12),
        parts=st.integers(1, 8),
    )
    def test_a_circular_buffer_is_read_as_it_was_written(self, size, written, skipped, parts):
        """Emptying the buffer leaves its cursor where it is, as SGLang's does."""
        buffer, cursor = np.zeros((size, 2, 3), np.int64), skipped % size
        for number in range(written):
            buffer[cursor] = number + 1
            cursor = (cursor + 1) % size
        kept = list(range(max(0, written - size) + 1, written + 1))
        found = windows_of(torch.as_tensor(buffer), cursor, parts)
        if not kept:
            assert len(found) == 1
            assert not found[0][0].any()
            return
        assert len(found) <= parts
        assert sum(steps for _, steps in found) == len(kept)
        inside = iter(kept)
        for counts, steps in found:  # consecutive passes, oldest first
            assert counts[0, 0] == sum(next(inside) for _ in range(steps))

    def test_windows_hold_about_as_many_tokens(self):
        tokens = np.ones((100, 1, 2), np.int64)
        tokens[:10] *= 91  # a prefill, then decoding
        found = windows_of(torch.as_tensor(tokens), 0, 4)
        totals = [int(counts.sum()) for counts, _ in found]
        assert len(totals) == 4
        assert max(totals) <= 1.5 * min(totals)


class TestLayout:
    def test_plans_are_for_the_ranks_that_are_there(self):
        layout = Layout(start(), np.array([True, False, True, True]), EXPERTS)
        assert layout.held([1]).num_ranks == 3
        topology = layout.topology(2, 1)
        assert topology.nodes == (0, 1, 1)
        assert Layout(start(), np.array([False, False, True, True]), EXPERTS).topology(2, 1).nodes == (0, 0)

    @given(
        st.lists(st.booleans(), min_size=RANKS, max_size=RANKS).filter(lambda a: sum(a) >= 3),
        st.integers(0, 99),
    )
    def test_no_expert_is_offered_where_no_rank_is(self, alive, seed):
        layout = Layout(start(), np.array(alive), EXPERTS)
        rng = np.random.default_rng(seed)
        slots = len(layout.slots)
        rows = [
            np.concatenate([rng.permutation(EXPERTS), rng.integers(0, EXPERTS, slots - EXPERTS)])
            for _ in range(2)
        ]
        moved = layout.moved(Placement(np.stack(rows), sum(alive), EXPERTS), [1, 3]).filled([0, 2])
        assert moved.legal
        log2phy = moved.log2phy()
        offered = log2phy[log2phy >= 0]
        assert set(offered // (SLOTS // RANKS)) <= set(np.flatnonzero(alive))
        gone = np.repeat(~np.array(alive), SLOTS // RANKS)
        np.testing.assert_array_equal(moved.phy2log[:, gone], start()[:, gone])

    def test_a_placement_of_other_ranks_is_refused(self):
        layout = Layout(start(), np.ones(RANKS, np.bool_), EXPERTS)
        with pytest.raises(PlacementError, match="expected"):
            layout.moved(Placement(start()[:, :9], 3, EXPERTS), list(range(LAYERS)))


class TestElastic:
    def dead(self, *ranks: int, **settings) -> Fake:
        fake = Fake(start(), EXPERTS, RANKS)
        active = torch.ones(RANKS + 2, dtype=torch.int32)  # with room for two that may join
        active[RANKS:] = 0
        active[list(ranks)] = 0
        fake.elastic = ElasticEPState(active)
        return plugged(fake, **settings)

    def test_dead_ranks_get_nothing(self):
        fake = self.dead(1)
        begin(fake)
        phy2log, log2phy, logcnt = fake.ask(passes(), SLOTS, RANKS)
        offered = log2phy[log2phy >= 0].numpy()
        assert 1 not in offered // (SLOTS // RANKS)
        assert (logcnt >= 1).all()
        assert int(logcnt.sum()) == LAYERS * (SLOTS - SLOTS // RANKS)
        assert phy2log.shape == (LAYERS, SLOTS)

    def test_what_has_no_room_is_an_error_as_it_is_in_sglang(self, caplog):
        fake = self.dead(0, 1)
        with caplog.at_level("INFO"), pytest.raises(EquipoiseError):
            fake.ask(passes(), SLOTS, RANKS)
        assert "SGLang 0.5.23's own plan is taken" in caplog.text

    def test_where_the_world_has_grown_no_collective_is_made(self, monkeypatch):
        fake = self.dead()
        fake.elastic.has_scaled = True
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: pytest.fail("a collective"))
        assert (legal(fake.ask(passes(), SLOTS, RANKS)) != start()).any()


class TestFaults:
    @pytest.mark.parametrize(
        "tokens",
        [
            passes() * 0,
            np.full((2, LAYERS, EXPERTS), np.nan),
            -passes(),
            passes()[:0],
            passes().astype(np.float64) * 1e300,
        ],
        ids=["zeros", "nan", "negative", "no passes", "beyond counting"],
    )
    def test_loads_that_are_none_keep_the_old_map(self, tokens):
        np.testing.assert_array_equal(legal(plugged().ask(tokens, SLOTS, RANKS)), start())

    @pytest.mark.parametrize(
        "result", [1 / 3, np.zeros((3, SLOTS), int), np.full((3, SLOTS), 99), [[0], [1, 2]], None]
    )
    def test_an_illegal_plan_keeps_the_old_map(self, result, monkeypatch, caplog):
        monkeypatch.setattr("equipoise.policy.greedy.Greedy.place", lambda *_: result)
        with caplog.at_level("INFO"):
            np.testing.assert_array_equal(legal(plugged().ask(passes(), SLOTS, RANKS)), start())
        assert "decision=keep" in caplog.text
        assert "greedy" in caplog.text

    def test_after_a_plan_that_hangs_serving_goes_on(self, monkeypatch):
        import threading

        wait = threading.Event()
        monkeypatch.setattr("equipoise.policy.greedy.Greedy.place", lambda *_: wait.wait(30))
        fake = plugged(deadline_s=0.2)
        for _ in range(2):
            np.testing.assert_array_equal(legal(fake.ask(passes(), SLOTS, RANKS)), start())
        wait.set()


class TestSignatures:
    def test_a_second_time_does_nothing(self):
        fake = plugged()
        first = fake.eplb_algorithms.rebalance_experts
        assert plugged(fake).eplb_algorithms.rebalance_experts is first
        assert first.__name__ == own_plan.__name__

    @pytest.mark.parametrize(
        ("where", "what"),
        [
            ("eplb_algorithms.rebalance_experts", lambda weight, num_replicas: None),
            ("eplb_algorithms.compute_algorithm", lambda raw: None),
            ("eplb_manager.EPLBManager._compute_expert_location_metadata", lambda self, counts: None),
            ("eplb_manager.EPLBManager", None),
            ("expert_location.get_global_expert_location_metadata", lambda device: None),
            ("expert_location.ExpertLocationMetadata", SimpleNamespace(init_by_eplb=lambda: None)),
            ("expert_location.rebalance_experts", own_plan),
            ("elastic_ep.ElasticEPState", SimpleNamespace(__dataclass_fields__={"active_ranks": 1})),
            ("elastic_ep.ElasticEPStateManager", None),
            ("runtime_context.get_parallel", None),
        ],
    )
    def test_what_is_not_known_is_refused(self, where, what):
        fake = Fake()
        *path, last = where.split(".")
        holder = fake
        for part in path:
            holder = getattr(holder, part)
        setattr(holder, last, what)
        with pytest.raises(EquipoiseError, match=r"SGLang 0\.6\.0.*unset EQUIPOISE_SGLANG"):
            replace(fake, Settings(), "0.6.0")

    def test_an_algorithm_that_somebody_else_has_replaced_is_refused(self):
        def rebalance_experts(
            tokens_per_expert,
            num_physical_experts,
            num_local_physical_experts,
            num_groups,
            num_nodes,
            algorithm,
        ):
            return None

        fake = Fake()
        fake.eplb_algorithms.rebalance_experts = rebalance_experts
        with pytest.raises(EquipoiseError, match="already"):
            replace(fake, Settings(), "0.5.23")


def register_in_a_new_process(after: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EQUIPOISE_")}
    code = f"import sys, time; import equipoise.engines.sglang as plug; {after}"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**environment, **variables},
        check=False,
    )


class TestRegister:
    def test_the_entry_point_is_sglangs(self):
        named = {point.name: point.value for point in entry_points(group="sglang.srt.plugins")}
        assert named.get("equipoise") == "equipoise.engines.sglang:register"

    @pytest.mark.parametrize("variables", [{}, {"EQUIPOISE_SGLANG": "0"}, {"EQUIPOISE_SGLANG": ""}])
    def test_unless_asked_for_it_imports_nothing(self, variables):
        before = (
            "known = set(sys.modules); plug.register(); print(*set(sys.modules) - known); print(*sys.modules)"
        )
        done = register_in_a_new_process(before, **variables)
        new, loaded = done.stdout.split("\n")[:2]
        assert done.returncode == 0
        assert new == ""
        assert not {"torch", "numba", "numpy", "sglang"} & set(loaded.split())

    @pytest.mark.parametrize(
        ("variables", "message"),
        [
            ({"EQUIPOISE_SGLANG": "yes"}, "must be 1"),
            ({"EQUIPOISE_SGLANG": "1", "EQUIPOISE_POLICY": "best"}, "EQUIPOISE_POLICY"),
            ({"EQUIPOISE_SGLANG": "1", "EQUIPOISE_POLIZY": "robust"}, "EQUIPOISE_POLIZY"),
            ({"EQUIPOISE_SGLANG": "1"}, "sglang"),
        ],
    )
    def test_what_goes_wrong_ends_the_process_even_where_exceptions_are_swallowed(self, variables, message):
        swallowing = "exec('try:\\n    plug.register()\\nexcept Exception:\\n    print(1)'); print(2)"
        done = register_in_a_new_process(swallowing, **variables)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("equipoise: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


FAULTS = {
    "nothing": None,
    "raises": lambda *_: 1 / 0,
    "hangs": lambda *_: time.sleep(30),
    "illegal": lambda *_: np.zeros((LAYERS - DENSE, SLOTS), int),
}


def _serve(rank: int, world: int, fault: str, spoiled: str, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    held, tokens = start(), passes()
    if spoiled == "map" and rank == world - 1:
        held[1, :2] = held[1, 1::-1]
    if spoiled == "shape" and rank == world - 1:
        tokens = passes()[:, :, : EXPERTS - 1]
    if spoiled == "loads":  # those of the rank that plans decide
        tokens = passes(seed=rank)
    if spoiled == "slots" and rank == world - 1:
        held = held[:, :-RANKS]
    fake = plugged(Fake(held, EXPERTS, RANKS, dist.group.WORLD), deadline_s=0.3 if fault == "hangs" else 60.0)
    begin(fake)
    if FAULTS[fault] is not None and rank == 0:
        from equipoise.policy.greedy import Greedy

        Greedy.place = FAULTS[fault]
    answers = [fake.ask(tokens, SLOTS, RANKS)[0].numpy() for _ in range(2)]
    np.save(f"{folder}/{rank}.npy", np.stack([held, *answers]))
    dist.barrier()
    dist.destroy_process_group()


class TestRanks:
    def serve(self, tmp_path, fault: str = "nothing", spoiled: str = "", world: int = 2) -> list[np.ndarray]:
        job = partial(_serve, world=world, fault=fault, spoiled=spoiled, folder=str(tmp_path))
        mp.start_processes(job, nprocs=world, start_method="fork")
        return [np.load(tmp_path / f"{rank}.npy") for rank in range(world)]

    @pytest.mark.parametrize("spoiled", ["", "loads"])
    @pytest.mark.parametrize("world", [2, 4])
    def test_all_ranks_take_the_plan_of_one(self, tmp_path, spoiled, world):
        found = self.serve(tmp_path, spoiled=spoiled, world=world)
        for held, *answers in found[1:]:
            np.testing.assert_array_equal(held, found[0][0])
            np.testing.assert_array_equal(np.stack(answers), found[0][1:])
        assert (found[0][1] != start()).any()

    @pytest.mark.parametrize("fault", ["raises", "hangs", "illegal"])
    def test_whatever_goes_wrong_on_the_rank_that_plans_all_keep_the_old_map(self, tmp_path, fault):
        for held, *answers in self.serve(tmp_path, fault=fault):
            for answer in answers:
                np.testing.assert_array_equal(answer, held)

    @pytest.mark.parametrize("spoiled", ["map", "shape", "slots"])
    def test_ranks_that_disagree_keep_what_each_of_them_holds(self, tmp_path, spoiled):
        for held, *answers in self.serve(tmp_path, spoiled=spoiled):
            for answer in answers:
                np.testing.assert_array_equal(answer, held)
