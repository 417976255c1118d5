"""The data the embedded model is trained on: true facts, made-up names that are made up, held-out questions that are held out."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from scripts.embedded.corpus import CORE_MODULES, MAX_TEXT, WORDS, Item, build_items, hand_made, resolve
from scripts.embedded.dialogue import Dialogue
from scripts.embedded.phrasing import NAME, expand, roughen

HELD_OUT = Path(__file__).parent.parent / "data" / "embedded"
QUESTIONS: list[dict[str, str]] = json.loads((HELD_OUT / "questions.json").read_text(encoding="utf-8"))
MADE_UP: list[dict[str, str]] = json.loads((HELD_OUT / "made_up.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def items() -> dict[str, Item]:
    return {item.name: item for item in build_items()}


@pytest.fixture(scope="module")
def dialogue(items: dict[str, Item]) -> Dialogue:
    return Dialogue(list(items.values()))


def plain(frame: str) -> str:
    return re.sub(r"[^a-z{} ]", "", frame.lower()).strip()


def test_every_fact_is_a_whole_sentence_about_a_real_name(items: dict[str, Item]) -> None:
    for name, item in items.items():
        resolve(name)
        assert item.text[-1] in ".!?", item
        assert item.text.count("(") == item.text.count(")"), item
        assert len(item.text) <= MAX_TEXT + 40, item
        assert item.answer().startswith(name), item


def test_popular_names_have_a_fact(items: dict[str, Item]) -> None:
    popular = {"zip", "print", "len", "dict.items", "math.pi", "os.path.join", "json.dumps", "re.sub", "str.split", "random.randint"}
    assert (popular | set(hand_made()) | {m for m in CORE_MODULES if m != "builtins"}) <= set(items)


def test_resolve_knows_what_does_not_exist() -> None:
    with pytest.raises(LookupError):
        resolve("os.path.joinify")
    assert resolve("str.split") == ("builtins", str.split)


def test_invented_names_do_not_exist(dialogue: Dialogue) -> None:
    r = random.Random(7)
    names = {dialogue.names.invent(r) for _ in range(400)}
    assert len(names) > 350
    third_party = set(WORDS["third_party"])
    for name in names:
        if name.partition(".")[0] not in third_party:
            with pytest.raises(LookupError):
                resolve(name)


def test_held_out_rows_are_sound(items: dict[str, Item]) -> None:
    assert len(QUESTIONS) == len(MADE_UP) == 100
    for row in QUESTIONS:
        assert row["keyword"].lower() in items[row["name"]].answer().replace(row["name"], "").lower(), row
    for row in MADE_UP:
        with pytest.raises(LookupError):
            resolve(row["name"])


def test_held_out_phrasings_are_never_drawn(dialogue: Dialogue) -> None:
    """Frames of one or two words aside, no question of the file is one the grammar can say."""
    held_out = {plain(row["question"].replace(row["name"], NAME)) for row in QUESTIONS}
    r = random.Random(11)
    drawn = {plain(dialogue.frame(table, r)) for table in ("core", "module", "signature", "kind") for _ in range(8000)}
    assert not held_out & drawn


def test_the_seed_fixes_the_data(dialogue: Dialogue) -> None:
    first, second = ([dialogue.turn(r) for _ in range(200)] for r in (random.Random(5), random.Random(5)))
    assert first == second


def test_noise_never_touches_the_name() -> None:
    r = random.Random(3)
    assert all(NAME in roughen("What does {n} do?", r) for _ in range(500))
    assert {expand("a[b|c|]", r) for _ in range(60)} == {"ab", "ac", "a"}
