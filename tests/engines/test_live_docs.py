"""What docs/live.md says of settings is what the code has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from equipoise.engines.settings import CONFIG, PREFIX, SWITCHES, Settings

TEXT = (Path(__file__).parents[2] / "docs" / "live.md").read_text(encoding="utf-8")
TABLE = TEXT[TEXT.index("## Settings") : TEXT.index("```toml")]


def test_every_setting_is_in_the_table_and_nothing_else() -> None:
    named = set(re.findall(rf"{PREFIX}[A-Z_]+", TABLE)) - {PREFIX, CONFIG, *SWITCHES.values()}
    assert named == {PREFIX + part.name.upper() for part in fields(Settings) if part.name != "origins"}


def test_the_defaults_of_the_table() -> None:
    """Given as they stand there, they change nothing; those in words are no values."""
    given = {}
    for line in TABLE.splitlines():
        if line.startswith("| `") and "VLLM" not in line:
            names, defaults = (re.sub("`", "", cell).split(",") for cell in line.split("|")[1:3])
            if defaults[0].strip() and " " not in defaults[0].strip() and defaults[0].strip() != "history":
                given |= {n.strip(): d.strip() for n, d in zip(names, defaults, strict=True)}
    assert len(given) >= 10
    assert Settings.from_environment(given) == Settings()


def test_the_file_of_the_docs_is_valid(tmp_path: Path) -> None:
    (content,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "equipoise.toml").write_text(content)
    settings = Settings.from_environment({CONFIG: str(tmp_path / "equipoise.toml")})
    assert len(settings.origins) == content.count("=")
