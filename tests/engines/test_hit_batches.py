"""EQUIPOISE_RECORD_UNIT=batches: what plug-ins record of how often experts were hit. Engines are stand-ins."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise import ArgumentError
from equipoise.engines.settings import Settings

torch = pytest.importorskip("torch")
pytest.importorskip("fcntl")

from fake_sglang import Fake  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from ranks import on_ranks  # noqa: E402
from vllm_fakes import Engine, model  # noqa: E402

from equipoise.engines import vllm_policy  # noqa: E402
from equipoise.engines.sglang_engine import hits_of  # noqa: E402
from equipoise.engines.sglang_hooks import replace as plug_into_sglang  # noqa: E402
from equipoise.engines.vllm_hooks import replace as plug_into_vllm  # noqa: E402

L, E, SLOTS = 2, 8, 12


def waited_for(folder: Path, windows: int = 1) -> eq.LoadTrace:
    """The recording, once its thread has written so much."""
    for _ in range(1000):
        if any(folder.glob("*.safetensors")) and len(eq.load_trace(folder)) >= windows:
            return eq.load_trace(folder)
        time.sleep(0.02)
    raise AssertionError("the recorder did not get there")


def settings(folder: Path, **more: object) -> Settings:
    return Settings(policy="greedy", max_moves=None, record=folder, record_unit="batches", **more)  # type: ignore[arg-type]


@given(st.integers(0, 1 << 32), st.integers(1, 6), st.sampled_from([0.0, 0.3, 0.9]))
def test_passes_of_sglang_by_a_plain_loop(seed: int, passes: int, empty: float) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3, (passes, L, E)) * (rng.random((passes, 1, 1)) >= empty)
    found = hits_of(torch.from_numpy(tokens))
    wanted = np.zeros((L, E), int)
    for one in tokens:
        for layer in range(L):
            for expert in range(E):
                wanted[layer, expert] += one[layer, expert] > 0
    assert found.counts.tolist() == wanted.tolist()
    assert found.batches == max(1, sum(one.any() for one in tokens))
    assert found.counts.max() <= found.batches


def test_sglang_records_hit_passes_of_moe_layers(tmp_path: Path) -> None:
    """A dense layer is left out, as of tokens, and the plan is the one that tokens make."""
    rng = np.random.default_rng(0)
    tokens = rng.poisson(0.8, (6, L + 1, E))
    tokens[:, 0] = 0
    tokens[3] = 0
    start = torch.arange(SLOTS).repeat(L + 1, 1) % E
    maps = []
    for chosen in (settings(tmp_path), Settings(policy="greedy", max_moves=None)):
        fake = Fake(start, E, 2)
        plug_into_sglang(fake, chosen, "0.5.23")
        maps.append(fake.ask(tokens, SLOTS, 2)[0].tolist())
    assert maps[0] == maps[1]
    trace = waited_for(tmp_path)
    assert trace.unit == "batches"
    assert trace.batches is not None
    assert trace.batches.tolist() == [5]
    assert trace.counts[0].tolist() == (tokens > 0).sum(axis=0)[1:].tolist()


def window_of(rank: int, number: int = 0) -> np.ndarray:
    """Loads of slots ``[passes, L, R]`` in the window of a rank; some passes have not been run yet."""
    rng = np.random.default_rng([rank, number])
    found = rng.poisson(0.3, (10, L, SLOTS))
    found[4 + rank :] = 0
    return found


def hits(window: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, int]:
    """In how many passes experts were hit, by a plain loop, and how many passes there were."""
    found = np.zeros((L, E), int)
    for one in window:
        for layer in range(L):
            hit = {
                table[layer, slot] for slot in range(SLOTS) if one[layer, slot] and table[layer, slot] >= 0
            }
            for expert in hit:
                found[layer, expert] += 1
    return found, int(window.any(axis=(1, 2)).sum())


def served(engine: Engine, state: object, rank: int, number: int) -> np.ndarray:
    """Fill the window of a rank, and rearrange; the map that was served in it."""
    one = state.model_states[0]  # type: ignore[attr-defined]
    one.expert_load_window = torch.from_numpy(window_of(rank, number)).int()
    table = one.physical_to_logical_map.numpy().copy()
    engine.loads["toy"] = torch.full((L, E), 100) + torch.arange(E) * number
    state.rearrange()  # type: ignore[attr-defined]
    return table


def test_vllm_records_the_batches_of_all_ranks(tmp_path: Path) -> None:
    """Replicas count as their expert, after a move as well."""

    def job(rank: int, group: object) -> list[list[list[int]]]:
        engine = Engine("0.32.0", group)
        plug_into_vllm(engine.policy, engine.State, engine.parallel_state, settings(tmp_path), "0.32.0")
        state = engine.State()
        state.add_model(model(), None)
        tables = [served(engine, state, rank, number).tolist() for number in range(3)]
        if rank == 0:
            waited_for(tmp_path, 3)
        return tables

    tables, others = on_ranks(2, job)
    assert tables == others
    trace = eq.load_trace(tmp_path)
    assert (trace.unit, trace.steps is not None) == ("batches", True)
    assert trace.batches is not None
    for number, table in enumerate(tables):
        found = [hits(window_of(rank, number), np.array(table)) for rank in range(2)]
        assert trace.counts[number].tolist() == sum(counts for counts, _ in found).tolist()
        assert trace.batches[number] == sum(passes for _, passes in found)


def test_a_rank_that_cannot_count_keeps_nobody_waiting(tmp_path: Path) -> None:
    """It adds nothing; the windows of the other are recorded, and plans are made."""

    def job(rank: int, group: object) -> bool:
        if rank == 1:
            vllm_policy._hits = _short_of_memory
        engine = Engine("0.32.0", group)
        plug_into_vllm(engine.policy, engine.State, engine.parallel_state, settings(tmp_path), "0.32.0")
        state = engine.State()
        state.add_model(model(), None)
        before = served(engine, state, rank, 5)
        if rank == 0:
            waited_for(tmp_path)
        return bool((state.model_states[0].physical_to_logical_map.numpy() != before).any())

    assert on_ranks(2, job) == [True, True]
    trace = eq.load_trace(tmp_path)
    table = (np.arange(SLOTS) % E)[None].repeat(L, axis=0)
    counts, passes = hits(window_of(0, 5), table)
    assert trace.counts[0].tolist() == counts.tolist()
    assert trace.batches is not None
    assert trace.batches.tolist() == [passes]


def _short_of_memory(model: object) -> None:
    raise torch.OutOfMemoryError("no memory")


def test_ranks_of_other_settings_keep_what_they_serve(tmp_path: Path) -> None:
    """One of them would wait for a sum that the other does not make."""

    def job(rank: int, group: object) -> bool:
        engine = Engine("0.32.0", group)
        chosen = settings(tmp_path) if rank == 0 else Settings(policy="greedy", max_moves=None)
        plug_into_vllm(engine.policy, engine.State, engine.parallel_state, chosen, "0.32.0")
        state = engine.State()
        state.add_model(model(), None)
        before = served(engine, state, rank, 5)
        return bool((state.model_states[0].physical_to_logical_map.numpy() == before).all())

    assert on_ranks(2, job) == [True, True]


def test_windows_without_hits_are_not_recorded_as_tokens(tmp_path: Path) -> None:
    """Of a profile run, and where the loads of the last time are told again."""
    engine = Engine("0.32.0", None)
    plug_into_vllm(engine.policy, engine.State, engine.parallel_state, settings(tmp_path), "0.32.0")
    state = engine.State()
    engine.parallel_state.get_eplb_group = _no_group
    state.add_model(model(), None)
    served(engine, state, 0, 0)
    state.rearrange(use_last_expert_load=True)
    state.rearrange(is_profile=True)
    served(engine, state, 0, 1)
    assert len(waited_for(tmp_path, 2)) == 2


def _no_group() -> None:
    raise AssertionError


def test_pairs_are_refused_with_the_way_to_have_them() -> None:
    with pytest.raises(ArgumentError, match=r"EQUIPOISE_RECORD_PAIRS is no setting: engines .*pairs_every"):
        Settings.from_environment({"EQUIPOISE_RECORD_PAIRS": "16"})
