"""The registry, policies of other packages, and what happens to a policy that returns garbage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import equipoise
from equipoise import Greedy, PolicyError, Problem, Topology, plan, rebalance_experts
from equipoise.policy.registry import find_policy, policies

LOADS = np.arange(8.0)[None]
TOPOLOGY = Topology(4, 4)

CODE = """
import numpy as np

class Contiguous:
    def place(self, problem):
        row = np.arange(problem.topology.num_slots) % problem.num_experts
        return np.tile(row, (problem.num_layers, 1))

class NotAPolicy:
    pass

ready_made = Contiguous()
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with policies of its own."""
    (tmp_path / "others_policies.py").write_text(CODE)
    info = tmp_path / "others_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others-policies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[equipoise.policies]\n"
        "contiguous = others_policies:Contiguous\n"
        "ready-made = others_policies:ready_made\n"
        "hollow = others_policies:NotAPolicy\n"
        "missing = others_policies:Nothing\n"
        "greedy = others_policies:Contiguous\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(policies, "_loaded", {})


def test_built_in_names() -> None:
    assert {"greedy", "chunked", "ensemble"} <= set(policies)
    assert len(policies) == len(list(policies))
    assert isinstance(policies["greedy"], Greedy)
    assert "nope" not in policies
    with pytest.raises(KeyError):
        policies["nope"]
    with pytest.raises(TypeError):
        policies["mine"] = Greedy()  # type: ignore[index]


def test_the_public_name_is_the_registry() -> None:
    assert isinstance(equipoise.policies, Mapping)
    assert list(equipoise.policies) == list(policies)
    assert len(equipoise.policies) == len(policies)
    assert equipoise.policies["greedy"] is policies["greedy"]
    assert equipoise.policies.get("nope") is None
    assert "ensemble" in equipoise.policies
    assert equipoise.policy.greedy.Greedy is Greedy


@pytest.mark.usefixtures("plugin")
def test_policies_of_other_packages() -> None:
    assert {"contiguous", "ready-made", "hollow", "missing"} <= set(policies)
    for name in ("contiguous", "ready-made"):
        found = plan(LOADS, TOPOLOGY, name)
        assert found.report.policy == name
        assert found.placement.phy2log.tolist() == [list(range(8)) * 2]
        assert rebalance_experts(LOADS, 16, 1, 1, 4, policy=name)[0].tolist() == [list(range(8)) * 2]
    with pytest.raises(PolicyError, match=r"'hollow' has no method place"):
        plan(LOADS, TOPOLOGY, "hollow")
    with pytest.raises(PolicyError, match=r"'missing' cannot be loaded"):
        plan(LOADS, TOPOLOGY, "missing")


@pytest.mark.usefixtures("plugin")
def test_built_in_names_cannot_be_taken() -> None:
    assert isinstance(policies["greedy"], Greedy)
    assert list(policies).count("greedy") == 1


class Returns:
    def __init__(self, result: Any) -> None:
        self.result = result

    def place(self, problem: Problem) -> Any:
        return self.result


GARBAGE: dict[str, tuple[Any, str]] = {
    "None": (None, r"returned"),
    "wrong shape": (np.zeros((1, 15), np.int64), r"shape \[1, 15\], expected \[L, R\] = \[1, 16\]"),
    "other layers": (np.zeros((2, 16), np.int64), r"shape \[2, 16\]"),
    "floats": (np.zeros((1, 16)), r"integer array"),
    "unknown expert": (np.full((1, 16), 8), r"holds expert 8, but experts are 0 to 7"),
    "negative expert": (np.full((1, 16), -1), r"holds expert -1"),
    "lost expert": (np.arange(16)[None] % 7, r"expert 7 has no slot"),
    "ragged": ([[1, 2], [3]], r"returned ragged lists"),
    "words": ("a placement", r"returned"),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_caught(case: str) -> None:
    result, message = GARBAGE[case]
    with pytest.raises(PolicyError, match=message) as error:
        plan(LOADS, TOPOLOGY, Returns(result))
    assert "'returns'" in str(error.value)
    with pytest.raises(PolicyError, match=message):
        rebalance_experts(LOADS, 16, 1, 1, 4, policy=Returns(result))


def test_a_policy_object_and_its_name() -> None:
    good = Returns(np.arange(16)[None] % 8)
    assert plan(LOADS, TOPOLOGY, good).report.policy == "returns"
    assert find_policy(Greedy())[0] == "greedy"
