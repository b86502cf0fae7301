"""Files of ``torch.save``: damaged ones are refused every time, and what accelerators wrote loads."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samples
from equipoise import FormatError, load_placement, load_trace
from equipoise.formats.archive import check_torch

torch = pytest.importorskip("torch")
COUNTS = np.arange(1, 17).reshape(2, 8)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "d.pt"
    content = {"rank": 0, "logical_count": torch.from_numpy(COUNTS.astype(np.int32)), "more": torch.ones(3)}
    torch.save(content, path)
    return path


def test_every_changed_byte_is_noticed(sound: Path, tmp_path: Path) -> None:
    """One bit of every byte of the file: data, headers, padding, directory and end."""
    data = sound.read_bytes()
    path = tmp_path / "d.pt"
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            check_torch(path)


def test_cut_and_lengthened_files(sound: Path, tmp_path: Path) -> None:
    data = sound.read_bytes()
    path = tmp_path / "d.pt"
    for changed in (data[:-1], data[: len(data) // 2], data + b"\0", b"\0" + data, data + data):
        path.write_bytes(changed)
        with pytest.raises(FormatError):
            load_trace(path, "sglang")


def test_what_torch_wrote_is_whole(sound: Path) -> None:
    sizes = check_torch(sound)
    assert sizes["d/data/0"] == 64
    np.testing.assert_array_equal(load_trace(sound).counts[0], COUNTS)


def test_a_pickle_that_claims_more_than_the_archive_has(sound: Path, tmp_path: Path) -> None:
    """The check sums are right, so only the sizes tell: torch would hand back the memory behind the storage."""
    path = tmp_path / "d.pt"
    reader = torch._C.PyTorchFileReader(str(sound))
    writer = torch._C.PyTorchFileWriter(str(path))
    for name in reader.get_all_records():
        record = reader.get_record(name)
        if name == "data/0":
            record = record[:8]
        if name not in ("version", ".data/serialization_id"):
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    check_torch(path)
    with pytest.raises(FormatError, match="its pickle says 64 bytes of storage '0', the archive not"):
        load_trace(path)


def test_repacked_archives_are_refused(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.pt"
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(FormatError, match=r"was not written by torch\.save"):
        load_trace(path)


def test_a_place_to_remember_far_outside(tmp_path: Path) -> None:
    """``LONG_BINPUT`` at 2^31: a quick unpickler makes room for that many."""
    path = tmp_path / "d.pt"
    writer = torch._C.PyTorchFileWriter(str(path))
    pickled = b"\x80\x02X\x0d\x00\x00\x00logical_countr\xff\xff\xff\x7f."
    writer.write_record("data.pkl", pickled, len(pickled))
    writer.write_end_of_file()
    with pytest.raises(FormatError, match="its pickle is broken"):
        load_trace(path, "sglang")


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_floats(name: str, tmp_path: Path) -> None:
    """Every value that the type has, but for those that are no loads; torch's own conversion is the measure."""
    from safetensors.torch import save_file

    kind = getattr(torch, name)
    codes = np.arange(256 if "8_" in name else 65536, dtype=np.uint8 if "8_" in name else np.uint16)
    tensor = torch.from_numpy(codes.view(np.int8 if "8_" in name else np.int16)).view(kind)
    values = tensor.to(torch.float64)
    tensor = tensor[torch.isfinite(values) & (values >= 0) & (values < 1e15)]
    expected = tensor.to(torch.float64).numpy()
    torch.save({"logical_count": tensor[None]}, tmp_path / "d.pt")
    np.testing.assert_array_equal(load_trace(tmp_path / "d.pt").counts[0, 0], expected)
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "meta_info.json").write_text(f'{{"num_experts": {len(expected)}, "num_experts_per_token": 1}}')
    save_file({"0_3": tensor}, folder / "rank0.safetensors")
    np.testing.assert_array_equal(load_trace(folder).counts[0, 0], expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_tensor(zipped: bool, tmp_path: Path) -> None:
    torch.save(torch.from_numpy(COUNTS), tmp_path / "d.pt", _use_new_zipfile_serialization=zipped)
    trace = load_trace(tmp_path / "d.pt")
    np.testing.assert_array_equal(trace.counts[0], COUNTS)
    assert trace.num_model_layers is None


def test_other_files_of_torch_are_named(tmp_path: Path) -> None:
    torch.save({"model.layers.0.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(FormatError, match=r"is a file of torch\.save, but no bare tensor, .*: a checkpoint"):
        load_trace(tmp_path / "w.pt")
    with pytest.raises(
        FormatError, match=r"holds the keys model\.layers\.0\.weight: expected the bare tensor"
    ):
        load_trace(tmp_path / "w.pt", "array")
    torch.save({"logical_count": torch.ones(2, 8, device="meta")}, tmp_path / "m.pt")
    with pytest.raises(
        FormatError, match="logical_count is on the meta device: it has a shape and no numbers"
    ):
        load_trace(tmp_path / "m.pt")


def test_a_placement_is_no_tensor_of_loads(tmp_path: Path) -> None:
    path = samples.write_placement(tmp_path, "sglang.pt")
    assert load_placement(path, num_ranks=4, layers=(1, 2, 4)).num_layers == 3
    with pytest.raises(FormatError, match="is a placement file"):
        load_trace(path)


def test_dumps_of_an_npu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view into a storage, tagged for the accelerator, with the function of a package that is not there."""
    names = ("torch_npu", "torch_npu.utils", "torch_npu.utils.storage")
    modules = [types.ModuleType(name) for name in names]

    def _rebuild_npu_tensor(*_: Any) -> None: ...

    _rebuild_npu_tensor.__module__, _rebuild_npu_tensor.__qualname__ = names[2], "_rebuild_npu_tensor"
    modules[2]._rebuild_npu_tensor = _rebuild_npu_tensor  # type: ignore[attr-defined]

    class Dumped:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

        def __reduce__(self) -> Any:
            tensor = self.tensor
            where = (tensor._typed_storage(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
            return _rebuild_npu_tensor, (*where, False, {}, {"npu_format": 2})

    whole = torch.arange(1, 65).reshape(4, 16)
    with monkeypatch.context() as patch:
        for name, module in zip(names, modules, strict=True):
            patch.setitem(sys.modules, name, module)
        torch.save({"logical_count": Dumped(whole[1:3, 4:12])}, tmp_path / "npu.pt")
    assert "torch_npu" not in sys.modules
    np.testing.assert_array_equal(load_trace(tmp_path / "npu.pt").counts[0], whole[1:3, 4:12].numpy())


def test_what_a_pickle_asks_for_is_named(tmp_path: Path) -> None:
    class Other:
        def __reduce__(self) -> Any:
            return np.array, ([1],)

    torch.save({"logical_count": Other()}, tmp_path / "d.pt")
    with pytest.raises(
        FormatError, match=r"\(numpy\.array\), so it was refused and not run; .*tensor\.cpu\(\)"
    ):
        load_trace(tmp_path / "d.pt")
