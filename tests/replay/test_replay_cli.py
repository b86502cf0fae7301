"""The command ``replay``."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from replay_reference import WARM_UP, Plain
from typer.testing import CliRunner

from equipoise import EquipoiseError
from equipoise.cli import replay  # noqa: F401, adds the command
from equipoise.cli.app import app
from equipoise.policy.registry import policies
from equipoise.replay import ReplayResult

SCRIPT = """
import os, signal
from replay_reference import Plain
from equipoise.cli import app as application
from equipoise.policy.registry import policies

class Stopper(Plain):
    def place(self, problem):
        if len(self.calls) == int(os.environ["STOP"]):
            os.kill(os.getpid(), signal.SIGINT)
        return super().place(problem)

policies._loaded["stopper"] = Stopper()
policies._loaded["plain"] = Plain()
application.COMMANDS = ("replay",)
application.main()
"""


@pytest.fixture
def trace(tmp_path):
    """A dump as people attach it to issues: SGLang's JSON, 12 steps of an OLMoE-shaped model."""
    rng = np.random.default_rng(0)
    popularity = np.exp(rng.normal(0, 1, (16, 64)))
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"logical_count": rng.poisson(40 * popularity, (12, 16, 64)).tolist()}))
    return path


@pytest.fixture(autouse=True)
def _plain_policy(monkeypatch):
    monkeypatch.setitem(policies._loaded, "plain", Plain())


def call(*arguments):
    settings = ["--policies", "plain", "--reference", "plain", "--interval", "3", "--history", "3"]
    return CliRunner().invoke(app, ["replay", *map(str, arguments), *settings], env={"COLUMNS": "100"})


def as_json(*arguments):
    run = call(*arguments, "--json")
    assert run.exit_code == 0, run.output
    return ReplayResult.from_dict(json.loads(run.stdout))


def test_a_replay_is_printed_and_drawn(trace, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "out.svg"
    run = call(trace, "--ranks", "8,16", "--redundant", "0,16", "--gate", "--figure", picture)
    assert run.exit_code == 0, run.output
    for words in ("8 ranks x 8 slots", "8 ranks x 10 slots", "16 ranks x 4 slots", "16 ranks x 5 slots"):
        assert words in run.output
    for words in ("do-nothing", "oracle", "plain (gated)", "Held-out", "estimates for olmoe"):
        assert words in run.output
    assert "<svg" in picture.read_text()


def test_windows_are_summed_and_json_goes_to_standard_output(trace):
    result = as_json(trace, "--ranks", "8", "--window-steps", "2")
    assert result.complete
    assert "olmoe" in result.settings.cost["name"]
    assert result.settings.num_windows == 6
    assert result.settings.steps_per_window == 2
    assert result.settings.horizon == 3


def test_cost_options_reach_the_cost_model(trace):
    model = ["--model", "gpt-oss-20b", "--dtype", "bf16", "--inter-link", "pcie4"]
    times = ["--token-us", "3", "--fixed-us", "5", "--tile", "64", "--rank-speed", "1,1,1,1,1,1,1,0.5"]
    cost = as_json(trace, "--ranks", "8", *model, *times).settings.cost
    assert cost["token_s"] == pytest.approx(3e-6)
    assert cost["fixed_s"] == pytest.approx(5e-6)
    assert (cost["tile"], cost["rank_speed"][-1]) == (64, 0.5)
    assert cost["expert_bytes"] == 3 * 2880 * 2880 * 2
    assert cost["inter_bytes_per_s"] == pytest.approx(0.8 * 32e9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ranks", "x"], "--ranks"),
        (["--ranks", "0"], "--ranks must be at least 1"),
        (["--ranks", "8", "--redundant", "3"], "--redundant 0 or 8"),
        (["--ranks", "8", "--nodes", "3"], "num_nodes=3"),
        (["--ranks", "8", "--groups", "7"], "num_groups=7"),
        (["--ranks", "8", "--forecasts", "tarot"], "unknown forecast"),
        (["--ranks", "8", "--max-moves", "few"], "--max-moves"),
        (["--ranks", "8", "--max-moves", "0.1"], "honoured by none"),
        (["--ranks", "8", "--model", "gpt-5"], "unknown model"),
        (["--ranks", "8", "--rank-speed", "1,fast"], "--rank-speed"),
        (["--ranks", "8", "--window-steps", "99"], "regroup"),
        (["--ranks", "8", "--window-steps", "4"], "history=3"),
        (["--ranks", "8", "--figure", "/no/such/folder/x.png"], "does not exist"),
        (["--ranks", "8", "--from", "parchment"], "parchment"),
        (["--ranks", "8", "--figure", "x.bmp"], "x.bmp"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(trace, options, words):
    run = call(trace, *options)
    assert isinstance(run.exception, EquipoiseError)
    assert words in str(run.exception)
    assert "\n" not in str(run.exception)
    assert list(trace.parent.iterdir()) == [trace]


def test_a_model_of_unknown_shape_has_no_times(tmp_path):
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"logical_count": np.ones((8, 2, 8), int).tolist()}))
    run = call(path, "--ranks", "2")
    assert run.exit_code == 0, run.output
    assert "--model gives times and bytes" in run.output
    assert "cost model" in str(call(path, "--ranks", "2", "--gate").exception)


def interrupt(trace, stop, *options):
    command = [sys.executable, "-c", SCRIPT, "replay", trace, "--ranks", "8"]
    settings = ["--policies", "stopper", "--reference", "plain", "--interval", "2", "--history", "2"]
    return subprocess.run(
        [*map(str, command), *settings, *options],
        env={"STOP": str(stop), "PYTHONPATH": ":".join(sys.path), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_ctrl_c_keeps_what_was_computed(trace):
    run = interrupt(trace, WARM_UP + 3, "--json")
    assert run.returncode == 130, run.stderr
    assert "Traceback" not in run.stderr
    result = ReplayResult.from_dict(json.loads(run.stdout))
    assert not result.complete
    assert {len(series.windows) for series in result.series} == {6}


def test_ctrl_c_leaves_tables_that_say_so(trace):
    run = interrupt(trace, WARM_UP + 2)
    assert run.returncode == 130, run.stderr
    assert "4 later windows" in run.stdout
    assert "was interrupted" in run.stdout


def test_ctrl_c_before_anything_was_computed_prints_nothing(trace):
    run = interrupt(trace, WARM_UP, "--json")
    assert (run.returncode, run.stdout) == (130, "")
    assert "Traceback" not in run.stderr
