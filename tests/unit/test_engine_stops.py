"""Stop words across pieces: shown text never holds one, and nothing else is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggrun.engine.stops import StopMatcher


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "found"),
    [
        (["END"], ["abc", "EN", "D more"], "abc", "END"),
        (["END"], ["abE", "Nx"], "abENx", None),
        (["aab"], ["aa", "ab"], "a", "aab"),
        (["\n\n", "x"], ["1\n", "\n2"], "1", "\n\n"),
        (["b", "ab"], ["zab"], "z", "ab"),
        ([], ["anything"], "anything", None),
        (["", "q"], ["ok"], "ok", None),
    ],
)
def test_streams(stops: list[str], pieces: list[str], shown: str, found: str | None) -> None:
    matcher = StopMatcher(stops)
    text = "".join(matcher.push(p) for p in pieces)
    text += matcher.finish() if matcher.found is None else ""
    assert (text, matcher.found) == (shown, found)


@given(st.lists(st.text("ab\n", max_size=4), max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_cutting_into_pieces_changes_nothing(pieces: list[str], stops: list[str]) -> None:
    whole, cut = "".join(pieces), StopMatcher(stops)
    text = "".join(cut.push(p) for p in pieces)
    text += cut.finish() if cut.found is None else ""
    ends = [whole.find(s) + len(s) for s in stops if s in whole]
    if not ends:
        assert text == whole
    else:
        assert cut.found in stops
        assert whole.startswith(text + cut.found)
        assert not any(s in text for s in stops)
