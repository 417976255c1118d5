"""One of several constraints: all of them at first, then those that fit what was said."""

import numpy as np
import pytest

from ggrun.engine.constraint import ConstraintError, constraint_for
from ggrun.engine.either import Either
from tests.unit.scripted import tokenizer

TOKENIZER = tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False)


def allowed(constraint: Either) -> set[int]:
    bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    return {int(i) for i in np.flatnonzero(bits) if i < TOKENIZER.n_vocab}


def made(*patterns: str) -> Either:
    return Either([constraint_for("regex", pattern, TOKENIZER) for pattern in patterns])


@pytest.mark.parametrize("said", ["one", "other", "5"])
def test_any_may_come(said: str) -> None:
    constraint = made("one", "other", "[0-9]")
    for id_ in ids(said):
        assert id_ in allowed(constraint)
        constraint.accept(id_)
    assert allowed(constraint) <= TOKENIZER.end_of_generation
    assert constraint.done


def test_what_no_longer_fits_is_forgotten() -> None:
    constraint = made("xa|xb", "xc")
    first = ids("x")[0]
    assert allowed(constraint) & {first}
    constraint.accept(first)
    assert allowed(constraint) == {ids("a")[0], ids("b")[0], ids("c")[0]}
    twin = constraint.copy()
    constraint.accept(ids("c")[0])
    constraint.mask()
    assert constraint.done
    assert ids("a")[0] in allowed(twin)


def test_an_end_is_allowed_where_one_may_end_and_another_go_on() -> None:
    constraint = made("x", "x[yz]")
    constraint.accept(ids("x")[0])
    assert allowed(constraint) == {*TOKENIZER.end_of_generation, ids("y")[0], ids("z")[0]}
    assert not constraint.done


def test_a_token_that_none_allows() -> None:
    constraint = made("x", "y")
    with pytest.raises(ConstraintError, match="does not follow"):
        constraint.accept(ids("z")[0])
