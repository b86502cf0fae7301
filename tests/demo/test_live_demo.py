"""The live demo: the same bits as one rank while experts move, ranks that are lost, and what is shown of it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")


from hypothesis import given
from hypothesis import strategies as st
from processes import gone
from rich.console import Console

from equipoise import EquipoiseError
from equipoise.demo import live, model, serving
from equipoise.demo.view import View, plain_line

SHORT = {"PASSES": 5, "PHASES": 3, "SEQUENCES": 2}
BRIEF = {"PASSES": 2, "PHASES": 2, "SEQUENCES": 2}  # too few for experts to move


def command(sizes):
    prelude = f"import equipoise.demo.live as live; vars(live).update({sizes})\n"
    return prelude + "from equipoise.cli import main; main()"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for name, value in SHORT.items():
        monkeypatch.setattr(live, name, value)


@pytest.fixture(scope="module", autouse=True)
def kernels():
    live.LiveDemo("robust", 0).warm()


def test_every_output_is_that_of_one_rank_while_experts_move():
    with live.LiveDemo("robust", 0) as demo:
        moments = list(demo)
    assert [moment.number for moment in moments] == list(range(15))
    assert moments[-1].compared == 60
    assert moments[-1].differing == 0
    assert moments[-1].moves > 0
    assert moments[-1].commits > 0
    assert len({moment.kind for moment in moments}) == min(3, len(demo.setup.stream.kinds))
    assert {moment.state for moment in moments} > {"recording"}
    for moment in moments:  # each token goes to 4 experts: loads of all ranks together
        assert np.allclose(moment.loads.sum(axis=1) % (4 * 4 * 2 * 64), 0)


def test_an_output_that_differs_is_counted(monkeypatch):
    serve = serving.LiveRank._serve

    def wrong(rank, number):
        if rank.name == 2 and number == 1:
            rank.served.layers.tensors()[3]["down_proj"][:, 0, 0] += 1e-3
        return serve(rank, number)

    monkeypatch.setattr(serving.LiveRank, "_serve", wrong)
    with live.LiveDemo("robust", 0) as demo:
        passes = iter(demo)
        assert next(passes).differing == 0
        assert next(passes).differing > 0


@pytest.mark.parametrize(
    ("victim", "how"),
    [
        (0, signal.SIGKILL),
        (3, signal.SIGKILL),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.waits),
    ],
)
def test_when_a_rank_is_gone_the_others_serve_on(monkeypatch, victim, how):
    monkeypatch.setattr(live, "AFTER_S", 8.0)
    monkeypatch.setattr(serving, "DEADLINE_S", 5.0)
    with live.LiveDemo("robust", 0) as demo:
        moments = []
        for moment in demo:
            moments.append(moment)
            if moment.number == 4:
                os.kill(demo.process_ids[victim], how)
    left = tuple(rank for rank in range(4) if rank != victim)
    assert [moment.members for moment in moments] == [(0, 1, 2, 3)] * 5 + [left] * 10
    assert f"rank {victim} gone" in moments[5].news
    assert not any(moment.news for moment in moments if moment.number != 5)
    assert moments[-1].compared == 5 * 4 + 10 * 3
    assert moments[-1].differing == 0
    assert moments[-1].state != "degraded"


def lose(demo, victims):
    for moment in demo:
        if moment.number == 1:
            for victim in victims:
                os.kill(demo.process_ids[victim], signal.SIGKILL)


@pytest.mark.parametrize(
    ("victims", "said"), [((1, 2), "2 of 4 ranks are left"), ((live.ONE,), "alone is gone")]
)
def test_when_too_much_is_gone_it_ends_with_one_line(victims, said):
    with live.LiveDemo("robust", 0) as demo:
        with pytest.raises(EquipoiseError, match=said):
            lose(demo, victims)
        pids = demo.process_ids.values()
    assert gone(pids)


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100])
def test_weights_that_cannot_be_read_end_it_with_one_line(monkeypatch, tmp_path, content):
    if content is not None:
        (tmp_path / "weights").write_bytes(content)
    monkeypatch.setattr(serving, "load_model", lambda: model.load_model(tmp_path / "weights"))
    with live.LiveDemo("robust", 0) as demo, pytest.raises(EquipoiseError) as caught:
        next(iter(demo))
    assert "\n" not in str(caught.value)


def test_no_pass_begins_after_the_time(monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 0.0)
    with live.LiveDemo("robust", 0) as demo:
        assert list(demo) == []


def shell(*arguments, sizes=SHORT, **more):
    line = [sys.executable, "-c", command(sizes), "demo", "--live", *arguments]
    return subprocess.Popen(line, text=True, **more)


def test_lines_where_there_is_no_terminal():
    with shell(stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        out, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (0, "")
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0].startswith("LIVE")
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("pass ") for line in lines) == 3
    assert "60 outputs, every one compared with the model on one rank: bit-identical." in lines


def test_json():
    with shell("--json", "--policy", "greedy", sizes=BRIEF, stdout=subprocess.PIPE) as run:
        found = json.loads(run.communicate(timeout=120)[0])["live"]
    assert run.returncode == 0
    assert found["policy"] == "greedy"
    assert (found["passes"], found["outputs_compared"], found["outputs_differing"]) == (4, 16, 0)
    assert len(found["imbalance"]) > 1


def test_a_difference_is_an_error():
    spoil = (
        "import dataclasses, equipoise.demo.serving as serving\n"
        "serve = serving.LiveRank._serve\n"
        "serving.LiveRank._serve = lambda rank, n: dataclasses.replace(serve(rank, n), digest='')\n"
    )
    line = [sys.executable, "-c", spoil + command(BRIEF), "demo", "--live"]
    run = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert "16 DIFFER" in run.stdout
    assert run.stderr == "error: 16 of 16 outputs were not those of the model on one rank\n"


def children(pid):
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_ctrl_c_ends_everything():
    with shell(stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as run:
        while not run.stdout.readline().startswith("pass"):
            pass
        pids = children(run.pid)
        assert len(pids) == 5
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all of them
        out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in out
    assert "bit-identical" in out
    assert gone(pids)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_command(tmp_path, how):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with shell(stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as run:
        while not run.stdout.readline().startswith("pass"):
            pass
        pids = children(run.pid)
        assert list(tmp_path.glob("equipoise-demo-*"))
        run.send_signal(how)
        _, err = run.communicate(timeout=60)
    assert gone(pids, within=30)
    if how == signal.SIGTERM:
        assert (run.returncode, err) == (143, "")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "lacking",
    [
        "import sys; sys.modules['torch'] = None",
        "import torch; del torch.nn.RMSNorm",  # as before 2.4
        "import sys, torch; sys.modules['torch._C._distributed_c10d'] = None",
    ],
)
def test_without_torch_it_says_so(lacking):
    code = f"{lacking}\nfrom equipoise.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code, "demo", "--live"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == (
        "error: the live demo needs PyTorch 2.4 or newer, with torch.distributed: pip install 'equipoise[torch]'\n"
    )


def take_the_terminal():
    ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """The command on a terminal of its own, so wide and 40 lines high."""

    def __init__(self, columns):
        self.ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
        self.run = shell(
            **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
            env=clean | {"TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=take_the_terminal,
        )
        os.close(theirs)
        self.written = ""

    def read(self, until=None):
        """What is written up to some text, or to the end."""
        limit = time.monotonic() + 120
        while time.monotonic() < limit and (until is None or until not in self.written):
            try:
                self.written += os.read(self.ours, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        return self.written


def test_ctrl_c_on_a_terminal_gives_the_cursor_back_and_leaves_nobody():
    terminal = Terminal(80)
    terminal.read(until="rank 3  ")
    pids = children(terminal.run.pid)
    assert len(pids) == 5
    os.write(terminal.ours, b"\x03")
    written = terminal.read()
    assert terminal.run.wait(timeout=30) == 130
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert "interrupted" in written
    assert "Traceback" not in written
    assert gone(pids)


def test_frames_fit_the_terminal():
    columns = 40  # other widths: test_no_line_is_wider_than_the_terminal
    terminal = Terminal(columns)
    written = terminal.read()
    assert terminal.run.wait(timeout=30) == 0
    assert "\x1b[?25l" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written))
    assert max(map(len, lines)) <= columns
    assert sum(line.startswith("rank 0") for line in lines) > 3
    assert any("bit-identical" in line for line in lines)


def moment(**changed):
    usual = {
        "number": 7,
        "passes": 120,
        "kind": "headers",
        "members": (0, 1, 2, 3),
        "loads": np.ones((2, 4)),
        "imbalance": 1.0,
        "unmoved": 1.3,
        "even": 1.1,
        "batch": 1.01,
        "state": "recording",
    }
    return live.Moment(**(usual | changed))


@given(
    width=st.integers(30, 200),
    shown=st.lists(
        st.tuples(
            st.floats(1, 9), st.sampled_from(["python", "help"]), st.integers(1, 4), st.integers(0, 10**6)
        ),
        min_size=1,
        max_size=40,
    ),
)
def test_no_line_is_wider_than_the_terminal(width, shown):
    view = View(4)
    for value, kind, ranks, count in shown:
        frame = view.frame(
            moment(
                imbalance=value,
                kind=kind,
                members=tuple(range(ranks)),
                loads=np.full((2, ranks), 3.0) + np.eye(2, ranks) * value,
                moves=count,
                compared=count,
                news="rank 3 gone" * (ranks < 4),
            ),
            width,
        )
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(frame)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("rank ") and "█" in line for line in lines) == shown[-1][2]


def test_outputs_that_differ_are_not_called_identical():
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(View(4).frame(moment(compared=40, differing=3), 80))
    text = console.export_text()
    assert "3 of 40 outputs DIFFER" in text
    assert "same bits" not in text


def test_no_load_is_drawn_too():
    assert View(4).frame(moment(loads=np.zeros((2, 4))), 80)
    assert "headers" in plain_line(moment())
