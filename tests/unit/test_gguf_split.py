"""Split models: any file opens all of them, and what does not fit together is refused by the file's name."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ggrun.gguf import GgufError, GgufWriter, open_gguf
from quant.format import format_by_name

COUNT = 3
F32 = format_by_name("F32")


def part_name(index: int, count: int = COUNT) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.gguf"


def write_part(folder: Path, index: int, tensors: Mapping[str, int], **keys: object) -> Path:
    writer = GgufWriter(folder / part_name(index))
    if index == 0:
        writer.add("general.architecture", "llama")
    for key, value in (
        {"split.no": index, "split.count": COUNT, "split.tensors.count": 4} | {k.replace("_", "."): v for k, v in keys.items()}
    ).items():
        if value is not None:
            writer.add(key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, (32,), F32, np.full(32, value, np.float32))
    writer.write()
    return folder / part_name(index)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_part(tmp_path, 0, {"a": 1})
    write_part(tmp_path, 1, {"b": 2, "c": 3})
    write_part(tmp_path, 2, {"d": 4})
    return tmp_path


@pytest.mark.parametrize("index", range(COUNT))
@pytest.mark.parametrize("mode", ["mmap", "none", "mlock"])
def test_any_file_opens_the_whole_model(folder: Path, index: int, mode: str) -> None:
    with open_gguf(folder / part_name(index), mode) as file:
        assert [(t.name, t.file_index, t.raw.view(np.float32)[31]) for t in file.tensors.values()] == [
            ("a", 0, 1),
            ("b", 1, 2),
            ("c", 1, 3),
            ("d", 2, 4),
        ]
        assert file.metadata["general.architecture"] == "llama"
        assert file.path == str(folder / part_name(0))
        assert file.paths == tuple(str(folder / part_name(i)) for i in range(COUNT))
        assert file.n_bytes == sum((folder / part_name(i)).stat().st_size for i in range(COUNT))
        assert file.data_bytes == 4 * 128


def test_a_relative_path_finds_its_siblings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with open_gguf(part_name(1)) as file:
        assert len(file.tensors) == 4


@pytest.mark.parametrize("given", range(COUNT))
def test_a_missing_file_is_named(folder: Path, given: int) -> None:
    missing = part_name((given + 1) % COUNT)
    (folder / missing).unlink()
    with pytest.raises(GgufError) as refusal:
        open_gguf(folder / part_name(given))
    assert f"{missing} is missing" in str(refusal.value)


def refuse(folder: Path, index: int, *expected: str) -> None:
    with pytest.raises(GgufError) as refusal:
        open_gguf(folder / part_name(index))
    for text in expected:
        assert text in str(refusal.value)


def test_a_damaged_sibling_is_named(folder: Path) -> None:
    (folder / part_name(2)).write_bytes(b"<html>")
    refuse(folder, 0, part_name(2), "web page")


def test_counts_that_disagree(folder: Path) -> None:
    write_part(folder, 2, {"d": 4}, split_count=4)
    refuse(folder, 0, part_name(2), "'split.count' 4", "not of one model")


def test_a_sibling_with_another_number(folder: Path) -> None:
    write_part(folder, 2, {"d": 4}, split_no=1)
    refuse(folder, 0, part_name(2), "'split.no' is 1", "not of one model")


def test_a_sibling_that_was_never_split(folder: Path) -> None:
    write_part(folder, 2, {"d": 4}, split_no=None, split_count=None)
    refuse(folder, 0, part_name(2), "not of one model")


def test_a_sibling_without_the_file_count_in_its_name(folder: Path) -> None:
    shutil.copy(folder / part_name(1), folder / "model.gguf")
    with pytest.raises(GgufError, match=r"model\.gguf is file 2 of a model split into 3; name it NAME-00002-of-00003\.gguf"):
        open_gguf(folder / "model.gguf")


def test_a_name_that_disagrees_with_the_keys(folder: Path) -> None:
    (folder / part_name(1)).rename(folder / part_name(1, 4))
    with pytest.raises(GgufError, match=r"calls this file NAME-00002-of-00003\.gguf"):
        open_gguf(folder / part_name(1, 4))


def test_a_tensor_in_two_files(folder: Path) -> None:
    write_part(folder, 2, {"a": 4})
    refuse(folder, 0, part_name(2), "tensor 'a' is also in", part_name(0))


def test_too_few_tensors(folder: Path) -> None:
    write_part(folder, 1, {"b": 2})
    refuse(folder, 0, "'split.tensors.count' is 4", "hold 3 tensors")


def test_one_file_with_the_name_of_a_split(tmp_path: Path) -> None:
    writer = GgufWriter(tmp_path / part_name(0))
    writer.add("split.count", 1)
    writer.write()
    with open_gguf(tmp_path / part_name(0)) as file:
        assert file.paths == (str(tmp_path / part_name(0)),)
