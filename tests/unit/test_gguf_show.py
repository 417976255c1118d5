"""What `ggrun show` says of a file: computed from the header, for any architecture and any value."""

import json
from pathlib import Path
from typing import Any

import gguf as pypi
import numpy as np
import pytest

from ggrun.cli.show import describe, show
from ggrun.gguf import GgufWriter, open_gguf
from ggrun.gguf.filetypes import FILE_TYPES
from quant.format import Format, format_by_name
from tests.conftest import shared_path

MXFP4 = Format(39, "MXFP4", 32, 17, None)


def write(path: Path, metadata: dict[str, object], tensors: dict[str, tuple[tuple[int, ...], Format]] | None = None) -> Path:
    writer = GgufWriter(path)
    for key, value in metadata.items():
        writer.add(key, value)
    for name, (dims, fmt) in (tensors or {}).items():
        writer.add_tensor(name, dims, fmt, bytes(fmt.row_bytes(dims[0]) * int(np.prod(dims[1:], initial=1))))
    writer.write()
    return path


def described(path: Path) -> dict[str, Any]:
    with open_gguf(path) as file:
        found = describe(file)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def table(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    show(str(path))
    return capsys.readouterr().out


def test_everything_a_model_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    q4, q6, f32 = format_by_name("Q4_K"), format_by_name("Q6_K"), format_by_name("F32")
    path = write(
        tmp_path / "model.gguf",
        {
            "general.architecture": "wombat",
            "general.name": "Wombat [bold]7B[/bold]",
            "general.license": "apache-2.0",
            "general.license.link": "https://example.org/licence",
            "general.file_type": 15,
            "wombat.context_length": 40960,
            "wombat.embedding_length": 256,
            "wombat.block_count": 2,
            "wombat.attention.head_count": [8, 8],
            "wombat.attention.head_count_kv": [4, 2],
            "wombat.rope.freq_base": 1e6,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": [f"t{i}" for i in range(1000)],
            "tokenizer.ggml.eos_token_id": 7,
            "tokenizer.ggml.bos_token_id": 5000,
            "tokenizer.chat_template": "{{ messages }}" * 100,
            "tokenizer.chat_template.tool_use": "{{ tools }}",
        },
        {
            "token_embd.weight": ((256, 1000), q6),
            "blk.0.attn_q.weight": ((256, 256), q4),
            "blk.1.attn_q.weight": ((256, 256), q4),
            "blk.0.attn_norm.weight": ((256,), f32),
        },
    )
    found = described(path)
    expected = {
        "path": str(path),
        "n_bytes": path.stat().st_size,
        "version": 3,
        "architecture": "wombat",
        "license": "apache-2.0",
        "license_link": "https://example.org/licence",
        "runs": False,
        "file_type": "Q4_K_M",
        "n_parameters": 256_000 + 2 * 65_536 + 256,
        "bits_per_weight": round(8 * (210_000 + 2 * 36_864 + 1024) / 387_328, 4),
        "context_length": 40960,
        "head_count": [8, 8],
        "head_count_kv": [4, 2],
        "key_length": None,
        "rope_freq_base": 1e6,
        "chat_template": "{{ messages }}" * 100,
        "chat_templates": {"tool_use": "{{ tools }}"},
        "n_tensors": 4,
    }
    assert {key: found[key] for key in expected} == expected
    assert "'wombat' is not supported" in found["obstacle"]
    assert [(f["format"], f["n_tensors"], f["n_parameters"], f["n_bytes"], f["bits_per_weight"], f["kinds"]) for f in found["formats"]] == [
        ("Q6_K", 1, 256_000, 210_000, 6.5625, ["token_embd"]),
        ("Q4_K", 2, 131_072, 73_728, 4.5, ["attn_q"]),
        ("F32", 1, 256, 1024, 32.0, ["attn_norm"]),
    ]
    assert sum(f["share"] for f in found["formats"]) == pytest.approx(1, abs=1e-5)
    assert found["vocabulary"] == {
        "size": 1000,
        "model": "gpt2",
        "pre": "qwen2",
        "special": {"eos": {"id": 7, "text": "t7"}, "bos": {"id": 5000, "text": None}},
    }
    assert found["tensors"][1] == {"name": "blk.0.attn_q.weight", "dims": [256, 256], "format": "Q4_K", "n_bytes": 36_864}
    assert found["metadata"]["tokenizer.ggml.tokens"] == {"array": "string", "length": 1000}

    text = table(path, capsys)
    for part in (
        "Wombat [bold]7B[/bold]",
        "no: architecture 'wombat' is not supported",
        "387.33 K in 4 tensors",
        "Q4_K_M, 5.88 bits per weight",
        "40960",
        "[4, 2]",
        "1000000",
        "1,000 tokens, gpt2 tokenizer, pre qwen2",
        "eos t7 (7)",
        "1,400 characters",
        "also tool_use",
        "apache-2.0, https://example.org/licence",
        "205.08 KiB",
        "1,000 x string",
    ):
        assert part in text, text


def test_file_types_are_numbered_as_everywhere() -> None:
    named = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in pypi.LlamaFileType if kind.name != "GUESSED"}
    assert dict(FILE_TYPES) == named


def test_a_file_without_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "empty.gguf", {})
    found = described(path)
    assert (found["architecture"], found["n_parameters"], found["bits_per_weight"], found["formats"]) == (None, 0, None, [])
    assert "the file holds no weights" in table(path, capsys)


def test_formats_that_cannot_be_computed_with_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "model.gguf", {"general.architecture": "llama"}, {"blk.0.ffn_up.weight": ((64, 4), MXFP4)})
    assert described(path)["formats"][0] | {"kinds": []} == {
        "format": "MXFP4",
        "supported": False,
        "n_tensors": 1,
        "n_parameters": 256,
        "n_bytes": 136,
        "kinds": [],
        "share": 1.0,
        "bits_per_weight": 4.25,
    }
    assert "MXFP4 (not supported)" in table(path, capsys)


def test_values_of_the_wrong_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "model.gguf",
        {
            "general.architecture": ["llama"],
            "general.name": 7,
            "general.license": ["mit"],
            "general.file_type": "Q4",
            "tokenizer.ggml.tokens": "none",
            "tokenizer.ggml.eos_token_id": -1,
            "tokenizer.chat_template": ["a"],
            "x.inf": float("inf"),
            "x.nan": float("nan"),
            "x.nested": [["a"], ["b"]],
            "x.bytes": "\udcff\udc80",
        },
    )
    found = described(path)
    assert (found["architecture"], found["license"], found["file_type"], found["chat_template"]) == (None, None, None, None)
    assert found["vocabulary"]["size"] is None
    assert found["vocabulary"]["special"] == {"eos": {"id": -1, "text": None}}
    assert found["metadata"]["x.inf"] == "inf"
    assert found["metadata"]["x.nested"] == [["a"], ["b"]]
    assert "nan" in table(path, capsys)


def test_control_characters_and_markup_of_a_file_are_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x07[red]x[/red]\r\n"
    path = write(
        tmp_path / "model.gguf",
        {"general.architecture": evil, "general.name": evil, "k\x1b[31m": evil},
        {evil: ((1,), format_by_name("F32"))},
    )
    text = table(path, capsys)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x[/red]" in text


def test_long_values_are_cut_in_the_table_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "model.gguf", {"tokenizer.chat_template": "x" * 5000, "a.list": list(range(300)), "b.same": [3] * 80})
    text = table(path, capsys)
    assert "... (5,000 characters)" in " ".join(text.split())
    assert "x" * 200 not in text
    assert "300 x int32" in text
    assert next(line for line in text.splitlines() if "b.same" in line).split() == ["b.same", "3"]
    assert len(described(path)["chat_template"]) == 5000


def test_a_split_model_is_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        keys: dict[str, object] = {"split.no": i, "split.count": 2, "general.architecture": "llama"}
        write(tmp_path / f"m-0000{i + 1}-of-00002.gguf", keys, {f"blk.{i}.attn_q.weight": ((32, 2), format_by_name("Q8_0"))})
    found = described(tmp_path / "m-00002-of-00002.gguf")
    assert [Path(p).name for p in found["files"]] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert (found["n_tensors"], found["n_parameters"]) == (2, 128)
    assert "and 1 more" in table(tmp_path / "m-00001-of-00002.gguf", capsys)


@pytest.mark.parametrize(
    ("name", "runs"), [("llama-gqa.Q4_K_M", True), ("qwen3.Q8_0", True), ("gpt-oss.MXFP4_MOE", None), ("gemma4.Q4_K_M", None)]
)
def test_oracle_models(name: str, runs: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    path = shared_path("oracle", f"{name}.gguf")
    found = described(path)
    assert found["n_parameters"] == sum(int(t.n_elements) for t in pypi.GGUFReader(path).tensors)
    assert found["file_type"] == name.split(".", 1)[1]
    assert runs is None or found["runs"] is runs
    assert found["name"] in table(path, capsys)


def test_a_vocabulary_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    path = shared_path("vocab", "ggml-vocab-qwen2.gguf")
    assert "151,936 tokens, gpt2 tokenizer, pre qwen2" in table(path, capsys)
    assert described(path)["runs"] is False
