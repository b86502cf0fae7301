"""The vLLM plug-in against recorded signatures, and when something goes wrong. vLLM itself is a stand-in."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import equipoise as eq
from equipoise.control import Balancer
from equipoise.engines.settings import Settings
from equipoise.errors import EquipoiseError

torch = pytest.importorskip("torch")

from ranks import on_ranks  # noqa: E402
from vllm_fakes import VERSIONS, Engine, model  # noqa: E402

from equipoise.engines.vllm_hooks import replace  # noqa: E402
from equipoise.engines.vllm_policy import Call  # noqa: E402

GREEDY = Settings(policy="greedy", max_moves=None)
SKEWED = torch.tensor([[900, 500, 70, 60, 50, 40, 30, 20]] * 2)


def plugged(
    settings: Settings = GREEDY, version: str = "0.32.0", group: object = None, **changed: str
) -> Engine:
    engine = Engine(version, group, **changed)
    replace(engine.policy, engine.State, engine.parallel_state, settings, version)
    return engine


def plan(engine: Engine, loads: object = SKEWED, ranks: int = 2, slots: int = 12, old: object = "contiguous"):
    if isinstance(old, str):
        old = torch.arange(slots).repeat(2, 1) % 8
    return engine.policy.EPLB_POLICIES["default"].rebalance_experts(loads, slots, 1, 1, ranks, old)


def contiguous(slots: int = 12):
    return (torch.arange(slots) % 8).repeat(2, 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_known_version_is_taken(version):
    engine = plugged(version=version)
    state = engine.State()
    state.add_model(model(), None)
    engine.loads["toy"] = SKEWED
    state.rearrange()
    made = state.model_states[0].physical_to_logical_map
    assert made.dtype == torch.int64
    assert made.is_contiguous()
    placement = eq.Placement(made.numpy(), 2, 8)
    assert eq.imbalance(eq.rank_loads(SKEWED.numpy(), placement)).max() < 1.1
    made[0, 0] = 3  # the caller's own


@pytest.mark.parametrize(
    "changed",
    [
        {"policy": "weight, num_replicas, num_groups, num_nodes, num_ranks"},
        {"policy": "weight, num_replicas, num_groups, num_nodes, num_ranks, context=None"},
        {"policy": "weight, num_groups, num_replicas, num_nodes, num_ranks, old_global_expert_indices=None"},
        {"add_model": "model"},
        {"rearrange": "is_profile=False"},
        {"rearrange": "rank_mapping=None, is_profile=False"},
    ],
)
def test_other_signatures_are_refused_and_nothing_is_replaced(changed):
    engine = Engine("0.32.0", **changed)
    before = (engine.policy.EPLB_POLICIES["default"], engine.State.add_model, engine.State.rearrange)
    with pytest.raises(EquipoiseError, match=r"takes \(.*known is .*vLLM 0.29 to 0.33"):
        replace(engine.policy, engine.State, engine.parallel_state, GREEDY, "9.9")
    assert (engine.policy.EPLB_POLICIES["default"], engine.State.add_model, engine.State.rearrange) == before


def test_a_second_time_changes_nothing_and_a_foreign_policy_is_refused():
    engine = plugged()
    before = (engine.policy.EPLB_POLICIES["default"], engine.State.rearrange)
    replace(engine.policy, engine.State, engine.parallel_state, GREEDY, "0.32.0")
    assert (engine.policy.EPLB_POLICIES["default"], engine.State.rearrange) == before
    engine.policy.EPLB_POLICIES["default"] = type("Other", (), {})
    with pytest.raises(EquipoiseError, match="Other already"):
        replace(engine.policy, engine.State, engine.parallel_state, GREEDY, "0.32.0")


REGISTER = """
import sys, time
from equipoise.engines.vllm import register
begun = time.process_time()
register()
spent = time.process_time() - begun
print(spent, *sys.modules)
"""


@pytest.mark.parametrize("switch", [{}, {"EQUIPOISE_VLLM": "0"}, {"EQUIPOISE_VLLM": ""}])
def test_without_the_variable_it_is_light(switch):
    environ = {name: value for name, value in os.environ.items() if name != "EQUIPOISE_VLLM"} | switch
    runs = [
        subprocess.run(
            [sys.executable, "-c", REGISTER], env=environ, capture_output=True, text=True, check=True
        )
        for _ in range(3)
    ]
    loaded = {name.split(".")[0] for name in runs[0].stdout.split()[1:]}
    assert not loaded & {"torch", "numba", "vllm", "numpy", "scipy"}
    assert min(float(run.stdout.split()[0]) for run in runs) < 0.005  # CPU seconds


def test_an_odd_switch_is_refused(monkeypatch):
    from equipoise.engines.vllm import register

    monkeypatch.setenv("EQUIPOISE_VLLM", "yes please")
    with pytest.raises(EquipoiseError, match="EQUIPOISE_VLLM must be 1"):
        register()


def test_plugging_in_does_not_bring_numba():
    """vLLM 0.32 looks through the modules of a worker that starts on a CPU, and stumbles over llvmlite's."""
    code = "import sys, equipoise.engines.vllm_hooks; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"numba", "llvmlite", "torch"} & {name.split(".")[0] for name in found.split()}


@given(
    st.lists(st.integers(-1, 4), min_size=1, max_size=8), st.integers(1, 8), st.integers(1, 5), st.booleans()
)
def test_a_legal_map_is_what_a_placement_takes(row, slots, experts, known):
    """A map is served on if and only if `Placement` takes it for these slots and experts."""
    counts = np.ones((1, experts)) if known else np.ones(3)
    call = Call(counts, slots, 1, 1, 1, np.array([row]))
    wanted = len(row) == slots and min(row) >= 0
    if wanted:
        wanted = set(row) == set(range(max(experts, max(row) + 1) if known else max(row) + 1))
    assert call.legal == wanted


def _raises(self, current=None):
    raise RuntimeError("the planner broke")


def _hangs(self, current=None):
    threading.Event().wait(20)


def _exits(self, current=None):
    raise SystemExit(3)


class Illegal:
    abilities = frozenset()

    def place(self, problem):
        return np.zeros((problem.num_layers, problem.topology.num_slots), np.int64)


FAULTS = {
    "raises": (_raises, "the planner broke"),
    "hangs": (_hangs, "no plan within"),
    "exits": (_exits, "SystemExit"),
    "illegal": (None, "illegal placement"),
}


def broken(monkeypatch, fault: str) -> Settings:
    propose, _ = FAULTS[fault]
    if propose is not None:
        monkeypatch.setattr(Balancer, "propose", propose)
    else:
        monkeypatch.setattr("equipoise.policy.greedy.Greedy.place", Illegal.place)
    return Settings(policy="greedy", max_moves=None, deadline_s=0.3 if fault == "hangs" else 60.0)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("whole", [True, False])
def test_faults_keep_the_old_map_on_all_ranks(monkeypatch, fault, whole):
    """Real gloo ranks; where the old map has empty slots, all take the engine's own plan."""
    settings, expected = broken(monkeypatch, fault), FAULTS[fault][1]
    old = contiguous()
    if not whole:
        old[:, -2:] = -1

    def job(rank, group):
        said = _listen()
        engine = plugged(settings, group=group)
        made = plan(engine, SKEWED if rank == 0 else torch.zeros_like(SKEWED), old=old)
        return made.tolist(), "\n".join(said), engine.policy.DefaultEplbPolicy.calls

    answers = on_ranks(2, job)
    kept = contiguous() if whole else contiguous().flip(1)
    assert all(made == kept.tolist() for made, _, _ in answers)
    assert expected in answers[0][1]
    assert "keep" in answers[0][1]
    assert [calls for _, _, calls in answers] == ([0, 0] if whole else [1, 0])


def _listen() -> list[str]:
    """What the plug-in logs from now on, in this process."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    log = logging.getLogger("vllm.equipoise")
    log.setLevel(logging.INFO)
    log.addHandler(Handler())
    return said


LOADS = {
    "zeros": torch.zeros(2, 8, dtype=torch.int64),
    "nan": torch.full((2, 8), float("nan")),
    "negative": -SKEWED,
    "infinite": SKEWED / 0.0,
    "fewer layers": SKEWED[:1],
    "fewer experts": SKEWED[:, :7],
    "one axis": SKEWED[0],
    "three axes": SKEWED[None],
    "nothing": torch.zeros(2, 0),
}


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
def test_odd_loads_keep_the_old_map(loads):
    said = _listen()
    assert torch.equal(plan(plugged(), loads), contiguous())
    assert any("keep" in line for line in said)


def test_the_next_window_is_planned_after_a_bad_one():
    engine = plugged()
    assert torch.equal(plan(engine, LOADS["nan"]), contiguous())
    assert not torch.equal(plan(engine), contiguous())


def test_a_planner_that_hangs_is_not_asked_again_until_it_is_done(monkeypatch):
    release = threading.Event()
    asked = []

    def hangs(self, current=None):
        asked.append(1)
        release.wait(20)
        return Balancer_propose(self, current)

    Balancer_propose = Balancer.propose
    monkeypatch.setattr(Balancer, "propose", hangs)
    engine = plugged(Settings(policy="greedy", max_moves=None, deadline_s=0.1))
    for _ in range(3):
        assert torch.equal(plan(engine), contiguous())
    assert len(asked) == 1
    release.set()
    for thread in threading.enumerate():
        if thread.name == "equipoise-plan":
            thread.join()
    monkeypatch.setattr(Balancer, "propose", Balancer_propose)
    engine = plugged(GREEDY)
    assert not torch.equal(plan(engine), contiguous())


@pytest.mark.parametrize("what", ["map", "slots", "shape"])
def test_ranks_that_disagree_keep_their_maps(what):
    def job(rank, group):
        said = _listen()
        engine = plugged(group=group)
        old, slots, loads = contiguous(), 12, SKEWED
        if rank == 1 and what == "map":
            old = old.flip(1)
        elif rank == 1 and what == "slots":
            slots, old = 14, contiguous(14)
        elif rank == 1:
            loads = torch.cat([SKEWED, SKEWED], 1)[:, :8][:, :7]
            old = old % 7
        made = plan(engine, loads, slots=slots, old=old)
        return torch.equal(made, old), "\n".join(said)

    for kept, said in on_ranks(2, job):
        assert kept
        assert "ranks do not agree" in said


def test_all_ranks_take_rank_0s_plan_whatever_they_counted():
    def job(rank, group):
        engine = plugged(group=group)
        loads = SKEWED if rank == 0 else SKEWED.flip(1)
        first = plan(engine, loads)
        return first.tolist(), plan(engine, loads, old=first).tolist()

    answers = on_ranks(4, job)
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0] != contiguous().tolist()


def test_ranks_come_and_go():
    """vLLM's elastic expert parallelism: empty slots of new ranks, and fewer ranks than hold experts."""
    engine = plugged(Settings(policy="greedy", max_moves=0.05))
    two = plan(engine)
    joined = torch.cat([two, torch.full((2, 6), -1)], 1)
    three = plan(engine, ranks=3, slots=18, old=joined)
    eq.Placement(three.numpy(), 3, 8)
    again = plan(engine, ranks=2, slots=12, old=three)
    eq.Placement(again.numpy(), 2, 8)
    assert engine.policy.DefaultEplbPolicy.calls == 0


def test_observing_moves_nothing(caplog):
    caplog.set_level(logging.INFO, "vllm.equipoise")
    engine = plugged(Settings(policy="greedy", max_moves=None, mode="observe"))
    assert torch.equal(plan(engine), contiguous())
    assert "would-move" in caplog.text


def test_a_file_stops_it_in_a_running_server(tmp_path, caplog):
    caplog.set_level(logging.INFO, "vllm.equipoise")
    engine = plugged(Settings(policy="greedy", max_moves=None, stop_file=tmp_path / "stop"))
    first = plan(engine)
    assert not torch.equal(first, contiguous())
    (tmp_path / "stop").touch()
    assert torch.equal(plan(engine, SKEWED.flip(1), old=first), first)
    assert "stop is there" in caplog.text
    (tmp_path / "stop").unlink()
    assert not torch.equal(plan(engine, SKEWED.flip(1), old=first), first)


def test_target_and_draft_have_histories_of_their_own(tmp_path):
    """Of the same shape, and opposite loads: each is planned from its own, and recorded to its own folder."""
    engine = plugged(Settings(policy="greedy", max_moves=None, record=tmp_path))
    state = engine.State()
    for name in ("a/b", "c"):
        state.add_model(model(name=name), None)
    engine.loads = {"a/b": SKEWED, "c": SKEWED.flip(1)}
    for _ in range(3):
        state.rearrange()
    first, second = (one.physical_to_logical_map for one in state.model_states.values())
    for made, loads in ((first, SKEWED), (second, SKEWED.flip(1))):
        alone = plan(plugged(), loads, old=contiguous())
        assert sorted(made[0].tolist()) == sorted(alone[0].tolist())
    _wait(lambda: _recorded(tmp_path / "0-a-b", 3) and _recorded(tmp_path / "1-c", 3))
    assert {part.name for part in tmp_path.iterdir()} == {"0-a-b", "1-c"}
    assert (eq.load_trace(tmp_path / "0-a-b").counts == SKEWED.numpy()).all()


def _wait(until) -> None:
    """Until the recorder's thread has done what is in hand; a test that waits in vain fails."""
    for _ in range(500):
        if until():
            return
        time.sleep(0.02)
    raise AssertionError("the recorder did not get there")


def _recorded(folder: Path, windows: int) -> bool:
    return any(folder.glob("*.safetensors")) and eq.load_trace(folder).num_windows == windows


@pytest.mark.parametrize("policy", ["static", "greedy"])
@pytest.mark.parametrize("is_async", [True, False])
def test_what_was_planned_ahead_is_served_at_once(tmp_path, policy, is_async):
    file = tmp_path / "placement.safetensors"
    ahead = eq.plan(SKEWED.flip(1).numpy(), eq.Topology(2, 6), policy="greedy").placement
    eq.save_placement(ahead, file, "equipoise")
    engine = plugged(Settings(policy=policy, placement=file, max_moves=None))
    state = engine.State(is_async=is_async)
    state.add_model(model(), None)
    assert state.expert_rearrangement_step == 15  # the next pass rearranges
    engine.loads["toy"] = torch.zeros_like(SKEWED)
    state.rearrange(is_profile=True)
    one = state.model_states[0]
    assert torch.equal(one.physical_to_logical_map, contiguous())
    state.rearrange()
    assert (one.physical_to_logical_map.numpy() == ahead.phy2log).all()
    engine.loads["toy"] = SKEWED
    state.rearrange()
    kept = (one.physical_to_logical_map.numpy() == ahead.phy2log).all()
    assert kept == (policy == "static")
    assert engine.modes == [is_async, False, is_async]
    assert state.is_async == is_async


def test_a_placement_for_another_machine_stops_all_ranks(tmp_path):
    file = tmp_path / "placement.safetensors"
    eq.save_placement(eq.contiguous_placement(2, 8, 3, 12), file, "equipoise")

    def job(rank, group):
        engine = plugged(Settings(policy="static", placement=file), group=group)
        with pytest.raises(EquipoiseError, match="rank 0 has logged"):
            engine.State().add_model(model(), None)

    on_ranks(2, job)


def test_only_rank_0s_settings_decide_what_is_served_at_once(tmp_path):
    """A rank without the variable follows: it would else wait in other collective calls than its peers."""
    file = tmp_path / "placement.safetensors"
    eq.save_placement(eq.contiguous_placement(2, 8, 2, 12), file, "equipoise")

    def job(rank, group):
        settings = Settings(policy="static", placement=file) if rank == 0 else Settings()
        engine = plugged(settings, group=group)
        state = engine.State(is_async=True)
        state.add_model(model(), None)
        return state.expert_rearrangement_step

    assert on_ranks(2, job) == [15, 15]


def test_with_elastic_ranks_nothing_is_hastened(tmp_path):
    """A rank that joins is alone when it loads: its counter must not differ from its peers'."""
    file = tmp_path / "placement.safetensors"
    eq.save_placement(eq.contiguous_placement(2, 8, 2, 12), file, "equipoise")
    state = plugged(Settings(policy="static", placement=file)).State(elastic=True, is_async=True)
    state.add_model(model(), None)
    assert state.expert_rearrangement_step == 12


def test_loads_of_the_last_time_are_not_counted_twice(tmp_path):
    engine = plugged(Settings(policy="greedy", max_moves=None, record=tmp_path / "r"))
    state = engine.State()
    state.add_model(model(), None)
    engine.loads["toy"] = SKEWED
    state.rearrange()
    state.rearrange(use_last_expert_load=True)
    state.rearrange(is_profile=True)
    engine.loads["toy"] = SKEWED.flip(1)
    state.rearrange()
    _wait(lambda: _recorded(tmp_path / "r", 2))
    trace = eq.load_trace(tmp_path / "r")
    assert trace.steps.tolist() == [[0, 4], [4, 8]]


def test_a_folder_that_another_writer_has_does_not_stop_serving(tmp_path, caplog):
    with eq.TraceWriter(tmp_path, 2, 8):
        engine = plugged(Settings(policy="greedy", max_moves=None, record=tmp_path))
        assert not torch.equal(plan(engine), contiguous())
        _wait(lambda: "does not record" in caplog.text)


def test_a_policy_that_fails_as_well_is_told_to_all_ranks():
    def job(rank, group):
        engine = plugged(group=group)

        def fails(cls, *args):
            raise RuntimeError("no plan")

        engine.policy.DefaultEplbPolicy.rebalance_experts = classmethod(fails)
        with pytest.raises(EquipoiseError, match="rank 0 has logged"):
            plan(engine, LOADS["nan"], old=torch.full((2, 12), -1))

    on_ranks(2, job)


def test_the_entry_point_is_declared():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'entry-points."vllm.general_plugins"]\nequipoise = "equipoise.engines.vllm:register"' in text
