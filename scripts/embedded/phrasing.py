"""How people ask: a grammar of questions about a name, and the carriers around it.

Knows: English (its patterns stand in grammar.toml). Must not know: any fact.
The model must learn one rule, "find the name, ignore the rest", so the carriers are many, misspelt and sometimes random words.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

NAME = "{n}"

ENDINGS = ("?", "?", "?", "?", ".", "", "", "", "!", "??", " ?", "...")

JOINTS = (" ", " ", " ", " ", ", ", ": ", " - ", "? ", ". ", "; ", " -- ", "! ", " (", ", the ")

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_COLLAPSE = re.compile(r" {2,}")


TABLES = {
    key: tuple(line for line in text.splitlines() if line)
    for key, text in tomllib.loads((Path(__file__).parent / "grammar.toml").read_text(encoding="utf-8")).items()
}


def expand(pattern: str, r: random.Random) -> str:
    """One sentence of a pattern: every `[a|b]` replaced by one of its choices."""
    return _CHOICE.sub(lambda match: r.choice(match.group(1).split("|")), pattern)


def misspell(word: str, r: random.Random) -> str:
    """A word with one letter swapped, dropped, doubled or replaced."""
    if len(word) < 3 or not word.isalpha():
        return word
    i, kind = r.randrange(len(word) - 1), r.randrange(4)
    if kind == 0:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if kind == 1:
        return word[:i] + word[i + 1 :]
    if kind == 2:
        return word[: i + 1] + word[i:]
    return word[:i] + r.choice("abcdefghijklmnopqrstuvwxyz") + word[i + 1 :]


def decorate(name: str, r: random.Random, callable_name: bool) -> str:
    """The name as a person writes it: bare, with parentheses, in backticks or quotes, with Python before it."""
    u = r.random()
    if callable_name and u < 0.2:
        name += r.choice(("()", "()", "()", "(x)", "(...)", "(a, b)", "( )"))
    u = r.random()
    if u < 0.14:
        name = f"`{name}`"
    elif u < 0.22:
        name = r.choice(('"{}"', "'{}'", "**{}**", "({})", "<{}>")).format(name)
    elif u < 0.28:
        name = r.choice(("python's ", "Python's ", "the python ", "Python ", "the ", "python ")) + name
    return name


def carrier(table: str, r: random.Random) -> str:
    """One question frame with `{n}` (and perhaps `{k}`), prefixes, suffixes, case and ending included."""
    core = _COLLAPSE.sub(" ", expand(r.choice(TABLES[table]), r)).strip()
    prefix = expand(r.choice(TABLES["prefix"]), r) + " " if r.random() < 0.16 else ""
    suffix = expand(r.choice(TABLES["suffix"]), r).rstrip() if r.random() < 0.18 else ""
    if not core.startswith(("{", "?")) and r.random() < 0.6:
        core = core[0].upper() + core[1:]
    if prefix and r.random() < 0.6:
        prefix = prefix[0].upper() + prefix[1:]
    if suffix.startswith("."):
        return prefix + core + r.choice(("?", "")) + suffix
    return prefix + core + suffix + r.choice(ENDINGS)


def random_carrier(words: Sequence[str], r: random.Random) -> str:
    """A frame of random words: no phrase to recognise, only a name to find, and where it ends."""
    before, after = r.choices((0, 1, 2, 3, 4, 6, 9), k=2)
    sides = [[misspell(word, r) if r.random() < 0.1 else word for word in r.choices(words, k=count)] for count in (before, after)]
    joint = r.choice(JOINTS) if after else ""
    left = " ".join([*sides[0], ""])
    left = left[:1].upper() + left[1:] if r.random() < 0.5 else left
    return left + NAME + joint + " ".join(sides[1]) + r.choice(ENDINGS)


def mixed_carrier(r: random.Random) -> str:
    """The opening of one question and the end of another."""
    first, second = carrier("core", r), carrier("core", r)
    return first.partition(NAME)[0] + NAME + second.partition(NAME)[2]


def roughen(frame: str, r: random.Random) -> str:
    """Typing noise in the carrier words only: misspellings, lower case, upper case, missing punctuation."""
    if r.random() < 0.12:
        words = frame.split(" ")
        for i in r.choices(range(len(words)), k=r.choice((1, 1, 2))):
            words[i] = misspell(words[i], r)
        frame = " ".join(words)
    u = r.random()
    if u < 0.10:
        frame = frame.lower()
    elif u < 0.115:
        frame = frame.upper().replace("{N}", "{n}").replace("{K}", "{k}")
    elif u < 0.15:
        frame = re.sub(r"[?.!,:]", "", frame)
    return frame
