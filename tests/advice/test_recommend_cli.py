"""The command ``recommend`` and its page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import equipoise as eq
from equipoise.cli import recommend  # noqa: F401, adds the command
from equipoise.cli.app import app


@pytest.fixture
def trace(tmp_path):
    """Shaped like OLMoE, so that the cost model is found."""
    path = tmp_path / "loads.safetensors"
    eq.save_trace(eq.synthetic_trace(16, 64, 12, tokens_per_window=2000), path)
    return path


def call(*arguments):
    return CliRunner().invoke(app, ["recommend", *map(str, arguments)], env={"COLUMNS": "100"})


def test_tables_and_reasons(trace):
    run = call(trace, "--gpus", "4,8")
    assert run.exit_code == 0, run.output
    for words in (
        "GPUs, and how to use them",
        "When to plan anew",
        "The first spare slot a rank",
        "olmoe in bf16",
    ):
        assert words in " ".join(run.output.split()), words


def test_json_names_what_the_table_names(trace):
    run = call(trace, "--gpus", "4,8", "--json")
    (found,) = json.loads(run.output)
    assert found["recommended"]["gpus"] in (4, 8)
    assert found["recommended"]["split"] == "even"
    assert len(found["curves"]) == 2
    assert found["replannings"]


def test_splitting_is_weighed_where_its_cost_is_known(trace, tmp_path):
    found = {}
    for split_us in (None, 0, 1e6):
        page = tmp_path / "advice.html"
        given = [] if split_us is None else ["--split-us", split_us]
        run = call(trace, "--gpus", "8", "--json", "--html", page, *given)
        assert run.exit_code == 0, run.output
        (found[split_us],) = json.loads(run.output)
        assert "Split by the load of every batch" in page.read_text()
        assert "How tokens are split, on 8 ranks" in page.read_text()
    assert [each["splitting"]["pays"] for each in found.values()] == [None, True, False]
    assert [each["recommended"]["split"] for each in found.values()] == ["even", "batch", "even"]
    assert found[0]["recommended"]["imbalance"] < found[None]["recommended"]["imbalance"]
    assert found[1e6]["splitting"]["split_s"] == 1.0
    assert "How tokens are split, on 8 ranks" in call(trace, "--gpus", "8").output


def test_the_page(trace, tmp_path):
    page = tmp_path / "advice.html"
    assert call(trace, "--gpus", "4,8", "--html", page).exit_code == 0
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for link in re.findall(r'href="#([^"]+)"', text):
        assert link in ids
    assert "$" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL)
    again = tmp_path / "again.html"
    assert call(trace, "--gpus", "4,8", "--html", again).exit_code == 0
    assert again.read_bytes() == page.read_bytes()


def test_prefill_and_decode_have_a_section_each(tmp_path):
    made = eq.synthetic_trace(16, 64, 16, tokens_per_window=500)
    path = tmp_path / "tagged.safetensors"
    eq.save_trace(eq.LoadTrace(made.counts, phases=("prefill", "decode") * 8, top_k=8), path)
    page = tmp_path / "advice.html"
    run = call(path, "--gpus", "8", "--html", page)
    assert run.exit_code == 0, run.output
    assert "Prefill: " in run.output
    assert "Decode: " in run.output
    assert all(f'<section id="{name}"' in page.read_text() for name in ("prefill", "decode"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "x"], "--gpus must be whole numbers"),
        (["--gpus", "4,4"], "gpus must be numbers from 1"),
        (["--memory", "0"], "memory_bytes must be above 0"),
        (["--kept", "1"], "kept must be from 0 to below 1"),
        (["--split-us", "-1"], "split_s must be a number of seconds that is not negative"),
        (["--split-us", "nan"], "split_s must be a number of seconds that is not negative"),
        (["--traffic", "nan"], "--traffic must be a positive number"),
        (["--html", "x.pdf"], "must end in .html"),
        (["--model", "none"], "unknown model"),
        (["--accelerator", "abacus"], "unknown accelerator"),
        (["--groups", "7"], "not divisible"),
    ],
)
def test_wrong_arguments_are_said(trace, arguments, said):
    run = call(trace, *arguments)
    assert isinstance(run.exception, eq.EquipoiseError)
    assert said in str(run.exception)


def test_a_model_that_nobody_knows(tmp_path):
    path = tmp_path / "odd.safetensors"
    eq.save_trace(eq.LoadTrace(np.ones((4, 3, 8), dtype=int)), path)
    run = call(path, "--gpus", "4")
    assert "name one with --model" in str(run.exception)
    assert call(path, "--gpus", "4", "--model", "olmoe").exit_code == 0


def test_one_window_and_the_same_file_twice(tmp_path, trace):
    path = tmp_path / "one.safetensors"
    eq.save_trace(eq.synthetic_trace(16, 64, 1), path)
    assert "--later" in str(call(path).exception)
    assert call(path, "--later", trace, "--gpus", "8").exit_code == 0
