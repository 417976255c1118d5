"""A GBNF grammar written as llguidance's: characters put together to lexemes wherever that cannot change what the grammar means.

Knows how llguidance reads: its lexer takes the longest text that any lexeme allowed at that place goes on with, and never goes back. A
grammar of single characters is therefore read exactly, but slowly where much may come; a lexeme of many characters is fast, and exact
only where its end cannot be taken for its middle. So everything begins as large lexemes, and those in doubt are taken apart:

- a lexeme must be deterministic: no character can belong to two places of it (Brüggemann-Klein and Wood's one-unambiguous expressions);
- no character that goes on with it may follow it;
- another lexeme that may come at the same place must begin differently, unless both are single characters.

A grammar in which no rule comes back to itself is one regular expression, and one lexeme.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Final

from ggrun.engine.gbnf import Chars, Choice, Node, Ranges, Repeat, Rule, Sequence, Token, merged

_MAX_REGEX: Final = 4_000  # characters of a lexeme
_MAX_WHOLE: Final = 400_000  # characters of a lexeme that is the whole grammar
_ROUNDS: Final = 40  # of taking apart, before everything is
# grammars of more than these are taken apart at once
_MAX_NODES: Final = 3_000
_MAX_PLACES: Final = 600
_MAX_SETS: Final = 1_000


def as_lark(rules: Mapping[str, Node]) -> str:
    """The grammar as Lark text in llguidance's dialect."""
    return _Writer(rules).text()


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a regular expression is like. first: characters it begins with; more: characters that may follow a text it matches within it."""

    regex: str
    empty: bool
    first: Ranges
    more: Ranges
    single: bool = False


_NOTHING: Final = _Shape("", True, (), ())


class _Writer:
    def __init__(self, rules: Mapping[str, Node]) -> None:
        self.rules = _reachable(rules)
        self.names = {name: f"r{i}" for i, name in enumerate(self.rules)}
        self.shapes: dict[Node, _Shape | None] = {}  # None: no regular expression, or not deterministic
        self.visiting: set[str] = set()
        for node in self.rules.values():
            self.shape(node)
        self.apart: set[Node] = set()  # what is no lexeme, though it could be one

    def text(self) -> str:
        with suppress(_NotRegular):
            return f"start: /{_Whole(self.rules).write(self.rules['root'])}/\n"
        nodes = [node for body in self.rules.values() for node in _nodes(body)]
        for _ in range(_ROUNDS if len(nodes) <= _MAX_NODES else 0):
            doubtful = _Places(self).doubtful()
            if doubtful is None:
                self.apart.update(nodes)
                break
            if not doubtful:
                break
            self.apart |= doubtful
        else:
            self.apart.update(nodes)
        lines = [f"{self.names[name]}: {self.write(node)}" for name, node in self.rules.items()]
        return "\n".join([f"start: {self.names['root']}", *lines]) + "\n"

    def lexeme(self, node: Node) -> _Shape | None:
        """The node's shape when it is to be a lexeme."""
        shape = self.shape(node)
        return None if shape is None or shape.empty or (node in self.apart and not isinstance(node, Chars)) else shape

    def shape(self, node: Node) -> _Shape | None:
        if node not in self.shapes:
            shape = self._shape(node)
            self.shapes[node] = shape if shape is not None and len(shape.regex) <= _MAX_REGEX else None
        return self.shapes[node]

    def _shape(self, node: Node) -> _Shape | None:
        match node:
            case Chars(ranges):
                return _Shape(_class(ranges), False, ranges, (), single=True)
            case Sequence(parts):
                shape: _Shape | None = _NOTHING
                for part in [self.shape(part) for part in parts]:
                    shape = _then(shape, part)
                return shape
            case Choice(parts):
                return _either([self.shape(part) for part in parts])
            case Repeat(part, least, most):
                return _times(self.shape(part), least, most)
            case Rule(name):
                if name in self.visiting:
                    return None
                self.visiting.add(name)
                shape = self.shape(self.rules[name])
                self.visiting.discard(name)
                return shape
        return None

    def write(self, node: Node) -> str:
        if (shape := self.lexeme(node)) is not None:
            return f"/{shape.regex}/"
        match node:
            case Sequence(parts):
                return " ".join(map(self.write, parts)) if parts else '""'
            case Choice(parts):
                return "(" + " | ".join(map(self.write, parts)) + ")"
            case Repeat(part, least, most):
                return f"({self.write(part)}){{{least},{'' if most is None else most}}}"
            case Rule(name):
                return self.names[name]
            case Token(text):
                return text
        raise AssertionError("a single character is always a lexeme")


class _Places:
    """The places of lexemes in the grammar: which may begin each part, and which may come after each. Sets of places are bits of an int."""

    def __init__(self, writer: _Writer) -> None:
        self.writer = writer
        self.bits: dict[Node, int] = {}
        self.nodes: list[Node] = []
        self.shapes: list[_Shape] = []
        self.follow: list[int] = []
        self.first: dict[str, tuple[int, bool]] = dict.fromkeys(writer.rules, (0, False))  # of rules; may they be empty?
        self.after: dict[str, int] = dict.fromkeys(writer.rules, 0)
        while self._grow_first():
            pass
        while self._grow_after():
            pass

    def doubtful(self) -> set[Node] | None:
        """Lexemes that must be taken apart; None when there are too many places to tell.

        Goes through all sets of places where a text may be at the same time. Which rule a rule was entered from is not minded, so that
        there are more of them than there can be, but none is missing.
        """
        shapes, found = self.shapes, set()
        if len(shapes) > _MAX_PLACES:
            return None
        alike = [sum(1 << j for j, other in enumerate(shapes) if _meet(shape.first, other.first)) for shape in shapes]
        for i, shape in enumerate(shapes):
            if shape.more and any(_meet(shape.more, shapes[j].first) for j in _ones(self.follow[i])):
                found.add(self.nodes[i])
        todo = [self.first["root"][0]]
        seen = set(todo)
        while todo:
            together = todo.pop()
            for i in _ones(together):
                beside = together & alike[i]
                if not shapes[i].single and any(shapes[j].regex != shapes[i].regex for j in _ones(beside)):
                    found.add(self.nodes[i])
                after = reduce(or_, (self.follow[j] for j in _ones(beside)), self.follow[i])  # a token, which begins with nothing, too
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
            if len(seen) > _MAX_SETS:
                return None
        return found

    def _bit(self, node: Node, shape: _Shape) -> int:
        if node not in self.bits:
            self.bits[node] = 1 << len(self.shapes)
            self.nodes.append(node)
            self.shapes.append(shape)
            self.follow.append(0)
        return self.bits[node]

    def _grow_first(self) -> bool:
        before = dict(self.first)
        for name, node in reversed(self.writer.rules.items()):  # mostly from the leaves to the root
            self.first[name] = self._first(node)
        return self.first != before

    def _first(self, node: Node) -> tuple[int, bool]:
        if (shape := self.writer.lexeme(node)) is not None:
            return self._bit(node, shape), False
        match node:
            case Sequence(parts):
                bits = 0
                for part in parts:
                    more, empty = self._first(part)
                    bits |= more
                    if not empty:
                        return bits, False
                return bits, True
            case Choice(parts):
                firsts = [self._first(part) for part in parts]
                return reduce(or_, (bits for bits, _ in firsts), 0), any(empty for _, empty in firsts)
            case Repeat(part, least, _):
                bits, empty = self._first(part)
                return bits, empty or least == 0
            case Rule(name):
                return self.first[name]
        return self._bit(node, _NOTHING), False  # a token

    def _grow_after(self) -> bool:
        before, follow = dict(self.after), list(self.follow)
        for name, node in self.writer.rules.items():
            self._spread(node, self.after[name])
        return self.after != before or self.follow != follow

    def _spread(self, node: Node, after: int) -> None:
        """Note that the lexemes at those places may come after the node."""
        if self.writer.lexeme(node) is not None or isinstance(node, Token):
            self.follow[self._first(node)[0].bit_length() - 1] |= after
            return
        match node:
            case Sequence(parts):
                for part in reversed(parts):
                    self._spread(part, after)
                    bits, empty = self._first(part)
                    after = bits | (after if empty else 0)
            case Choice(parts):
                for part in parts:
                    self._spread(part, after)
            case Repeat(part, _, most):
                self._spread(part, after if most == 1 else after | self._first(part)[0])
            case Rule(name):
                self.after[name] |= after


class _NotRegular(Exception):
    """A rule comes back to itself, or the expression would be too long."""


class _Whole:
    """Writes rules as one regular expression."""

    def __init__(self, rules: Mapping[str, Node]) -> None:
        self.rules = rules
        self.open: set[str] = set()  # rules that are being written
        self.room = _MAX_WHOLE

    def write(self, node: Node) -> str:
        match node:
            case Chars(ranges):
                text = _class(ranges)
            case Sequence(parts):
                text = "".join(map(self.write, parts))
            case Choice(parts):
                text = "(" + "|".join(map(self.write, parts)) + ")"
            case Repeat(part, least, most):
                text = f"({self.write(part)}){{{least},{'' if most is None else most}}}"
            case Rule(name) if name not in self.open:
                self.open.add(name)
                text = self.write(self.rules[name])
                self.open.discard(name)
            case _:
                raise _NotRegular
        self.room -= len(text) if isinstance(node, Chars) else 8
        if self.room < 0:
            raise _NotRegular
        return text


def _reachable(rules: Mapping[str, Node]) -> dict[str, Node]:
    found: dict[str, Node] = {}
    todo = ["root"]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = rules[name]
            todo += [node.name for node in _nodes(rules[name]) if isinstance(node, Rule)]
    return found


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    match node:
        case Sequence(parts) | Choice(parts):
            for part in parts:
                yield from _nodes(part)
        case Repeat(part):
            yield from _nodes(part)


def _then(a: _Shape | None, b: _Shape | None) -> _Shape | None:
    if a is None or b is None or len(a.regex) > _MAX_REGEX or _meet(a.more, b.first) or (a.empty and _meet(a.first, b.first)):
        return None
    first = merged(a.first + b.first) if a.empty else a.first
    more = merged(a.more + b.first + b.more) if b.empty else b.more
    return _Shape(a.regex + b.regex, a.empty and b.empty, first, more)


def _either(shapes: list[_Shape | None]) -> _Shape | None:
    first: Ranges = ()
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    for shape in known:
        if _meet(first, shape.first):
            return None
        first = merged(first + shape.first)
    more = merged(part for shape in known for part in shape.more)
    return _Shape("(" + "|".join(shape.regex for shape in known) + ")", any(shape.empty for shape in known), first, more)


def _times(shape: _Shape | None, least: int, most: int | None) -> _Shape | None:
    if shape is None:
        return None
    more = shape.more
    if most != 1:
        if _meet(shape.more, shape.first):
            return None
        if most != least or shape.empty:  # else the last one is the last
            more = merged(shape.more + shape.first)
    counts = f"{{{least},{'' if most is None else most}}}"
    return _Shape(f"({shape.regex}){counts}", shape.empty or least == 0, shape.first, more)


def _meet(a: Ranges, b: Ranges) -> bool:
    """Whether there is a character in both."""
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i][1] < b[j][0]:
            i += 1
        elif b[j][1] < a[i][0]:
            j += 1
        else:
            return True
    return False


def _class(ranges: Ranges) -> str:
    """A character class; code points as numbers, so that nothing in it needs an escape."""
    parts = (f"\\x{{{low:x}}}" + (f"-\\x{{{high:x}}}" if high > low else "") for low, high in ranges)
    return "[" + "".join(parts) + "]"


def _ones(bits: int) -> Iterator[int]:
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
