"""Conversations: questions with their answers, in the proportions the model is trained on.

Knows: items, names, phrasings. Must not know: tokens. Everything is drawn from one random.Random, so a seed fixes the data.
"""

from __future__ import annotations

import pydoc_data.topics
import random
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from . import smalltalk
from .corpus import WORDS, Item
from .names import Names
from .phrasing import NAME, carrier, decorate, mixed_carrier, random_carrier, roughen


class Turn(NamedTuple):
    question: str
    answer: str


def refusal(name: str) -> str:
    """Begins with the name, as every answer does: first copied, then judged, which is far easier to learn than judging first."""
    return f"{name}? I do not know this name. It may not be part of Python's standard library."


# share of each kind of question; the rest asks about an item
SHARES = (("smalltalk", 0.035), ("offtopic", 0.03), ("invented", 0.37), ("signature", 0.035))


class Dialogue:
    """Draws turns and filler text; `words` are plain English words that are no names."""

    def __init__(self, items: Sequence[Item], withheld: frozenset[str] = frozenset()) -> None:
        self.items = list(items)
        self._weights = list(accumulate(item.weight for item in self.items))
        with_signature = [item for item in self.items if item.signature and item.kind != "module"]
        self._signatures, self._signature_weights = with_signature, list(accumulate(item.weight for item in with_signature))
        bare = {item.name.lower() for item in items if "." not in item.name} | {item.last.lower() for item in items}
        prose = " ".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
        counts: dict[str, int] = {}
        for word in re.findall(r"(?<![\w.`*])[a-z]{2,12}(?![\w.(`*])", prose + " ".join(item.text for item in items)):
            counts[word] = counts.get(word, 0) + 1
        self.words = sorted(word for word, count in counts.items() if count >= 3 and word not in bare) + WORDS["nouns"] * 2
        self.names = Names(items, self.words, withheld)
        self.paragraphs = [p for p in re.split(r"\n\s*\n", prose) if 80 < len(p) < 600 and p.isascii()]
        self._kinds: dict[str, Callable[[random.Random], Turn]] = {key: getattr(self, key) for key, _ in SHARES}

    def frame(self, table: str, r: random.Random) -> str:
        """A question frame with `{n}`; a share of them random words or two questions mixed."""
        u = r.random()
        if table == "core" and u < 0.25:
            return random_carrier(self.words, r)
        if table == "core" and u < 0.37:
            return mixed_carrier(r)
        return carrier(table, r)

    def ask(self, item: Item, r: random.Random) -> Turn:
        """A question about what an item is."""
        u = r.random()
        table = "module" if item.kind == "module" and u < 0.3 else "kind" if u < 0.12 or (item.kind == "module" and u < 0.6) else "core"
        written, plain = self.names.write(item, r) if table == "core" else (item.name, True)
        frame = self.frame(table, r)
        shown = decorate(written, r, item.kind in ("function", "method")) if plain else written
        return Turn(fill(frame, shown, item.kind, r), item.answer())

    def item(self, r: random.Random) -> Turn:
        return self.ask(r.choices(self.items, cum_weights=self._weights)[0], r)

    def signature(self, r: random.Random) -> Turn:
        item = r.choices(self._signatures, cum_weights=self._signature_weights)[0]
        return Turn(fill(carrier("signature", r), decorate(item.name, r, False), item.kind, r), item.name + item.signature)

    def invented(self, r: random.Random) -> Turn:
        name = self.names.invent(r)
        table = "kind" if r.random() < 0.14 else "signature" if r.random() < 0.04 else "module" if r.random() < 0.06 else "core"
        written, plain = self.names.write_invented(name, r) if table == "core" else (name, True)
        bare = "." not in written and "_" not in written  # among random words a bare made-up word could be any of them
        frame = carrier(table, r) if bare and r.random() < 0.75 else self.frame(table, r)
        shown = decorate(written, r, True) if plain else written
        return Turn(fill(frame, shown, r.choice(("function", "method", "class", "module", "function")), r), refusal(name))

    def smalltalk(self, r: random.Random) -> Turn:
        question, answer = smalltalk.talk(r)
        return Turn(roughen(question, r), answer)

    def offtopic(self, r: random.Random) -> Turn:
        u = r.random()
        question = smalltalk.offtopic(r) if u < 0.7 else random_carrier(self.words, r).replace(NAME, r.choice(self.words))
        return Turn(roughen(question, r), smalltalk.OFFTOPIC)

    def turn(self, r: random.Random) -> Turn:
        u = r.random()
        for kind, share in SHARES:
            u -= share
            if u < 0:
                return self._kinds[kind](r)
        return self.item(r)

    def filler(self, r: random.Random) -> str:
        """A stretch of prose to stand before a question in the same message."""
        return "\n".join(r.choice(self.paragraphs) for _ in range(r.choice((1, 1, 2, 4))))


def fill(frame: str, name: str, kind: str, r: random.Random) -> str:
    """The frame with typing noise, then the name put in untouched."""
    return roughen(frame, r).replace("{k}", kind).replace(NAME, name).strip()
