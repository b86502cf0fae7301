"""The driver, with workers that do what the test says: stand-ins for processes, not for replays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeping import POINTS, REFUSED, recordings, spec

from equipoise import EquipoiseError
from equipoise.errors import FileAccessError
from equipoise.sweep import Sweep, load_spec
from equipoise.sweep.driver import ATTEMPTS, HOPELESS
from equipoise.sweep.point import DONE, FAILED, MEASURES, Outcome, run_point
from equipoise.sweep.results import RESULTS, rows, save_results
from equipoise.sweep.workers import Answer

SMALL = """
[loads.steady]
path = "steady.safetensors"
[grid]
ranks = 2
policy = "greedy"
history = 2
seed = [0, 1, 2, 3, 4, 5, 6]
"""


class Scripted:
    """Lanes in which the n-th attempt of a task is lost where ``loses(task, n)``; scores are made up."""

    def __init__(self, lanes, loses=lambda task, attempt: False):
        self.lanes, self._loses = lanes, loses
        self.given: dict[str, int] = {}
        self._busy: dict[int, object] = {}
        self.dropped = 0

    def give(self, lane, task):
        assert lane not in self._busy
        self.given[task.key] = self.given.get(task.key, 0) + 1
        self._busy[lane] = task

    def answers(self, timeout_s):
        found = []
        for lane, task in list(self._busy.items()):
            lost = self._loses(task, self.given[task.key])
            if lost != "hangs":
                del self._busy[lane]
                outcome = None if lost else Outcome(task.key, DONE, "", {"windows": task.point.seed}, {})
                found.append(Answer(lane, outcome, "it was told to" if lost else ""))
        return found

    def drop(self, lane):
        del self._busy[lane]
        self.dropped += 1

    def close(self):
        self._busy.clear()


@pytest.fixture
def small(tmp_path):
    return load_spec(spec(tmp_path, SMALL))


def test_every_point_runs_once(small, tmp_path):
    sweep, workers, seen = Sweep(small, tmp_path / "out"), Scripted(3), []
    sweep.run(workers, lambda done, total: seen.append((done, total)))
    assert list(workers.given.values()) == [1] * 7
    assert seen == [(done, 7) for done in range(8)]
    assert [each["windows"] for each in rows(sweep)] == list(range(7))
    assert {outcome.clocks["attempts"] for outcome in sweep.outcomes} == {1}


def test_a_lost_worker_costs_its_point_an_attempt_and_no_other_one(small, tmp_path):
    sweep = Sweep(small, tmp_path / "out")
    workers = Scripted(2, lambda task, attempt: task.point.seed == 3 and attempt < ATTEMPTS)
    sweep.run(workers)
    assert [outcome.status for outcome in sweep.outcomes] == [DONE] * 7
    assert [outcome.clocks["attempts"] for outcome in sweep.outcomes] == [1, 1, 1, ATTEMPTS, 1, 1, 1]


def test_a_point_that_is_always_lost_fails_alone_and_is_tried_again_by_the_next_sweep(small, tmp_path):
    sweep = Sweep(small, tmp_path / "out")
    sweep.run(Scripted(2, lambda task, attempt: task.point.seed == 3))
    assert [outcome.status for outcome in sweep.outcomes] == [DONE] * 3 + [FAILED] + [DONE] * 3
    assert "3 attempts: it was told to" in sweep.outcomes[3].reason
    sweep.close()
    again, workers = Sweep(small, tmp_path / "out"), Scripted(2)
    again.run(workers)
    assert list(workers.given) == [again.tasks[3].key]
    assert {outcome.status for outcome in again.outcomes} == {DONE}


def test_a_point_that_hangs_is_given_up_at_its_deadline(small, tmp_path):
    from dataclasses import replace

    sweep = Sweep(replace(small, deadline_s=1e-6), tmp_path / "out")
    workers = Scripted(2, lambda task, attempt: "hangs" if task.point.seed == 0 else False)
    sweep.run(workers)
    assert sweep.outcomes[0].status == FAILED
    assert "longer than deadline_s = 1e-06" in sweep.outcomes[0].reason
    assert workers.dropped == ATTEMPTS


def test_a_sweep_in_which_nothing_works_stops(small, tmp_path):
    sweep, workers = Sweep(small, tmp_path / "out"), Scripted(2, lambda task, attempt: True)
    with pytest.raises(EquipoiseError, match="attempts were lost before a point was finished"):
        sweep.run(workers)
    assert HOPELESS <= sum(workers.given.values()) <= HOPELESS + workers.lanes


def test_an_interrupt_loses_nothing_that_was_finished(small, tmp_path):
    sweep = Sweep(small, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        sweep.run(Scripted(1), interrupt_at(4))
    sweep.close()
    again, workers = Sweep(small, tmp_path / "out"), Scripted(1)
    assert len(again.waiting) == 3
    again.run(workers)
    assert len(workers.given) == 3


def test_a_grid_that_grew_runs_what_is_new_and_changed_loads_run_again(small, tmp_path):
    sweep = Sweep(small, tmp_path / "out")
    sweep.run(Scripted(2))
    sweep.close()
    path = tmp_path / "grid.toml"
    path.write_text(SMALL.replace("5, 6]", "5, 6, 7]"))
    grown = Sweep(load_spec(path), tmp_path / "out")
    assert [task.point.seed for task in grown.waiting] == [7]
    grown.close()
    import equipoise as eq

    eq.save_trace(eq.synthetic_trace(2, 12, 10, seed=9, top_k=2), tmp_path / "steady.safetensors")
    changed = Sweep(load_spec(path), tmp_path / "out")
    assert len(changed.waiting) == 8
    changed.close()
    recordings(tmp_path)
    dearer = Sweep(load_spec(spec(tmp_path, SMALL + "[cost]\nmodel = 'olmoe'")), tmp_path / "out")
    assert len(dearer.waiting) == 7


def test_two_sweeps_do_not_write_to_one_folder(small, tmp_path):
    first = Sweep(small, tmp_path / "out")
    with pytest.raises(FileAccessError, match="written to by this process already"):
        Sweep(small, tmp_path / "out")
    first.close()
    Sweep(small, tmp_path / "out").close()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_whatever_is_cut_or_damaged_in_a_journal_runs_again(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    given_spec = load_spec(spec(folder, SMALL))
    sweep = Sweep(given_spec, folder / "out")
    sweep.run(Scripted(2))
    save_results(sweep)
    whole = (folder / "out" / RESULTS).read_bytes()
    sweep.close()
    journal = folder / "out" / "journal.jsonl"
    content = bytearray(journal.read_bytes())
    cut = data.draw(st.booleans())
    if cut:
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=20))
    journal.write_bytes(content)
    again = Sweep(given_spec, folder / "out")
    again.run(Scripted(2))
    keys = [task.key for task in again.tasks]
    assert [outcome.key for outcome in again.outcomes] == keys
    again.close()
    third = Sweep(given_spec, folder / "out")
    assert not third.waiting
    save_results(third)
    if cut:  # a digit that was changed inside a line cannot be told from another score
        assert (folder / "out" / RESULTS).read_bytes() == whole


def test_a_full_disk_stops_the_sweep_with_a_line_and_keeps_the_rest(small, tmp_path, monkeypatch):
    sweep, real, written = Sweep(small, tmp_path / "out"), os.write, []

    def write(handle, data):
        written.append(1)
        if len(written) == 4:
            real(handle, data[:5])
            raise OSError(28, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(FileAccessError, match="No space left on device; what was finished before is kept"):
        sweep.run(Scripted(1))
    sweep.close()
    monkeypatch.undo()
    assert len(Sweep(small, tmp_path / "out").waiting) == 4


def test_outcomes_of_real_points(tmp_path):
    """Refused where a setting cannot be, with the reason; scored as `replay` scores."""
    from equipoise import Topology
    from equipoise.replay import replay

    sweep = Sweep(load_spec(spec(tmp_path)), tmp_path / "out")
    assert len(sweep.tasks) == POINTS
    bad = next(task for task in sweep.tasks if task.point.redundant == 5)
    outcome = run_point(bad, sweep.traces[bad.point.load])
    assert (outcome.status, outcome.measures) == ("refused", {})
    assert "17 slots are not divisible by 2 ranks" in outcome.reason
    assert sum(task.point.redundant == 5 for task in sweep.tasks) == REFUSED
    good = next(task for task in sweep.tasks if task.point.redundant == 4 and task.point.seed == 1)
    outcome = run_point(good, sweep.traces[good.point.load])
    plain = replay(
        sweep.traces[good.point.load],
        Topology(2, 8),
        ["greedy"],
        interval=2,
        history=2,
        seed=1,
        cost=good.cost,
        reference="greedy",
    )
    assert outcome.measures["mean_imbalance"] == plain.series[1].summary.mean_imbalance
    assert outcome.measures["net_s"] == plain.series[1].summary.net_s
    assert outcome.measures["oracle"] == plain.series[-1].summary.mean_imbalance


def test_a_bug_in_a_policy_is_the_outcome_of_its_point(small, tmp_path, monkeypatch):
    sweep = Sweep(small, tmp_path / "out")
    monkeypatch.setattr("equipoise.sweep.point._replay", lambda task, trace: 1 / 0)
    outcome = run_point(sweep.tasks[0], sweep.traces["steady"])
    assert (outcome.status, outcome.reason) == (FAILED, "ZeroDivisionError: division by zero")


def test_results_say_the_same_in_whatever_order_points_were_finished(small, tmp_path):
    found = []
    for number, lanes in enumerate((1, 3, 7)):
        folder: Path = tmp_path / str(number)
        sweep = Sweep(small, folder)
        sweep.run(Scripted(lanes, lambda task, attempt: (task.point.seed + attempt) % 3 == 0 and attempt < 2))
        save_results(sweep)
        found.append((folder / RESULTS).read_bytes())
    assert found[0] == found[1] == found[2]


def test_ten_thousand_points(tmp_path, monkeypatch):
    """What the driver, the journal, the table and the page make of so many; the scores are made up."""
    monkeypatch.setattr(
        os, "fsync", lambda file: None
    )  # nobody pulls the plug; the disk would take most of it
    from equipoise.report.sweep import sweep_page

    path = spec(tmp_path, SMALL.replace("[0, 1, 2, 3, 4, 5, 6]", str(list(range(10_000)))))
    sweep = Sweep(load_spec(path), tmp_path / "out")
    workers = Scripted(8, lambda task, attempt: attempt == 1 and task.point.seed % 100 == 99)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(workers, interrupt_at(6_000))
    sweep.close()
    again = Sweep(load_spec(path), tmp_path / "out")
    assert len(again.waiting) == 4_000
    again.run(Scripted(8))
    save_results(again)
    table = rows(again)
    assert [each["windows"] for each in table] == list(range(10_000))
    made_up = dict.fromkeys(MEASURES, 1.5)
    page = sweep_page([{**each, **made_up, "slots_per_rank": 4} for each in table], len(table))
    assert "The 200 best of 10,000 points" in page
    assert len(page) < 500_000


def interrupt_at(number):
    def stop(done, total):
        if done == number:
            raise KeyboardInterrupt

    return stop
