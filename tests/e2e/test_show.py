"""`ggrun show` as it is typed: its output, and what damaged files get."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggrun.gguf import GgufWriter
from quant.format import format_by_name
from tests.unit.gguf_bytes import STRING, gguf, pair, string, tensor


def ggrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "140"}
    environment.pop("LLAMA_ARG_MODEL", None)
    return subprocess.run([sys.executable, "-m", "ggrun", *arguments], capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    writer = GgufWriter(tmp_path / "model.gguf")
    writer.add("general.architecture", "wombat")
    writer.add("general.license", "mit")
    writer.add("tokenizer.chat_template", "{{ messages }}")
    writer.add_tensor("a.weight", (32, 4), format_by_name("Q8_0"), bytes(4 * 34))
    writer.write()
    return tmp_path / "model.gguf"


def test_table(model: Path) -> None:
    done = ggrun("show", str(model))
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("wombat", "mit", "Q8_0", "8.50 bits per weight", "14 characters", str(model)):
        assert part in done.stdout


def test_json_by_argument_and_by_flag(model: Path) -> None:
    done = ggrun("show", str(model), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["architecture"], found["n_parameters"], found["license"], found["chat_template"]) == (
        "wombat",
        128,
        "mit",
        "{{ messages }}",
    )
    assert json.loads(ggrun("show", "-m", str(model), "--json").stdout) == found


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "it is empty"),
        (b"<!doctype html>", "web page"),
        (b"GGUF\0\0\0\3" + bytes(16), "big-endian"),
        (gguf(n_tensors=1 << 60), "the number of tensors is 1152921504606846976"),
        (gguf(pairs=[pair("general.name", STRING, string("x", 1 << 60))]), "'general.name'"),
        (gguf(tensors=[tensor("a.weight", (1 << 20,))]), "'a.weight'"),
    ],
)
def test_a_damaged_file_gets_one_sentence(raw: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(raw)
    done = ggrun("show", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {path}")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
