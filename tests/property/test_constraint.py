"""Whatever a model would rather say, an answer that ends by itself has the form it was asked for.

The models are small and random, so that nothing but the constraint makes their answers fit. Closing brackets and quotes are made
likelier: a random model would not end a text by itself.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from ggrun import Engine, Sampling
from ggrun.engine.constraint import constraint_for
from ggrun.engine.gbnf import read_gbnf
from tests.conftest import EMBEDDED, SHARED
from tests.property.test_gbnf import ends

MODELS: Mapping[str, Path] = {
    "embedded": EMBEDDED,
    "byte pairs": SHARED / "oracle" / "qwen2.Q8_0.gguf",
    "sentence pieces": SHARED / "oracle" / "mistral.Q8_0.gguf",
}
N_SEEDS = 8
N_PREDICT = 120
CLOSING = '"}]'


def strict(**properties: Any) -> dict[str, Any]:
    """An object as OpenAI's strict mode wants it."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


INTEGER, STRING, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}
TREE = strict(value=INTEGER, next={"anyOf": [{"$ref": "#/$defs/tree"}, NULL]})
SCHEMAS: Mapping[str, Any] = {
    "anything": {},
    "true": True,
    "object": {"type": "object"},
    "string": STRING,
    "integer": INTEGER,
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "null": NULL,
    "types": {"type": ["string", "null", "boolean"]},
    "enum": {"enum": ["a", 1, None, True, {"x": [1]}, "é\"\n\\"]},
    "string enum": {"type": "string", "enum": ["red", "redder", "re"]},
    "const": {"const": {"a": 1.5, "b": []}},
    "nested": strict(a=STRING, b=strict(c={"type": "boolean"}, d=strict(e=NULL))),
    "optional": {"type": "object", "properties": {"a": INTEGER, "b": NULL}, "additionalProperties": False},
    "other names": {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": {"type": "boolean"}},
    "required, not listed": {"type": "object", "properties": {"a": INTEGER}, "required": ["z", "a"]},
    "pattern names": {"type": "object", "patternProperties": {"^x_": INTEGER}, "additionalProperties": False},
    "odd names": strict(**{"é\"\n": INTEGER, "a b": NULL, "": STRING}),
    "no names": {"type": "object", "maxProperties": 0},
    "some names": {"type": "object", "minProperties": 2, "maxProperties": 3, "additionalProperties": INTEGER},
    "array": {"type": "array", "items": INTEGER},
    "array of 2 to 4": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "empty array": {"type": "array", "maxItems": 0},
    "array of objects": {"type": "array", "items": strict(a=INTEGER), "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [INTEGER, STRING], "items": False, "minItems": 2},
    "tuple and more": {"type": "array", "prefixItems": [INTEGER], "items": {"type": "boolean"}, "minItems": 3, "maxItems": 5},
    "matrix": {"type": "array", "items": {"type": "array", "items": INTEGER, "maxItems": 2}, "minItems": 2, "maxItems": 2},
    "range": {"type": "integer", "minimum": 5, "maximum": 17},
    "open range": {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 100},
    "wide range": {"type": "integer", "minimum": -9007199254740993, "maximum": 9007199254740993},
    "fractional range": {"type": "integer", "minimum": 1.5, "maximum": 3.5},
    "probability": {"type": "number", "minimum": 0, "maximum": 1},
    "open number": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1.5},
    "tiny numbers": {"type": "number", "minimum": 1e-7, "maximum": 1e-6},
    "sevens": {"type": "integer", "multipleOf": 7, "minimum": 1},
    "quarters": {"type": "number", "multipleOf": 0.25, "minimum": 0},
    "length": {"type": "string", "minLength": 3, "maxLength": 6},
    "empty string": {"type": "string", "maxLength": 0},
    "pattern": {"type": "string", "pattern": "^[a-z]{2,4}-\\d+$"},
    "pattern anywhere": {"type": "string", "pattern": "[0-9]"},
    "pattern with escapes": {"type": "string", "pattern": "^\\u0041[\\u00e0-\\u00ff]{2}\\x42$"},
    "pattern and length": {"type": "string", "pattern": "^\\S+$", "minLength": 2, "maxLength": 5},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date-time": {"type": "string", "format": "date-time"},
    "email": {"type": "string", "format": "email", "maxLength": 24},
    "ipv4": {"type": "string", "format": "ipv4"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "uuid": {"type": "string", "format": "uuid"},
    "any of": {"anyOf": [STRING, {"type": "array", "items": NULL}]},
    "one of": {"oneOf": [strict(t={"const": "a"}, x=INTEGER), strict(t={"const": "b"}, y=STRING)]},
    "one of types": {"oneOf": [INTEGER, NULL, {"type": "array", "items": INTEGER}]},
    "all of": {"allOf": [
        {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
        {"properties": {"b": NULL}, "required": ["b"]},
    ]},
    "all of ranges": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "all of patterns": {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "b$"}, {"maxLength": 6}]},
    "either name": {
        "type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "additionalProperties": False,
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "reference": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "boolean"}}},
    "old definitions": {"$ref": "#/definitions/x y~1z", "definitions": {"x y/z": strict(a=INTEGER)}},
    "recursive": {"$defs": {"tree": TREE}, "$ref": "#/$defs/tree"},
    "recursive root": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
    "described": {
        **strict(a={**INTEGER, "title": "A", "description": "an a", "default": 3, "examples": [1], "deprecated": True}),
        "title": "T",
    },
    "keywords that ask nothing": {
        "type": "array", "items": INTEGER, "uniqueItems": False, "$comment": "x", "x-guidance": {"lenient": True},
    },
}  # fmt: skip

REGEXES = (
    "[a-f]{3,8}-(yes|no)",
    r"^\d{4}-\d{2}$",
    "(ab|a)(bc|c)",
    "(é|ü|漢|🙂){1,3}",
    " x+ y ",
    "[^a-z]{2,5}",
    "",
    "a|",
    r"\w+(\.\w+){1,2}",
    r"(a\n\t){2}",
    r"a/b\/[^/]",
    r"[\d\w-]{2}\W\D",
)


# after the grammars that llama.cpp publishes
GRAMMARS: Mapping[str, str] = {
    "json": r"""
        root   ::= object
        value  ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::=
          "{" ws (
                    string ":" ws value
            ("," ws string ":" ws value)*
          )? "}" ws
        array  ::=
          "[" ws (
                    value
            ("," ws value)*
          )? "]" ws
        string ::=
          "\"" (
            [^"\\\x7F\x00-\x1F] |
            "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
          )* "\"" ws
        number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
        # optional space, by convention after literal characters
        ws ::= | " " | "\n" [ \t]{0,20}
        """,
    "arithmetic": r"""
        root  ::= (expr "=" ws term "\n"){1,3}
        expr  ::= term ([-+*/] term){0,4}
        term  ::= ident | num | "(" ws expr ")" ws
        ident ::= [a-z] [a-z0-9_]{0,8} ws
        num   ::= [0-9]{1,6} ws
        ws    ::= [ \t]?
        """,
    "list": 'root ::= item{1,3}\nitem ::= "- " [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]{1,20} "\\n"',
    "chess": r"""
        root    ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n"){1,2}
        move    ::= (pawn | nonpawn | castle) [+#]?
        nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
        pawn    ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
        castle  ::= "O-O" "-O"?
        """,
    "japanese": r"""
        root        ::= jp-char{1,6} ([ \t\n] jp-char{1,4})?
        jp-char     ::= hiragana | katakana | punctuation | cjk
        hiragana    ::= [ぁ-ゟ]
        katakana    ::= [\u30A1-\u30FF]
        punctuation ::= [、-〾]
        cjk         ::= [一-\U00009FFF]
        """,
    "left recursion": 'root ::= root "," [0-9] | "(" root ")" | [0-9]',
}


@pytest.fixture(scope="module")
def engines() -> Iterator[Mapping[str, Engine]]:
    with ExitStack() as stack:
        found = {name: path for name, path in MODELS.items() if path.exists()}
        yield {name: stack.enter_context(Engine.open(path, n_parallel=N_SEEDS, n_ctx=N_SEEDS * 256)) for name, path in found.items()}


def answers(engine: Engine, kind: str, value: Any, bias: float = 4.0, **sampling: Any) -> list[str]:
    """What the seeds answer, those cut off by the limit left out."""
    tokenizer = engine.tokenizer
    closing = tuple((id_, bias) for text in CLOSING for id_ in tokenizer.encode_part(text)[-1:])
    settings = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "logit_bias": closing} | sampling
    running = [
        engine.submit(
            tokenizer.encode("Say something:"),
            Sampling(seed=seed, **settings),
            n_predict=N_PREDICT,
            strip_space=True,
            constraint=constraint_for(kind, value, tokenizer),
        )
        for seed in range(N_SEEDS)
    ]
    done = [generation.wait() for generation in running]
    assert {generation.finish_reason for generation in done} <= {"stop", "length"}
    return [generation.text for generation in done if generation.finish_reason == "stop"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_validates(engines: Mapping[str, Engine], name: str) -> None:
    schema = SCHEMAS[name]
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for engine in engines.values():
        found = answers(engine, "json_schema", schema) or answers(engine, "json_schema", schema, bias=8.0)
        assert found, "every answer was cut off: nothing was tested"
        for text in found:
            validator.validate(json.loads(text))


@pytest.mark.parametrize("regex", REGEXES)
def test_an_answer_matches(engines: Mapping[str, Engine], regex: str) -> None:
    for engine in engines.values():
        found = answers(engine, "regex", regex)
        assert found, "every answer was cut off: nothing was tested"
        assert all(re.fullmatch(regex, text, re.ASCII) for text in found), found


@pytest.mark.parametrize("name", GRAMMARS)
def test_an_answer_follows_its_grammar(engines: Mapping[str, Engine], name: str) -> None:
    rules = read_gbnf(GRAMMARS[name])
    for engine in engines.values():
        found = answers(engine, "grammar", GRAMMARS[name])
        assert found, "every answer was cut off: nothing was tested"
        assert all(len(text) in ends(rules, text) for text in found), found


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"ignore_eos": True},
        {"top_k": 1},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.1},
        {"typical_p": 0.5, "top_n_sigma": 1.0},
        {"mirostat": 1},
        {"mirostat": 2},
        {"repeat_penalty": 2.0, "dry_multiplier": 2.0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01, "dynatemp_range": 0.5},
    ],
    ids=str,
)
def test_any_sampler(engines: Mapping[str, Engine], sampling: Mapping[str, Any]) -> None:
    schema = strict(name={"type": "string", "maxLength": 4}, n={"type": "integer", "minimum": 0, "maximum": 999})
    for engine in engines.values():
        found = answers(engine, "json_schema", schema, bias=8.0, **sampling)
        assert len(found) > N_SEEDS // 2
        for text in found:
            jsonschema.validate(json.loads(text), schema)


def test_a_json_object_is_one(engines: Mapping[str, Engine]) -> None:
    for engine in engines.values():
        found = answers(engine, "json_object", None)
        assert found
        assert all(isinstance(json.loads(text), dict) for text in found)


def test_alone_equals_beside_others(engines: Mapping[str, Engine]) -> None:
    """A constrained answer depends on its seed alone; others run without a constraint."""
    engine = engines["embedded"]
    ids = engine.tokenizer.encode("Say something:")
    schema = strict(a={"type": "string", "maxLength": 8}, b=INTEGER)

    def one() -> Any:
        return engine.submit(ids, Sampling(seed=5), n_predict=60, constraint=constraint_for("json_schema", schema, engine.tokenizer))

    alone = one().wait().ids
    others = [engine.submit(ids, Sampling(seed=seed), n_predict=40) for seed in range(3)]
    beside = one().wait().ids
    assert beside == alone
    for other in others:
        other.wait()


def test_log_probabilities_are_the_models_own(engines: Mapping[str, Engine]) -> None:
    engine = engines["embedded"]
    ids = engine.tokenizer.encode("Say something:")
    generation = engine.submit(ids, Sampling(seed=1), constraint=constraint_for("regex", "[0-9]{4}x", engine.tokenizer), n_predict=20)
    events = [event for event in generation if event.id is not None]
    logits = engine.forward([*ids, *generation.ids])[len(ids) - 1 : -1].astype("float64")
    for row, event in zip(logits, events, strict=True):
        peak = row.max()
        assert event.logprob == pytest.approx(row[event.id] - peak - math.log(np.exp(row - peak).sum()), abs=1e-4)
