"""Split rules: words worked out by hand, and agreement with the expressions the models' own tokenizer.json files have."""

import random

import pytest
import tokenizers

from ggrun.text import TextError
from ggrun.text.pretokenizers import PRETOKENIZERS, find_pretokenizer

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORD, SIGNS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def camel(ending: str) -> str:
    return rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ending}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ending}"


# As published. \p{Lu} and the like differ from llama.cpp's for accented letters: the third column names characters to leave out.
PUBLISHED = {
    "gpt-2": ([GPT2], ""),
    "starcoder": ([r"\p{N}", GPT2], ""),
    "llama-bpe": ([rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{SIGNS}|{SPACES}"], ""),
    "qwen2": ([rf"{CONTRACTION}|{WORD}|\p{{N}}|{SIGNS}|{SPACES}"], ""),
    "qwen35": ([rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"], ""),
    "gpt-4o": ([rf"{camel(CONTRACTION + '?')}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"], "éß\u0301ิ"),
    "tekken": ([rf"{camel('')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"], "éß\u0301ิ"),
    "granite-embed-multi-97m": ([rf"{camel(CONTRACTION + '?')}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"], "éß"),
    "bailingmoe": (
        [r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
        "",
    ),
    "seed-coder": ([rf"{CONTRACTION}|{WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"], ""),
    "exaone-moe": (
        [
            rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|"
            r"\s*[\r\n]|\s+(?!\S)|\s+"
        ],
        "",
    ),
    "minicpm5": ([r"\p{N}{1,3}", rf"{CONTRACTION}|{WORD}|\p{{N}}+|{SIGNS}|{SPACES}"], ""),
    "deepseek-v3": (
        [
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + SPACES,
        ],
        "",
    ),
    "superbpe": ([r"\p{N}+", r"(?=(\d{3})+(?!\d))"], "٣"),
    "jais-2": (
        [
            rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{SIGNS}|\s*[\r\n]+|"
            + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s{1}"
        ],
        "",
    ),
    "ufakzeka": ([rf"{WORD}|\p{{N}}|{SIGNS}|{SPACES}"], ""),
}
CHARACTERS = "abcXYZ'sStTrReEvVmMlLdD  \t\n\r\n 0123456789.,!?;:/\\-_()[]{}<>@#$%^&*+=|`\"~世界かなא½٣€😀\u00a0\u3000\u0301กิéß"


@pytest.mark.parametrize("name", PUBLISHED)
def test_words_are_those_of_the_published_expressions(name: str) -> None:
    expressions, left_out = PUBLISHED[name]
    splits = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(expression), "isolated") for expression in expressions]
    reference = tokenizers.pre_tokenizers.Sequence(splits)
    characters = [character for character in CHARACTERS if character not in left_out]
    random.seed(name)
    for _ in range(1500):
        text = "".join(random.choices(characters, k=random.randrange(1, 14)))
        assert PRETOKENIZERS[name].split(text) == [word for word, _ in reference.pre_tokenize_str(text)], repr(text)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("default", "a..b 1234", ["a", "..", "b", " ", "123", "4"]),
        ("gpt-2", "don't  Stop 12", ["don", "'t", " ", " Stop", " 12"]),
        ("llama-bpe", "DON'T 12345\n\n x", ["DON", "'T", " ", "123", "45", "\n\n", " x"]),
        ("qwen2", "a 123", ["a", " ", "1", "2", "3"]),
        ("falcon", "a--b 12345", ["a", "--", "b", " ", "123", "45"]),
        ("deepseek-llm", "Hi 世界ab  12", ["Hi", " ", "世界", "ab", "  ", "12"]),
        ("deepseek-llm", "กa\n  ", ["ก", "a", "\n", "  "]),
        ("deepseek-coder", "Hi, 世12", ["Hi", ",", " ", "世", "1", "2"]),
        ("deepseek-v3", " ~x~é1234", [" ~", "x", "~", "é", "123", "4"]),
        ("gpt-4o", "camelCaseÉté don't", ["camel", "CaseÉté", " don't"]),
        ("bloom", "a b, c1", ["a", " b", ",", " c1"]),
        ("viking", "a b12", ["a", " b", "1", "2"]),
        ("chameleon", "IMGIMGABZ a1", ["IMGIMGABZ", " a", "1"]),
        ("tiny_aya", "a 1234567 b12", ["a", " ", "1", "234", "567", " b", "12"]),
        ("afmoe", "x 12345 世界", ["x", " ", "12", "345", " ", "世界"]),
        ("superbpe", "a b 12345", ["a b ", "12", "345"]),
        ("kimi-k2", "ab世界c's 1234", ["ab", "世界", "c's", " ", "123", "4"]),
        ("youtu", "한국，Ab1", ["한국", "，", "Ab", "1"]),
        ("spark2_5", "a!\n\n1234", ["a", "!", "\n", "\n", "1", "2", "3", "4"]),
        ("laguna", "a\n\n b", ["a", "\n\n", " b"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
        ("exaone-moe", "ab cd 1", ["ab cd", " ", "1"]),
    ],
)
def test_words_by_hand(name: str, text: str, words: list[str]) -> None:
    assert find_pretokenizer(name).split(text) == words


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_words_joined_are_the_text(name: str) -> None:
    random.seed(1)
    for _ in range(50):
        text = "".join(random.choices(CHARACTERS + "\x85\u2028\u0378\ufaff", k=30))
        words = PRETOKENIZERS[name].split(text)
        assert "".join(words) == text
        assert "" not in words


def test_an_unknown_rule_is_named_with_those_known() -> None:
    with pytest.raises(TextError, match=r"tokenizer\.ggml\.pre is 'no-such'.*command-r.*tekken"):
        find_pretokenizer("no-such")


def test_categories_are_those_of_unicode_15_1() -> None:
    assert PRETOKENIZERS["gpt-2"].split("a\U0001e4d0") == ["a\U0001e4d0"]  # a letter since 15.0
    assert PRETOKENIZERS["gpt-2"].split("a\U0001e5d0") == ["a", "\U0001e5d0"]  # a letter only since 16.0
