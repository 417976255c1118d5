"""Load modes: where the weights live, that they are the same everywhere, and what happens when the file changes."""

import ctypes
import gc
import mmap
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from ggrun.gguf import LOAD_MODES, GgufError, GgufFile, GgufWriter, open_gguf
from quant.format import format_by_name

N = 1 << 16


@pytest.fixture
def model(tmp_path: Path) -> Path:
    writer = GgufWriter(tmp_path / "model.gguf")
    writer.add("general.architecture", "llama")
    writer.add("list", ["a", "b"])
    for i in range(3):
        writer.add_tensor(f"blk.{i}.weight", (N,), format_by_name("F32"), np.full(N, i + 1, np.float32))
    writer.add_tensor("odd", (5,), format_by_name("F16"), np.arange(5, dtype=np.float16))
    writer.write()
    return tmp_path / "model.gguf"


def values(file: GgufFile) -> dict[str, bytes]:
    return {name: tensor.raw.tobytes() for name, tensor in file.tensors.items()}


@pytest.mark.parametrize("mode", LOAD_MODES)
def test_every_mode_gives_the_same_bytes_at_their_addresses(mode: str, model: Path) -> None:
    with open_gguf(model) as mapped, open_gguf(model, mode) as file:
        assert values(file) == values(mapped)
        assert file.load_mode == {"auto": "mmap", "mmap+mlock": "mlock"}.get(mode, mode)
        for tensor in file.tensors.values():
            assert ctypes.string_at(tensor.address, tensor.n_bytes) == tensor.raw.tobytes()
            assert not tensor.raw.flags.writeable


def test_a_private_copy_does_not_follow_the_file_and_a_mapping_does(model: Path) -> None:
    with open_gguf(model) as mapped, open_gguf(model, "none") as private:
        offset = mapped.tensors["blk.1.weight"].offset
        with model.open("r+b") as out:
            out.seek(offset)
            out.write(np.float32(99).tobytes())
        assert mapped.tensors["blk.1.weight"].raw[:4].view(np.float32)[0] == 99
        assert private.tensors["blk.1.weight"].raw[:4].view(np.float32)[0] == 2


def test_a_tensor_is_read_past_its_mapping(model: Path) -> None:
    with open_gguf(model) as file:
        tensor = file.tensors["blk.1.weight"]
        part = bytearray(100)
        tensor.read(8, memoryview(part))
        assert bytes(part) == tensor.raw[8:108].tobytes()
        os.truncate(model, tensor.offset + 4)
        with pytest.raises(GgufError, match=f"ends at byte {tensor.offset + 4} while it is read"):
            tensor.read(0, memoryview(bytearray(8)))


def test_released_pages_are_no_longer_held_and_come_back(tmp_path: Path) -> None:
    def held() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
        return int(line.split()[1]) * 1024

    path = tmp_path / "large.gguf"
    writer = GgufWriter(path)
    writer.add("general.architecture", "llama")
    writer.add_tensor("large", (4 << 20,), format_by_name("F32"), np.arange(4 << 20, dtype=np.float32))
    writer.write()
    with open_gguf(path) as file:
        tensor = file.tensors["large"]
        total = int(tensor.raw.sum(dtype=np.int64))
        before = held()
        tensor.release()
        assert before - held() > tensor.n_bytes - (1 << 20)
        assert int(tensor.raw.sum(dtype=np.int64)) == total


def test_a_private_copy_is_aligned_as_the_file_is(model: Path) -> None:
    with open_gguf(model, "none") as file:
        assert all(tensor.address % file.alignment == 0 for tensor in file.tensors.values())


@pytest.mark.parametrize("mode", LOAD_MODES)
def test_progress_counts_every_byte(mode: str, model: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with open_gguf(model) as file:
        file.load(mode, lambda stage, done, total: seen.append((stage, done, total)))
        assert seen[-1] == ("load", file.data_bytes, file.data_bytes)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_loading_twice_keeps_the_copy(model: Path) -> None:
    with open_gguf(model, "none") as file:
        address = file.tensors["odd"].address
        file.load("none")
        file.load("mmap")
        assert (file.tensors["odd"].address, file.load_mode) == (address, "none")


def test_an_unknown_mode_is_refused(model: Path) -> None:
    with pytest.raises(GgufError, match="load mode 'fast' is unknown; choose one of auto, mmap, none"):
        open_gguf(model, "fast")
    with open_gguf(model) as file, pytest.raises(GgufError, match="load mode 'fast' is unknown"):
        file.load("fast")


def test_a_refused_lock_is_a_note_and_the_weights_stay(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def __init__(self, *_: object, **__: object) -> None: ...

        def mlock(self, *_: object) -> int:
            ctypes.set_errno(12)
            return -1

    with open_gguf(model) as file:
        monkeypatch.setattr(ctypes, "CDLL", Libc)
        file.load("mlock")
        assert file.load_mode == "mmap"
        assert len(file.notes) == 1
        assert "Cannot allocate memory" in file.notes[0]
        assert "ulimit -l" in file.notes[0]
        assert file.tensors["odd"].raw.view(np.float16).tolist() == [0, 1, 2, 3, 4]


def test_locked_pages_are_counted_by_the_system(model: Path) -> None:
    def locked_bytes() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck"))
        return int(line.split()[1]) * 1024

    gc.collect()
    before = locked_bytes()
    with open_gguf(model, "mlock") as file:
        if file.notes:
            pytest.skip("this system does not allow locking memory")
        assert locked_bytes() - before >= file.data_bytes
    assert locked_bytes() == before


@pytest.mark.parametrize("mode", LOAD_MODES)
def test_a_file_cut_after_opening_is_refused(mode: str, model: Path) -> None:
    with open_gguf(model) as file:
        os.truncate(model, model.stat().st_size - 100)
        with pytest.raises(GgufError, match="changed while it was open"):
            file.load(mode)


def test_memory_that_is_not_there_is_refused(model: Path) -> None:
    raw = bytearray(model.read_bytes())
    at = raw.index(b"odd") + 3 + 4
    raw[at : at + 8] = (1 << 29).to_bytes(8, "little")  # a gigabyte of float16 ...
    model.write_bytes(raw)
    os.truncate(model, (1 << 30) + (1 << 20))  # ... that takes no disk
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open_gguf(model) as file:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (in_use + (256 << 20), limits[1]))
        try:
            with pytest.raises(GgufError, match="no memory for a private copy of 1074"):
                file.load("none")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        assert file.load_mode == "mmap"
        assert file.tensors["blk.1.weight"].raw.view(np.float32)[0] == 2


def test_a_closed_file_says_so_and_taken_views_stay(model: Path) -> None:
    file = open_gguf(model)
    raw = file.tensors["blk.2.weight"].raw
    tokens = file.metadata["list"]
    file.close()
    file.close()
    with pytest.raises(GgufError, match="is closed"):
        _ = file.tensors["odd"].raw
    with pytest.raises(GgufError, match="is closed"):
        _ = file.tensors["odd"].address
    assert raw.view(np.float32).sum() == 3 * N
    assert list(tokens) == ["a", "b"]  # type: ignore[arg-type]


def test_nothing_is_left_open(model: Path) -> None:
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    for mode in LOAD_MODES:
        with open_gguf(model, mode) as file:
            values(file)
        del file
    assert set(os.listdir("/proc/self/fd")) <= before
    assert str(model) not in Path("/proc/self/maps").read_text()
