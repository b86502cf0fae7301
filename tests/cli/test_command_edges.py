"""The command where it meets shells, terminals, pipes and people: help, exit codes, widths, encodings."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.cells import cell_len

import equipoise as eq
from equipoise import ArgumentError, FormatError
from equipoise.cli import main
from equipoise.cli.app import COMMANDS
from equipoise.cli.options import in_options

PYTHON = [sys.executable, "-m", "equipoise"]


def shell(*arguments, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [*PYTHON, *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80", **environment},
        timeout=120,
        check=False,
    )


def test_python_m_and_the_two_helps_and_the_version():
    assert shell("--version").stdout.decode() == f"equipoise {eq.__version__}\n"
    short, long = shell("plan", "-h"), shell("plan", "--help")
    assert short.returncode == long.returncode == 0
    assert short.stdout == long.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("width", [40, 80])
def test_help_fits_and_cuts_nothing(run, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", str(width))
    result = run(*filter(None, [command]), "--help")
    assert result.code == 0
    assert "…" not in result.out
    assert max(cell_len(line) for line in result.out.splitlines()) <= width


@pytest.mark.parametrize("command", COMMANDS)
def test_an_argument_has_one_name(run, command):
    """What usage calls an argument is what its description does, in capitals."""
    out = run(command, "--help").out
    usage = re.search(r"Usage: equipoise \w+ \[OPTIONS\]([^\n]*)", out)[1]
    for name in re.findall(r"\w+", usage):
        assert name.isupper(), usage
        assert re.search(rf"^\W*{name}\b.*<", out, re.MULTILINE), name


@pytest.mark.parametrize("width", ["20", "40", "60", "80", "200"])
def test_no_number_is_cut_however_narrow(run, load, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    for arguments in (
        ("plan", load, "--ranks", 4, "--redundant", 4),
        ("inspect", load, "--ranks", "1,4"),
        ("demo", "--policy", "greedy"),
    ):
        result = run(*arguments)
        assert result.code == 0
        assert "…" not in result.out
        if int(width) >= 40:
            lines = [line for line in result.out.splitlines() if not line.startswith("note: ")]
            assert max(map(cell_len, lines)) <= int(width)  # notes are one line each, for grep


def here(monkeypatch, encoding, *arguments):
    """The command in this process, on streams of an encoding, as PYTHONIOENCODING would make them."""
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding, errors="backslashreplace"))
    monkeypatch.setattr(sys, "argv", ["equipoise", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code
    sys.stdout.flush(), sys.stderr.flush()
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_output_that_is_not_utf8(monkeypatch, load, encoding):
    for arguments in (["demo", "--policy", "greedy"], ["inspect", load], ["plan", load, "--ranks", 4]):
        code, out, err = here(monkeypatch, encoding, *arguments)
        assert code == 0, err
        assert "\\u" not in out.decode(encoding)
    assert here(monkeypatch, encoding, "plan", "-h")[0] == 0
    code, _, err = here(monkeypatch, encoding, "plan", "\u2581.json", "--ranks", 4)
    assert code == 2
    assert b"Traceback" not in err


def test_a_process_whose_output_is_not_utf8(load):
    for arguments in (["inspect", load], ["plan", "\u2581.json", "--ranks", 4]):
        result = shell(*arguments, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert result.returncode == (0 if load in arguments else 2), result.stderr
        assert "\\u" not in result.stdout.decode("ascii")
        assert b"Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments", [["-h"], ["plan", "-h"], ["demo", "--policy", "greedy"], ["demo", "--json"], ["--version"]]
)
def test_a_closed_pipe_is_no_failure(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = shell(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert result.returncode == 0
    assert result.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["-h"], ["demo", "--policy", "greedy"], ["--version"]])
def test_output_on_a_full_disk_is_one_line(arguments):
    with open("/dev/full", "wb") as full:
        result = shell(*arguments, stdout=full)
    assert result.returncode == 2
    assert result.stderr.decode().startswith("error: standard output cannot be written: ")
    assert result.stderr.count(b"\n") == 1


def test_ctrl_c_at_any_instant_of_the_imports_leaves_no_traceback(load):
    """Python's own start is not ours: the interrupt comes once the first handler is set, before anything heavy."""
    code = (
        "import signal; from equipoise.cli import main; set_handler = signal.signal\n"
        "def noted(*given):\n"
        "    found = set_handler(*given); print('here', flush=True); return found\n"
        "signal.signal = noted; main()"
    )
    for delay in (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7):
        process = subprocess.Popen(
            [sys.executable, "-c", code, "plan", str(load), "--ranks", "4"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "here\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert process.returncode in (0, 130)
        assert "Traceback" not in err
        assert "Error" not in err


INTERRUPTED_IN_A_CALLBACK = """
import os, signal, weakref
from equipoise.cli import app

class Thing:
    pass

def callback(_):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass

def command(**_):
    thing = Thing()
    watched = weakref.ref(thing, callback)
    del thing
    print("went on", flush=True)

app.app, app.COMMANDS = command, ()
app.main()
"""


def test_ctrl_c_in_a_callback_whose_exceptions_python_ignores():
    """Such as those of the import system: it would be printed, and the command go on."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IN_A_CALLBACK], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["plan", "x", "--rank", 4], "--ranks"),
        (["plan", "x"], "'--ranks'"),
        (["plan"], "'LOAD'"),
        (["plan", "x", "--ranks", "four"], "'--ranks'"),
        (["convert", "x", "y", "z"], "(z)"),
        (["inspect", "x", "--worst", -1], "'--worst'"),
    ],
)
def test_wrong_usage_is_one_line_that_says_where_to_read(run, arguments, words):
    error = run(*arguments).error
    assert words in error
    assert "--help has the options" in error


def test_no_arguments_show_the_help(run):
    result = run()
    assert "Commands" in result.out + result.err
    assert result.code in (0, 2)


def test_completion_knows_commands_and_options():
    words = shell(_EQUIPOISE_COMPLETE="complete_bash", COMP_WORDS="equipoise pl", COMP_CWORD="1")
    assert words.stdout.decode().split() == ["plan"]
    words = shell(_EQUIPOISE_COMPLETE="complete_bash", COMP_WORDS="equipoise plan --max", COMP_CWORD="2")
    assert words.stdout.decode().split() == ["--max-moves"]


def test_errors_speak_of_options():
    told = {
        "num_ranks=4 is not divisible by num_nodes=3": "--ranks 4 is not divisible by --nodes 3",
        "max_moves needs current=: without it": "--max-moves needs --current: without it",
        "gate needs a cost model (--model, or cost=)": "--gate needs a cost model (--model)",
        "window must be at least 1 step, got 0": "--window must be at least 1 step, got 0",
        "seed must be at least 0": "--seed must be at least 0",
        "plans are made from history=8 windows": "plans are made from --history 8 windows",
        # words of sentences, of users, and parts of paths stay
        "policy 'num_ranks=3' has no seed": "policy 'num_ranks=3' has no seed",
        "a shorter history": "a shorter history",
        "/tmp/num_ranks=3/max_moves.x must end in .json": "/tmp/num_ranks=3/max_moves.x must end in .json",
    }
    for text, expected in told.items():
        assert in_options(ArgumentError(text)) == expected
    assert in_options(FormatError("f", "num_experts is 3")) == "f: num_experts is 3"
    assert in_options(FormatError("f", "say num_ranks (--ranks)")) == "f: say --ranks"


def test_the_choices_that_help_names_are_those_that_there_are(run, monkeypatch):
    from equipoise.control import ACCELERATORS, FORECASTS, LINKS, MODELS, WEIGHT_BYTES
    from equipoise.formats import LOAD_FORMATS, PLACEMENT_FORMATS
    from equipoise.scoring import PROTOCOLS

    monkeypatch.setenv("COLUMNS", "500")
    loads = [name for name, found in LOAD_FORMATS.items() if found.encode is not None]
    options = {
        "plan": {"--policy": eq.policies, "--format": PLACEMENT_FORMATS, "--from": LOAD_FORMATS},
        "inspect": {"--from": LOAD_FORMATS},
        "convert": {"--to": [*loads, *PLACEMENT_FORMATS], "--from": [*LOAD_FORMATS, *PLACEMENT_FORMATS]},
        "replay": {
            "--policies": eq.policies,
            "--reference": [],
            "--forecasts": FORECASTS,
            "--model": MODELS,
            "--dtype": WEIGHT_BYTES,
            "--accelerator": ACCELERATORS,
            "--intra-link": [name for name in LINKS if not name.startswith("ib")],
            "--inter-link": [name for name in LINKS if name.startswith("ib")],
        },
        "score": {"--protocol": PROTOCOLS, "--model": MODELS},
    }
    for command, of_command in options.items():
        lines = run(command, "--help").out.splitlines()
        for option, choices in of_command.items():
            line = next(line for line in lines if re.match(rf"│[*\s]*{option}\b", line))
            for choice in choices:
                assert re.search(rf"(?<![\w-]){re.escape(choice)}(?![\w-])", line), (command, option, choice)
