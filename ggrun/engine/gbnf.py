"""GBNF, llama.cpp's grammars, read into a tree of what each rule says.

Knows GBNF's syntax; must not know how a grammar is run. Every error is a sentence with line and column.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from ggrun.engine.constraint import ConstraintError

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included, rising and apart

ANY: Final[Ranges] = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # every character: surrogates are none
MAX_REPEAT: Final = 100_000
_MAX_DEPTH: Final = 60  # of parentheses
_WORD: Final = frozenset(string.ascii_letters + string.digits + "-_")
_ESCAPES: Final[Mapping[str, str]] = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX: Final[Mapping[str, int]] = {"x": 2, "u": 4, "U": 8}  # letter of an escape -> its digits
_COUNTS: Final[Mapping[str, tuple[int, int | None]]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(frozen=True, slots=True, eq=False)
class Chars:
    """One character out of some."""

    ranges: Ranges


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """One part after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """A part several times; most None: any number. Either least is at least 1, or it is the part or nothing."""

    part: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """Whatever the rule of that name says."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """A special token, as it is written in the grammar: <|name|> or <[id]>."""

    text: str


Node = Chars | Sequence | Choice | Repeat | Rule | Token


def read_gbnf(text: str) -> dict[str, Node]:
    """The rules of a grammar; there is one called root, and all that are named are there. ConstraintError for anything else."""
    return _Reader(text).rules()


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges of characters in order, put together where they touch, surrogates left out."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(part for given in ranges for part in _without_surrogates(given)):
        if out and low <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(out[-1][1], high)
        else:
            out.append((low, high))
    return tuple(out)


def _without_surrogates(given: tuple[int, int]) -> list[tuple[int, int]]:
    parts = [(max(given[0], low), min(given[1], high)) for low, high in ANY]
    return [(low, high) for low, high in parts if low <= high]


def _others(ranges: Ranges) -> Ranges:
    """Every character that is in none of the ranges."""
    starts = [0, *(high + 1 for _, high in ranges)]
    ends = [*(low - 1 for low, _ in ranges), ANY[-1][1]]
    return merged((low, high) for low, high in zip(starts, ends, strict=True) if low <= high)


class _Reader:
    """Reads from `at` on; methods leave it behind what they read."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n").replace("\r", "\n")
        self.at = 0
        self.depth = 0
        self.named: list[tuple[str, int]] = []  # rules that are referred to, and where

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self.space(newlines=True)
        while self.at < len(self.text):
            name = self.name()
            self.space()
            self.expect("::=")
            self.space(newlines=True)
            rules[name] = self.choice(nested=False)  # of two rules of one name the last counts, as in llama.cpp
            if self.peek() not in ("\n", ""):
                self.fail(f"{self.peek()!r} cannot come here")
            self.space(newlines=True)
        if "root" not in rules:
            raise ConstraintError("the grammar has no rule called root, which a GBNF grammar begins with")
        for name, at in self.named:
            if name not in rules:
                self.at = at
                self.fail(f"there is no rule called {name}")
        return rules

    def choice(self, nested: bool) -> Node:
        parts = [self.sequence(nested)]
        while True:
            before = self.at
            self.space(newlines=True)  # a line may begin with |
            if self.peek() != "|":
                break
            self.at += 1
            self.space(newlines=True)
            parts.append(self.sequence(nested))
        if not nested:
            self.at = before
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def sequence(self, nested: bool) -> Node:
        parts: list[Node] = []
        while (part := self.item()) is not None:
            self.space(newlines=nested)
            while (counts := self.counts()) is not None:
                part = _repeated(part, *counts)
                self.space(newlines=nested)
            parts.append(part)
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def item(self) -> Node | None:
        """One literal, class, group, name or token; None where there is none."""
        start, first = self.at, self.peek()
        if first == '"':
            return self.literal()
        if first == "[":
            return self.characters()
        if first == "(":
            return self.group()
        if first == ".":
            self.at += 1
            return Chars(ANY)
        if first == "<":
            return self.token()
        if first == "!":
            self.fail("!<token>, all tokens but one, is not supported")
        if first and first in _WORD:
            name = self.name()
            self.named.append((name, start))
            return Rule(name)
        return None

    def literal(self) -> Node:
        start = self.at
        self.at += 1
        parts: list[Node] = []
        while self.peek() != '"':
            parts.append(Chars(self.character(start, "text")))
        self.at += 1
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def characters(self) -> Node:
        start = self.at
        self.at += 1
        negative = self.peek() == "^"
        self.at += negative
        found: list[tuple[int, int]] = []
        while self.peek() != "]":
            [(low, _)] = self.character(start, "class")
            high = low
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                [(high, _)] = self.character(start, "class")
            if low > high:
                self.fail(f"the range {chr(low)!r} to {chr(high)!r} runs backwards")
            found.append((low, high))
        self.at += 1
        ranges = _others(merged(found)) if negative else merged(found)
        if not ranges:
            self.at = start
            self.fail("no character is in this class")
        return Chars(ranges)

    def character(self, start: int, what: str) -> Ranges:
        """One character, maybe escaped. start: where the text or class began that holds it."""
        one = self.peek()
        if one in ("", "\n") and (one == "" or what == "text"):
            self.at = start
            self.fail(f"this {what} does not end")
        self.at += 1
        if one != "\\":
            return ((ord(one), ord(one)),)
        letter = self.peek()
        self.at += 1
        if letter in _ESCAPES:
            return ((ord(_ESCAPES[letter]),) * 2,)
        digits = self.text[self.at : self.at + _HEX.get(letter, 0)]
        if letter not in _HEX or len(digits) != _HEX[letter] or not set(digits) <= set(string.hexdigits):
            self.at -= 2
            self.fail(f"\\{letter}{digits} is no escape; there are \\n \\r \\t \\\\ \\\" \\[ \\] \\xHH \\uHHHH \\UHHHHHHHH")
        code = int(digits, 16)
        if code > ANY[-1][1] or not merged([(code, code)]):
            self.fail(f"\\{letter}{digits} is no character")
        self.at += len(digits)
        return ((code, code),)

    def group(self) -> Node:
        start = self.at
        self.at += 1
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self.fail(f"parentheses are nested more than {_MAX_DEPTH} deep")
        self.space(newlines=True)
        inner = self.choice(nested=True)
        if self.peek() != ")":
            if not self.peek():
                self.at = start
                self.fail("this parenthesis is not closed")
            self.fail(f"{self.peek()!r} cannot come here")
        self.at += 1
        self.depth -= 1
        return inner

    def token(self) -> Node:
        end = self.text.find(">", self.at)
        written = self.text[self.at : end + 1]
        if end < 0 or any(c.isspace() for c in written):
            self.fail("a token is written <name> or <[id]>")
        self.at = end + 1
        return Token(written)

    def counts(self) -> tuple[int, int | None] | None:
        """How often the item before comes; None where nothing says so."""
        one = self.peek()
        if one in _COUNTS:
            self.at += 1
            return _COUNTS[one]
        if one != "{":
            return None
        self.at += 1
        least = self.number()
        most: int | None = least
        if self.peek() == ",":
            self.at += 1
            self.space()
            most = self.number() if self.peek().isdigit() else None
        self.expect("}")
        if most is not None and most < least:
            self.fail(f"{{{least},{most}}} runs backwards")
        return least, most

    def number(self) -> int:
        self.space()
        start = self.at
        while self.peek() and self.peek() in string.digits:
            self.at += 1
        digits = self.text[start : self.at]
        if not digits or len(digits) > 9 or int(digits) > MAX_REPEAT:
            self.at = start
            self.fail(f"a number of repetitions must be 0 to {MAX_REPEAT}")
        self.space()
        return int(digits)

    def name(self) -> str:
        start = self.at
        while self.peek() and self.peek() in _WORD:
            self.at += 1
        if start == self.at:
            self.fail(f"a rule's name must come here, not {self.peek()!r}")
        return self.text[start : self.at]

    def space(self, newlines: bool = False) -> None:
        """Skip blanks and comments, which end where the line does."""
        while (one := self.peek()) and (one in " \t#" or (newlines and one == "\n")):
            if one == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                self.at += 1

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def expect(self, what: str) -> None:
        if not self.text.startswith(what, self.at):
            self.fail(f"{what} must come here")
        self.at += len(what)

    def fail(self, what: str) -> NoReturn:
        before = self.text[: self.at]
        line, column = before.count("\n") + 1, self.at - (before.rfind("\n") + 1) + 1
        raise ConstraintError(f"the grammar cannot be used: {what} (line {line}, column {column})")


def _repeated(part: Node, least: int, most: int | None) -> Node:
    if most == 0:
        return Sequence(())
    if least == 0 and most != 1:
        return Repeat(Repeat(part, 1, most), 0, 1)
    return Repeat(part, least, most)
