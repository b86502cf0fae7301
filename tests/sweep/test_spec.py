"""The spec of a sweep: what it may hold, and what is said of what it may not."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import FormatError
from equipoise.errors import FileAccessError
from equipoise.sweep import Point, load_spec
from equipoise.sweep.spec import DEADLINE_S

LOADS = '[loads.a]\npath = "a.json"\n'


def read(folder: Path, text: str):
    path = folder / "grid.toml"
    path.write_text(text)
    return load_spec(path)


def test_every_combination_once_and_in_the_order_of_the_grid(tmp_path):
    text = (
        LOADS
        + '[loads.b]\npath = "/b"\n[grid]\nranks = [4, 2]\npolicy = ["greedy", "robust"]\nseed = [0, 1, 0]\n'
    )
    found = read(tmp_path, text)
    expected = itertools.product(("a", "b"), (4, 2), ("greedy", "robust"), (0, 1))
    assert [(p.load, p.ranks, p.policy, p.seed) for p in found.points] == list(expected)
    assert found.loads["a"].path == tmp_path / "a.json"
    assert found.loads["b"].path == Path("/b")
    assert found.deadline_s == DEADLINE_S


def test_several_grids_and_single_values(tmp_path):
    text = (
        LOADS + "[[grid]]\nranks = 4\n[[grid]]\nranks = [4, 8]\nmax_moves = ['none', 0.05, 3]\nhorizon = 16\n"
    )
    points = read(tmp_path, text).points
    assert points[0] == Point("a", 4)
    assert [(p.ranks, p.max_moves, p.horizon) for p in points[1:]] == [
        (ranks, moves, 16) for ranks in (4, 8) for moves in (None, 0.05, 3)
    ]


def test_cost_figures_are_those_of_the_cost_model(tmp_path):
    text = LOADS + '[grid]\nranks = 2\n[cost]\nmodel = "olmoe"\ntoken_us = 2\ninter = "ib-200g"\n'
    assert read(tmp_path, text).cost == {"model": "olmoe", "token_s": 2e-6, "inter": "ib-200g"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "loads must be a table, got nothing"),
        ("[loads]\n[grid]\nranks = 2", "loads is empty"),
        ("[loads.a]\n[grid]\nranks = 2", "loads.a has no path"),
        ("loads = 3\n[grid]\nranks = 2", "loads must be a table, got int"),
        (LOADS, "grid must be a table, got nothing"),
        (LOADS + "[grid]", "grid has no ranks"),
        (LOADS + "[grid]\nranks = []", "grid.ranks is empty"),
        (LOADS + "[grid]\nranks = [2, 0]", "grid.ranks must be a whole number, at least 1, got 0"),
        (LOADS + "[grid]\nranks = true", "grid.ranks must be a whole number, at least 1, got True"),
        (LOADS + "[grid]\nranks = 2\nredundant = -1", "grid.redundant must be a whole number, not negative"),
        (LOADS + "[grid]\nranks = 2\nrank = 2", "grid has the key 'rank'; did you mean ranks?"),
        (LOADS + "[grid]\nranks = 2\npolicy = 'robots'", "grid.policy must be a policy, got 'robots'"),
        (LOADS + "[grid]\nranks = 2\nload = 'b'", "grid.load names 'b'"),
        (LOADS + "[grid]\nranks = 2\nmax_moves = nan", "grid.max_moves must be fetches"),
        (LOADS + "[grid]\nranks = 2\nmax_moves = '5%'", "grid.max_moves must be fetches"),
        (LOADS + "[grid]\nranks = 2\ngate = 1", "grid.gate must be true or false"),
        (LOADS + "[grid]\nranks = 2\nforecast = 'tarot'", "grid.forecast must be one of"),
        (LOADS + "[grid]\nranks = 2\n[cost]\nmodel = 'x'", "unknown model 'x'"),
        (LOADS + "[grid]\nranks = 2\n[cost]\ntoken_us = -1", "token_s must be finite and not negative"),
        (LOADS + "[grid]\nranks = 2\n[costs]\n", "the spec has the key 'costs'; did you mean cost?"),
        ("deadline_s = 0\n" + LOADS + "[grid]\nranks = 2", "deadline_s must be seconds, above 0, got 0"),
        ("deadline_s = nan\n" + LOADS + "[grid]\nranks = 2", "deadline_s must be seconds, above 0, got nan"),
        (LOADS + "window = 3\n[grid]\nranks = 2", "loads.a has the key 'window'"),
        (LOADS + "window_steps = 0\n[grid]\nranks = 2", "loads.a.window_steps must be"),
        (
            LOADS + f"[grid]\nranks = {list(range(1, 1002))}\nseed = {list(range(1000))}",
            "grid has 1,001,000 points, more than 1,000,000",
        ),
        ("[loads", "is not valid TOML"),
        ("a = " + "[" * 5000, "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, text, said):
    with pytest.raises(FormatError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "grid.toml") + ": ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileAccessError, match="does not exist"):
        load_spec(tmp_path / "none.toml")
    with pytest.raises(FileAccessError, match="cannot be read"):
        load_spec(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(content=st.dictionaries(st.sampled_from(["loads", "grid", "cost", "deadline_s", "x"]), VALUES))
def test_no_content_raises_anything_else(content):
    """Whatever TOML may hold is a spec, or an error that says so."""
    with mock.patch("equipoise.sweep.spec.read_toml", return_value=content), contextlib.suppress(FormatError):
        load_spec("grid.toml")
