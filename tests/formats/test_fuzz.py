"""Broken and hostile input: every file either opens or gives one line that names it. Never anything else.

A few hundred files by default; for a long run, minutes of it::

    EQUIPOISE_FUZZ_EXAMPLES=20000 pytest tests/formats/test_fuzz.py
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import samples
from damage import damage, mutate, odd_array, odd_content
from equipoise import EquipoiseError, load_placement, load_trace
from equipoise.formats import LOAD_FORMATS, PLACEMENT_FORMATS, find_format
from equipoise.formats.hygiene import diagnose
from equipoise.formats.routes import own_routes
from equipoise.report.loads import summarise

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

fuzz = settings(
    max_examples=int(os.environ.get("EQUIPOISE_FUZZ_EXAMPLES", "30")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def survives(read: Callable[[], Any], path: Path) -> Any:
    """What was read, or None after an error of ours that is one line and names the file (or its folder)."""
    try:
        return read()
    except EquipoiseError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 600
        assert path.name in text or path.parent.name in text
        return None


def open_load(path: Path, format: str | None = None) -> None:
    trace = survives(lambda: load_trace(path, format), path)
    if trace is not None:
        survives(lambda: own_routes(path, num_experts=trace.num_experts, layers=trace.layers), path)
        assert trace.counts.min() >= 0
        assert np.isfinite(trace.counts).all()
        assert len(diagnose(trace)) <= 4
        json.dumps(summarise(trace, top_k=2).as_dict(), allow_nan=False)


def open_placement(path: Path, format: str | None = None) -> None:
    placement = survives(lambda: load_placement(path, format, num_ranks=4), path)
    if placement is not None:
        assert (placement.logcnt > 0).all()


Originals = Callable[[str], Path]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    """Writes the sound file of a kind, once."""
    folder = tmp_path_factory.mktemp("originals")

    @functools.cache
    def original(kind: str) -> Path:
        if kind.startswith("placement"):
            return samples.write_placement(folder, kind.split()[1])
        return samples.LOADS[kind](folder)

    return original


KINDS = [*samples.LOADS, *(f"placement {key}" for key in samples.FILES)]


def named_format(path: Path, placement: bool) -> str:
    return find_format(path, PLACEMENT_FORMATS if placement else LOAD_FORMATS, None, "any").name  # type: ignore[type-var]


@pytest.mark.parametrize("kind", KINDS)
@fuzz
@given(seed=st.integers(0, 2**63))
def test_damaged_bytes(kind: str, seed: int, originals: Originals, tmp_path: Path) -> None:
    rng = random.Random(seed)
    source = originals(kind)
    path = tmp_path / source.name
    if source.is_dir():
        shutil.copytree(source, path, dirs_exist_ok=True)
        victim = path / rng.choice(sorted(file.name for file in source.iterdir()))
        if rng.random() < 0.1:
            victim.unlink()
        else:
            victim.write_bytes(damage((source / victim.name).read_bytes(), rng))
    else:
        path.write_bytes(damage(source.read_bytes(), rng))
    placement = kind.startswith("placement")
    name = named_format(source, placement) if rng.random() < 0.7 else None
    (open_placement if placement else open_load)(path, name)


JSON_KINDS = ["stat_json", "adrs", "vllm", "placement sglang", "placement vllm-ascend", "placement vllm"]


@pytest.mark.parametrize("kind", JSON_KINDS)
@fuzz
@given(seed=st.integers(0, 2**63))
def test_odd_json(kind: str, seed: int, originals: Originals, tmp_path: Path) -> None:
    rng = random.Random(seed)
    source = originals(kind)
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    at = rng.randrange(len(lines))
    lines[at] = mutate(lines[at], rng)
    path = tmp_path / source.name
    path.write_text("\n".join(json.dumps(line) for line in lines))
    placement = kind.startswith("placement")
    (open_placement if placement else open_load)(path, named_format(source, placement))


@pytest.mark.parametrize("kind", ["stat_pt", "records", "placement sglang.pt"])
@fuzz
@given(seed=st.integers(0, 2**63))
def test_odd_tensors(kind: str, seed: int, originals: Originals, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rng = random.Random(seed)
    source = originals(kind)
    path = tmp_path / source.name
    if source.is_dir():
        shutil.copytree(source, path, dirs_exist_ok=True)
    victim = rng.choice(sorted(path.iterdir())) if source.is_dir() else path
    original = source / victim.name if source.is_dir() else source
    torch.save(odd_content(torch.load(original, weights_only=True), rng), victim)
    placement = kind.startswith("placement")
    (open_placement if placement else open_load)(path, named_format(source, placement))


@pytest.mark.parametrize("kind", ["npy", "npz", "routes", "trtllm", "own", "placement equipoise"])
@fuzz
@given(seed=st.integers(0, 2**63))
def test_odd_arrays(kind: str, seed: int, originals: Originals, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    rng = random.Random(seed)
    source = originals(kind)
    path = tmp_path / source.name
    array = odd_array(rng)
    if kind == "npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        arrays = dict(np.load(source))
        arrays[rng.choice(list(arrays))] = array
        np.savez(path, **arrays)
    else:
        while array.dtype.kind not in "iuf?":
            array = odd_array(rng)
        if kind == "trtllm":
            shutil.copytree(source, path, dirs_exist_ok=True)
            arrays = load_file(source / "rank1.safetensors")
            key = rng.choice([*arrays, "x", "1_", "99_7", "100_99", "1" * 30 + "_1"])
            save_file(arrays | {key: array}, path / "rank1.safetensors")
        else:
            with safe_open(source, framework="np") as file:
                metadata = file.metadata()
            if rng.random() < 0.5:
                metadata["equipoise"] = json.dumps(mutate(json.loads(metadata["equipoise"]), rng))
            else:
                array = load_file(source)["counts" if kind == "own" else "phy2log"]
            arrays = load_file(source)
            if rng.random() < 0.5:
                arrays[rng.choice(list(arrays))] = array
            save_file(arrays, path, metadata)
    placement = kind.startswith("placement")
    (open_placement if placement else open_load)(path, named_format(source, placement))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_cut_files(kind: str, originals: Originals, tmp_path: Path) -> None:
    source = originals(kind)
    placement = kind.startswith("placement")
    name = named_format(source, placement)
    read = load_placement if placement else load_trace
    path = tmp_path / source.name
    for share in (0, 0.01, 0.5, 0.99):
        victim = path
        if source.is_dir():
            shutil.copytree(source, path, dirs_exist_ok=True)
            victim = sorted(path.iterdir())[-1]
            data = (source / victim.name).read_bytes()
        else:
            data = source.read_bytes()
        victim.write_bytes(data[: int(len(data) * share)])
        if (kind == "csv" and share) or (kind == "vllm" and share > 0.1) or kind == "segments":
            continue  # a table cut short is still a table; of statistics the whole lines, of segments the whole ones
        with pytest.raises(EquipoiseError, match=source.stem.split(".")[0]):
            read(path, name)
