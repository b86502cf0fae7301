"""Processes that answer: those that die, hang or fail cost nobody else more than a stated time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from processes import alive, gone

from equipoise import EquipoiseError
from equipoise.demo.workers import Failure, Workers

LIMITS = {"limit_s": 20.0, "after_s": 0.5}


def answerer(name):
    def answer(what, value=None):
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            time.sleep(60)
        if what == "raise":
            raise ValueError("no\nidea")
        if what == "exit":
            raise SystemExit(3)
        if what == "print":
            print("spoils the view")
            os.write(2, b"and so does this")
        return name, value

    return answer


def workers(*names):
    return Workers({name: lambda name=name: answerer(name) for name in names})


def test_each_answers_its_own_question():
    with workers(0, 1, 2) as asked:
        questions = {0: ("say", "a"), 2: ("say", "b")}
        assert asked.ask(questions, **LIMITS) == {0: (0, "a"), 2: (2, "b")}
        assert asked.ask({1: ("say", "c")}, **LIMITS) == {1: (1, "c")}


@pytest.mark.parametrize("what", ["raise", "exit"])
def test_what_is_raised_is_an_answer_in_one_line_and_the_worker_lives(what):
    with workers(0, 1) as asked:
        answers = asked.ask({0: (what,), 1: ("say",)}, **LIMITS)
        assert isinstance(answers[0], Failure)
        assert "\n" not in answers[0]
        assert asked.ask({0: ("say",)}, **LIMITS) == {0: (0, None)}


@pytest.mark.parametrize("what", ["die", "hang"])
def test_those_that_die_or_hang_are_missing_and_ended(what):
    with workers(0, 1, 2) as asked:
        pid = asked.process_ids[0]
        answers = asked.ask({0: (what,), 1: ("raise",), 2: ("say",)}, **LIMITS)
        assert set(answers) == {1, 2}
        assert gone([pid])
        assert asked.ask({0: ("say",), 2: ("say",)}, **LIMITS) == {2: (2, None)}


def test_a_worker_that_cannot_be_made_says_so():
    def broken():
        raise OSError("no room")

    with Workers({0: broken}) as asked:
        for _ in range(2):
            assert "no room" in asked.ask({0: ("say",)}, **LIMITS)[0]


def test_nothing_is_printed(capfd):
    with workers(0) as asked:
        asked.ask({0: ("print",)}, **LIMITS)
    assert capfd.readouterr() == ("", "")


def interrupted(pids):
    with workers(0, 1) as asked:
        pids += asked.process_ids.values()
        raise KeyboardInterrupt


def test_none_is_left_after_an_error():
    pids = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(pids)
    assert len(pids) == 2
    assert gone(pids)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_none_is_left_after_whoever_asks_is_killed(how):
    code = (
        "import time; from equipoise.demo.workers import Workers\n"
        "asked = Workers({n: lambda: print for n in range(3)})\n"
        "print(*asked.process_ids.values(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as asker:
        pids = list(map(int, asker.stdout.readline().split()))
        assert len(pids) == 3
        assert all(map(alive, pids))
        asker.send_signal(how)
    assert gone(pids)


def test_a_worker_ends_on_sigterm_whatever_the_asker_does_with_it(monkeypatch):
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with workers(0, 1) as asked:
            asked.ask({1: ("say",)}, **LIMITS)
            os.kill(asked.process_ids[1], signal.SIGTERM)
            assert gone([asked.process_ids[1]])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_where_no_process_can_be_started_it_says_so_and_leaves_none(monkeypatch):
    started, fork = [], os.fork

    def fork_twice():
        if len(started) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(fork())
        return started[-1]

    monkeypatch.setattr(os, "fork", fork_twice)
    with pytest.raises(EquipoiseError, match="cannot be started: Resource temporarily unavailable"):
        workers(0, 1, 2)
    assert len(started) == 2
    assert gone(started)
