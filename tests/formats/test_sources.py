"""What a path may stand for: pipes and compressed files are read, devices and bombs refused, strangers named."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import equipoise
import samples
from equipoise import FileAccessError, FormatError, MissingDependencyError, load_placement, load_trace
from equipoise.formats import read_trace
from equipoise.formats.source import FREE_SIZE, MAX_RATIO
from equipoise.formats.trtllm import MAX_YAML

COMMAND = (sys.executable, "-c", "from equipoise.cli import main; main()")


@pytest.mark.parametrize(
    "kind", [kind for kind in samples.LOADS if kind not in ("records", "trtllm", "segments")]
)
@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_compressed_files_of_every_format(kind: str, packed: str, tmp_path: Path) -> None:
    path = samples.LOADS[kind](tmp_path)
    target = path.with_name(f"{path.name}.{packed}")
    if packed == "gz":
        target.write_bytes(gzip.compress(path.read_bytes()))
    else:
        zstandard = pytest.importorskip("zstandard")
        half = path.stat().st_size // 2
        data = path.read_bytes()  # two frames, as of a file that was appended to
        target.write_bytes(zstandard.compress(data[:half]) + zstandard.compress(data[half:]))
    expected, again = load_trace(path), load_trace(target)
    np.testing.assert_array_equal(again.counts, expected.counts)
    assert (again.layers, again.source) == (expected.layers, expected.source)
    for cut in (5, target.stat().st_size // 2, target.stat().st_size - 1):
        target.with_name(f"cut.{packed}").write_bytes(target.read_bytes()[:cut])
        with pytest.raises(FormatError, match=f"cut.{packed}: .*cut short"):
            load_trace(target.with_name(f"cut.{packed}"))


def test_a_changed_byte_in_a_gzip_file_is_noticed(tmp_path: Path) -> None:
    data = gzip.compress(samples.adrs(tmp_path).read_bytes(), mtime=0)
    path = tmp_path / "d.json.gz"
    for at in range(10, len(data)):  # behind the header, of which some bytes mean nothing
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(FormatError):
            load_trace(path)


def test_a_compressed_placement(tmp_path: Path) -> None:
    path = samples.write_placement(tmp_path, "vllm-ascend")
    target = tmp_path / "p.json.gz"
    target.write_bytes(gzip.compress(path.read_bytes()))
    assert load_placement(target) == load_placement(path)


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_bombs(packed: str, tmp_path: Path) -> None:
    """What unpacks to more than it may is refused as soon as that is seen; nothing stays on the disk."""
    path = tmp_path / f"bomb.json.{packed}"
    data = b" " * (FREE_SIZE + (4 << 20))
    if packed == "gz":
        path.write_bytes(gzip.compress(data))
    else:
        path.write_bytes(pytest.importorskip("zstandard").compress(data))
    assert path.stat().st_size * MAX_RATIO < FREE_SIZE
    with pytest.raises(FormatError, match="unpacks to hundreds of times its size"):
        load_trace(path)


def test_compressed_twice_and_archives(tmp_path: Path) -> None:
    data = gzip.compress(samples.adrs(tmp_path).read_bytes())
    (tmp_path / "twice.gz").write_bytes(gzip.compress(data))
    with pytest.raises(FormatError, match="is compressed twice"):
        load_trace(tmp_path / "twice.gz")
    with tarfile.open(tmp_path / "d.tar.gz", "w:gz") as archive:
        archive.add(samples.adrs(tmp_path), "adrs.json")
    with pytest.raises(FormatError, match=r"d\.tar\.gz: is a tar archive"):
        load_trace(tmp_path / "d.tar.gz")


def test_zstandard_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"x" * 40)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'equipoise\[zstd\]'"):
        load_trace(tmp_path / "d.zst")


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which ``$EQ`` is the command."""
    source = str(Path(equipoise.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": source, "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(exist_ok=True)
    line = line.replace("$EQ", f"{COMMAND[0]} -c '{COMMAND[2]}'")
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=100
    )


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no /dev/fd here")
@pytest.mark.parametrize(
    "line",
    [
        "cat npy.npy | $EQ inspect - --json",
        "$EQ inspect - --json < npy.npy",
        "$EQ inspect <(gzip -c npy.npy) --json",
        "cat npy.npy | $EQ inspect /dev/stdin --json",
    ],
)
def test_standard_input(line: str, tmp_path: Path) -> None:
    samples.npy(tmp_path).rename(tmp_path / "npy.npy")
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["windows"] == samples.STEPS
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no /dev/fd here")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("$EQ inspect /dev/zero", "/dev/zero: is a device"),
        ("$EQ inspect fifo", "fifo: is a FIFO"),
        ("$EQ plan npy.npy --current fifo --ranks 2", "fifo: is a FIFO"),
        ("$EQ inspect - < /dev/null", "standard input: is a device"),
        ("$EQ inspect - <&-", "standard input: is closed"),
        ("true | $EQ inspect -", "standard input: is empty"),
        ("head -c 2000000 /dev/zero | $EQ inspect -", "standard input: begins with nothing but zeros"),
        ("echo '{' | $EQ inspect - --from sglang", "standard input: is not valid JSON"),
        ("$EQ plan - --current - --ranks 2 < npy.npy", r"only one input can be - "),
        ("$EQ inspect . ", "is a folder without a recording"),
    ],
)
def test_what_is_no_file_is_refused_in_one_line(line: str, words: str, tmp_path: Path) -> None:
    samples.npy(tmp_path).rename(tmp_path / "npy.npy")
    os.mkfifo(tmp_path / "fifo")
    done = shell(line, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.parametrize("name", ["rank0.safetensors", "expert_distribution_recorder_1.5_0.pt"])
def test_fifos_inside_of_a_recording(name: str, tmp_path: Path) -> None:
    (tmp_path / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 2}')
    os.mkfifo(tmp_path / name)
    with pytest.raises(FileAccessError, match="is a FIFO"):
        load_trace(tmp_path)


@pytest.mark.parametrize(
    "head", [b'{"logical_count": [[1,2', b"\x93NUMPY", b"1,2\n", b"PK\x03\x04", b"\x1f\x8b"]
)
def test_files_of_holes(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sparse.csv"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(20 << 30)
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system keeps no holes")
    with pytest.raises(FormatError, match="is made of holes"):
        load_trace(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"logical_count": ' + "[" * 50_000, "nested too deeply"),
        ('{"logical_count": ' + '{"a":' * 50_000, "nested too deeply"),
        ('{"logical_count": [[1, 2]], "logical_count": [[3, 4]]}', "has the key 'logical_count' twice"),
        ('{"rank": {"a": 1, "a": 2}, "logical_count": [[3, 4]]}', "has the key 'a' twice"),
        ('{"logical_count": [[1, true], [3, 4]]}', r"logical_count\[0\] holds true or false"),
        ('{"logical_count": [[[true]]]}', "holds true or false"),
        ('{"load_history": [{"logical_expert_load": [[false, 2]]}]}', "holds true or false"),
        ('{"logical_count": [[' + "1," * (6 << 20), "a value goes on for more than"),
    ],
)
def test_json_that_is_too_much_or_not_clear(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(FormatError, match=words):
        load_trace(tmp_path / "d.json")


def test_archives_with_many_arrays_or_one_name_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for number in range(5000):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(FormatError, match="no plausible recording"):
        load_trace(tmp_path / "many.npz")
    buffer = io.BytesIO()
    np.save(buffer, np.ones((2, 4)))
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("counts.npy", buffer.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("counts.npy", buffer.getvalue())
    with pytest.raises(FormatError, match="two entries of one name"):
        load_trace(tmp_path / "twice.npz")


def test_a_header_that_hides_numbers(tmp_path: Path) -> None:
    """An array said to be smaller than it is: the sum over all its bytes would not be compared."""
    np.save(tmp_path / "d.npy", samples.counts()[0])
    data = (tmp_path / "d.npy").read_bytes().replace(b"(3, 8)", b"(2, 8)")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("counts.npy", data)
    with pytest.raises(FormatError, match="less than the file holds"):
        load_trace(tmp_path / "d.npz")


def test_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    path = tmp_path / "m.yaml"
    body = "num_slots: 4\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n  3: [0, 1, 2, 3]\n"
    path.write_text("# A & B, 2 * 2 slots &c *d\n" + body)
    assert load_placement(path, num_ranks=2).phy2log.tolist() == [[0, 1, 2, 3]]
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text("backend: pytorch\nmoe_config:\n  backend: WIDEEP\n  load_balancer:\n" + indented)
    assert load_placement(path, num_ranks=2).layers == (3,)
    for text, words in (
        (body.replace("[0", "&a [0") + "  4: *a\n", "anchors or aliases"),
        (body + "  3: [3, 2, 1, 0]\n", "has a key twice in the mapping in line 4"),
        (body + '  "3": [3, 2, 1, 0]\n', "has a layer twice"),
        (body + "num_slots: 8\n", "has a key twice"),
        (body.replace("[0", "[true"), "must be a list of expert ids"),
        ("initial_global_assignments: " + "[" * 5000, "not valid YAML"),
        ("initial_global_assignments: [" + "1, " * (MAX_YAML // 3), "of a plausible file"),
    ):
        path.write_text(text)
        with pytest.raises(FormatError, match=words):
            load_placement(path, "trtllm", num_ranks=2)
    path.write_text("moe_config:\n  load_balancer: other.yaml\n")
    with pytest.raises(FormatError, match=r"names its placement in another file: give 'other\.yaml'"):
        load_placement(path, "trtllm", num_ranks=2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"PAR1....", "a Parquet table"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"\xfd7zXZ\x00", "compressed with xz"),
        ("1,2\n3,4\n".encode("utf-16"), "UTF-16"),
        (b'{"num_experts": 4, "num_experts_per_token": 2}', "name the folder"),
        (b'{"architectures": ["X"], "num_experts": 4}', r"the config\.json of a model"),
    ],
)
def test_files_of_another_kind_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(FormatError, match=words):
        load_trace(tmp_path / "d")


def test_one_rank_of_statistics_and_weights_are_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = samples.trtllm_statistics(tmp_path)
    with pytest.raises(FormatError, match="one rank of a TensorRT-LLM recording: name the folder"):
        load_trace(folder / "rank0.safetensors")
    save_file({"model.layers.0.weight": np.ones((2, 2))}, tmp_path / "w.safetensors")
    with pytest.raises(FormatError, match="neither loads nor a placement that Equipoise wrote"):
        load_trace(tmp_path / "w.safetensors")


def test_a_key_twice_in_a_safetensors_header(tmp_path: Path) -> None:
    entry = b'{"dtype":"I64","shape":[1],"data_offsets":[0,8]}'
    header = b'{"0_3":' + entry + b',"0_3":' + entry + b"}"
    folder = samples.trtllm_statistics(tmp_path)
    (folder / "rank0.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\1" + b"\0" * 7)
    with pytest.raises(FormatError, match="its header has a key twice"):
        load_trace(folder)


def patterns(ranks: int = 4, layers: int = 3, experts: int = 8) -> np.ndarray:
    """Which rank holds which expert, 0 or 1 ``[P, L, E]``: contiguous, and one more on every rank."""
    found = np.zeros((ranks, layers, experts), dtype=np.int64)
    for rank in range(ranks):
        found[rank, :, rank * 2 : rank * 2 + 2] = 1
        found[rank, :, (rank * 2 + 5) % experts] = 1
    return found


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "pt"])
def test_placement_patterns_are_no_loads(kind: str, tmp_path: Path) -> None:
    path, table = tmp_path / f"p.{kind}", patterns()
    if kind == "pt":
        torch = pytest.importorskip("torch")
        torch.save(torch.from_numpy(table), path)
    elif kind == "csv":
        windows = ["\n".join(",".join(map(str, row)) for row in window) for window in table.tolist()]
        path.write_text("\n\n".join(windows))
    elif kind == "npz":
        np.savez(path, table)
    else:
        np.save(path, table)
    with pytest.raises(
        FormatError, match=r"a placement pattern \[ranks, layers, experts\] rather than loads"
    ):
        load_trace(path)


def test_masks_are_no_loads_and_small_loads_are(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", patterns().astype(bool))
    with pytest.raises(FormatError, match="holds true or false, which are no counts"):
        load_trace(tmp_path / "m.npy")
    one_token = np.zeros((4, 3, 8), dtype=np.int64)
    one_token[:, :, :2] = 1
    for fine in (one_token, np.ones((4, 3, 8), dtype=np.int64), patterns() * 2, patterns()[0]):
        np.save(tmp_path / "f.npy", fine)
        assert load_trace(tmp_path / "f.npy").counts.sum() == fine.sum()


@pytest.mark.parametrize("suffix", ["pt", "json"])
def test_counts_of_source_ranks_are_added_up(suffix: str, tmp_path: Path) -> None:
    counts = samples.counts()
    path = tmp_path / f"d.{suffix}"
    if suffix == "pt":
        torch = pytest.importorskip("torch")
        torch.save(
            {"logical_count": torch.from_numpy(counts), "logical_count_layout": "rank_layer_expert"}, path
        )
    else:
        path.write_text(
            json.dumps({"logical_count": counts.tolist(), "logical_count_layout": "rank_layer_expert"})
        )
    trace, findings = read_trace(path)
    np.testing.assert_array_equal(trace.counts, counts.sum(axis=0)[None])
    assert "counts of 4 source ranks added up" in findings[0].message
    path.with_suffix(".json").write_text(
        json.dumps({"logical_count": [[1, 2]], "logical_count_layout": "x_y"})
    )
    with pytest.raises(FormatError, match="has the logical_count_layout 'x_y', known is 'rank_layer_expert'"):
        load_trace(path.with_suffix(".json"))


TABLES = {
    "heading": "e0,e1,e2\n1,2,3\n4,5,6\n",
    "pandas": ",0,1,2\n0,1,2,3\n1,4,5,6\n",
    "tabs": "1\t2\t3\n4\t5\t6\n",
    "semicolons": "1;2;3\n4;5;6\n",
    "trailing comma": "1,2,3,\n4,5,6,\n",
    "heading and trailing comma": "a,b,c,\n1,2,3,\n4,5,6,\n",
    "quotes": '"1","2","3"\n"4","5","6"\n',
    "windows line ends": "\ufeff1,2,3\r\n4,5,6\r\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(kind: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLES[kind], newline="")
    trace = load_trace(tmp_path / "t.csv")
    assert trace.counts.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert trace.layers == (0, 1)


def test_tables_with_layer_numbers_and_windows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("layer,e0,e1\n3,1,2\n7,3,4\n\n3,5,6\n7,7,8\n")
    trace = load_trace(tmp_path / "t.csv")
    assert trace.counts.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert trace.layers == (3, 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer,expert,count\n0,0,5\n0,1,6\n", "a table with a column 'expert'"),
        ("step,e0,e1\n0,1,2\n", "a table with a column 'step'"),
        ("1,5;2,5\n3,5;4,5\n", "has decimal commas"),
        ("1,2\n3,4,5\n", "line 2 has 3 numbers, the first 2"),
        ("1,,2\n3,4,5\n", "line 1 must be numbers|line 2 has"),
        ("1,2\n3,x\n", "line 2 must be numbers between commas, got '3,x'"),
        ("layer,e0,e1\n3,1,2\n\n4,5,6\n", "windows name different layers"),
        ("e0,e1\n", "holds no numbers"),
    ],
)
def test_tables_that_are_something_else(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(FormatError, match=words):
        load_trace(tmp_path / "t.csv")


def test_vllm_ascend_maps_by_position(tmp_path: Path) -> None:
    layer = {"device_list": [{"device_expert": [0, 1]}, {"device_expert": [2, 3]}]}
    path = tmp_path / "m.json"
    full = {"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 2, **layer}]}
    for content in (
        {"layer_list": [layer]},
        {"strategy_version": 1, "moe_layer_count": 1, "layer_list": [layer]},
        full,
    ):
        path.write_text(json.dumps(content))
        placement = load_placement(path)
        assert placement.phy2log.tolist() == [[0, 1, 2, 3]]
        assert placement.num_ranks == 2
    for name, value, words in (
        ("moe_layer_count", 2, "moe_layer_count is 2, expected 1"),
        ("layer_list", [{**layer, "layer_id": 5}], r"layer_list\[0\]\.layer_id is 5, expected 0"),
        ("layer_list", [{**layer, "device_count": 3}], "device_count is 3, expected 2"),
    ):
        path.write_text(json.dumps({**full, name: value}))
        with pytest.raises(FormatError, match=words):
            load_placement(path)


def test_every_changed_bit_of_an_npz_file_is_noticed_or_means_nothing(tmp_path: Path) -> None:
    """Dates and versions of the directory mean nothing; counts and layer numbers are never changed."""
    data = samples.npz(tmp_path).read_bytes()
    expected = load_trace(tmp_path / "counts.npz")
    path = tmp_path / "d.npz"
    for at in range(len(data)):
        for bit in (0, 3, 6):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            try:
                trace = load_trace(path, "array")
            except FormatError:
                continue
            np.testing.assert_array_equal(trace.counts, expected.counts)
            assert trace.layers == expected.layers
