"""What a request gives as a schema, regular expression or grammar, turned into a grammar of llguidance's.

Knows the kinds and their syntax; must not know vocabularies. Every error is a sentence that says what is wrong, and where.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from ggrun.engine.constraint import ConstraintError
from ggrun.engine.schema import OPTIONS, explained, read_schema

MAX_TEXT: Final = 1 << 18  # characters of a grammar
MAX_GBNF: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Grammar:
    """text: in llguidance's own form. noun: what it is called in errors. explain: an error of llguidance's, and where it comes from."""

    text: str
    noun: str
    explain: Callable[[str], str] = lambda error: error

    def compile(self, tokenizer: Any) -> Any:
        """llguidance's matcher at its beginning. ConstraintError when the grammar is wrong, too large, or has no answer."""
        import llguidance

        matcher = llguidance.LLMatcher(tokenizer, self.text, log_level=0, limits=_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            error = sentence(matcher.get_error())
            raise ConstraintError(f"the {self.noun} cannot be used: {_EMPTY if error in _STUCK else self.explain(error)}")
        return matcher


_STUCK: Final = ("NoExtensionBias", "NoExtension")  # how llguidance says that nothing may come
_EMPTY: Final = "no finite text follows it"


@cache
def _limits() -> Any:
    import llguidance

    return llguidance.LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=500_000,
        verbose_errors=False,
    )


def sentence(error: str) -> str:
    """One line of an error of llguidance's, without the excerpt it ends with."""
    line = " ".join(error.removesuffix("<non-verbose/>").split())
    for pattern, better in _BETTER:
        line = pattern.sub(better, line)
    return line[:300]


# in errors of llguidance's -> what we say
_BETTER: Final = tuple(
    (re.compile(pattern), better)
    for pattern, better in (
        (r" \d+ \| .*", ""),  # the excerpt
        (r"regex parse error: .* error: ", "regular expression: "),
        (r"invalid regex \".*\" \(in regex\): ", ""),
        (r"^(?:at )?(\d+)\((\d+)\): (.*)", r"\3 (line \1, column \2)"),
    )
)


def _json_object(value: Any) -> Grammar:
    return _json_schema({"type": "object"})


def _json_schema(value: Any) -> Grammar:
    from llguidance import LLMatcher

    schema = read_schema(value)

    def text(schema: Any) -> str:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=OPTIONS))

    def fails(schema: Any) -> str:
        wrong, sentences = LLMatcher.validate_grammar_with_warnings(text(schema), limits=_limits())
        return sentence(sentences[0]) if wrong else ""

    return Grammar(text(schema), "JSON schema", lambda error: explained(schema, error, fails))


def _regex(value: Any) -> Grammar:
    from llguidance import LLMatcher, regex_to_lark

    text = _text(value, "regular expression").removeprefix("^")
    if text.endswith("$") and (len(text) - len(text[:-1].rstrip("\\"))) % 2:  # an anchor, and no "\\$"
        text = text[:-1]

    def explain(error: str) -> str:
        return error.split(" (line ")[0].removeprefix("regular expression: ")

    text = regex_to_lark(text, "dw").replace("\\/", "/")  # \d and \w are ASCII's, as in a JSON schema
    return Grammar(LLMatcher.grammar_from_regex(text), "regular expression", explain)


def _gbnf(value: Any) -> Grammar:
    from llguidance import LLMatcher

    from ggrun.engine.gbnf import read_gbnf
    from ggrun.engine.gbnf_lark import as_lark

    rules = read_gbnf(_text(value, "grammar", MAX_GBNF))
    try:
        lark = as_lark(rules)
    except RecursionError:
        raise ConstraintError("the grammar cannot be used: its rules refer to each other in too long a chain") from None
    return Grammar(LLMatcher.grammar_from_lark(lark), "grammar", lambda error: error.split(" (line ")[0])


def _lark(value: Any) -> Grammar:
    from llguidance import LLMatcher

    return Grammar(LLMatcher.grammar_from_lark(_text(value, "grammar")), "grammar")


def _text(value: Any, noun: str, most: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        raise ConstraintError(f"the {noun} must be a text, not {value!r:.60}")
    if len(value) > most:
        raise ConstraintError(f"the {noun} has {len(value)} characters; ggrun takes up to {most}")
    return value


GRAMMARS: Final[dict[str, Callable[[Any], Grammar]]] = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _regex,
    "grammar": _gbnf,
    "lark": _lark,
}
