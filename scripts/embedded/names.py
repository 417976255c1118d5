"""Names: the ways to write one that exists, and names that do not exist.

Knows: every public name of the listed modules. Must not know: how questions are phrased.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from .corpus import CLASSES_WITH_METHODS, CORE_MODULES, WORDS, Item, all_public_names
from .phrasing import misspell

# What people call the built-in classes when they speak about their methods.
SPOKEN = {
    "str": ("str", "strings", "string", "a string", "str objects"),
    "list": ("list", "lists", "a list", "list objects"),
    "dict": ("dict", "dictionaries", "a dictionary", "dicts", "a dict"),
    "set": ("set", "sets", "a set"),
    "tuple": ("tuple", "tuples", "a tuple"),
    "bytes": ("bytes", "bytes objects"),
    "int": ("int", "integers", "an int"),
    "float": ("float", "floats", "a float"),
}


def spellings(item: Item) -> tuple[str, ...]:
    """Phrases for "member in its owner", such as `join from os.path` or `the append method of lists`."""
    last, owner = item.last, item.owner
    if item.kind == "method":
        owners = SPOKEN.get(owner, (owner, owner.rpartition(".")[2]))
        return tuple(
            pattern.format(l=last, o=o, c=owner)
            for o in owners
            for pattern in (
                "the {l} method of {o}",
                "{l} of {o}",
                "{l} on {o}",
                "the method {l} of {o}",
                "{o} {l}",
                "the {l}() method of {o}",
                "{l}() on {o}",
                "{c}'s {l} method",
                "the {c} method {l}",
            )
        )
    if owner == "builtins":
        patterns: tuple[str, ...] = ("the built-in {l}", "the {l} builtin", "builtins.{l}", "the built-in function {l}()", "{l}()")
    else:
        patterns = (
            "{l} in {o}",
            "{l} from {o}",
            "{l} from the {o} module",
            "{l} in the {o} module",
            "{o}'s {l}",
            "the {o} function {l}",
            "the {l} function from {o}",
            "the {l} function in {o}",
            "{l}() from {o}",
            "{l} of {o}",
            "{o} {l}",
            "from {o} import {l}",
            "{o} module's {l}",
            "{l} ({o})",
            "{l}() in {o}",
        )
    return tuple(pattern.format(l=last, o=owner) for pattern in patterns)


class Names:
    """All names, their unambiguous short forms, and a source of names that do not exist."""

    def __init__(self, items: Sequence[Item], words: Sequence[str], withheld: frozenset[str]) -> None:
        """`words` are plain English words to build members from; `withheld` names are never invented (they are for the tests)."""
        self.known = frozenset(item.name for item in items) | all_public_names() | withheld
        self._english = words
        self._builtin_methods = sorted({item.last for item in items if item.owner in SPOKEN})
        self.modules = sorted({item.name for item in items if item.kind == "module"})
        self.members = sorted({item.last for item in items if item.kind in ("function", "method", "class")})
        self.by_module = {m: [i.last for i in items if i.module == m and i.kind != "module"] for m in self.modules}
        self._popular = self.modules[:1] + WORDS["popular_modules"]
        self._popular_members = sorted({item.last for item in items if item.weight > 2})
        self._classes = WORDS["classes_with_methods"]
        self._lasts = frozenset(item.last for item in items)
        last = Counter(item.last for item in items if item.kind != "module")
        tail = Counter(".".join(item.name.split(".")[-2:]) for item in items)
        self.short: dict[str, tuple[str, ...]] = {}
        for item in items:
            forms = []
            ending = ".".join(item.name.split(".")[-2:])
            if item.kind == "method" and ending != item.name and tail[ending] == 1 and ending not in self.known:
                forms += [ending, ending]
            if (
                item.weight >= 1.5
                and last[item.last] == 1
                and item.kind in ("function", "class")
                and len(item.last) >= 5
                and item.last not in self.known
            ):
                forms.append(item.last)
            if item.weight >= 2.5 and item.kind == "method" and item.owner in ("str", "list", "dict") and self._first_owner(item, items):
                forms.append(item.last)
            if forms:
                self.short[item.name] = tuple(forms)
        self.taken = self.known | {form for forms in self.short.values() for form in forms}

    @staticmethod
    def _first_owner(item: Item, items: Sequence[Item]) -> bool:
        """Whether a bare method name means this item: the first of list, str, dict that has it, unless it is a name itself."""
        owners = [owner for owner in ("list", "str", "dict") if any(other.name == f"{owner}.{item.last}" for other in items)]
        return owners[0] == item.owner and not any(other.name == item.last for other in items)

    def write(self, item: Item, r: random.Random) -> tuple[str, bool]:
        """(the name as written, whether it is a plain dotted name)."""
        u = r.random()
        if u < 0.10 and item.name in self.short:
            return r.choice(self.short[item.name]), True
        if u < 0.24 and item.kind in ("function", "method", "class"):
            return r.choice(spellings(item)), False
        return item.name, True

    def _word(self, r: random.Random, compound: bool = False) -> str:
        """An invented word; a `compound` one cannot be mistaken for plain English."""
        u = r.uniform(0.30, 1.0) if compound else r.random()
        if u < 0.30:
            return r.choice(self._english)
        if u < 0.45:
            return "".join(r.choices(WORDS["syllables"], k=r.choice((2, 2, 3, 3, 4))))
        if u < 0.70:
            return r.choice(("_", "_", "")).join(r.choices(WORDS["name_words"], k=r.choice((2, 2, 3))))
        if u < 0.82:
            return "".join(word.capitalize() for word in r.choices(WORDS["name_words"], k=r.choice((1, 2, 2))))
        return r.choice(WORDS["name_words"]) + r.choice(WORDS["syllables"])

    def _bend(self, name: str, r: random.Random) -> str:
        """A real member's name changed a little."""
        u = r.random()
        if u < 0.25:
            digits = re.sub(r"\d+", lambda _: str(r.choice((r.randrange(100), r.randrange(10000)))), name)
            return digits if digits != name else misspell(name, r)
        if u < 0.45:
            return name + r.choice(
                (
                    "_all",
                    "_file",
                    "er",
                    "2",
                    "_list",
                    "_data",
                    "ize",
                    "_fast",
                    "x",
                    "_async",
                    "s",
                    "ify",
                    "_many",
                    "_safe",
                    "able",
                    "_one",
                    "64",
                    "_ex",
                )
            )
        if u < 0.6:
            return (
                r.choice(
                    (
                        "get_",
                        "make_",
                        "do_",
                        "to_",
                        "fast_",
                        "is_",
                        "re",
                        "un",
                        "super",
                        "multi",
                        "async_",
                        "safe_",
                        "deep",
                        "my",
                        "auto",
                        "x",
                        "i",
                    )
                )
                + name
            )
        if u < 0.75:
            return name[: max(2, len(name) // 2)] + r.choice(self.members)[-4:]
        if u < 0.9:
            return name + r.choice(("_", "")) + r.choice(WORDS["name_words"])
        return r.choice(WORDS["name_words"]) + r.choice(("_", "")) + name

    def invent(self, r: random.Random) -> str:
        """A plausible name that no module has."""
        while True:
            u = r.random()
            module = r.choice(r.choices((self.modules, CORE_MODULES[1:], self._popular), (0.25, 0.4, 0.35))[0])
            owner = module if r.random() < 0.72 else r.choice(self._classes)
            own = self.by_module.get(module) or self.members
            if r.random() < 0.17:
                member = r.choice((r.choice(self._builtin_methods), self._word(r), self._bend(r.choice(self._builtin_methods), r)))
                name = f"{r.choice(list(SPOKEN))}.{member}"
            elif u < 0.26:
                name = f"{owner}.{self._word(r)}"
            elif u < 0.44:
                name = f"{owner}.{r.choice(self._popular_members if r.random() < 0.6 else self.members)}"
            elif u < 0.66:
                name = f"{module}.{self._bend(r.choice(own), r)}"
            elif u < 0.72:
                name = f"{owner}.{self._bend(r.choice(self.members), r)}"
            elif u < 0.80:
                name = f"{self._word(r)}.{r.choice((r.choice(self.members), self._word(r)))}"
            elif u < 0.84:
                name = f"{misspell(module, r)}.{r.choice(own)}"
            elif u < 0.87:
                name = r.choice(WORDS["third_party"]) + r.choice(("", "", f".{self._word(r)}", f".{r.choice(self.members)}"))
            elif u < 0.90:
                name = f"{module}.{self._word(r)}.{r.choice((self._word(r), r.choice(self.members)))}"
            elif u < 0.95:
                name = self._word(r, compound=True)
            elif u < 0.97:
                name = self._word(r).replace("_", "").capitalize() + r.choice(("Error", "Warning", "Exception"))
            else:
                name = self._bend(r.choice(self.members + self.modules).replace(".", ""), r)
            name = name.replace("__", "_").strip("_")
            real = name in self.taken or name.lower() in self.taken or ("." not in name and name in self._lasts)
            if not real and len(name) > 3:
                return name

    def write_invented(self, name: str, r: random.Random) -> tuple[str, bool]:
        """(a made-up name as a person writes it, whether it is plain), in the same ways as a real one."""
        owner, _, _ = name.rpartition(".")
        if owner and r.random() < 0.14:
            kind = "method" if owner in CLASSES_WITH_METHODS else "function"
            return r.choice(spellings(Item(name, kind, owner, "", "", 1.0))), False
        return name, True
