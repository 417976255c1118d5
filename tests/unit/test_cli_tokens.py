"""`ggrun tokenize` and `ggrun logits`: what they print and write, and what they refuse."""

import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import ggrun
from ggrun.cli.app import main
from ggrun.cli.logits import token_ids
from ggrun.errors import GgrunError


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code


class ForwardEngine:
    """Only forward: a row of logits for each id."""

    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, model: object, *, progress: object, executor: str, **options: object) -> "ForwardEngine":
        cls.executor = executor
        return cls()

    def forward(self, ids: list[int]) -> np.ndarray:
        return np.array([[i, i + 0.5] for i in ids], np.float32)

    def __enter__(self) -> "ForwardEngine":
        return self

    def __exit__(self, *args: object) -> None: ...


def test_logits_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(ggrun), "Engine", ForwardEngine)
    out = tmp_path / "l.npy"
    assert run("logits", "--tokens", "3,1,2", "--out", str(out), "--executor", "reference") == 0
    found = np.load(out)
    assert found.dtype == np.float32
    assert found.tolist() == [[3, 3.5], [1, 1.5], [2, 2.5]]
    assert ForwardEngine.executor == "reference"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "1,x"], "neither a list of numbers"),
        (["--out", "/no/such/folder/l.npy"], "/no/such/folder/l.npy cannot be written"),
    ],
)
def test_logits_refuses(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(vars(ggrun), "Engine", ForwardEngine)
    given = {"--tokens": "1", "--out": "/tmp/never", "--executor": "cpu"} | dict([arguments])
    assert run("logits", *(part for pair in given.items() for part in pair)) == 1
    assert said in capsys.readouterr().err


def test_logits_on_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ggrun.engine.places.gpus", lambda: ())
    assert run("logits", "--tokens", "1", "--out", str(tmp_path / "l.npy"), "--executor", "cuda") == 1
    assert "there is no CUDA executor without a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "ids"), [("1,2,3", [1, 2, 3]), (" 7 ", [7]), ("1 2", [1, 2]), ("-1", [-1])])
def test_ids_from_text(text: str, ids: list[int]) -> None:
    assert token_ids(text).tolist() == ids


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_ids_from_a_file(kind: type, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([4, 5], kind))
    assert token_ids(str(tmp_path / "ids.npy")).tolist() == [4, 5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.array([1.5]), "does not hold a list of token ids"),
        (np.array([[1], [2]]), "does not hold a list of token ids"),
        (np.array(["a"]), "does not hold a list of token ids"),
        (np.array([{"a": 1}], object), "is not a NumPy file of numbers"),
        (b"\x93NUMPY garbage", "is not a NumPy file of numbers"),
        (b"", "is not a NumPy file of numbers"),
        (
            b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<i8', 'fortran_order': False, 'shape': (1152921504606846976,), }".ljust(117) + b"\n",
            "is not a NumPy file of numbers",
        ),
        (pickle.dumps([1, 2]), "is not a NumPy file of numbers"),
    ],
)
def test_files_that_hold_no_ids(content: np.ndarray | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(GgrunError, match=said):
        token_ids(str(path))


def test_tokenize_ids(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(shared / "vocab" / "ggml-vocab-llama-bpe.gguf")
    assert run("tokenize", model, "--ids", "hello world") == 0
    assert json.loads(capsys.readouterr().out) == [128000, 15339, 1917]
    assert run("tokenize", "-m", model, "--ids", "--no-bos", "hello world") == 0
    assert json.loads(capsys.readouterr().out) == [15339, 1917]
    assert run("tokenize", model, "--ids", "--no-bos", "<|eot_id|>") == 0
    assert len(json.loads(capsys.readouterr().out)) > 1
    assert run("tokenize", model, "--ids", "--no-bos", "--parse-special", "<|eot_id|>") == 0
    assert json.loads(capsys.readouterr().out) == [128009]


@pytest.mark.parametrize("text", ["-5", "--no", "-- two", "--ids=", ""])
def test_tokenize_takes_any_text(text: str, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(shared / "vocab" / "ggml-vocab-llama-bpe.gguf")
    assert run("tokenize", model, "--ids", "--no-bos", text) == 0
    found = json.loads(capsys.readouterr().out)
    assert run("tokenize", model, "--ids", "--no-bos", "--", text) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert bool(found) == bool(text)


def test_tokenize_pieces_and_pipe(shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(shared / "vocab" / "ggml-vocab-llama-bpe.gguf")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello world\n")))
    assert run("tokenize", model, "--no-bos", "-") == 0
    assert capsys.readouterr().out == "  15339 -> 'hello'\n   1917 -> ' world'\n    198 -> '\\n'\n"


def test_tokenize_with_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokenize", "--ids", "os.path.join") == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["a", "b", "c"], ["-m", "a", "b", "c"]])
def test_tokenize_takes_one_text(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokenize", *arguments) == 1
    assert "takes a model and one text" in capsys.readouterr().err
