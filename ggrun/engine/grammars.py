"""What a request gives as a schema, regular expression or grammar, turned into a grammar of llguidance's.

Knows the kinds and their syntax; must not know vocabularies. Every error is a sentence that says what is wrong, and where.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ggrun.engine.constraint import ConstraintError

MAX_TEXT: Final = 1 << 18  # characters of a schema or grammar


@dataclass(frozen=True, slots=True)
class Grammar:
    """text: in llguidance's own form. noun: what it is called in errors."""

    text: str
    noun: str

    def compile(self, tokenizer: Any) -> Any:
        """llguidance's matcher at its beginning. ConstraintError when the grammar is wrong or too large."""
        import llguidance

        matcher = llguidance.LLMatcher(tokenizer, self.text, log_level=0, limits=_limits())
        if matcher.is_error():
            raise ConstraintError(f"the {self.noun} cannot be used: {sentence(matcher.get_error())}")
        return matcher


def _limits() -> Any:
    import llguidance

    return llguidance.LLParserLimits(verbose_errors=False)


def sentence(error: str) -> str:
    """One line of an error of llguidance's."""
    return " ".join(error.split())[:300]


def _json_object(value: Any) -> Grammar:
    return _json_schema({"type": "object"})


def _json_schema(value: Any) -> Grammar:
    from llguidance import LLMatcher

    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConstraintError(f"the JSON schema is no valid JSON: {error}") from None
    return Grammar(LLMatcher.grammar_from_json_schema(json.dumps(value)), "JSON schema")


def _regex(value: Any) -> Grammar:
    from llguidance import LLMatcher

    return Grammar(LLMatcher.grammar_from_regex(_text(value, "regular expression")), "regular expression")


def _gbnf(value: Any) -> Grammar:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    text = _text(value, "grammar")
    try:
        return Grammar(LLMatcher.grammar_from_lark(gbnf_to_lark(text)), "grammar")
    except Exception as error:
        raise ConstraintError(f"the grammar cannot be used: {error}") from None


def _lark(value: Any) -> Grammar:
    from llguidance import LLMatcher

    return Grammar(LLMatcher.grammar_from_lark(_text(value, "grammar")), "grammar")


def _text(value: Any, noun: str) -> str:
    if not isinstance(value, str):
        raise ConstraintError(f"the {noun} must be a text, not {value!r:.60}")
    if len(value) > MAX_TEXT:
        raise ConstraintError(f"the {noun} has {len(value)} characters; ggrun takes up to {MAX_TEXT}")
    return value


GRAMMARS: Final[dict[str, Callable[[Any], Grammar]]] = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _regex,
    "grammar": _gbnf,
    "lark": _lark,
}
