"""Every sentence of the guides with never, always, cannot or exactly has a test that tries to break it.

`CLAIMS` names it. Whoever writes such a sentence writes its test, or a weaker sentence.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
STRONG = re.compile(r"\b(?:never|always|cannot|exactly)\b", re.IGNORECASE)

# A part of the sentence, and the test.
CLAIMS = {
    "Every rank ends up with exactly `R / P` items": "planning/test_pack.py::test_packing_matches_plain_python",
    "A full rank is an integer that is never": (
        "planning/test_pack.py::test_a_full_rank_is_never_the_least_loaded_one"
    ),
    "loads only grow, so it cannot win": "planning/test_pack.py::test_packing_matches_plain_python",
    "A swap that adds no twin elsewhere always": "planning/test_refine.py::test_separate_matches_plain_python",
    "the ensemble is never worse than `greedy`": (
        "policy/test_properties.py::test_ensemble_is_never_above_greedy_without_avoidable_twins"
    ),
    "a larger budget is never worse": "policy/test_robust_moves.py::test_budgets_hold_and_more_is_never_worse",
    "that never get worse": "policy/test_robust_moves.py::test_no_layer_gets_worse_in_sample",
    "an assignment problem solved exactly": "planning/test_relabel.py::test_the_fewest_fetches_of_all_renamings",
    "a plan is always the same plan": "policy/test_determinism.py::test_processes_and_threads_change_nothing",
    "are always broken by number": "planning/test_pack.py::test_packing_matches_plain_python",
    "A policy never knows a file format": "test_architecture.py::test_imports_point_downwards",
    "a format never knows how a plan is made": "test_architecture.py::test_imports_point_downwards",
    "Inputs are never modified": "policy/test_determinism.py::test_inputs_are_not_modified",
    "a built-in name cannot be replaced": "policy/test_registry.py::test_built_in_names_cannot_be_taken",
    "What cannot be saved is said once": "planning/test_cache.py::test_a_full_disk_is_said_once",
    "never added up under large constants": (
        "search/test_budget.py::test_no_gain_in_balance_outweighs_a_twin_and_no_twin_a_group"
    ),
    "`doctor` found something that cannot work": "engines/test_doctor.py::test_the_command",
    "What they tell exactly, without replicas": (
        "plans/test_communication.py::test_pairs_say_what_routes_say_without_replicas"
    ),
    "was never trained on": "demo/test_training.py::test_what_is_recorded_was_not_trained_on",
    "The YAML has exactly the keys": "formats/test_placements.py::test_trtllm_yaml_passes_a_strict_schema",
    "windows that repeat the one before exactly": "formats/test_hygiene.py::test_repeats_and_cold_experts",
    "If the old map cannot be served on": "engines/test_vllm_adapter.py::test_ranks_come_and_go",
    "something that is switched on cannot work": "engines/test_doctor.py::test_the_command",
    "engines start from, never changed": "replay/test_replay_engine.py::test_scores_equal_the_slow_reference",
    "continued meanwhile, or cannot be stopped": (
        "scoring/test_attacks.py::test_a_process_that_continues_itself_all_the_time"
    ),
    "Programs cannot call compilers": "scoring/test_attacks.py::test_system_calls_that_are_refused",
    "a setting cannot be": "sweep/test_workers.py::test_the_same_results_with_and_without_ray",
}
# Words that promise nothing: what somebody else does, or rows and signs of a table.
NO_CLAIMS = ("engines that cannot wait", "(always:", "never:", "| never |")


def sentences() -> list[str]:
    """Those with such a word, outside of blocks of code."""
    found = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for block in re.split(r"\n\s*\n|\n(?=\||- )", text):
            line = " ".join(block.split())
            found += [part for part in re.split(r"(?<=[.;:!?])\s+", line) if STRONG.search(part)]
    return found


def test_there_are_such_sentences() -> None:
    assert len(sentences()) > 20


@pytest.mark.parametrize("sentence", sentences())
def test_every_strong_sentence_has_a_test(sentence: str) -> None:
    assert any(part in sentence for part in (*CLAIMS, *NO_CLAIMS)), (
        "name the test that tries to break this sentence in tests/test_claims.py, or write a weaker one"
    )


@pytest.mark.parametrize("part", [*CLAIMS, *NO_CLAIMS])
def test_no_claim_is_out_of_date(part: str) -> None:
    assert any(part in sentence for sentence in sentences())


@pytest.mark.parametrize("test", sorted(set(CLAIMS.values())))
def test_the_tests_are_there(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
