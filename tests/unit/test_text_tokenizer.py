"""Tokenizers on vocabularies small enough to work out by hand, and on metadata that lies."""

from typing import Any

import pytest

from ggrun.text import TextError, load_tokenizer
from tests.unit.text_vocabularies import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, gpt2, spm


def texts(metadata: dict[str, Any], text: str, **options: bool) -> list[str]:
    tokenizer = load_tokenizer(metadata)
    return [tokenizer.token_text(id_) for id_ in tokenizer.encode(text, **options)]


def test_merges_go_by_rank_then_from_the_left() -> None:
    assert texts(gpt2(["b c", "a b"]), "abc") == ["a", "bc"]
    assert texts(gpt2(["a b", "b c"]), "abc") == ["ab", "c"]
    assert texts(gpt2(["a a"]), "aaaaa") == ["aa", "aa", "a"]
    assert texts(gpt2(["a b", "a b", "b c"]), "abc") == ["ab", "c"]  # the first of equal merges counts


def test_words_are_merged_apart() -> None:
    assert texts(gpt2(["Ġ b", "a Ġ"]), "a b") == ["a", "Ġb"]


def test_a_whole_word_needs_no_merges_where_the_rule_says_so() -> None:
    merges = ["a b", "c d", "ab cd"]
    assert texts(gpt2(["a b", "b c"], {"abc": NORMAL}), "abc") == ["ab", "c"]
    assert texts(gpt2(["a b", "b c"], {"abc": NORMAL}, pre="llama-bpe"), "abc") == ["abc"]
    assert texts(gpt2(merges), "abcd") == ["abcd"]


def test_what_a_merge_spells_but_no_token_does_falls_back_to_bytes() -> None:
    metadata = gpt2(["a b"])
    metadata["tokenizer.ggml.tokens"].remove("ab")
    metadata["tokenizer.ggml.token_type"].pop()
    assert texts(metadata, "abc") == ["a", "b", "c"]


def test_spm_merges_by_score_with_a_space_in_front() -> None:
    metadata = spm({"▁": -9, "a": -9, "b": -9, "c": -9, "ab": -2, "bc": -1, "▁a": -3, "▁ab": -4})
    assert texts(metadata, "abc") == ["<s>", "▁a", "bc"]
    assert texts(metadata, "ab", add_special=False) == ["▁ab"]
    assert texts(metadata | {"tokenizer.ggml.add_space_prefix": False}, "abc", add_special=False) == ["a", "bc"]


def test_spm_spells_the_unknown_in_bytes() -> None:
    assert texts(spm({"▁": -1}), "é", add_special=False) == ["▁", "<0xC3>", "<0xA9>"]


def test_spm_adds_a_space_after_every_special_token() -> None:
    metadata = spm({"▁": -1, "a": -1, "▁a": 0}, {"<x>": USER_DEFINED})
    assert texts(metadata, "a<x>a<x>", add_special=False) == ["▁a", "<x>", "▁a", "<x>"]
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.decode(tokenizer.encode("a")) == "a"
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_words_that_cross_spaces_are_still_found() -> None:
    metadata = spm({"▁": -9, "a": -9, "b": -9, "a▁": -1, "a▁b": 0})
    assert texts(metadata, "a b", add_special=False) == ["▁", "a▁b"]


def test_gemma_4_is_merges_over_plain_text_with_byte_tokens() -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "▁", "a", "\n", "\n\n", "▁a", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [CONTROL] * 3 + [NORMAL] * 5 + [BYTE] * 256
    metadata = {
        "tokenizer.ggml.model": "gemma4", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["▁ a"], "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    assert texts(metadata, " a\n\né") == ["<bos>", "▁a", "\n\n", "<0xC3>", "<0xA9>"]
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.decode(tokenizer.encode(" a\n\né")) == " a\n\né"


def test_special_tokens_longest_first_whatever_they_overlap() -> None:
    metadata = gpt2([], {"<ab>": CONTROL, "b><cd": CONTROL, "<u>": USER_DEFINED})
    assert texts(metadata, "<ab><cd", parse_special=True) == ["<", "a", "b><cd"]
    assert texts(metadata, "<ab>x<u>", parse_special=False) == ["<", "a", "b", ">", "x", "<u>"]


def test_tokens_that_end_a_generation_are_known_by_their_text() -> None:
    tokenizer = load_tokenizer(gpt2([], {"<|im_end|>": NORMAL, "<|endoftext|>": CONTROL, "<|other|>": CONTROL}, eos_token_id=65))
    assert {tokenizer.token_text(id_) for id_ in tokenizer.end_of_generation} == {"<|im_end|>", "<|endoftext|>", tokenizer.token_text(65)}
    assert tokenizer.is_special(256)  # retyped: models forget to
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [256]
    assert len(tokenizer.encode("<|im_end|>")) == 10


def test_harmony_goes_on_after_end() -> None:
    tokenizer = load_tokenizer(gpt2([], dict.fromkeys(("<|end|>", "<|return|>", "<|call|>", "<|channel|>"), CONTROL)))
    assert {tokenizer.token_text(id_) for id_ in tokenizer.end_of_generation} == {"<|return|>", "<|call|>"}
    assert not tokenizer.is_special(256)
    assert not tokenizer.is_special(259)


def test_phi_3_strips_what_follows_a_special_token() -> None:
    metadata = spm({"▁": -1, "a": -1}, {"<|user|>": CONTROL}) | {"general.name": "Phi-3.5 mini"}
    assert texts(metadata, "<|user|>\n a", add_special=False, parse_special=True) == ["<|user|>", "▁", "a"]
    del metadata["general.name"]
    assert "<0x0A>" in texts(metadata, "<|user|>\n a", add_special=False, parse_special=True)


def test_first_and_last_tokens() -> None:
    metadata = gpt2([], {"<b>": CONTROL, "<e>": CONTROL}, bos_token_id=256, eos_token_id=257)
    assert texts(metadata, "a") == ["a"]
    metadata |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    assert texts(metadata, "a") == ["<b>", "a", "<e>"]
    assert texts(metadata, "", add_special=False) == []
    assert texts(gpt2([], {"<b>": CONTROL}, pre="llama-bpe", bos_token_id=256), "a") == ["<b>", "a"]


def test_bytes_of_tokens() -> None:
    special = {"<｜begin▁of▁sentence｜>": USER_DEFINED, "<unused>": UNUSED, "中": NORMAL}
    tokenizer = load_tokenizer(gpt2(["Ġ a"], special))
    assert [tokenizer.token_bytes(id_) for id_ in range(256, 260)] == [b" a", "<｜begin▁of▁sentence｜>".encode(), b"", "中".encode()]
    assert tokenizer.token_bytes(tokenizer.n_vocab + 5) == b""  # outputs padded past the vocabulary
    with pytest.raises(TextError, match="outside the vocabulary"):
        tokenizer.token_bytes(-1)
    assert b"".join(map(tokenizer.token_bytes, range(256))) == bytes(range(256))


def test_decoding_never_splits_a_character() -> None:
    tokenizer = load_tokenizer(gpt2())
    decoder = tokenizer.decoder()
    ids = tokenizer.encode("é€😀")
    assert [decoder.push(id_) for id_ in ids] == ["", "é", "", "", "€", "", "", "", "😀"]
    assert decoder.finish() == ""


def test_bytes_that_cannot_become_a_character() -> None:
    tokenizer = load_tokenizer(gpt2())
    by_byte = {tokenizer.token_bytes(id_)[0]: id_ for id_ in range(256)}
    decoder = tokenizer.decoder()
    assert [decoder.push(by_byte[byte]) for byte in (0xE2, 0x82, 0x41, 0xFF, 0xF0)] == ["", "", "\ufffdA", "\ufffd", ""]
    assert decoder.finish() == "\ufffd"
    assert tokenizer.decode([by_byte[0xC3], by_byte[0x41]]) == "\ufffdA"


def test_special_tokens_are_skipped_or_shown() -> None:
    tokenizer = load_tokenizer(gpt2([], {"<|im_end|>": CONTROL, "<think>": USER_DEFINED}))
    ids = [65, 256, 257, 66]
    assert tokenizer.decode(ids, skip_special=False).count("<") == 2
    assert "<|im_end|>" not in tokenizer.decode(ids)
    assert "<think>" in tokenizer.decode(ids)


def test_lone_surrogates_are_text_too() -> None:
    tokenizer = load_tokenizer(gpt2())
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


def test_empty_and_repeated_tokens_do_no_harm() -> None:
    metadata = gpt2()
    metadata["tokenizer.ggml.tokens"] += ["", "", "a", "\udcff"]
    metadata["tokenizer.ggml.token_type"] += [NORMAL] * 4
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.token_text(257) == "[EMPTY_257]"
    assert tokenizer.encode("a") == [tokenizer.token_id("a")]
    assert tokenizer.token_bytes(259) == b"\xff"


K = "tokenizer.ggml."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({K + "model": "bert"}, ["tokenizer.ggml.model", "'bert'", "gpt2"]),
        ({K + "model": "rwkv"}, ["'rwkv'"]),
        ({K + "model": 7}, ["tokenizer.ggml.model"]),
        ({K + "model": None}, ["tokenizer.ggml.model"]),
        ({K + "pre": "nonsense"}, ["tokenizer.ggml.pre", "'nonsense'", "llama-bpe", "qwen35"]),
        ({K + "pre": 3}, ["tokenizer.ggml.pre"]),
        ({K + "tokens": None}, ["tokenizer.ggml.tokens"]),
        ({K + "tokens": []}, ["tokenizer.ggml.tokens", "empty"]),
        ({K + "tokens": [1, 2, 3]}, ["tokenizer.ggml.tokens", "strings"]),
        ({K + "tokens": "abc"}, ["tokenizer.ggml.tokens", "array"]),
        ({K + "tokens": ["a", ["b"]]}, ["tokenizer.ggml.tokens"]),
        ({K + "merges": None}, ["tokenizer.ggml.merges"]),
        ({K + "merges": ["ab"]}, ["tokenizer.ggml.merges[0]", "'ab'"]),
        ({K + "merges": ["a b", ""]}, ["tokenizer.ggml.merges[1]"]),
        ({K + "merges": ["a b", " b"]}, ["tokenizer.ggml.merges[1]"]),
        ({K + "merges": [1]}, ["tokenizer.ggml.merges"]),
        ({K + "token_type": [1]}, ["tokenizer.ggml.token_type", "256"]),
        ({K + "token_type": ["a"] * 256}, ["tokenizer.ggml.token_type"]),
        ({K + "token_type": 5}, ["tokenizer.ggml.token_type"]),
        ({K + "scores": [1.0]}, ["tokenizer.ggml.scores"]),
        ({K + "scores": [float("nan")] * 256}, ["tokenizer.ggml.scores", "NaN"]),
        ({K + "bos_token_id": 256}, ["tokenizer.ggml.bos_token_id", "256"]),
        ({K + "eos_token_id": -5}, ["tokenizer.ggml.eos_token_id"]),
        ({K + "eos_token_id": "x"}, ["tokenizer.ggml.eos_token_id"]),
        ({K + "eot_token_id": 1 << 70}, ["tokenizer.ggml.eot_token_id"]),
        ({K + "add_bos_token": "yes"}, ["tokenizer.ggml.add_bos_token"]),
        ({K + "add_space_prefix": 1}, ["tokenizer.ggml.add_space_prefix"]),
        ({K + "model": "llama", K + "scores": None}, ["tokenizer.ggml.scores"]),
    ],
)
def test_metadata_that_lies_is_refused_by_its_key(change: dict[str, Any], words: list[str]) -> None:
    metadata = {key: value for key, value in (gpt2() | change).items() if value is not None}
    with pytest.raises(TextError) as caught:
        load_tokenizer(metadata)
    for word in words:
        assert word in str(caught.value)


def test_absent_ids_are_none() -> None:
    tokenizer = load_tokenizer(gpt2([], bos_token_id=0xFFFFFFFF))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_of_generation) == (None, None, frozenset())


def test_types_beyond_the_known_are_undefined() -> None:
    metadata = gpt2()
    metadata["tokenizer.ggml.token_type"][70] = 99
    assert load_tokenizer(metadata).token_bytes(70) == b""


def test_a_file_without_types_still_knows_its_bytes() -> None:
    metadata = spm({"▁": -1})
    del metadata["tokenizer.ggml.token_type"]
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.decode(tokenizer.encode("é")) == "é"


@pytest.mark.parametrize("unit", ["a", " ", "\n", "1", "A", "世", "a b ", "'", "<|", "a1", " \t", "é\u0301", "~"])
@pytest.mark.parametrize("metadata", [gpt2(["a a", "Ġ Ġ", "aa aa"], pre=pre) for pre in ("gpt-2", "deepseek-llm", "gpt-4o", "tiny_aya")])
def test_long_repetitive_text_takes_no_quadratic_time(metadata: dict[str, Any], unit: str) -> None:
    tokenizer = load_tokenizer(metadata)  # 60,000 characters: quadratic work would take minutes
    text = unit * (60_000 // len(unit)) + "€"
    assert tokenizer.decode(tokenizer.encode(text)) == text
