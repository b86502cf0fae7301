"""What files, plug-ins and programs say cannot steer a terminal; their failures are one line that names them."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli.terminal import console
from equipoise.errors import EquipoiseError, printable
from equipoise.policy.protocol import Ability, can
from equipoise.policy.registry import blamed, policies

EVIL = "a\x1b[31m\x07\x9b2J\r\n\u202e\u2028b"
ALLOWED = {"\n"}


def assert_plain(text: str) -> None:
    for character in text:
        assert character in ALLOWED or character == printable(character), repr(character)


@pytest.fixture
def evil_file(tmp_path: Path) -> Path:
    counts = np.random.default_rng(0).integers(1, 99, (6, 2, 8))
    path = tmp_path / "f\x1b[2J\x07.safetensors"
    eq.save_trace(eq.LoadTrace(counts, source=EVIL, phases=(EVIL,) * 6), path)
    return path


def test_every_command_prints_plain_text(run, evil_file, tmp_path):
    out = tmp_path / "o\x1b[1m.json"
    for arguments in (
        ("inspect", evil_file),
        ("plan", evil_file, "--ranks", 2, "-o", out),
        ("convert", evil_file, tmp_path / "c\x1b[1m.npz", "--to", "array"),
        ("replay", evil_file, "--ranks", 2, "--interval", 1, "--history", 1, "--policies", "greedy"),
    ):
        result = run(*arguments)
        assert result.code == 0, result.err
        assert_plain(result.out + result.err)
        assert "\\x1b" in result.out or arguments[0] == "replay"  # which does not name its recording
    for arguments in (
        ("plan", str(evil_file) + "\x1b[0m", "--ranks", 2),
        ("plan", evil_file, "--ranks", 2, "--policy", EVIL),
        ("plan", evil_file, "--ranks", 2, "-o", out, "--format", EVIL),
        ("inspect", evil_file, "--from", EVIL),
    ):
        assert_plain(run(*arguments).error)


def test_names_that_are_not_utf8(run, tmp_path):
    path = str(tmp_path / "n\udcff.npy")
    try:
        np.save(path, np.ones((2, 8)))
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system wants UTF-8")
    assert "n\\udcff.npy" in run("inspect", path).out
    assert "n\\udcff.npy.x: does not exist" in run("inspect", path + ".x").error


def test_a_console_of_colours_keeps_its_own_codes():
    from rich.table import Table

    stream = io.StringIO()
    made = console(file=stream, force_terminal=True, width=60, color_system="standard")
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row("[red]" + "cell\x1b[5m")
    made.print(table)
    with made.status("waiting"):
        pass
    text = stream.getvalue()
    assert "\x1b[31m" in text  # red, of the table
    assert "\x1b[5m" not in text
    assert "\\x1b[5m" in text
    assert "\x07" not in text


@pytest.mark.parametrize("code", range(0x20))
def test_printable_escapes_every_control_character(code):
    assert printable(chr(code)) not in (chr(code), "")
    assert re.fullmatch(r"\\(x[0-9a-f]{2}|[tnr])", printable(chr(code)))


def test_printable_leaves_text():
    assert printable("Qwen3 – ünïcode 漢字 ⊕ \\x1b") == "Qwen3 – ünïcode 漢字 ⊕ \\x1b"
    assert str(EquipoiseError("two\nlines")) == "two\\nlines"
    assert str(eq.FormatError("f\x1b", "p\x1b")) == "f\\x1b: p\\x1b"


PLUGINS = """
import sys
from equipoise import Ability

class Base:
    abilities = frozenset({Ability.BUDGET})
    def place(self, problem):
        raise ValueError("no\\x1b[31m\\nway")

class Exits(Base):
    def place(self, problem):
        sys.exit(7)

class Wants(Base):
    def __init__(self, address):
        pass

class Raises(Base):
    def __init__(self):
        raise OSError(5, "no device")

class Quits(Base):
    def __init__(self):
        sys.exit()

class Takes(Base):
    def place(self):
        return 0

class Table:
    def __array__(self, *arguments, **more):
        sys.exit(1)

class Returns(Base):
    def place(self, problem):
        return Table()

class Hides:
    @property
    def place(self):
        raise RuntimeError("not here")
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """An installed package whose policies fail in every way."""
    (tmp_path / "others.py").write_text(PLUGINS)
    (tmp_path / "others_exit.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "others_raise.py").write_text("raise RuntimeError('broken')")
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    names = [
        f"{name} = others:{name.title()}"
        for name in ("base", "exits", "wants", "raises", "quits", "takes", "returns", "hides")
    ]
    names += ["import-exit = others_exit:X", "import-raise = others_raise:X", "nothing = others:Nothing"]
    (info / "entry_points.txt").write_text("[equipoise.policies]\n" + "\n".join(names) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(policies, "_loaded", {})
    yield
    for name in ("others", "others_exit", "others_raise"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base", r"policy 'base' failed: ValueError: no\x1b[31m\nway"),
        ("exits", "policy 'exits' failed: SystemExit: 7"),
        ("wants", "policy 'wants' cannot be made: TypeError"),
        ("raises", "policy 'raises' cannot be made: OSError: [Errno 5] no device"),
        ("quits", "policy 'quits' cannot be made: SystemExit"),
        ("takes", "policy 'takes' failed: TypeError"),
        ("returns", "policy 'returns' returned what NumPy cannot read: SystemExit: 1"),
        ("hides", "RuntimeError: not here"),
        ("import-exit", "policy 'import-exit' cannot be loaded: SystemExit: 3"),
        ("import-raise", "policy 'import-raise' cannot be loaded: RuntimeError: broken"),
        ("nothing", "policy 'nothing' cannot be loaded: AttributeError"),
    ],
)
def test_policies_of_others_that_fail(run, load, name, words):
    error = run("plan", load, "--ranks", 4, "--policy", name).error
    assert words in error
    assert_plain(error)


@pytest.mark.usefixtures("plugins")
def test_what_a_policy_of_others_can_do_is_still_seen():
    assert can(policies["base"], Ability.BUDGET)
    assert not can(policies["base"], Ability.DEVICE)


@pytest.mark.usefixtures("plugins")
def test_ctrl_c_in_a_policy_is_ctrl_c():
    with pytest.raises(KeyboardInterrupt), blamed("x"):
        raise KeyboardInterrupt
