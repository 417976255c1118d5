"""Text that arrives in pieces, and coroutines that read it as if it were all there.

A coroutine (`Steps`) yields whenever it needs more text than has come; `Source.ended` says that no more will. Knows text; must not know
what it means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import Final, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Emit = Callable[[str], None]  # takes text that became certain

_SPACE: Final = re.compile(r"\s*")
_MAX_SPACE: Final = 256  # white space that may belong to what follows it; more than this is text


class IllFormed(Exception):
    """What is read is not what it seemed to be."""


class Source:
    """text[at:] has come and was not read yet. Everything read since `record()` can be had back."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._mark = -1
        self._recorded: list[str] = []

    def feed(self, piece: str) -> None:
        """More text at the end."""
        if self._mark >= 0:
            self._recorded.append(self.text[self._mark : self.at])
            self._mark = 0
        self.text = self.text[self.at :] + piece
        self.at = 0

    def record(self) -> None:
        """From here on, keep what is read."""
        self._recorded, self._mark = [], self.at

    def recorded(self) -> str:
        """What was read since record(), which ends."""
        self._recorded.append(self.text[self._mark : self.at])
        kept, self._recorded, self._mark = "".join(self._recorded), [], -1
        return kept

    @property
    def rest(self) -> int:
        """Characters that have come and are not read."""
        return len(self.text) - self.at

    def take(self, n: int) -> str:
        """The next n characters that have come."""
        taken = self.text[self.at : self.at + n]
        self.at += len(taken)
        return taken

    def peek(self) -> Steps[str]:
        """The next character, "" at the end."""
        while not self.rest and not self.ended:
            yield
        return self.text[self.at : self.at + 1]

    def skip_space(self) -> Steps[str]:
        """Past white space, which is returned."""
        skipped = []
        while True:
            match = _SPACE.match(self.text, self.at)
            skipped.append(self.take(match.end() - self.at if match else 0))
            if self.rest or self.ended:
                return "".join(skipped)
            yield

    def run(self, pattern: re.Pattern[str], limit: int) -> Steps[str]:
        """The longest match of `pattern` at the beginning, up to `limit` characters; pattern: one class of characters, repeated."""
        while True:
            match = pattern.match(self.text, self.at, self.at + limit)
            end = match.end() if match else self.at
            if end < len(self.text) or end - self.at >= limit or self.ended:
                return self.take(end - self.at)
            yield

    def follows(self, text: str, cut: bool = False) -> Steps[bool]:
        """Whether `text` comes next; waits only while it may. cut: its beginning at the end of everything counts, too."""
        while True:
            come = self.text[self.at : self.at + len(text)]
            if not text.startswith(come):
                return False
            if len(come) == len(text):
                return True
            if self.ended:
                return cut and bool(come)
            yield

    def skip(self, words: Iterable[str], cut: bool = False) -> Steps[bool]:
        """Past these words with any white space before each. False, and nothing after the words that were there is read, otherwise."""
        for word in words:
            yield from self.skip_space()
            if not (yield from self.follows(word, cut)):
                return False
            self.take(len(word))
        return True

    def some(self, pattern: re.Pattern[str]) -> Steps[str]:
        """What has come of a match of `pattern` at the beginning; "" only where there is none."""
        while not self.rest and not self.ended:
            yield
        match = pattern.match(self.text, self.at)
        return self.take(match.end() - self.at if match else 0)


class Markers:
    """Texts to be found in a stream, the one that begins first, the longest of those; tells what may still become one."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(sorted({text for text in texts if text}, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self.texts))) if self.texts else None
        self._beginnings = frozenset(text[:n] for text in self.texts for n in range(1, len(text)))
        self._longest = max(map(len, self._beginnings), default=0)
        self.trimmed = ""

    def search(self, text: str, at: int) -> re.Match[str] | None:
        """The first marker in text[at:]."""
        return self._pattern.search(text, at) if self._pattern else None

    def begun(self, text: str, at: int) -> int:
        """How many characters at the end of text[at:] may be the beginning of a marker."""
        for n in range(min(self._longest, len(text) - at), 0, -1):
            if text[len(text) - n :] in self._beginnings:
                return n
        return 0

    def next(self, source: Source, emit: Emit, trim: bool = False, cut: bool = False) -> Steps[str]:
        """Emits text up to the next marker, which is read and returned; "" at the end of the text.

        trim: without the white space before a marker, which `trimmed` then holds. cut: the beginning of one at the very end is no text.
        """
        while True:
            match = self.search(source.text, source.at)
            if match and (source.ended or source.text[match.start() :] not in self._beginnings):  # else it may yet be a longer one
                text = source.take(match.start() - source.at)
                kept = text.rstrip() if trim else text
                self.trimmed = text[len(kept) :]
                emit(kept)
                source.take(len(match[0]))
                return match[0]
            held = self.begun(source.text, source.at)
            if source.ended:
                emit(source.take(source.rest - (held if cut else 0)))
                source.take(held)
                return ""
            if trim:
                held = _with_space_before(source.text, source.at, held)
            emit(source.take(source.rest - held))
            yield


def _with_space_before(text: str, at: int, held: int) -> int:
    """held, and the white space before these last characters."""
    end = len(text) - held
    tail = text[max(at, end - _MAX_SPACE) : end]
    return held + len(tail) - len(tail.rstrip())
