"""How each `tokenizer.ggml.pre` cuts text into words before merging: a table of rules, and the machinery that applies one.

Knows the published split expressions (read from the models' tokenizer.json and from llama.cpp, whose ids are the reference); must not
know any vocabulary. A rule is a tuple of steps; each step cuts the pieces of the step before it. A step is a regular expression, whose
matches and gaps both become pieces, or a function.

Expressions with \\p{...} see the collapsed text, in which a category has no upper and lower case outside ASCII: so have the reference's.
White space means Unicode's, digits mean ASCII. None may backtrack quadratically: what looks ahead over a run of digits is a function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

from ggrun.text.characters import CLASSES, HAN, HAN_SIGN, LETTER, collapse, collapse_han, plain_spaces
from ggrun.text.error import TextError

View = Callable[[str], str]  # of the same length as the text
Cuts = Callable[[str, int, int], Iterable[int]]  # (view, start, end) -> ascending positions to cut at


@dataclass(frozen=True, slots=True)
class Step:
    view: View
    cuts: Cuts


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A split rule and the habits that come with it.

    whole_words: a word that is a token needs no merging. add_bos: the default of tokenizer.ggml.add_bos_token.
    byte_level: tokens are spelled in the byte alphabet; otherwise in UTF-8 with a lower block for a space and <0xNN> for odd bytes.
    whole_newlines: a run of newlines that is a token needs no merging. always_bos: whatever the file says.
    """

    rule: tuple[str | Step, ...]
    whole_words: bool = False
    add_bos: bool = False
    byte_level: bool = True
    whole_newlines: bool = False
    always_bos: bool = False

    def split(self, text: str) -> list[str]:
        """The words of `text`, in order; joined they are `text`. Linear in its length."""
        ends = [len(text)]
        views: dict[View, str] = {}
        for step in _compile(self.rule):
            view = views.get(step.view)
            if view is None:
                view = views[step.view] = step.view(text)
            cuts: list[int] = []
            start = 0
            for end in ends:
                cuts += step.cuts(view, start, end)
                cuts.append(end)
                start = end
            ends = cuts
        words = []
        start = 0
        for end in ends:
            if end > start:
                words.append(text[start:end])
                start = end
        return words


@cache
def _compile(rule: tuple[str | Step, ...]) -> tuple[Step, ...]:
    return tuple(step if isinstance(step, Step) else _regex(step) for step in rule)


def _regex(expression: str, view: View | None = None) -> Step:
    """A step that cuts around every match. View: the collapsed text when the expression speaks of categories, else the plain one."""
    expanded = expression
    for name, members in CLASSES.items():
        expanded = expanded.replace(name, members)
    finditer = re.compile(expanded, re.ASCII).finditer

    def cuts(text: str, start: int, end: int) -> list[int]:
        found: list[int] = []
        for match in finditer(text, start, end):
            found += match.span()
        return found

    return Step(view or (collapse if expanded != expression else plain_spaces), cuts)


def _trailing_space(view: str, start: int, end: int) -> tuple[int]:
    return (start + len(view[start:end].rstrip("\t\n\x0b\x0c\r ")),)


def _number_groups(view: str, start: int, end: int) -> list[int]:
    """Threes from the right of every run of numbers; the first group of a run keeps the text before it, as the reference has it."""
    found: list[int] = []
    for run in _NUMBERS.finditer(view, start, end):
        found += range(run.start() + ((run.end() - run.start()) % 3 or 3), run.end() + 1, 3)
    return found


def _digit_groups(view: str, start: int, end: int) -> list[int]:
    """Before every three digits counted from the right of a run."""
    found: list[int] = []
    for run in _DIGITS.finditer(view, start, end):
        found += range(run.start() + (run.end() - run.start()) % 3, run.end(), 3)
    return found


_NUMBERS = re.compile(f"[{CLASSES[chr(92) + 'p{N}']}]+")
_DIGITS = re.compile("[0-9]+")
NUMBER_GROUPS: Final = Step(collapse, _number_groups)
DIGIT_GROUPS: Final = Step(plain_spaces, _digit_groups)
TRAILING_SPACE: Final = Step(plain_spaces, _trailing_space)

# Pieces that many rules share.
_ENDING = r"'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{L}]+"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_ENDING}|{_WORD}|[\p{{N}}]{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_ENDING}|{_WORD}|[\p{{N}}]|{_SIGNS}|{_SPACES}"
_CAMEL_SIGNS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


def _camel_case(upper: str, lower: str, rest: str) -> str:
    """Words that begin anew where lower case turns to upper, each with an optional sign before it."""
    return f"{_PREFIX}[{upper}]*[{lower}]+{rest}|{_PREFIX}[{upper}]+[{lower}]*{rest}"


_CASED = ("A-Z" + LETTER, "a-z" + LETTER)
_CASED_MARKS = ("A-Z" + LETTER + r"\p{M}", "a-z" + LETTER + r"\p{M}")
_UNCASED = (r"\p{L}\p{M}", r"\p{L}\p{M}")
_GPT4O = rf"{_camel_case(*_CASED, f'(?:{_ENDING})?')}|[\p{{N}}]{{1,3}}|{_CAMEL_SIGNS}"
_ASCII_SIGNS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_SIGNED = rf"{_ASCII_SIGNS}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
_DEEPSEEK3 = rf"{_SIGNED}[\r\n]*|{_SPACES}"
_KANA_HAN = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_FALCON_SIGNS = r"[\p{P}$+<=>\^~|`]+"
_LINES = r"[^\n]+|[\n]+"
# Cased letters of the scripts that have case, as DeepSeek's first vocabulary lists them.
_CASED_LETTERS = (
    r"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d"
    r"\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    r"\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    r"\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    r"\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d"
    r"\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    r"\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    r"\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    r"\U0001e900-\U0001e943"
)
_AFMOE_SCRIPTS = (
    r"[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff"
    r"\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_KIMI = (
    rf"[{HAN}{HAN_SIGN}]+|[^\r\n\p{{L}}\p{{N}}{HAN}]?[\p{{L}}]+(?:{_ENDING})?|[\p{{N}}]{{1,3}}|"
    rf" ?[^\s\p{{L}}\p{{N}}{HAN}]+[\r\n]*|{_SPACES}"
)

_GPT2_RULE = PreTokenizer((_GPT2,))
_DIGITS_APART = PreTokenizer((r"[\p{N}]", _GPT2))
_LLAMA3_RULE = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)
_LLAMA3_MERGED = PreTokenizer((_LLAMA3,))
_QWEN2_RULE = PreTokenizer((_QWEN2,))
_GPT4O_RULE = PreTokenizer((_GPT4O,))
_DEEPSEEK3_RULE = PreTokenizer((r"[\p{N}]{1,3}", _KANA_HAN, _DEEPSEEK3))
_BLOOM_RULE = PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+",))
_TINY_AYA_RULE = PreTokenizer((NUMBER_GROUPS, rf"{_camel_case(*_UNCASED, f'(?:{_ENDING})?')}|[\p{{N}}]{{1,3}}|{_CAMEL_SIGNS}"))
_BAILING_RULE = PreTokenizer((rf"{_ENDING}|{_WORD}|[\p{{N}}]|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+",))
_GEMMA_RULE = PreTokenizer((_LINES,), byte_level=False, whole_newlines=True, always_bos=True)

PRETOKENIZERS: Final[dict[str, PreTokenizer]] = {
    "default": PreTokenizer((r"[\p{P}$+<=>\^~|]+", _GPT2, r"[\p{N}]+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "gigachat", "roberta-bpe",
         "a.x-4.0", "mellum", "modern-bert", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling"), _GPT2_RULE),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS_APART),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"), _LLAMA3_RULE),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _LLAMA3_MERGED),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"), _QWEN2_RULE),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O_RULE),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3_RULE),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _BLOOM_RULE),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _TINY_AYA_RULE),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING_RULE),
    **dict.fromkeys(("gemma4", "granite-embed-multi-311m"), _GEMMA_RULE),
    "qwen35": PreTokenizer(
        (rf"{_ENDING}|{_PREFIX}[\p{{L}}\p{{M}}]+|[\p{{N}}]| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",)),
    "jais-2": PreTokenizer((
        rf"{_ENDING}|{_WORD}|[\p{{N}}]{{1,3}}|{_SIGNS}|\s*[\r\n]+|"
        + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s",)),
    "deepseek-llm": PreTokenizer((
        r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", TRAILING_SPACE, _CJK,
        r"[\p{N}]+")),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?[\p{L}]+", r"\s?[\p{P}]+", _CJK, r"[\p{N}]")),
    "spark2_5": PreTokenizer((r"[\p{N}]{1,3}", _KANA_HAN, rf"{_SIGNED}|[\r\n]|\s+(?!\S)|\s+", r"[\p{N}]")),
    "youtu": PreTokenizer((
        r"[\uac00-\ud7a3\u3131-\u318e]+|"
        r"[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _KANA_HAN,
        rf"{_camel_case(*_UNCASED, f'(?:{_ENDING})?')}|[\p{{N}}]|{_CAMEL_SIGNS}"), whole_words=True),
    "falcon": PreTokenizer((_FALCON_SIGNS, _GPT2, "[0-9][0-9][0-9]")),
    "viking": PreTokenizer((*_BLOOM_RULE.rule, r"[\p{N}]")),
    "tekken": PreTokenizer((rf"{_camel_case(*_CASED, '')}|[\p{{N}}]|{_CAMEL_SIGNS}",), whole_words=True, add_bos=True),
    "chameleon": PreTokenizer((
        "<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"[\p{N}]", r"[\p{P}!-/:-@\[-`{-~]", _GPT2),
        add_bos=True),
    "granite-embed-multi-97m": PreTokenizer(
        (rf"{_camel_case(*_CASED_MARKS, f'(?:{_ENDING})?')}|[\p{{N}}]{{1,3}}|{_CAMEL_SIGNS}",), whole_words=True),
    "kimi-k2": PreTokenizer((_regex(_KIMI, collapse_han),)),
    "superbpe": PreTokenizer((r"[\p{N}]+", DIGIT_GROUPS)),
    "seed-coder": PreTokenizer((rf"{_ENDING}|{_WORD}|[\p{{N}}]| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)),
    "ufakzeka": PreTokenizer((rf"{_WORD}|[\p{{N}}]|{_SIGNS}|{_SPACES}",)),
    "afmoe": PreTokenizer((NUMBER_GROUPS, _AFMOE_SCRIPTS, _DEEPSEEK3)),
    "laguna": PreTokenizer((_LINES, _QWEN2)),
    # Letters (each with its marks) that single spaces may join: the nested repeats of the published form, made linear.
    "exaone-moe": PreTokenizer((
        rf"{_ENDING}|{_PREFIX}[\p{{L}}][\p{{L}}\p{{M}}]*(?: [\p{{L}}][\p{{L}}\p{{M}}]*)*|[\p{{N}}]| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|"
        r"\s*[\r\n]|\s+(?!\S)|\s+",)),
    "sarvam-moe": PreTokenizer((_LINES,), byte_level=False),
    "minicpm5": PreTokenizer((r"[\p{N}]{1,3}", rf"{_ENDING}|{_WORD}|[\p{{N}}]+|{_SIGNS}|{_SPACES}"), whole_words=True),
}  # fmt: skip


def find_pretokenizer(name: str) -> PreTokenizer:
    """The rule called `name`. TextError, listing the known ones, for any other."""
    try:
        return PRETOKENIZERS[name]
    except KeyError:
        raise TextError(
            f"tokenizer.ggml.pre is {name!r}, which ggrun does not know; splitting text by a guess would give wrong tokens. "
            f"Known: {', '.join(sorted(PRETOKENIZERS))}"
        ) from None
