"""Lists and ranges of the command line, and the tests they make."""

import pytest

from ggrun.bench.matrix import MOST, Case, Settings, cases, combinations, numbers, pairs
from ggrun.errors import GgrunError


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["512"], (512,)),
        (["512,1024", "64"], (512, 1024, 64)),
        (["1-4"], (1, 2, 3, 4)),
        (["0-4096+1024"], (0, 1024, 2048, 3072, 4096)),
        (["1-10+4"], (1, 5, 9)),
        (["64-1024*2"], (64, 128, 256, 512, 1024)),
        (["3-3*7", " 0, 1-2 "], (3, 0, 1, 2)),
    ],
)
def test_numbers(texts: list[str], expected: tuple[int, ...]) -> None:
    assert numbers("-p", texts, 0) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is neither a number nor a range"),
        ("1,,2", "'' is neither"),
        ("ten", "'ten' is neither"),
        ("-1", "'-1' is neither"),
        ("1-", "'1-' is neither"),
        ("1-4/2", "'1-4/2' is neither"),
        ("4-1", "ends before it begins"),
        ("1-4+0", "never comes to its end"),
        ("1-4*1", "never comes to its end"),
        ("0-4*2", "never comes to its end"),
        ("0", "-b 0 is out of range"),
        ("1-99999999", "-b 99999999 is out of range"),
        ("123456789", "-b 123456789 is out of range"),
        (f"1-{MOST + 1}", f"more than {MOST} numbers"),
    ],
)
def test_numbers_that_are_none(text: str, said: str) -> None:
    with pytest.raises(GgrunError, match=r"^-b ") as refused:
        numbers("-b", [text], least=0 if text.startswith("0-") else 1)
    assert said in str(refused.value)


def test_pairs() -> None:
    assert pairs("-pg", ["512,128", " 1 , 2 "]) == ((512, 128), (1, 2))
    for text in ("512", "1,2,3", "a,b", "0,5", "5,0", ""):
        with pytest.raises(GgrunError, match=r"^-pg "):
            pairs("-pg", [text])


def test_cases_come_in_llama_benchs_order_and_have_its_names() -> None:
    made = cases((512, 0, 64), (128,), ((16, 4),), (0, 4096), (1, 8))
    assert [case.name for case in made] == [
        *("pp512", "pp64", "tg128", "tg128 x8", "pp16+tg4"),
        *("pp512 @ d4096", "pp64 @ d4096", "tg128 @ d4096", "tg128 x8 @ d4096", "pp16+tg4 @ d4096"),
    ]
    assert cases((0,), (0,), (), (0,), (1,)) == ()


def test_what_a_case_takes_and_what_it_times() -> None:
    assert (Case(512, 0, 100).n_ctx, Case(512, 0, 100).n_tokens) == (612, 512)
    assert (Case(0, 128, 100, 8).n_ctx, Case(0, 128, 100, 8).n_tokens) == (228, 1024)
    assert (Case(16, 4).n_ctx, Case(16, 4).n_tokens) == (20, 20)


def test_combinations() -> None:
    assert list(combinations({"n_batch": (), "n_threads": ()})) == [Settings()]
    made = list(combinations({"n_threads": (1, 2), "n_ubatch": (128, 256), "type_k": []}))
    assert [(s.n_ubatch, s.n_threads) for s in made] == [(128, 1), (128, 2), (256, 1), (256, 2)]
    assert {(s.n_batch, s.type_k) for s in made} == {(2048, "f16")}
