"""Real workers, killed for real: processes of this machine, and Ray's."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from sweeping import POINTS, REFUSED, install, lines, processes_of, spec, start, wait_for

from equipoise.sweep import Sweep, load_spec
from equipoise.sweep.results import CLOCKS_FILE, RESULTS, save_results
from equipoise.sweep.workers import LocalWorkers

pq = pytest.importorskip("pyarrow.parquet")
# Ray and four processes are enough at a time.
pytestmark = [pytest.mark.xdist_group("sweep"), pytest.mark.waits]

WITHOUT_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
PLACES = ["local", pytest.param("ray", marks=WITHOUT_RAY)]
JOURNAL = "journal.jsonl"
FEW = """
deadline_s = {deadline}
[loads.steady]
path = "steady.safetensors"
[grid]
ranks = 2
policy = {policies}
history = 2
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The folder of a sweep that nobody disturbed, on one local worker."""
    folder = tmp_path_factory.mktemp("reference")
    sweep = Sweep(load_spec(spec(folder)), folder / "out")
    workers = LocalWorkers(1, sweep.traces)
    sweep.run(workers)
    workers.close()
    save_results(sweep)
    sweep.close()
    return folder / "out"


def finish(folder: Path, place: str, *arguments: object) -> tuple[int, str, str]:
    process = start(
        folder, folder / "grid.toml", "-o", folder / "out", "--on", place, "--workers", 2, *arguments
    )
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def check_same(reference: Path, out: Path) -> None:
    assert (out / RESULTS).read_bytes() == (reference / RESULTS).read_bytes()
    finished = [line["key"] for line in lines(out / JOURNAL)]
    assert len(finished) == len(set(finished)) == POINTS  # nothing that was finished ran again


@pytest.mark.parametrize("place", PLACES)
def test_the_same_results_with_and_without_ray(reference, tmp_path, place):
    spec(tmp_path)
    code, out, err = finish(tmp_path, place)
    assert (code, err) == (0, "")
    assert f"{POINTS} points: {POINTS - REFUSED} scored, {REFUSED} refused." in out
    check_same(reference, tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    table = pq.read_table(tmp_path / "out" / RESULTS)
    assert table.num_rows == POINTS
    assert not {"seconds", "planning_s", "attempts"} & set(table.column_names)
    assert pq.read_table(tmp_path / "out" / CLOCKS_FILE).num_rows == POINTS


@pytest.mark.parametrize("place", PLACES)
def test_the_driver_is_killed(reference, tmp_path, place):
    spec(tmp_path)
    process = start(tmp_path, tmp_path / "grid.toml", "-o", tmp_path / "out", "--on", place, "--workers", 2)
    journal = tmp_path / "out" / JOURNAL
    wait_for(lambda: len(lines(journal)) >= 5 or process.poll() is not None, "five points")
    process.kill()
    process.communicate()
    before = len(lines(journal))
    assert 5 <= before < POINTS
    wait_for(lambda: not processes_of(process.pid), "workers to end with their driver", 60)
    code, _, err = finish(tmp_path, place)
    assert (code, err) == (0, "")
    check_same(reference, tmp_path / "out")


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_and_the_same_command_again(reference, tmp_path, place):
    spec(tmp_path)
    process = start(tmp_path, tmp_path / "grid.toml", "-o", tmp_path / "out", "--on", place, "--workers", 2)
    wait_for(lambda: len(lines(tmp_path / "out" / JOURNAL)) >= 5 or process.poll() is not None, "five points")
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of them
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "still to run" in out
    assert "Traceback" not in err
    assert 5 <= pq.read_table(tmp_path / "out" / RESULTS).num_rows < POINTS
    wait_for(lambda: not processes_of(process.pid), "workers to end with their driver", 60)
    assert finish(tmp_path, "local")[0] == 0
    check_same(reference, tmp_path / "out")


@pytest.mark.parametrize("place", PLACES)
def test_workers_that_kill_themselves_lose_their_points_alone(tmp_path, place):
    """One policy kills its worker once, another each time."""
    once = (
        "mark = Path(__file__).with_name('killed')\n        if not mark.exists():\n            mark.touch()\n"
    )
    install(tmp_path, "clumsy", once + "            os.kill(os.getpid(), signal.SIGKILL)")
    install(tmp_path, "deadly", "os.kill(os.getpid(), signal.SIGKILL)")
    spec(tmp_path, FEW.format(policies='["greedy", "clumsy", "deadly"]', deadline=120))
    code, _, err = finish(tmp_path, place)
    assert (code, err) == (0, "")
    table = {row["policy"]: row for row in pq.read_table(tmp_path / "out" / RESULTS).to_pylist()}
    assert [row["status"] for row in table.values()] == ["done", "done", "failed"]
    assert "worker" in table["deadly"]["reason"]
    assert table["clumsy"]["mean_imbalance"] == table["greedy"]["mean_imbalance"]
    assert pq.read_table(tmp_path / "out" / CLOCKS_FILE).column("attempts").to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("place", PLACES)
def test_a_point_that_hangs_is_given_up(tmp_path, place):
    install(tmp_path, "endless", "time.sleep(1000)")
    spec(tmp_path, FEW.format(policies='["greedy", "endless"]', deadline=10))
    code, _, err = finish(tmp_path, place)
    assert (code, err) == (0, "")
    rows = pq.read_table(tmp_path / "out" / RESULTS).to_pylist()
    assert rows[1]["status"] == "failed"
    assert "longer than deadline_s = 10" in rows[1]["reason"]


def test_what_policies_print_is_not_in_the_output(tmp_path):
    install(tmp_path, "chatty", "print('hello from a policy', flush=True)")
    path = spec(tmp_path)
    path.write_text(path.read_text().replace('"greedy", "robust"', '"chatty"').replace("[0, 4, 5]", "4"))
    code, out, _ = finish(tmp_path, "local", "--json")
    assert code == 0
    assert "hello" not in out


class CountedLoads(dict):
    """Loads that know which of them were taken out to be sent."""

    def __init__(self, traces):
        super().__init__(traces)
        self.taken = []

    def __getitem__(self, name):
        self.taken.append(name)
        return super().__getitem__(name)


def test_a_load_goes_to_a_worker_once(tmp_path):
    sweep = Sweep(load_spec(spec(tmp_path)), tmp_path / "out")
    workers = LocalWorkers(1, CountedLoads(sweep.traces))
    for task in sweep.tasks[:6]:
        workers.give(0, task)
        answers = []
        until = time.monotonic() + 120
        while not answers and time.monotonic() < until:
            answers = workers.answers(1.0)
        assert answers[0].outcome.key == task.key
    assert workers._traces.taken == ["steady"]
    workers.close()


def test_a_worker_that_died_while_idle_is_replaced(tmp_path):
    sweep = Sweep(load_spec(spec(tmp_path)), tmp_path / "out")
    workers = LocalWorkers(1, sweep.traces)
    for expected_loss in (False, True, False):
        if expected_loss:
            process = workers._workers[0].process
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        workers.give(0, sweep.tasks[0])
        answers, until = [], time.monotonic() + 120
        while not answers and time.monotonic() < until:
            answers = workers.answers(1.0)
        assert (answers[0].outcome is None) == expected_loss
        if expected_loss:
            assert answers[0].lost == "its worker was ended by signal 9"
    workers.close()


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999999999"])
def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path, monkeypatch, address):
    spec(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", address)
    code, _, err = finish(tmp_path, "ray")
    assert code == 2
    assert f"no Ray cluster answers at RAY_ADDRESS={address}" in err
    assert err.count("\n") == 1


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_without_an_address_no_other_cluster_of_the_machine_is_joined(tmp_path, monkeypatch):
    """Ray notes the last cluster in its folder, also one that is gone."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-") as short:  # sockets have short names
        (Path(short) / "ray").mkdir()
        (Path(short) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        monkeypatch.setenv("TMPDIR", short)
        spec(tmp_path, FEW.format(policies='["greedy"]', deadline=120))
        code, out, err = finish(tmp_path, "ray")
    assert (code, err) == (0, "")
    assert "1 point: 1 scored" in out
