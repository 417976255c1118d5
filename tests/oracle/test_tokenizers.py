"""Every published tokenizer case: ids exactly as llama.cpp's, for public vocabularies and the oracle's models."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ggrun.gguf import open_gguf
from ggrun.text import Tokenizer, load_tokenizer
from ggrun.text.pretokenizers import PRETOKENIZERS
from tests.conftest import REPO, SHARED, shared_path

LOCAL = REPO / "tests" / "data"
LOCAL_CASES: dict[str, list[dict[str, Any]]] = json.loads((LOCAL / "text" / "tokenizer_cases.json").read_text())
SEPARATOR = "\n__ggml_vocab_test__\n"
VOCABULARIES = sorted(path.name for path in (SHARED / "vocab").glob("*.gguf"))


@cache
def tokenizer(path: Path) -> Tokenizer:
    with open_gguf(path) as file:
        return load_tokenizer(file.metadata)


@cache
def shared_cases() -> dict[str, list[dict[str, Any]]]:
    cases: dict[str, list[dict[str, Any]]] = json.loads(gzip.decompress(shared_path("oracle", "tokenizer_cases.json.gz").read_bytes()))
    return cases


def assert_exact(tokenizer: Tokenizer, cases: list[dict[str, Any]]) -> None:
    assert cases
    for case in cases:
        text, parse_special = case["text"], case["parse_special"]
        assert tokenizer.encode(text, add_special=False, parse_special=parse_special) == case["ids"], repr(text)
        assert tokenizer.encode(text, add_special=True, parse_special=parse_special) == case["ids_add_special"], repr(text)


@pytest.mark.parametrize("name", LOCAL_CASES)
def test_cases_of_the_models_in_this_checkout(name: str) -> None:
    assert_exact(tokenizer(LOCAL / "oracle" / name), LOCAL_CASES[name])


def test_every_shared_case() -> None:
    for name, cases in shared_cases().items():
        folder = "vocab" if name.startswith("ggml-vocab-") else "oracle"
        assert_exact(tokenizer(shared_path(folder, name)), cases)


def split_cases() -> dict[str, Any]:
    cases: dict[str, Any] = json.loads(gzip.decompress((LOCAL / "text" / "split_cases.json.gz").read_bytes()))
    return cases


def test_every_split_rule_has_cases() -> None:
    assert sorted(name for rule in split_cases()["rules"] for name in rule["names"]) == sorted(PRETOKENIZERS)


def test_every_split_rule_on_one_vocabulary() -> None:
    """tests/data/text/split_cases.json.gz: GPT-2's vocabulary with its tokenizer.ggml.pre replaced, ids computed by llama.cpp 0.5.0."""
    cases = split_cases()
    with open_gguf(shared_path("vocab", cases["vocabulary"])) as file:
        metadata = dict(file.metadata.items())
    for rule in cases["rules"]:
        for name in {PRETOKENIZERS[name]: name for name in rule["names"]}.values():  # names share rules
            known = load_tokenizer(metadata | {"tokenizer.ggml.pre": name})
            for text, ids in zip(cases["texts"], rule["ids_add_special"]):
                assert known.encode(text) == ids, (name, text)


def test_the_shared_vocabularies_are_there() -> None:
    shared_path("vocab")
    assert len(VOCABULARIES) >= 10


@pytest.mark.parametrize("name", VOCABULARIES)
def test_published_pairs(name: str) -> None:
    path = shared_path("vocab", name)
    texts = path.with_name(f"{name}.inp").read_bytes().decode().split(SEPARATOR)
    lines = path.with_name(f"{name}.out").read_text().split("\n")
    known = tokenizer(path)
    assert len(texts) > 40
    for text, line in zip(texts, lines):
        assert known.encode(text, add_special=False) == [int(id_) for id_ in line.split()], repr(text)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_decoding_undoes_encoding(name: str) -> None:
    known = tokenizer(shared_path("vocab", name))
    for case in shared_cases()[name]:
        text = case["text"]
        if "▁" in text and name in ("ggml-vocab-llama-spm.gguf", "ggml-vocab-phi-3.gguf", "ggml-vocab-gemma-4.gguf"):
            continue  # to these the character is a space
        ids = known.encode(text, add_special=True)
        assert known.decode(ids) == text
        decoder = known.decoder(strip_space=True)
        assert "".join(map(decoder.push, ids)) + decoder.finish() == text
