"""The evaluator as OpenEvolve, ShinkaEvolve and SkyDiscover call it, and the command."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from programs import COMMAND, HONEST, cheat, command, run

import equipoise.scoring.evaluator as evaluator
from equipoise.formats import save_trace
from equipoise.scoring import PROTOCOLS, drifting_trace
from equipoise.synthetic import synthetic_trace

EVALUATOR = Path(evaluator.__file__)
CHEAT = cheat(after="logcnt = logcnt * 2")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace file of 4 windows of 100 steps, 4 layers, experts enough for 288 slots."""
    path = tmp_path_factory.mktemp("trace") / "trace.safetensors"
    trace = drifting_trace(num_windows=4)
    save_trace(replace(trace, counts=trace.counts[:, :4], layers=()), path)
    return path


@pytest.fixture
def environment(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_TRACE", str(recorded))
    monkeypatch.setenv("EQUIPOISE_PROTOCOL", "leaderboard")


def loaded_by_path() -> ModuleType:
    """As OpenEvolve and SkyDiscover load an evaluation file: outside its package, under a name of theirs."""
    spec = importlib.util.spec_from_file_location("evaluation_module", EVALUATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(folder: Path, text: str) -> str:
    """As the frameworks write candidates: to a temporary file."""
    path = folder / "tmpcandidate.py"
    path.write_text(text)
    return str(path)


@pytest.mark.usefixtures("environment")
def test_evaluate_as_a_framework_loads_and_calls_it(tmp_path: Path) -> None:
    evaluate = loaded_by_path().evaluate
    result = evaluate(written(tmp_path, HONEST))
    assert result["combined_score"] > 50
    assert "error" not in result
    assert all(isinstance(value, float) for value in result.values())
    result = evaluate(written(tmp_path, CHEAT))
    assert result["combined_score"] == 0.0
    assert "logcnt" in result["error"]


def test_openevolves_evaluator_args_name_trace_and_protocol(recorded: Path, tmp_path: Path) -> None:
    result = evaluator.evaluate(written(tmp_path, HONEST), trace=str(recorded), protocol="equipoise")
    assert 0 < result["combined_score"] < 1


@pytest.mark.usefixtures("environment")
def test_evaluations_side_by_side_in_threads(tmp_path: Path) -> None:
    paths = []
    for index in range(4):
        (tmp_path / str(index)).mkdir()
        paths.append(written(tmp_path / str(index), HONEST if index % 2 else CHEAT))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(evaluator.evaluate, paths))
    assert ["error" in result for result in results] == [True, False, True, False]


def test_a_missing_trace_is_not_the_programs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EQUIPOISE_TRACE", raising=False)
    with pytest.raises(ValueError, match="set EQUIPOISE_TRACE"):
        evaluator.evaluate(written(tmp_path, HONEST))


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("text", "correct"), [(HONEST, True), (CHEAT, False)])
def test_shinkaevolves_command_line(tmp_path: Path, text: str, correct: bool) -> None:
    program, results = written(tmp_path, text), tmp_path / "results"
    done = run(str(EVALUATOR), "--program_path", program, "--results_dir", str(results))
    assert done.returncode == 0, done.stderr
    assert json.loads((results / "correct.json").read_text())["correct"] is correct
    assert (json.loads((results / "metrics.json").read_text())["combined_score"] > 0) is correct


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("text", "status"), [(HONEST, "success"), (CHEAT, "error")])
def test_skydiscovers_container_protocol(tmp_path: Path, text: str, status: str) -> None:
    done = run("-m", "equipoise.scoring", written(tmp_path, text))
    answer = json.loads(done.stdout)
    assert answer["status"] == status
    assert answer["combined_score"] == answer["metrics"]["combined_score"]
    assert ("artifacts" in answer) == (status == "error")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_command_prints_the_score(recorded: Path, tmp_path: Path, protocol: str) -> None:
    program = written(tmp_path, HONEST)
    done = command(program, "--trace", str(recorded), "--protocol", protocol, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["protocol"] == protocol
    assert result["windows"] == 3
    assert "synthetic" in result["trace"]
    assert result["combined_score"] > 0


def test_the_command_prints_a_table_and_the_reason_of_a_refusal(recorded: Path, tmp_path: Path) -> None:
    done = command(written(tmp_path, HONEST), "--trace", str(recorded), COLUMNS="100")
    assert done.returncode == 0
    assert "combined score" in done.stdout
    assert "GPU balance, held out" in done.stdout
    refused = command(written(tmp_path, CHEAT), "--trace", str(recorded))
    assert refused.returncode == 1
    assert "refused: logcnt: layer 0 claims" in refused.stdout
    as_json = command(written(tmp_path, CHEAT), "--trace", str(recorded), "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["error"].startswith("logcnt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonesuch.py", "--synthetic", "0"], "nonesuch.py: no such file"),
        (["greedy", "--trace", "missing.json"], "missing.json"),
        (["greedy", "--synthetic", "0", "--protocol", "x"], "unknown protocol 'x'"),
        (["greedy", "--synthetic", "0", "--slots", "290"], "not divisible by 32 ranks"),
        (["greedy"], "either --trace FILE or --synthetic SEED"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = command(*arguments, COLUMNS="200")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_truncated_trace_is_named(recorded: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(recorded.read_bytes()[:1000])
    done = command("greedy", "--trace", str(broken))
    assert done.returncode == 2
    assert "broken.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_short_trace_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    save_trace(synthetic_trace(1, 256, 5), path)
    done = command("greedy", "--trace", str(path))
    assert done.returncode == 2
    assert "fewer than two windows of 100 steps" in done.stderr


def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    import signal
    import time

    marker = tmp_path / "tmp"
    marker.mkdir()
    program = written(tmp_path, "while True:\n    pass\n")
    source = str(Path(evaluator.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "score", program, "--synthetic", "0"],
        env={**os.environ, "PYTHONPATH": source, "TMPDIR": str(marker)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and not any(marker.glob("equipoise-score-*/program.py")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert not list(marker.glob("equipoise-score-*"))
