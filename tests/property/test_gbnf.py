"""A GBNF grammar written as llguidance's lexemes says what it said: random grammars against a recognizer that tries everything."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import llguidance
import pytest

from ggrun.engine.gbnf import Chars, Choice, Node, Repeat, Rule, Sequence, read_gbnf
from ggrun.engine.gbnf_lark import as_lark

ALPHABET = "abc"
TEXTS = ["".join(text) for n in range(5) for text in itertools.product(ALPHABET, repeat=n)]
END = 256


class Bytes:
    """A vocabulary of bytes, for llguidance."""

    tokens = (*(bytes([byte]) for byte in range(255)), b"", b"<end>")
    special_token_ids = (END,)
    eos_token_id = END
    bos_token_id = None
    is_tokenizer_wrapper = True

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


VOCABULARY = llguidance.LLTokenizer(Bytes(), eos_token=[END])


def accepted(lark: str) -> list[str]:
    """Those of TEXTS that llguidance takes as whole answers."""
    matcher = llguidance.LLMatcher(VOCABULARY, llguidance.LLMatcher.grammar_from_lark(lark), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return [text for text in TEXTS if _takes(matcher.deep_copy(), text)]


def _takes(matcher: Any, text: str) -> bool:
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def said(rules: dict[str, Node]) -> list[str]:
    """Those of TEXTS that the grammar says, found by trying every way to read them."""
    return [text for text in TEXTS if len(text) in ends(rules, text)]


def ends(rules: dict[str, Node], text: str) -> frozenset[int]:
    """Where the root may end when it begins at 0: what each rule can read is widened until it stays the same."""
    known: dict[tuple[str, int], frozenset[int]] = {}
    tried: dict[tuple[Node, int], frozenset[int]] = {}

    def read(node: Node, at: int) -> frozenset[int]:
        if (node, at) not in tried:
            tried[node, at] = look(node, at)
        return tried[node, at]

    def look(node: Node, at: int) -> frozenset[int]:
        match node:
            case Chars(ranges):
                fits = at < len(text) and any(low <= ord(text[at]) <= high for low, high in ranges)
                return frozenset([at + 1] if fits else [])
            case Sequence(parts):
                last = frozenset([at])
                for part in parts:
                    last = frozenset(end for begin in last for end in read(part, begin))
                return last
            case Choice(parts):
                return frozenset(end for part in parts for end in read(part, at))
            case Repeat(part, least, most):
                last, found = frozenset([at]), frozenset([at] if least == 0 else [])
                for n in range(1, (least + len(text) + 1 if most is None else most) + 1):
                    last = frozenset(end for begin in last for end in read(part, begin))
                    found |= last if n >= least else frozenset()
                return found
            case Rule(name):
                return known.setdefault((name, at), frozenset())
        raise AssertionError(node)

    while True:
        before = dict(known)
        tried.clear()
        for name, at in [("root", 0), *before]:
            known[name, at] = read(rules[name], at)
        if known == before:
            return known["root", 0]


class Grammars:
    """Random grammars of a few rules."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.names = ["root", "x", "y-z", "w1"][: self.random.randint(1, 4)]

    def text(self) -> str:
        return "\n".join(f"{name} ::= {self.choice(2)}" for name in self.names)

    def choice(self, depth: int) -> str:
        return " | ".join(self.sequence(depth) for _ in range(self.random.choice((1, 1, 2, 3))))

    def sequence(self, depth: int) -> str:
        return " ".join(self.item(depth) + self.count() for _ in range(self.random.choice((1, 2, 2, 3)))) or '""'

    def count(self) -> str:
        return self.random.choice(("", "", "", "*", "+", "?", "{2}", "{1,2}", "{0,2}", "{2,}"))

    def item(self, depth: int) -> str:
        kind = self.random.randrange(7 if depth else 5)
        if kind < 2:
            return '"' + "".join(self.random.choice(ALPHABET) for _ in range(self.random.randint(1, 3))) + '"'
        if kind < 4:
            return self.random.choice(("[ab]", "[a-c]", "[^a]", "[bc]", ".", "[c]"))
        return self.random.choice(self.names) if kind == 4 else f"({self.choice(depth - 1)})"


def grammars(first: int, n: int) -> Iterator[str]:
    return (Grammars(seed).text() for seed in range(first, first + n))


@pytest.mark.parametrize("block", range(2))
def test_a_grammar_keeps_its_meaning(block: int) -> None:
    n_said = 0
    for text in grammars(20 * block, 20):
        rules = read_gbnf(text)
        wanted = said(rules)
        if wanted:  # llguidance refuses a grammar that says nothing
            n_said += 1
            assert accepted(as_lark(rules)) == wanted, text
    assert n_said > 10


@pytest.mark.parametrize(
    "text",
    [
        'root ::= [a-c]* "abc"',  # what ends it also goes on with what comes before
        'root ::= x "b" | "ab" "c"\nx ::= "a" | "ab"',
        'root ::= ("a" | "ab") ("bc" | "c")',
        'root ::= x+ "a"\nx ::= "a" "b"?',
        'root ::= "b" root "c" | [a-c]+',
        'root ::= root "a" | "b"',
        'root ::= x x\nx ::= [ab]+',
        'root ::= "a"{2,4} "a"?',
        "root ::= ([ab] [bc]?){2} [c]",
    ],
)
def test_grammars_whose_lexemes_would_be_wrong(text: str) -> None:
    rules = read_gbnf(text)
    assert said(rules)
    assert accepted(as_lark(rules)) == said(rules)
