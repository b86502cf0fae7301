"""Settings: from variables and from a file, checked at the start, nothing unknown let through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import ArgumentError, EquipoiseError, FileAccessError, FormatError, Topology
from equipoise.engines.settings import PREFIX, Settings


def read(**variables: str) -> Settings:
    return Settings.from_environment({PREFIX + name.upper(): value for name, value in variables.items()})


def test_nothing_set_is_the_defaults() -> None:
    assert Settings.from_environment({"PATH": "/bin", "EQUIPOISER": "x"}) == Settings()
    assert read(policy="", history="", config="") == Settings()


GIVEN: list[tuple[str, str, Any]] = [
    ("policy", "greedy", "greedy"),
    ("history", "3", 3),
    ("history", " 1_000 ", 1000),
    ("max_moves", "5%", 0.05),
    ("max_moves", "0.25", 0.25),
    ("max_moves", "1.0", 1.0),
    ("max_moves", "100", 100),
    ("max_moves", "0", 0),
    ("max_moves", "None", None),
    ("mode", "Observe", "observe"),
    ("gate", "on", True),
    ("gate", "TRUE", True),
    ("gate", "0", False),
    ("horizon", "20", 20),
    ("model", "DeepSeek-V3", "deepseek-v3"),
    ("accelerator", "b200", "b200"),
    ("intra", "nvlink5", "nvlink5"),
    ("inter", "ib-200g", "ib-200g"),
    ("record", "/tmp/r", Path("/tmp/r")),
    ("record_unit", "Batches", "batches"),
    ("record_max_bytes", "1000000", 10**6),
    ("record_max_bytes", "1.5 GB", 1_500_000_000),
    ("record_max_bytes", "500m", 500_000_000),
    ("placement", "p.json", Path("p.json")),
    ("deadline_s", "2.5", 2.5),
    ("stop_file", "stop", Path("stop")),
    ("seed", "7", 7),
]


@pytest.mark.parametrize(("name", "text", "value"), GIVEN)
def test_every_setting_by_variable(name: str, text: str, value: Any) -> None:
    settings = read(**{name: text})
    assert getattr(settings, name) == value
    assert settings.origins == {name: PREFIX + name.upper()}
    assert settings == Settings(**{name: value})


TOML = """
policy = "static"
history = 12
max_moves = 0.1
mode = "observe"
gate = true
horizon = 30
model = "qwen3-30b"
accelerator = "h200"
intra = "nvlink4"
inter = "ib-800g"
record = "recording"
record_unit = "batches"
record_max_bytes = "2G"
placement = "placement.json"
deadline_s = 5
stop_file = "/run/stop"
seed = 3
"""


def test_the_same_keys_in_a_file_and_variables_win(tmp_path: Path) -> None:
    path = tmp_path / "equipoise.toml"
    path.write_text(TOML)
    settings = read(config=str(path))
    assert set(settings.origins) == {name for name, _, _ in GIVEN}  # no setting is missing in this test
    assert (settings.policy, settings.history, settings.max_moves, settings.gate) == ("static", 12, 0.1, True)
    assert settings.deadline_s == 5.0
    assert settings.record_max_bytes == 2 * 10**9
    assert settings.origins["history"] == f"{path}: history"
    won = read(config=str(path), history="4", policy="robust")
    assert (won.history, won.policy, won.horizon) == (4, "robust", 30)
    assert won.origins["history"] == "EQUIPOISE_HISTORY"


WRONG = [
    ("policy", "robst", "did you mean robust?"),
    ("policy", "static", "EQUIPOISE_PLACEMENT"),
    ("history", "0", "at least 1, got 0"),
    ("history", "2.5", "at least 1, got '2.5'"),
    ("max_moves", "-1", "fetches"),
    ("max_moves", "1.5", "share"),
    ("max_moves", "nan", "fetches"),
    ("max_moves", "many", "got 'many'"),
    ("max_moves", "300%", "share"),
    ("mode", "off", "on or observe"),
    ("gate", "maybe", "on or off"),
    ("horizon", "-3", "at least 1"),
    ("model", "gpt", "one of deepseek-v3"),
    ("accelerator", "tpu", "one of a100"),
    ("intra", "x", "one of nvlink3"),
    ("inter", "x", "one of nvlink3"),
    ("record_unit", "activations", "tokens or batches"),
    ("record_max_bytes", "lots", "bytes"),
    ("record_max_bytes", "0", "bytes"),
    ("record_max_bytes", "inf", "bytes"),
    ("deadline_s", "0", "seconds"),
    ("deadline_s", "inf", "seconds"),
    ("deadline_s", "nan", "seconds"),
    ("seed", "-1", "not negative"),
]


@pytest.mark.parametrize(("name", "text", "words"), WRONG)
def test_what_is_out_of_range_is_one_line_that_names_the_variable(name: str, text: str, words: str) -> None:
    with pytest.raises(ArgumentError) as error:
        read(**{name: text})
    assert PREFIX + name.upper() in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "text", "words"), WRONG)
def test_the_same_in_a_file_names_the_file(name: str, text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"{name} = '{text}'")
    with pytest.raises(ArgumentError, match=f"c.toml: {name} must be"):
        read(config=str(path))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("POLCIY", "POLICY"),
        ("RECORDS", "RECORD"),
        ("policy", "POLICY"),
        ("VLM", "VLLM"),
        ("MAXMOVES", "MAX_MOVES"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_one(name: str, near: str) -> None:
    with pytest.raises(ArgumentError) as error:
        Settings.from_environment({PREFIX + name: "x"})
    assert str(error.value).startswith(f"{PREFIX}{name} is no setting; ")
    assert PREFIX + near in str(error.value)


def test_variables_for_other_purposes_are_let_through() -> None:
    names = ("NUM_THREADS", "VLLM", "SGLANG", "CONFIG", "TRACE")
    assert Settings.from_environment({PREFIX + name: "" for name in names}) == Settings()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"polcy = 'robust'", "has the key 'polcy', no setting; did you mean policy?"),
        (b"[equipoise]\npolicy = 'robust'", "has the key 'equipoise', no setting"),
        (b"history = [1]", "history must be a number of windows, at least 1, got list"),
        (b"seed = 1979-05-27", "seed must be a whole number, not negative, got date"),
        (b"history = ", "is not valid TOML"),
        (b"history = 1\nhistory = 2", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"a = " + b"[" * 5000, "is not valid TOML"),
        (b"#" * ((1 << 20) + 1), "is not valid TOML"),
    ],
    ids=range(9),
)
def test_files_that_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(FormatError) as error:
        read(config=str(path))
    assert words in str(error.value)
    assert str(error.value).startswith(str(path))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="does not exist"):
        read(config=str(tmp_path / "no.toml"))
    with pytest.raises(EquipoiseError):
        read(config=str(tmp_path))


@given(st.dictionaries(st.sampled_from([name for name, _, _ in GIVEN]), st.text(max_size=12)))
def test_any_text_is_a_setting_or_an_error_of_ours(variables: dict[str, str]) -> None:
    try:
        settings = read(**variables)
    except EquipoiseError:
        pass
    else:
        assert (
            Settings(**settings.as_dict() | {n: getattr(settings, n) for n in settings.origins}) == settings
        )


def test_a_balancer_is_made_of_them() -> None:
    settings = read(policy="greedy", history="3", max_moves="10", seed="5", horizon="9")
    balancer = settings.balancer(Topology(4, 5), 2, 16)
    assert (balancer.name, balancer.history, balancer.max_moves, balancer.seed) == ("greedy", 3, 10, 5)
    assert (balancer.horizon, balancer.cost) == (9, None)
    static = read(policy="static", placement="p.json").balancer(Topology(4, 5), 2, 16)
    assert static.name == "robust"


def test_the_gate_finds_its_cost_model_by_shape_or_name() -> None:
    by_shape = read(gate="on").balancer(Topology(32, 9), 58, 256)
    assert by_shape.cost is not None
    assert by_shape.cost.name.startswith("deepseek-v3 in fp8 on h100")
    by_name = read(gate="on", model="qwen3-30b", accelerator="a100").balancer(Topology(4, 5), 2, 16)
    assert by_name.cost is not None
    assert by_name.cost.name.startswith("qwen3-30b in bf16 on a100")
    with pytest.raises(ArgumentError, match=r"EQUIPOISE_MODEL to one of .* or EQUIPOISE_GATE to off"):
        read(gate="on").balancer(Topology(4, 5), 2, 16)


def test_settings_import_nothing_heavy() -> None:
    code = (
        "import sys; from equipoise.engines.settings import Settings; import equipoise.engines.log\n"
        "Settings.from_environment({'EQUIPOISE_POLICY': 'robust', 'EQUIPOISE_RECORD': 'r'})\n"
        "heavy = {'torch', 'numba', 'scipy', 'typer', 'rich', 'prometheus_client', 'vllm', 'sglang'}\n"
        "print(heavy & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
