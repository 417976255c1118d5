"""Values as models write them, JSON or nearly, read as they arrive and given out as JSON text.

Knows JSON, and how the dialects of tool calls differ from it; must not know calls. White space of true JSON stays as it was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ggrun.text.source import Emit, IllFormed, Markers, Source, Steps

MAX_DEPTH: Final = 64
_MAX_SCALAR: Final = 512  # characters of a number or a bare key
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?", re.ASCII)
_NUMBER_RUN: Final = re.compile(r"[-+.0-9eE]*")
_WORD_RUN: Final = re.compile(r"[A-Za-z]*")
_KEY_RUN: Final = re.compile(r"[^\s:={}\[\],\"']*")
_HEX: Final = re.compile(r"[0-9a-fA-F]*")
_RUNS: Final = {quote: re.compile(rf"[^{quote}\\\x00-\x1f]*") for quote in "\"'"}  # of a string, up to what is no plain character
_ESCAPES: Final = '"\\/bfnrt'
_PYTHON_ESCAPES: Final = {"\\": "\\\\", "'": "'", '"': '\\"', "n": "\\n", "r": "\\r", "t": "\\t", "b": "\\b", "f": "\\f", "\n": ""}
_WORDS: Final = {"true": "true", "false": "false", "null": "null"}
_LOOSE_WORDS: Final = _WORDS | {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """quotes: what strings stand in. raw: nothing in a string is an escape. bare_keys: keys may go without quotes. words: as JSON."""

    quotes: tuple[str, ...]
    words: Mapping[str, str]
    raw: bool = False
    bare_keys: bool = False
    python: bool = False

    @property
    def is_json(self) -> bool:
        return self.quotes == ('"',) and not self.bare_keys


DIALECTS: Final[dict[str, Dialect]] = {
    "json": Dialect(('"',), _WORDS),
    "gemma": Dialect(('<|"|>',), _LOOSE_WORDS, raw=True, bare_keys=True),
    "python": Dialect(('"', "'"), _LOOSE_WORDS, python=True),
}
JSON: Final = DIALECTS["json"]


def value(source: Source, emit: Emit, dialect: Dialect = JSON, depth: int = 0) -> Steps[None]:
    """Reads one value, white space before it, too. IllFormed where it is none or nests deeper than MAX_DEPTH."""
    space = yield from source.skip_space()
    if dialect.is_json and space:
        emit(space)
    if depth > MAX_DEPTH:
        raise IllFormed
    first = yield from source.peek()
    if first == "{":
        yield from _members(source, emit, dialect, depth, "}")
    elif first == "[":
        yield from _members(source, emit, dialect, depth, "]")
    elif first and first in "-0123456789":
        number = yield from source.run(_NUMBER_RUN, _MAX_SCALAR)
        if not _NUMBER.fullmatch(number):
            raise IllFormed
        emit(number)
    elif quote := (yield from _quote(source, dialect)):
        yield from string(source, emit, dialect, quote)
    else:
        word = yield from source.run(_WORD_RUN, 8)
        if word not in dialect.words:
            raise IllFormed
        emit(dialect.words[word])


def members(source: Source, emit: Emit, dialect: Dialect, end: str, colon: str = ":") -> Steps[None]:
    """The members of an object whose opening brace was read, up to and with `end`; emitted without braces. colon "=": keys are bare."""
    yield from _list(source, emit, dialect, 0, end, colon)


def string(source: Source, emit: Emit, dialect: Dialect, quote: str) -> Steps[None]:
    """Reads a string whose opening quote was read; emits it as JSON."""
    emit('"')
    if dialect.raw:
        if not (yield from Markers((quote,)).next(source, lambda text: emit(escaped(text)), cut=True)):
            raise IllFormed
        emit('"')
        return
    run = _RUNS[quote]
    while True:
        source_text = yield from source.some(run)
        if source_text:
            emit(source_text if dialect.is_json else escaped(source_text))
            continue
        character = yield from source.peek()
        source.take(1)
        if character == quote:
            emit('"')
            return
        if not character:
            raise IllFormed
        if character == "\\":
            yield from _escape(source, emit, dialect)
        else:
            emit(escaped(character))  # a line break or the like, which JSON wants escaped


def escaped(text: str) -> str:
    """Text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _members(source: Source, emit: Emit, dialect: Dialect, depth: int, end: str) -> Steps[None]:
    emit(source.take(1))
    yield from _list(source, emit, dialect, depth, end, ":" if end == "}" else "")
    emit(end)


def _list(source: Source, emit: Emit, dialect: Dialect, depth: int, end: str, colon: str) -> Steps[None]:
    if (yield from _reaches(source, emit, dialect, end)):
        return
    while True:
        if colon:
            yield from _key(source, emit, dialect, colon)
        yield from value(source, emit, dialect, depth + 1)
        if (yield from _reaches(source, emit, dialect, end)):
            return
        if (yield from source.peek()) != ",":
            raise IllFormed
        source.take(1)
        emit("," if dialect.is_json else ", ")


def _reaches(source: Source, emit: Emit, dialect: Dialect, end: str) -> Steps[bool]:
    """White space, and `end` if it is there."""
    space = yield from source.skip_space()
    if dialect.is_json and space:
        emit(space)
    if (yield from source.peek()) != end:
        return False
    source.take(1)
    return True


def _key(source: Source, emit: Emit, dialect: Dialect, colon: str) -> Steps[None]:
    key = ""
    space = yield from source.skip_space()
    if dialect.is_json and space:
        emit(space)
    if colon == ":" and (quote := (yield from _quote(source, dialect))):
        yield from string(source, emit, dialect, quote)
    elif dialect.bare_keys or colon == "=":
        key = yield from source.run(_KEY_RUN, _MAX_SCALAR)
        if not key:
            raise IllFormed
    else:
        raise IllFormed
    space = yield from source.skip_space()
    if (yield from source.peek()) != colon:
        raise IllFormed
    source.take(1)
    emit((json.dumps(key, ensure_ascii=False) if key else "") + (space + ":" if dialect.is_json else ": "))


def _quote(source: Source, dialect: Dialect) -> Steps[str]:
    """The opening quote that comes next, which is read; "" where there is none."""
    for quote in dialect.quotes:
        if (yield from source.follows(quote)):
            source.take(len(quote))
            return quote
    return ""


def _escape(source: Source, emit: Emit, dialect: Dialect) -> Steps[None]:
    """What follows a backslash."""
    letter = yield from source.peek()
    source.take(1)
    escapes = _PYTHON_ESCAPES if dialect.python else _ESCAPES
    digits = {"u": 4, "x": 2, "U": 8}.get(letter, 0) if dialect.python else 4 * (letter == "u")
    if digits:
        code = yield from source.run(_HEX, digits)
        if len(code) < digits or int(code, 16) > 0x10FFFF:
            raise IllFormed
        emit(f"\\u{code}" if digits == 4 else json.dumps(chr(int(code, 16)))[1:-1])
    elif letter and letter in escapes:
        emit(_PYTHON_ESCAPES[letter] if dialect.python else f"\\{letter}")
    elif letter and dialect.python:
        emit("\\\\" + escaped(letter))  # Python keeps the backslash of what is no escape
    else:
        raise IllFormed
