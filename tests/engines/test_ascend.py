"""vllm-ascend's first runner, by stand-ins alone: no part of vllm-ascend is installed here, and none is run.

The factories have the two signatures of `generate_policy` that its sources had until late 2026, and the checker asks
for what its worker asks of every layer. Written from reading; that the real runner takes these plans is not tested.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines.ascend import AscendPolicy, replace
from equipoise.engines.settings import Settings
from equipoise.errors import EquipoiseError


class OwnPolicy:
    """Stands in for a policy of vllm-ascend."""

    def __init__(self, config=None):
        self.config = config
        self.sizes = []

    def set_new_ep_size(self, new_ep_size):
        self.sizes.append(new_ep_size)

    def rebalance_experts(self, current_expert_table, expert_workload):
        return 1, [0], "the runner's own"


def factory_of_two():
    class PolicyFactory:
        @staticmethod
        def generate_policy(policy_type: int, config: object) -> OwnPolicy:
            return OwnPolicy(config)

    return PolicyFactory


def factory_of_one():
    class PolicyFactory:
        @staticmethod
        def generate_policy(policy_type: int) -> OwnPolicy:
            return OwnPolicy(policy_type)

    return PolicyFactory


def broken_rules(old: np.ndarray, new: np.ndarray) -> list[str]:
    """What the runner's worker would refuse a plan ``[L, P, S]`` for."""
    found = []
    for layer, (before, after) in enumerate(zip(old, new, strict=True)):
        if set(before.ravel()) - set(after.ravel()):
            found.append(f"layer {layer}: an expert is nowhere")
        for rank, (held, holds) in enumerate(zip(before, after, strict=True)):
            if len(set(holds)) < len(holds):
                found.append(f"layer {layer}, rank {rank}: an expert twice")
            stays = np.isin(holds, held)
            if not np.array_equal(holds[stays], held[stays]):
                found.append(f"layer {layer}, rank {rank}: an expert has changed its slot")
    return found


def table_of(layers: int, ranks: int, slots: int, experts: int, rng: np.random.Generator) -> np.ndarray:
    """Any table without twins: a full round of experts dealt over ranks, then spare ones where they are not yet."""
    table = np.full((layers, ranks, slots), -1)
    for layer in table:
        dealt = rng.permutation(experts)
        rows = [list(dealt[rank::ranks]) for rank in range(ranks)]
        for rank, row in enumerate(rows):
            others = np.setdiff1d(np.arange(experts), row)
            row += list(rng.permutation(others)[: slots - len(row)])
            layer[rank] = rng.permutation(row)
    return table


@st.composite
def tables(draw):
    ranks = draw(st.integers(2, 6))
    slots = draw(st.integers(2, 6))
    experts = draw(st.integers(slots, ranks * (slots - 1)).filter(lambda e: -(-e // ranks) <= slots))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    return table_of(draw(st.integers(1, 3)), ranks, slots, experts, rng), rng


def settings_with(**values) -> Settings:
    return Settings(**{"max_moves": None, "policy": "greedy", **values})


class TestRules:
    @given(tables(), st.sampled_from(["robust", "greedy", "ensemble"]), st.integers(1, 3))
    def test_no_plan_breaks_a_rule(self, made, policy, stages):
        table, rng = made
        adapter = AscendPolicy(OwnPolicy(), settings_with(policy=policy))
        for _ in range(3):
            loads = rng.lognormal(0, 1.5, (stages, *table.shape)).round(3) * 100
            changed, order, planned = adapter.rebalance_experts(table, loads[0] if stages == 1 else loads)
            planned = np.asarray(planned)
            assert broken_rules(table, planned) == []
            assert changed == int((planned != table).any())
            assert sorted(order) == list(range(len(table)))
            table = planned

    def test_the_checker_sees_every_rule_broken(self):
        old = np.array([[[0, 1], [2, 3]]])
        assert broken_rules(old, np.array([[[0, 1], [2, 1]]])) == ["layer 0: an expert is nowhere"]
        assert "twice" in broken_rules(old, np.array([[[0, 0], [2, 3]]]))[1]
        assert "slot" in broken_rules(old, np.array([[[1, 0], [2, 3]]]))[0]

    def test_load_comes_into_balance(self):
        rng = np.random.default_rng(1)
        table = table_of(4, 4, 5, 16, rng)
        loads = rng.lognormal(0, 1.5, table.shape) * 1000
        adapter = AscendPolicy(OwnPolicy(), settings_with(policy="robust"))
        changed, _, planned = adapter.rebalance_experts(table, loads)
        assert changed == 1
        assert worst(planned, experts_of(table, loads)) < 0.8 * worst(table, experts_of(table, loads))

    def test_every_rank_comes_to_the_same_plan(self):
        rng = np.random.default_rng(2)
        table = table_of(2, 4, 5, 16, rng)
        loads = rng.lognormal(0, 1, table.shape) * 1000
        plans = [AscendPolicy(OwnPolicy(), Settings()).rebalance_experts(table, loads) for _ in range(2)]
        np.testing.assert_array_equal(plans[0][2], plans[1][2])
        np.testing.assert_array_equal(plans[0][1], plans[1][1])


def experts_of(table, loads):
    found = np.zeros((len(table), table.max() + 1))
    for layer, row in enumerate(table):
        np.add.at(found[layer], row.ravel(), loads[layer].ravel())
    return found


def worst(table, loads):
    counts = np.stack([np.bincount(layer.ravel(), minlength=loads.shape[1]) for layer in table])
    ranks = np.stack([(loads[i] / counts[i])[layer].sum(axis=1) for i, layer in enumerate(table)])
    return float((ranks.max(axis=1) / ranks.mean(axis=1)).mean())


class TestFaults:
    @pytest.mark.parametrize(
        "spoil", [lambda x: x * np.nan, lambda x: -x, lambda x: x * 0, lambda x: x[:, :1]]
    )
    def test_loads_that_are_none_keep_the_table(self, spoil):
        table = table_of(2, 3, 4, 9, np.random.default_rng(0))
        loads = np.random.default_rng(1).lognormal(0, 1, table.shape)
        changed, _, planned = AscendPolicy(OwnPolicy(), settings_with()).rebalance_experts(
            table, spoil(loads)
        )
        assert changed == 0
        np.testing.assert_array_equal(planned, table)

    def test_a_planner_that_raises_keeps_the_table(self, monkeypatch, caplog):
        monkeypatch.setattr("equipoise.policy.greedy.Greedy.place", lambda *_: 1 / 0)
        table = table_of(2, 3, 4, 9, np.random.default_rng(0))
        changed, _, planned = AscendPolicy(OwnPolicy(), settings_with()).rebalance_experts(table, table + 1.0)
        assert changed == 0
        np.testing.assert_array_equal(planned, table)
        assert "division by zero" in caplog.text

    def test_observing_moves_nothing_and_says_what_it_would_do(self, caplog):
        rng = np.random.default_rng(3)
        table = table_of(2, 4, 5, 16, rng)
        adapter = AscendPolicy(OwnPolicy(), settings_with(mode="observe"))
        with caplog.at_level("INFO"):
            changed, _, planned = adapter.rebalance_experts(table, rng.lognormal(0, 1.5, table.shape))
        assert changed == 0
        np.testing.assert_array_equal(planned, table)
        assert "decision=would-move" in caplog.text

    def test_where_ranks_join_or_leave_the_runners_own_policy_answers_once(self):
        own = OwnPolicy()
        adapter = AscendPolicy(own, settings_with())
        table = table_of(1, 3, 4, 9, np.random.default_rng(0))
        adapter.set_new_ep_size(4)
        assert own.sizes == [4]
        assert adapter.rebalance_experts(table, table + 1.0)[2] == "the runner's own"
        assert adapter.rebalance_experts(table, table + 1.0)[2] is not None
        wider = table_of(1, 4, 4, 9, np.random.default_rng(0))
        assert broken_rules(wider, np.asarray(adapter.rebalance_experts(wider, wider + 1.0)[2])) == []


class TestFactory:
    @pytest.mark.parametrize(
        ("factory", "arguments"), [(factory_of_two, (1, "config")), (factory_of_one, (1,))]
    )
    def test_known_factories_make_our_policy(self, factory, arguments):
        made = factory()
        replace(made, Settings())
        first = made.generate_policy
        replace(made, Settings())
        assert made.generate_policy is first
        policy = made.generate_policy(*arguments)
        assert isinstance(policy, AscendPolicy)
        assert isinstance(policy._own, OwnPolicy)

    def test_a_policy_can_be_sent_to_another_process(self):
        made = factory_of_one()
        replace(made, Settings.from_environment({"EQUIPOISE_HISTORY": "3"}))
        assert isinstance(pickle.loads(pickle.dumps(made.generate_policy(1))), AscendPolicy)

    def test_another_factory_is_refused(self):
        class PolicyFactory:
            @staticmethod
            def generate_policy(kind, config, mesh):
                return None

        with pytest.raises(EquipoiseError, match=r"takes \(kind, config, mesh\)"):
            replace(PolicyFactory, Settings())


def test_the_entry_point_imports_nothing_unless_asked_for():
    code = "import equipoise.engines.ascend as a, sys; a.register(); print(*sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "EQUIPOISE_VLLM"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert not {"torch", "numba", "vllm_ascend"} & set(found.stdout.split())


def test_the_entry_point_is_vllms():
    named = {point.name: point.value for point in entry_points(group="vllm.general_plugins")}
    assert named.get("equipoise_ascend") == "equipoise.engines.ascend:register"
