"""Constraints without a model: masks, their ends, what is refused and in which words, and that hostile grammars end soon."""

import gc
import re
import time
from collections.abc import Sequence
from typing import Any
from weakref import ref

import numpy as np
import pytest

from ggrun.engine.candidates import Candidates
from ggrun.engine.constraint import Constraint, ConstraintError, constraint_for
from ggrun.engine.guide import guide_for
from ggrun.engine.sampling import Sampler, Sampling
from ggrun.errors import GgrunError
from ggrun.gguf import open_gguf
from ggrun.text import Tokenizer, load_tokenizer
from tests.conftest import EMBEDDED


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    with open_gguf(EMBEDDED) as file:
        return load_tokenizer(file.metadata)


def allowed(constraint: Constraint) -> list[int]:
    return np.flatnonzero(np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")).tolist()


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text in tokens of one byte each."""
    by_byte = {tokenizer.token_bytes(id_): id_ for id_ in reversed(range(tokenizer.n_vocab)) if not tokenizer.is_special(id_)}
    return [by_byte[bytes([byte])] for byte in text.encode()]


def takes(constraint: Constraint, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text is a whole answer, read byte by byte (of forced bytes a mask shows only the token that a tokenizer would make)."""
    try:
        for id_ in byte_ids(tokenizer, text):
            if constraint.done:
                return False
            constraint.accept(id_)
    except ConstraintError:
        return False
    return bool(tokenizer.end_of_generation & set(allowed(constraint)))


def test_a_mask_allows_what_may_come(tokenizer: Tokenizer) -> None:
    constraint = constraint_for("regex", "(yes|no)", tokenizer)
    for id_ in allowed(constraint):
        assert "yes".startswith(text := tokenizer.token_bytes(id_).decode()) or "no".startswith(text)
        assert text
    assert not tokenizer.end_of_generation & set(allowed(constraint))
    for id_ in byte_ids(tokenizer, "no"):
        constraint.mask()
        assert not constraint.done
        constraint.accept(id_)
    assert constraint.done
    assert set(allowed(constraint)) == tokenizer.end_of_generation


def test_an_end_is_allowed_beside_more(tokenizer: Tokenizer) -> None:
    constraint = constraint_for("regex", "ab*", tokenizer)
    constraint.accept(byte_ids(tokenizer, "a")[0])
    assert tokenizer.end_of_generation < set(allowed(constraint))
    assert not constraint.done


def test_a_token_that_does_not_fit_is_refused(tokenizer: Tokenizer) -> None:
    constraint = constraint_for("regex", "a", tokenizer)
    with pytest.raises(ConstraintError, match="satisfy"):
        constraint.accept(byte_ids(tokenizer, "b")[0])


def test_a_copy_goes_its_own_way(tokenizer: Tokenizer) -> None:
    one = constraint_for("regex", "a(b|c)d", tokenizer)
    a, b, c, d = byte_ids(tokenizer, "abcd")
    one.accept(a)
    other = one.copy()
    one.accept(b)
    other.accept(c)
    assert d in allowed(one)
    one.accept(d)
    assert one.done
    assert not other.done
    assert d in allowed(other)


def test_a_vocabulary_without_an_end() -> None:
    with open_gguf(EMBEDDED) as file:
        endless = load_tokenizer(file.metadata)
    endless.end_of_generation = frozenset()
    constraint = constraint_for("regex", "a", endless)
    [a] = byte_ids(endless, "a")
    assert a in allowed(constraint)
    constraint.accept(a)
    assert constraint.done
    assert not allowed(constraint)
    constraint = constraint_for("regex", "a*", endless)
    assert max(allowed(constraint)) < endless.n_vocab  # the end it pretends to have is not shown


def test_a_guide_goes_with_its_tokenizer() -> None:
    with open_gguf(EMBEDDED) as file:
        tokenizer = load_tokenizer(file.metadata)
    constraint_for("json_object", None, tokenizer).mask()
    guide = ref(guide_for(tokenizer))
    del tokenizer
    gc.collect()
    assert guide() is None


@pytest.mark.parametrize("extra", [-40, 0, 7, 4000])
def test_logits_need_not_be_as_many_as_tokens(tokenizer: Tokenizer, extra: int) -> None:
    """Padded outputs are never chosen."""
    n_vocab = tokenizer.n_vocab + extra
    logits = np.zeros(n_vocab, np.float32)
    logits[tokenizer.n_vocab :] = 50
    for seed in range(20):
        sampler = Sampler(Sampling(seed=seed, top_k=0), n_vocab, tokenizer, constraint=constraint_for("regex", "[a-z]+", tokenizer))
        assert sampler.n_highest == 0
        assert re.fullmatch("[a-z]+", tokenizer.token_bytes(sampler.sample(logits).id).decode())


def test_a_forced_token_is_chosen_whatever_its_logit(tokenizer: Tokenizer) -> None:
    logits = np.full(tokenizer.n_vocab, 9, np.float32)
    [x] = byte_ids(tokenizer, "~")
    logits[x] = -80
    constraint = constraint_for("regex", "~", tokenizer)
    token = Sampler(Sampling(temperature=0), tokenizer.n_vocab, tokenizer, constraint=constraint).sample(logits)
    assert token.id == x
    assert token.logprob < -80  # the model's own


def test_nothing_left_is_a_sentence(tokenizer: Tokenizer) -> None:
    logits = np.zeros(tokenizer.n_vocab, np.float32)
    [x] = byte_ids(tokenizer, "~")
    sampling = Sampling(logit_bias=((x, float("-inf")),))
    sampler = Sampler(sampling, tokenizer.n_vocab, tokenizer, constraint=constraint_for("regex", "~", tokenizer))
    with pytest.raises(GgrunError, match="no token is left"):
        sampler.sample(logits)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 1000])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_candidates_allow(n: int, share: float) -> None:
    random = np.random.default_rng(n)
    marked = random.random(-(-n // 32) * 32) < share
    marked[0] = True
    words = np.packbits(marked, bitorder="little").view(np.uint32)
    logits = random.normal(size=n).astype(np.float32)
    candidates = Candidates(logits)
    candidates.allow(words)
    ids = np.flatnonzero(marked[:n])
    assert np.array_equal(candidates.ids, ids)
    assert np.array_equal(candidates.logits, logits[ids])


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"items": {"not": {}}}}}, ('"not" is not supported', "#/properties/a/items")),
        ({"properties": {"q": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "strin"}}}, ("strin", "#/$defs/x")),
        ({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "(?=a)"}]}, ("look-ahead", "#/anyOf/1")),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, ("uniqueItems", "#/properties/a")),
        ({"if": {"type": "null"}, "then": {}}, ('"if"', "at #")),
        ({"prefixItems": [{"type": "string", "format": "iri"}]}, ("format iri", "#/prefixItems/0")),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ("oneOf", "anyOf")),
        ({"$ref": "http://example.org/schema"}, ("http://example.org/schema", "within the schema")),
        ({"$ref": "#/nowhere"}, ("#/nowhere", "does not exist")),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ("no finite text",)),
        ({"type": "integer", "minimum": 5, "maximum": 2}, ("minimum (5)", "maximum (2)")),
        ({"enum": []}, ("Unsatisfiable",)),
        (False, ("must be an object",)),
        ([], ("must be an object",)),
        (7, ("must be an object",)),
        ("{", ("no valid JSON", "line 1")),
        ("[" * 100_000, ("no valid JSON",)),
        ({"minimum": float("nan")}, ("no valid JSON",)),
        ({"description": "x" * 300_000}, ("300", "262144")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_schema_that_cannot_be_used(tokenizer: Tokenizer, schema: Any, words: Sequence[str]) -> None:
    with pytest.raises(ConstraintError) as error:
        constraint_for("json_schema", schema, tokenizer)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "format": "int32"}, "7"),
        ({"type": "number", "format": "double"}, "7.5"),
        *(({"type": "string", "format": name}, '"a b"') for name in ("password", "binary", "byte", "path", "int64", "json-string")),
        ({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}}, '{"a": 7}'),
    ],
    ids=str,
)
def test_what_says_nothing_of_the_text_is_let_be(tokenizer: Tokenizer, schema: Any, text: str) -> None:
    assert takes(constraint_for("json_schema", schema, tokenizer), tokenizer, text)


@pytest.mark.parametrize(
    ("text", "fits"), [('"12.5"', True), ('"-0.5"', True), ('"."', False), ('""', False), ('"-"', False), ('"1.2.3"', False), ("7", True)]
)
def test_pydantics_decimals(tokenizer: Tokenizer, text: str, fits: bool) -> None:
    written = {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}
    assert takes(constraint_for("json_schema", {"anyOf": [{"type": "number"}, written]}, tokenizer), tokenizer, text) is fits


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("regex", "(a", ("unclosed group",)),
        ("regex", "a(?=b)", ("look-around",)),
        ("regex", 5, ("must be a text",)),
        ("lark", "start: nobody", ("nobody", "line 1")),
        ("lark", 'start: <|nobody|> "a"', ("<|nobody|>",)),
        ("lark", "", ("grammar",)),
        ("grammar", 'root ::= "a', ("does not end", "line 1, column 10")),
        ("grammar", "root ::= item\n", ("no rule called item", "line 1, column 10")),
        ("grammar", 'item ::= "a"', ("root",)),
        ("grammar", 'root ::= "a"\nx ::= [z-a]', ("backwards", "line 2")),
        ("grammar", 'root ::= "\\q"', ("\\q", "escape")),
        ("grammar", 'root ::= ("a"', ("not closed",)),
        ("grammar", 'root ::= "a"{3,1}', ("backwards",)),
        ("grammar", 'root ::= "a"{1000000000}', ("repetitions",)),
        ("grammar", "root ::= " + "(" * 1000 + '"a"' + ")" * 1000, ("nested",)),
        ("grammar", "root ::= root", ("no finite text",)),
        ("grammar", "root ::= !<think>", ("not supported",)),
        ("poem", "", ("poem", "json_schema")),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_grammar_that_cannot_be_used(tokenizer: Tokenizer, kind: str, value: Any, words: Sequence[str]) -> None:
    with pytest.raises(ConstraintError) as error:
        constraint_for(kind, value, tokenizer)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def nested(depth: int, wrap: Any) -> Any:
    value: Any = {"type": "null"}
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json_schema", nested(1000, lambda x: {"items": x})),
        ("json_schema", nested(1000, lambda x: {"anyOf": [x, {"type": "integer"}]})),
        ("json_schema", {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}$"} for i in range(5, 30)]}),
        ("json_schema", {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(5000)}}),
        ("regex", "((((a{50}){50}){50}){50})"),
        ("regex", "(" * 20000 + "a" + ")" * 20000),
        ("lark", "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(40)) + '\na40: "a"'),
        ("lark", "start: start start"),
        ("grammar", "root ::= r0\n" + "\n".join(f'r{i} ::= "a" r{i + 1}' for i in range(3000)) + '\nr3000 ::= "b"'),
        ("grammar", "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(60)) + '\nr60 ::= "b"'),
    ],
    ids=range(10),
)
def test_a_hostile_one_ends_soon(tokenizer: Tokenizer, kind: str, value: Any) -> None:
    """Refused, or some steps of it taken; in seconds either way (what compiling may take, and one step)."""
    began = time.monotonic()
    try:
        constraint = constraint_for(kind, value, tokenizer)
        for _ in range(3):
            if constraint.done:
                break
            constraint.accept(allowed(constraint)[0])
    except ConstraintError as error:
        assert len(str(error)) < 500
        assert "\n" not in str(error)
    assert time.monotonic() - began < 30


def test_white_space_is_bounded(tokenizer: Tokenizer) -> None:
    def fits(text: str) -> bool:
        return takes(constraint_for("json_schema", {"type": "object"}, tokenizer), tokenizer, text)

    assert fits('{"a":[1,2],"b":{}}')
    assert fits('{"a": [1, 2], "b": {}}')
    assert fits('{\n  "a": [\n    1,\n    2\n  ],\n  "b": {}\n}')
    assert fits('{\n\t"a": 1\n}')
    assert not fits('{  "a": 1}')
    assert not fits('{\n\n"a": 1}')
    assert not fits(' {"a": 1}')


def test_regular_expressions_match_the_whole_answer(tokenizer: Tokenizer) -> None:
    def fits(regex: str, text: str) -> bool:
        return takes(constraint_for("regex", regex, tokenizer), tokenizer, text)

    assert fits("^a+$", "aaa")
    assert not fits("a+", "aab")
    assert fits("a\\$", "a$")
    assert fits("a\\\\$", "a\\")
    assert fits("^a|b$", "b")
    assert fits("a/b", "a/b")


CALLS = """
start: prose tail?
prose[lazy]: /(.|\\n)*/ "<tool_call>"
tail: "\\n" call "\\n</tool_call>"
call: "{\\"name\\": \\"" NAME "\\", \\"arguments\\": " args "}"
NAME: "add" | "subtract"
args: %json {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"], "additionalProperties": false}
"""


def test_lark_holds_calls_to_schemas(tokenizer: Tokenizer) -> None:
    """What the docstring of constraint_for promises."""

    def fits(text: str) -> bool:
        return takes(constraint_for("lark", CALLS, tokenizer), tokenizer, text)

    assert fits('I add.<tool_call>\n{"name": "add", "arguments": {"a":1}}\n</tool_call>')
    assert not fits('<tool_call>\n{"name": "divide", "arguments": {"a":1}}\n</tool_call>')
    assert not fits('<tool_call>\n{"name": "add", "arguments": {"b":1}}\n</tool_call>')
    assert not fits('<tool_call>\n{"name": "add", "arguments": {"a":"1"}}\n</tool_call>')
