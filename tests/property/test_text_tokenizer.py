"""Whatever the text: decoding undoes encoding, pieces add up, and damaged metadata is refused in a sentence."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ggrun.text import TextError, Tokenizer, load_tokenizer
from ggrun.text.pretokenizers import PRETOKENIZERS
from ggrun.text.special import SpecialMatcher
from ggrun.text.vocabulary import Vocabulary
from tests.unit.text_vocabularies import CONTROL, USER_DEFINED, gpt2, spm

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ a", "Ġ Ġ", "1 2", "Ã ©", "ä ¸", "ä¸ ŃĶ", "Ċ Ċ"]
SPECIAL = {"<|im_end|>": CONTROL, "<think>": USER_DEFINED}
BYTE_COMPLETE = {
    **{name: load_tokenizer(gpt2(MERGES, SPECIAL, pre=name)) for name, rule in PRETOKENIZERS.items() if rule.byte_level},
    "spm": load_tokenizer(spm({"▁": -1, "a": -2, "▁a": -0.5, "▁▁": -0.7, "ab": -3, "é": -4, "a▁b": -0.1}, SPECIAL)),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40) | st.text(
    "hello a1\n\té中<|im_end|>", max_size=60
)
K = "tokenizer.ggml."


@given(TEXT, st.sampled_from(sorted(BYTE_COMPLETE)))
def test_decoding_undoes_encoding(text: str, name: str) -> None:
    tokenizer = BYTE_COMPLETE[name]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    if name != "spm":  # whose special tokens take a space after them
        assert tokenizer.decode(tokenizer.encode(text, parse_special=True), skip_special=False) == text


@given(st.lists(st.integers(0, 270), max_size=60), st.booleans(), st.sampled_from(["llama-bpe", "spm"]))
def test_a_token_at_a_time_is_the_whole(ids: list[int], skip_special: bool, name: str) -> None:
    tokenizer = BYTE_COMPLETE[name]
    decoder = tokenizer.decoder(skip_special, strip_space=True)
    assert "".join(map(decoder.push, ids)) + decoder.finish() == tokenizer.decode(ids, skip_special)
    plain = tokenizer.decoder(skip_special)
    shown = (id_ for id_ in ids if not (skip_special and tokenizer.is_special(id_)))
    assert "".join(map(plain.push, ids)) + plain.finish() == b"".join(map(tokenizer.token_bytes, shown)).decode("utf-8", "replace")


@given(st.lists(st.text("ab<>", min_size=1, max_size=4), unique=True, max_size=6), st.text("ab<>", max_size=30))
def test_special_tokens_found_in_any_order_add_up(specials: list[str], text: str) -> None:
    vocabulary = Vocabulary(specials or ["x"], [], [CONTROL] * max(1, len(specials)), {}, True)
    parts = SpecialMatcher(vocabulary).split(text, parse_special=True)
    assert "".join(part if isinstance(part, str) else vocabulary.tokens[part] for part in parts) == text
    assert not any(special in part for part in parts if isinstance(part, str) for special in specials)


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3),
    st.lists(st.text(max_size=3) | st.integers(-2, 9) | st.floats(), max_size=5),
)  # fmt: skip
KEYS = ("model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "add_bos_token", "fim_pad_token_id")


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3), st.sampled_from(["gpt2", "llama", "gemma4"]), TEXT)
def test_damaged_metadata_is_refused_or_harmless(damage: dict[str, Any], model: str, text: str) -> None:
    metadata = gpt2(MERGES, SPECIAL) | {K + "model": model, K + "scores": [0.0] * (256 + len(MERGES) + 9)}
    try:
        tokenizer: Tokenizer = load_tokenizer(metadata | {K + key: value for key, value in damage.items()})
    except TextError as error:
        assert K in str(error)
        return
    tokenizer.decode(tokenizer.encode(text, parse_special=True))
